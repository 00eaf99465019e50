#include "cuda.h"

#if defined(STCA_WITH_CUDA)
#include <ATen/cuda/CUDAContext.h>
#endif

namespace stca {

#if defined(STCA_WITH_CUDA)

bool runs_on_cuda(const at::Tensor& tensor) { return tensor.is_cuda(); }

CudaCall::CudaCall(const at::Tensor& like)
    : guard_(like.device()), options_(like.options().dtype(at::kByte)), stream_(at::cuda::getCurrentCUDAStream()) {
  const cudaDeviceProp* properties = at::cuda::getCurrentDeviceProperties();
  device_ = {properties->multiProcessorCount, int(properties->sharedMemPerBlockOptin)};
}

#else

bool runs_on_cuda(const at::Tensor&) { return false; }

#endif

}  // namespace stca
