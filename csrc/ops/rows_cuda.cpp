// Copies and sums of rows on CUDA.
#include "cuda.h"
#include "rows.h"

namespace stca {

void repeat_rows_on_cuda(const char* op, const at::Tensor& from, const int64_t* offsets, const at::Tensor& to) {
  const CudaCall call(from);
  call.check(op,
             repeat_rows_cuda(op, from.const_data_ptr(), offsets, from.size(0), row_width(from) * from.element_size(),
                              to.size(0), to.mutable_data_ptr(), call.device().reports, call.stream()));
}

void copy_suffixes_on_cuda(const char* op, const at::Tensor& from, const Suffixes& suffixes, const at::Tensor& to) {
  const CudaCall call(from, false);
  call.check(
      op, copy_suffixes_cuda(op, from.const_data_ptr(), from.size(0), suffixes, row_width(from) * from.element_size(),
                             to.size(0), to.mutable_data_ptr(), call.stream()));
}

void segment_sum_on_cuda(const char* op, const at::Tensor& rows, const SegmentSumParams& params, int64_t segments) {
  const CudaCall call(rows);
  // An order comes with offsets that were made here.
  int* reports = params.order == nullptr ? call.device().reports : nullptr;
  call.check(op, segment_sum_cuda(op, params, segments, rows.size(0), reports, call.stream()));
}

void suffix_sum_on_cuda(const char* op, const at::Tensor& rows, const SuffixSumParams& params, int64_t num_rows,
                        int64_t suffixes) {
  const CudaCall call(rows, false);
  call.check(op, suffix_sum_cuda(op, params, num_rows, rows.size(0), suffixes, call.stream()));
}

void select_suffixes_on_cuda(const char* op, const SelectParams& params, const at::Tensor& like) {
  const CudaCall call(like);
  call.check(op, select_suffixes_cuda(op, params, call.device().reports, call.stream()));
}

}  // namespace stca
