#include "cuda.h"

#include <cstring>

#if defined(STCA_WITH_CUDA)
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace stca {

#if defined(STCA_WITH_CUDA)

namespace {

// One for all devices of the process, in memory of the host, which is never freed: kernels may write to it until the
// end.
int* allocate_reports() {
  const c10::cuda::CUDAStreamCaptureModeGuard allowed(cudaStreamCaptureModeRelaxed);  // a graph may be captured now
  void* memory = nullptr;
  C10_CUDA_CHECK(
      cudaHostAlloc(&memory, sizeof(int) * int(CudaCheck::kCount), cudaHostAllocPortable | cudaHostAllocMapped));
  std::memset(memory, 0, sizeof(int) * int(CudaCheck::kCount));
  return static_cast<int*>(memory);
}

}  // namespace

bool runs_on_cuda(const at::Tensor& tensor) { return tensor.is_cuda(); }

CudaCall::CudaCall(const at::Tensor& like, bool is_first)
    : guard_(like.device()), options_(like.options().dtype(at::kByte)), stream_(c10::cuda::getCurrentCUDAStream()) {
  const int index = like.get_device();
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&device_.capability, cudaDevAttrComputeCapabilityMajor, index));
  device_.sm90_families = device_.capability == 9 ? sm90_families() : 0;
  static int* const reports = allocate_reports();
  device_.reports = reports;
  if (is_first) raise_reports(reports);
}

#else

bool runs_on_cuda(const at::Tensor&) { return false; }

#endif

}  // namespace stca
