// request_reduce: the rows of each request's targets, summed or averaged.
#include <torch/library.h>

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

}  // namespace

TORCH_LIBRARY_IMPL(stca, CPU, m) { m.impl("request_reduce", &request_reduce); }
#if defined(STCA_WITH_CUDA)
TORCH_LIBRARY_IMPL(stca, CUDA, m) { m.impl("request_reduce", &request_reduce); }
#endif

}  // namespace stca
