// target_attention on Hopper with v beside k, for what its kernels take; target_attention.h asks.
#pragma once

#include "../target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Whether the kernels take a call: elements of 16 bits, rows of more than 32 and up to 128 columns that start at
// multiples of 16 bytes, no index, more than a few query rows.
bool takes_projected(const TargetAttentionParams& p);

// The same for the gradients, where the heads that share a history head are a power of two, up to 64.
bool takes_projected_backward(const TargetAttentionBackwardParams& b);

// As workspace(), partial_rows() and the launches in target_attention.h.
int64_t projected_workspace(const TargetAttentionParams& p, const CudaDevice& device);
int64_t projected_partial_rows(const TargetAttentionParams& p, const CudaDevice& device);
const char* launch_projected_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace,
                                     Stream stream);
const char* launch_projected_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                                      const Weighing* weighing, float* sums, Stream stream);

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
