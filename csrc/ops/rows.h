// Launchers of the row copies and sums, shared by the ops that are made of them.
#pragma once

#include "../kernels/rows.h"
#include "common.h"

namespace stca {

// The product of all dimensions but the first.
int64_t row_width(const at::Tensor& tensor);

// Errors name `op`, the operator that calls. Where memory is short, `reason` says why the result has so many rows.

// to[i] = x[r] for offsets[r] <= i < offsets[r + 1], for i in [0, rows).
at::Tensor launch_repeat_rows(const char* op, const at::Tensor& x, const int64_t* offsets, int64_t rows,
                              const char* reason);

// Returns the rows of the suffixes of histories x [N, ...].
at::Tensor launch_copy_suffixes(const char* op, const at::Tensor& x, const Suffixes& suffixes, int64_t rows,
                                const char* reason);

// Returns sums [S, ...] of rows [N, ...] by segments (see SegmentSumParams).
at::Tensor launch_segment_sum(const char* op, const at::Tensor& rows, const int64_t* order, const int64_t* offsets,
                              int64_t segments, bool mean, Dtype dtype);

// The reverse of launch_copy_suffixes: sums [num_rows, ...] of rows like those of its result. `index` [S] names the
// request of each suffix, `offsets` [requests + 1] their rows.
at::Tensor launch_suffix_sum(const char* op, const at::Tensor& rows, const Suffixes& suffixes, const at::Tensor& index,
                             const at::Tensor& offsets, int64_t num_rows, Dtype dtype);

// What these call where tensors are on CUDA (rows_cuda.cpp). Rows are contiguous, pointers on their device.
void repeat_rows_on_cuda(const char* op, const at::Tensor& from, const int64_t* offsets, const at::Tensor& to);
void copy_suffixes_on_cuda(const char* op, const at::Tensor& from, const Suffixes& suffixes, const at::Tensor& to);
void segment_sum_on_cuda(const char* op, const at::Tensor& rows, const SegmentSumParams& params, int64_t segments);
void suffix_sum_on_cuda(const char* op, const at::Tensor& rows, const SuffixSumParams& params, int64_t num_rows,
                        int64_t suffixes);
void select_suffixes_on_cuda(const char* op, const SelectParams& params, const at::Tensor& like);

// For each value v in [0, count): the places i with index[i] == v, in order. `order` is [index size], `offsets` is
// [count + 1].
struct InverseIndex {
  at::Tensor order, offsets;
};
InverseIndex inverse_index_of(const at::Tensor& index, int64_t count);

}  // namespace stca
