// A call of CUDA kernels: the device and stream of a tensor, workspace there, and errors as exceptions.
#pragma once

#include <ATen/DeviceGuard.h>

#include "../kernels/cuda_device.h"
#include "common.h"

namespace stca {

class CudaCall {
 public:
  // Makes the tensor's device the current one for as long as this lives.
  explicit CudaCall(const at::Tensor& like);

  const CudaDevice& device() const { return device_; }
  void* stream() const { return stream_; }
  at::Tensor workspace(int64_t bytes) const { return at::empty({bytes}, options_); }

  // Raises RuntimeError "op: CUDA: message" where there is a message.
  void check(const char* op, const char* error) const { TORCH_CHECK(error == nullptr, op, ": CUDA: ", error); }

 private:
  at::OptionalDeviceGuard guard_;
  at::TensorOptions options_;
  CudaDevice device_;
  void* stream_;
};

}  // namespace stca
