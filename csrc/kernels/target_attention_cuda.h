// target_attention on a CUDA device, on raw device pointers. Formula and parameters: target_attention.h.
//
// Nothing here waits for the device or reads its memory: the work is cut on the device, from the offsets.
#pragma once

#include <string>

#include "target_attention.h"

namespace stca {

struct CudaDevice {
  int multiprocessors;
  int shared_bytes;  // of one block, at most
};

// What the CUDA kernels support where they do not support this call, with its gradients where `backward`; empty: they
// do. What it does not refuse has shared memory for all its kernels: none of them fails after others ran.
std::string target_attention_cuda_refusal(const TargetAttentionParams& params, const CudaDevice& device, bool backward);

// Bytes of device memory that a call needs besides its inputs and outputs; 256-byte aligned.
int64_t target_attention_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);
int64_t target_attention_backward_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device);

// Enqueue the kernels on a cudaStream_t; nullptr, or the message of the CUDA error.
const char* target_attention_cuda(const TargetAttentionParams& params, const CudaDevice& device, void* workspace,
                                  void* stream);
const char* target_attention_backward_cuda(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                           void* workspace, void* stream);

}  // namespace stca
