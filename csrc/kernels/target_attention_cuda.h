// target_attention on a CUDA device, on raw device pointers. Formula and parameters: target_attention.h.
//
// Nothing here waits for the device or reads its memory: the work is cut on the device, from the offsets, and what is
// wrong with these, with visible or history_index is reported (see CudaDevice).
#pragma once

#include "cuda_device.h"
#include "target_attention.h"

namespace stca {

// Returns nullptr, or, where the CUDA kernels do not support the call's widths, those that they support.
const char* target_attention_cuda_refusal(const TargetAttentionParams& params);

// The most shared memory that a block of the forward, or of the backward, kernels takes for a call that is supported.
// Where the device has less, no kernel may run: others would have written results before that one fails.
int target_attention_cuda_shared_bytes(const TargetAttentionParams& params);
int target_attention_backward_cuda_shared_bytes(const TargetAttentionParams& params);

// Bytes of device memory that a call needs besides its inputs and outputs; 256-byte aligned.
int64_t target_attention_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);
int64_t target_attention_backward_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);

// Enqueue the kernels on a cudaStream_t. Both return nullptr, or the message of the CUDA error.
const char* target_attention_cuda(const TargetAttentionParams& params, const CudaDevice& device, void* workspace,
                                  void* stream);
const char* target_attention_backward_cuda(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                           void* workspace, void* stream);

}  // namespace stca
