// request_reduce: the rows of each request's targets, summed or averaged.
#include <ATen/ops/diff.h>
#include <ATen/ops/div.h>

#include "register.h"
#include "rows.h"

namespace stca {
namespace {

constexpr const char* kOp = "request_reduce";

at::Tensor request_reduce(const at::Tensor& x, const at::Tensor& target_offsets, bool mean) {
  STCA_CHECK(x.dim() >= 1, kOp, "x must be [T, ...], got ", x.sizes());
  STCA_CHECK(x.device() == target_offsets.device(), kOp, "x must be on the device of target_offsets, ",
             target_offsets.device(), ", got ", x.device());
  const at::Tensor offsets = checked_offsets(kOp, "target_offsets", target_offsets, x.size(0), "x", x);
  return launch_segment_sum(kOp, x, nullptr, offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, mean,
                            checked_dtype(kOp, "x", x));
}

// Rows of a mean are divided before they are repeated, in the accumulation type, and rounded once: a count need not be
// a number of grad's dtype.
at::Tensor request_reduce_backward(const at::Tensor& grad, const at::Tensor& target_offsets, bool mean, int64_t total) {
  checked_dtype(kOp, "grad", grad);
  const at::Tensor offsets =
      checked_offsets(kOp, "target_offsets", target_offsets, total, "the result (total)", target_offsets);
  const int64_t requests = offsets.size(0) - 1;
  STCA_CHECK(grad.dim() >= 1 && grad.size(0) == requests, kOp, "grad must be [R, ...] with R = ", requests, ", got ",
             grad.sizes());
  STCA_CHECK(grad.device() == target_offsets.device(), kOp, "grad must be on the device of target_offsets, ",
             target_offsets.device(), ", got ", grad.device());
  STCA_CHECK(total >= 0 && (requests > 0 || total == 0), kOp, "total must be at least 0, and 0 without requests, got ",
             total);
  at::Tensor rows = grad;
  if (mean) {
    std::vector<int64_t> column(grad.dim(), 1);
    column[0] = requests;
    const at::Tensor counts = offsets.diff().clamp_min(1).to(accumulation_type(grad)).view(column);
    rows = at::div(grad, counts).to(grad.scalar_type());
  }
  return launch_repeat_rows(kOp, rows, offsets.const_data_ptr<int64_t>(), total, "total");
}

}  // namespace

STCA_REGISTER(m) {
  m.impl("request_reduce", &request_reduce);
  m.impl("request_reduce_backward", &request_reduce_backward);
}

}  // namespace stca
