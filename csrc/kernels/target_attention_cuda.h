// target_attention on a CUDA device, on raw device pointers. Formula and parameters: target_attention.h.
//
// Nothing here waits for the device or reads its memory: the work is cut on the device, from the offsets.
#pragma once

#include "cuda_device.h"
#include "target_attention.h"

namespace stca {

// nullptr, or the widths that the CUDA kernels support where they do not support this call's.
const char* target_attention_cuda_refusal(const TargetAttentionParams& params);

// Shared memory of one block, at most, of the forward and of the backward kernels of a call that is supported. Where
// the device has less no kernel must run, for others may have written results before one fails.
int target_attention_cuda_shared_bytes(const TargetAttentionParams& params);
int target_attention_backward_cuda_shared_bytes(const TargetAttentionParams& params);

// Bytes of device memory that a call needs besides its inputs and outputs; 256-byte aligned.
int64_t target_attention_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);
int64_t target_attention_backward_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);

// Enqueue the kernels on a cudaStream_t; nullptr, or the message of the CUDA error.
const char* target_attention_cuda(const TargetAttentionParams& params, const CudaDevice& device, void* workspace,
                                  void* stream);
const char* target_attention_backward_cuda(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                           void* workspace, void* stream);

}  // namespace stca
