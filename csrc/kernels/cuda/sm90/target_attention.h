// target_attention on Hopper, for what its kernels take; the common kernels take everything else.
#pragma once

#include "../target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Whether Hopper's kernels take a call: elements have 16 bits, rows start at multiples of 16 bytes.
// Where v is k, rows are 136 to 1,024 wide; for gradients also one history head, contiguous q, and wide rows only for
// many query rows. Where it is not: projected.h.
bool takes(const TargetAttentionParams& p, const CudaDevice& device);
bool takes_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device);

// Bytes of workspace of the forward pass; blocks that keep dS, and rows of partial sums, of the backward pass, at most.
int64_t workspace(const TargetAttentionParams& p, const CudaDevice& device);
int64_t kept_blocks(const TargetAttentionParams& p, const CudaDevice& device);
int64_t partial_rows(const TargetAttentionParams& p, const CudaDevice& device);

// Enqueue the passes. The workspace is laid out like that of the common kernels; backward, `weighing` has been computed
// and `kept` is where dS and partial sums go.
const char* launch_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream);
const char* launch_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                            const Weighing* weighing, const Kept& kept, Stream stream);

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
