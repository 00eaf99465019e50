// request_gather: a row per request -> a row per target, for several tensors in one call.
#include <torch/library.h>

#include <vector>

#include "rows.h"

namespace stca {
namespace {

constexpr const char* kOp = "request_gather";

std::vector<at::Tensor> request_gather(at::TensorList xs, const at::Tensor& target_offsets,
                                       std::optional<int64_t> total) {
  STCA_CHECK(target_offsets.dim() == 1 && target_offsets.size(0) >= 1, kOp, "target_offsets must be [R + 1], got ",
             target_offsets.sizes());
  const int64_t requests = target_offsets.size(0) - 1;
  const at::Tensor checked =
      checked_offsets(kOp, "target_offsets", target_offsets, total, "the result (total)", target_offsets);
  const int64_t* offsets = checked.const_data_ptr<int64_t>();
  const int64_t targets = offsets[requests];
  std::vector<at::Tensor> results;
  for (const at::Tensor& x : xs) {
    STCA_CHECK(x.dim() >= 1 && x.size(0) == requests, kOp, "x must be [R, ...] with R = ", requests, ", got ",
               x.sizes());
    STCA_CHECK(x.is_cpu(), kOp, "x must be on the device of target_offsets, cpu, got ", x.device());
    const at::Tensor rows = x.contiguous();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes[0] = targets;
    const at::Tensor result = at::empty(sizes, x.options());
    const int64_t row_bytes = row_width(x) * x.element_size();
    const auto kernel = STCA_SELECT_CPU_KERNEL(repeat_rows);
    const int64_t grain = std::max<int64_t>(1, (1 << 16) / (row_bytes + 1));
    void* to = result.mutable_data_ptr();
    at::parallel_for(0, row_bytes == 0 ? 0 : targets, grain, [&](int64_t begin, int64_t end) {
      kernel(rows.const_data_ptr(), offsets, requests, row_bytes, begin, end, to);
    });
    results.push_back(result);
  }
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(stca, CPU, m) { m.impl("request_gather", &request_gather); }

}  // namespace stca
