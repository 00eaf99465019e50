// jagged_select: the histories of chosen requests, each cut to its last rows, in one copy.
#include <ATen/ops/add.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/sub.h>
#include <torch/library.h>

#include <tuple>

#include "rows.h"

#if defined(STCA_WITH_CUDA)
#include "cuda.h"
#endif

namespace stca {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "jagged_select";

// Which row of `values` each row of the result is [total], and the result's offsets [S + 1].
struct Selection {
  Tensor rows, offsets;
};

Tensor checked_list(const char* name, const Tensor& tensor, const char* shape, int64_t size, const Tensor& values) {
  STCA_CHECK(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), kOp, name, " must be ", shape, ", got ",
             tensor.sizes());
  return checked_integers(kOp, name, tensor, "values", values);
}

// Wherever values can be looked at: on the CPU always.
void check_values(const Tensor& index, const Tensor& keep, int64_t requests) {
  const optional<Tensor> chosen = values_to_check(index);
  if (!chosen.has_value()) return;
  const int64_t* request = chosen->const_data_ptr<int64_t>();
  const Tensor kept = keep.defined() ? keep.cpu() : Tensor();
  for (int64_t s = 0; s < index.size(0); ++s) {
    STCA_CHECK(0 <= request[s] && request[s] < requests, kOp, "index[", s, "] must be a request in [0, ", requests,
               "), got ", request[s]);
    if (!keep.defined()) continue;
    const int64_t most = kept.const_data_ptr<int64_t>()[s];
    STCA_CHECK(most >= 0, kOp, "keep[", s, "] must be a number of rows, at least 0, got ", most);
  }
}

// rows[i] = lasts[s] - (offsets[s + 1] - i) for the rows i of selection s.
Tensor suffix_rows(const Tensor& offsets, const Tensor& lasts, int64_t total) {
  const Tensor rows = at::empty({total}, offsets.options());
  const int64_t* ends = offsets.const_data_ptr<int64_t>();
  const int64_t* last = lasts.const_data_ptr<int64_t>();
  int64_t* to = rows.mutable_data_ptr<int64_t>();
#if defined(STCA_WITH_CUDA)
  if (runs_on_cuda(offsets)) {
    const CudaCall call(offsets);
    call.check(kOp, suffix_rows_cuda(ends, last, lasts.size(0), total, to, call.stream()));
    return rows;
  }
#endif
  for (int64_t s = 0; s < lasts.size(0); ++s) {
    for (int64_t i = ends[s]; i < ends[s + 1]; ++i) to[i] = last[s] - (ends[s + 1] - i);
  }
  return rows;
}

Selection select(const Tensor& values, const Tensor& offsets, const Tensor& index, const optional<Tensor>& keep,
                 optional<int64_t> total) {
  STCA_CHECK(values.dim() >= 1, kOp, "values must be [N, ...], got ", values.sizes());
  const Tensor from = checked_offsets(kOp, "offsets", offsets, values.size(0), "values", values);
  const Tensor chosen = checked_list("index", index, "[S]", -1, values);
  const int64_t count = chosen.size(0);
  const Tensor kept = keep.has_value() ? checked_list("keep", *keep, "[S] like index", count, values) : Tensor();
  check_values(chosen, kept, from.size(0) - 1);

  const Tensor lasts = from.index_select(0, chosen.add(1));
  Tensor lengths = lasts.sub(from.index_select(0, chosen));
  if (kept.defined()) lengths = at::minimum(lengths, kept);
  const Tensor ends = at::constant_pad_nd(lengths.cumsum(0), {1, 0});
  // Without a total the last offset is looked at, for which a GPU is waited for.
  const optional<Tensor> seen = total.has_value() ? values_to_check(ends) : ends.cpu();
  const int64_t rows = seen.has_value() ? seen->const_data_ptr<int64_t>()[count] : *total;
  STCA_CHECK(total.value_or(rows) == rows && (count > 0 || rows == 0), kOp,
             "total must be the number of rows selected, ", count > 0 ? rows : 0, ", got ", total.value_or(rows));
  return {suffix_rows(ends, lasts, rows), ends};
}

std::tuple<Tensor, Tensor> jagged_select(const Tensor& values, const Tensor& offsets, const Tensor& index,
                                         const optional<Tensor>& keep, optional<int64_t> total) {
  const Selection selection = select(values, offsets, index, keep, total);
  return {launch_copy_rows(values, selection.rows), selection.offsets.to(offsets.scalar_type())};
}

Tensor jagged_select_backward(const Tensor& grad, const Tensor& offsets, const Tensor& index,
                              const optional<Tensor>& keep, int64_t num_rows) {
  std::vector<int64_t> sizes = grad.sizes().vec();
  sizes[0] = num_rows;
  const Selection selection = select(grad.new_empty(sizes), offsets, index, keep, grad.size(0));
  const Places places = places_of(selection.rows, num_rows);
  return launch_segment_sum(grad, places.order.const_data_ptr<int64_t>(), places.offsets.const_data_ptr<int64_t>(),
                            num_rows, false, checked_dtype(kOp, "grad", grad));
}

}  // namespace

TORCH_LIBRARY_IMPL(stca, CPU, m) {
  m.impl("jagged_select", &jagged_select);
  m.impl("jagged_select_backward", &jagged_select_backward);
}
#if defined(STCA_WITH_CUDA)
TORCH_LIBRARY_IMPL(stca, CUDA, m) {
  m.impl("jagged_select", &jagged_select);
  m.impl("jagged_select_backward", &jagged_select_backward);
}
#endif

}  // namespace stca
