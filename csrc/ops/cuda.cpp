#include "cuda.h"

#if defined(STCA_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
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
  // Hopper's own kernels are asked for until `make gpu` has confirmed them; without, the common ones run there too.
  const char* sm90 = std::getenv("STCA_SM90");
  if (sm90 == nullptr || std::strcmp(sm90, "1") != 0) device_.capability = std::min(device_.capability, 8);
}

#else

bool runs_on_cuda(const at::Tensor&) { return false; }

#endif

}  // namespace stca
