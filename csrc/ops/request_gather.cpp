// request_gather: a row per request -> a row per target, for several tensors in one call.
#include <vector>

#include "register.h"
#include "rows.h"

namespace stca {
namespace {

constexpr const char* kOp = "request_gather";

std::vector<at::Tensor> request_gather(at::TensorList xs, const at::Tensor& target_offsets,
                                       std::optional<int64_t> total) {
  STCA_CHECK(target_offsets.dim() == 1 && target_offsets.size(0) >= 1, kOp, "target_offsets must be [R + 1], got ",
             target_offsets.sizes());
  STCA_CHECK(total.value_or(0) >= 0, kOp, "total must be at least 0, got ", *total);
  const int64_t requests = target_offsets.size(0) - 1;
  const at::Tensor checked =
      checked_offsets(kOp, "target_offsets", target_offsets, total, "the result (total)", target_offsets);
  const int64_t* offsets = checked.const_data_ptr<int64_t>();
  // Without a total the last offset is read, which waits for a GPU.
  const int64_t targets = total.has_value()  ? *total
                          : checked.is_cpu() ? offsets[requests]
                                             : checked[requests].item<int64_t>();
  std::vector<at::Tensor> results;
  for (const at::Tensor& x : xs) {
    STCA_CHECK(x.dim() >= 1 && x.size(0) == requests, kOp, "x must be [R, ...] with R = ", requests, ", got ",
               x.sizes());
    STCA_CHECK(x.device() == target_offsets.device(), kOp, "x must be on the device of target_offsets, ",
               target_offsets.device(), ", got ", x.device());
    STCA_CHECK(requests > 0 || targets == 0, kOp, "total must be 0 without requests, got ", targets);
    results.push_back(
        launch_repeat_rows(kOp, x, offsets, targets, total.has_value() ? "total" : "the last of target_offsets"));
  }
  return results;
}

}  // namespace

STCA_REGISTER(m) { m.impl("request_gather", &request_gather); }

}  // namespace stca
