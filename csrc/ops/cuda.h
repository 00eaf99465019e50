// A call of CUDA kernels: the device and stream of a tensor, workspace there, and errors as exceptions.
#pragma once

#include <ATen/DeviceGuard.h>

#include "../kernels/cuda_device.h"
#include "common.h"

namespace stca {

// Raises ValueError for what kernels of earlier calls have reported (see CudaDevice), and forgets it.
inline void raise_reports(int* reports) {
  static constexpr const char* kExpectations[] = {
#define STCA_CUDA_CHECK_TEXT(name, expectation) expectation,
      STCA_FOR_EACH_CUDA_CHECK(STCA_CUDA_CHECK_TEXT)
#undef STCA_CUDA_CHECK_TEXT
  };
  for (int i = 0; i < int(CudaCheck::kCount); ++i) {
    volatile int& report = reports[i];
    if (report == 0) continue;
    report = 0;
    TORCH_CHECK_VALUE(false, "stca: ", kExpectations[i],
                      ", which an earlier call on a GPU was not given: its results "
                      "are wrong (with STCA_DEBUG=1 in the environment that call itself raises)");
  }
}

class CudaCall {
 public:
  // Makes the tensor's device the current one for as long as this lives. The first of an operator raises what earlier
  // calls have reported.
  explicit CudaCall(const at::Tensor& like, bool is_first = true);

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
