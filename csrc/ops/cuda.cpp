#include "cuda.h"

#if defined(STCA_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace stca {

#if defined(STCA_WITH_CUDA)

bool runs_on_cuda(const at::Tensor& tensor) { return tensor.is_cuda(); }

CudaCall::CudaCall(const at::Tensor& like)
    : guard_(like.device()), options_(like.options().dtype(at::kByte)), stream_(c10::cuda::getCurrentCUDAStream()) {
  const int index = like.get_device();
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.capability, cudaDevAttrComputeCapabilityMajor, index));
  device_.sm90_kernels = device_.capability == 9 && sm90_kernels_asked_for();
}

#else

bool runs_on_cuda(const at::Tensor&) { return false; }

#endif

}  // namespace stca
