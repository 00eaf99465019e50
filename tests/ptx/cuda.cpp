// In place of csrc/ops/cuda.cpp: every tensor is on the pretended device, and every allocation known to it.
#include "../../csrc/ops/cuda.h"

#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace {

void release(void* memory) {
  ptx::global_memory().remove(memory);
  std::free(memory);
}

// What kernels may touch: exactly what torch asked for. New memory is NaN in every format.
struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes > 0) {
      TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "ptx: no memory for ", bytes, " bytes");
      std::memset(memory, 0xff, bytes);
      ptx::global_memory().add(memory, bytes);
    }
    return {memory, memory, &release, at::kCPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Allocator allocator;
at::Allocator* before = nullptr;
int reports[int(stca::CudaCheck::kCount)];

}  // namespace

namespace stca {

bool runs_on_cuda(const at::Tensor&) { return true; }

CudaCall::CudaCall(const at::Tensor& like, bool is_first)
    : options_(like.options().dtype(at::kByte)),
      device_{ptx::device().multiprocessors, ptx::device().shared_bytes, ptx::device().capability / 10,
              ptx::device().capability == 90 ? kAllSm90Families : 0, reports},
      stream_(nullptr) {
  if (is_first) raise_reports(reports);
}

}  // namespace stca

extern "C" {
// From now on, until ptx_stop: torch's CPU memory is what pretended kernels may touch, and a block has so much shared
// memory.
void ptx_start(unsigned seed, int bytes, bool is_rough, bool is_hopper, int multiprocessors) {
  ptx::device().capability = is_hopper ? 90 : 80;
  ptx::device().multiprocessors = multiprocessors;
  ptx::device().launched.clear();
  ptx::device().is_rough = is_rough;
  ptx::device().shared_bytes = bytes;
  ptx::device().seed = seed;
  std::memset(reports, 0, sizeof(reports));
  ptx::global_memory().add(reports, sizeof(reports));
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&allocator, /*priority=*/255);
}
void ptx_stop() {
  ptx::global_memory().remove(reports);
  c10::SetCPUAllocator(before, /*priority=*/255);
}
}
