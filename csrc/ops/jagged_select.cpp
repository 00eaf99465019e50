// jagged_select: the histories of chosen requests, each cut to its last rows, in one copy.
#include <torch/library.h>

#include <tuple>

#include "rows.h"

namespace stca {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "jagged_select";

// Which row of `values` each row of the result is, and the result's offsets.
struct Selection {
  Tensor rows, offsets;
};

Tensor checked_list(const char* name, const Tensor& tensor, const char* shape, int64_t size) {
  STCA_CHECK(tensor.scalar_type() == at::kInt || tensor.scalar_type() == at::kLong, kOp, name,
             " must be int32 or int64, got ", tensor.scalar_type());
  STCA_CHECK(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), kOp, name, " must be ", shape, ", got ",
             tensor.sizes());
  STCA_CHECK(tensor.is_cpu(), kOp, name, " must be on the device of values, cpu, got ", tensor.device());
  return tensor.to(at::kLong).contiguous();
}

Selection select(const Tensor& values, const Tensor& offsets, const Tensor& index, const optional<Tensor>& keep,
                 optional<int64_t> total) {
  STCA_CHECK(values.dim() >= 1, kOp, "values must be [N, ...], got ", values.sizes());
  STCA_CHECK(values.is_cpu(), kOp, "values must be on the cpu, got ", values.device());
  const Tensor from = checked_offsets(kOp, "offsets", offsets, values.size(0), "values", values);
  const Tensor chosen = checked_list("index", index, "[S]", -1);
  const int64_t count = chosen.size(0), requests = from.size(0) - 1;
  Tensor kept;
  if (keep.has_value()) kept = checked_list("keep", *keep, "[S] like index", count);

  const int64_t* starts = from.const_data_ptr<int64_t>();
  const int64_t* request = chosen.const_data_ptr<int64_t>();
  Selection selection{Tensor(), at::empty({count + 1}, at::kLong)};
  int64_t* ends = selection.offsets.mutable_data_ptr<int64_t>();
  ends[0] = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t r = request[s];
    STCA_CHECK(0 <= r && r < requests, kOp, "index[", s, "] must be a request in [0, ", requests, "), got ", r);
    int64_t length = starts[r + 1] - starts[r];
    if (keep.has_value()) {
      const int64_t most = kept.const_data_ptr<int64_t>()[s];
      STCA_CHECK(most >= 0, kOp, "keep[", s, "] must be a number of rows, at least 0, got ", most);
      length = std::min(length, most);
    }
    ends[s + 1] = ends[s] + length;
  }
  STCA_CHECK(!total.has_value() || *total == ends[count], kOp, "total must be the number of rows selected, ",
             ends[count], ", got ", *total);
  selection.rows = at::empty({ends[count]}, at::kLong);
  int64_t* rows = selection.rows.mutable_data_ptr<int64_t>();
  for (int64_t s = 0; s < count; ++s) {
    const int64_t last = starts[request[s] + 1];
    for (int64_t i = ends[s]; i < ends[s + 1]; ++i) rows[i] = last - (ends[s + 1] - i);
  }
  return selection;
}

std::tuple<Tensor, Tensor> jagged_select(const Tensor& values, const Tensor& offsets, const Tensor& index,
                                         const optional<Tensor>& keep, optional<int64_t> total) {
  const Selection selection = select(values, offsets, index, keep, total);
  const Tensor from = values.contiguous();
  std::vector<int64_t> sizes = values.sizes().vec();
  sizes[0] = selection.rows.size(0);
  const Tensor result = at::empty(sizes, values.options());
  const int64_t row_bytes = row_width(values) * values.element_size();
  const auto kernel = STCA_SELECT_CPU_KERNEL(copy_rows);
  const int64_t* rows = selection.rows.const_data_ptr<int64_t>();
  void* to = result.mutable_data_ptr();
  at::parallel_for(0, row_bytes == 0 ? 0 : sizes[0], std::max<int64_t>(1, (1 << 16) / (row_bytes + 1)),
                   [&](int64_t begin, int64_t end) { kernel(from.const_data_ptr(), rows, row_bytes, begin, end, to); });
  return {result, selection.offsets.to(offsets.scalar_type())};
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

}  // namespace stca
