// Forward pass of target_attention for a history of int8 with scales: the kernels of target_attention_forward.cuh,
// which convert a tile of rows when it has come (int8_tile.cuh).
#include "target_attention_forward.cuh"

namespace stca {
namespace cuda {
namespace {

template <class T, int kWidth, bool kShared>
using Rows = Forward<T, kWidth, kShared, int8_t>;
template <class T, int kWidth, bool kShared>
using Few = ForFewRows<T, kWidth, kShared, int8_t>;

template <class Use>
auto visit_int8(const TargetAttentionParams& p, Use use) {
  return has_few_rows(p) ? visit_layout<Few>(p, use) : visit_layout<Rows>(p, use);
}

}  // namespace

int int8_shared_bytes(const TargetAttentionParams& p) {
  return visit_int8(p, [](auto layout) { return decltype(layout)::type::kBytes; });
}

int64_t int8_workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  return visit_int8(p, [&](auto layout) { return workspace_of<typename decltype(layout)::type>(p, device); });
}

const char* launch_int8(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  return visit_int8(
      p, [&](auto layout) { return enqueue<typename decltype(layout)::type>(p, device, workspace, stream); });
}

}  // namespace cuda
}  // namespace stca
