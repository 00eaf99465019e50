// Kernels with one fault each in what only Hopper has, which the machine must report (tests/cuda/test_ptx.py), and one
// without. They are launched with clusters of two blocks.
#include <cstring>

#include "../../csrc/kernels/cuda/sm90/wgmma.cuh"

namespace {

using namespace stca::cuda;
using namespace stca::cuda::sm90;

constexpr int kThreads = kWarpgroup, kSlab = 64 * kSlabRow, kBarrier = 2 * kSlab, kBytes = kBarrier + 16;

struct Fault {
  const char* name;
  void (*kernel)(float* memory);
};

// A left slab of ones and a right one of twos, as ordinary writes; then their product, 64 times 2 in every place.
template <bool kFences, bool kSynchronizes, bool kWaits>
__device__ void product(float* memory) {
  const uint32_t base = shared_address(shared_memory());
  for (int chunk = int(threadIdx.x); chunk < 2 * kSlab / 16; chunk += kThreads) {
    const uint32_t pair = chunk < kSlab / 16 ? 0x3f803f80u : 0x40004000u;
    reinterpret_cast<Chunk*>(shared_memory())[chunk] = {{pair, pair, pair, pair}};
  }
  if (kFences) fence_async_proxy();
  if (kSynchronizes) sync_block();
  float d[32];
  fence_products();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    product_64<stca::bfloat16>(d, by_columns(base) + step(32 * k), by_columns(base + kSlab) + step(32 * k), k > 0);
  }
  commit_products();
  if (kWaits) wait_products<0>();
  pin(d);
  if (blockIdx.x == 0) memory[threadIdx.x] = d[0];
  if (!kWaits) return;
  sync_block();
}

__global__ void hopper_none(float* memory) { product<true, true, true>(memory); }
__global__ void product_without_fence(float* memory) { product<false, true, true>(memory); }
__global__ void product_without_barrier(float* memory) { product<true, false, true>(memory); }
__global__ void product_without_wait(float* memory) { product<true, true, false>(memory); }

__device__ uint32_t made_barrier(int arrivals) {
  const uint32_t barrier = shared_address(shared_memory()) + kBarrier;
  if (threadIdx.x == 0) init_barrier(barrier, arrivals);
  fence_barrier_init();
  sync_cluster();
  return barrier;
}

__global__ void phase_that_never_ends(float*) {
  const uint32_t barrier = made_barrier(2);
  if (threadIdx.x == 0) arrive(barrier);
  wait(barrier, 0);
  sync_cluster();
}

__global__ void one_arrival_too_many(float*) {
  const uint32_t barrier = made_barrier(2);
  if (threadIdx.x == 0) arrive_expecting(barrier, 16);  // bytes that nobody sends: the phase lasts
  if (threadIdx.x < 2) arrive(barrier);
  sync_cluster();
}

// Each block sends to the other one, which reads before it has waited.
__global__ void sent_but_not_waited_for(float* memory) {
  const uint32_t barrier = made_barrier(1), other = cluster_rank() ^ 1;
  if (threadIdx.x == 0) arrive_expecting(barrier, 16);
  if (threadIdx.x == 0) send(remote(shared_address(shared_memory()), other), 1, 2, 3, 4, remote(barrier, other));
  if (threadIdx.x == 1) memory[0] = *reinterpret_cast<const float*>(shared_memory());
  wait(barrier, 0);
  sync_cluster();
}

__global__ void no_such_barrier(float*) { arrive(shared_address(shared_memory())); }

constexpr Fault kFaults[] = {
    {"hopper_none", &hopper_none},
    {"product_without_fence", &product_without_fence},
    {"product_without_barrier", &product_without_barrier},
    {"product_without_wait", &product_without_wait},
    {"phase_that_never_ends", &phase_that_never_ends},
    {"one_arrival_too_many", &one_arrival_too_many},
    {"sent_but_not_waited_for", &sent_but_not_waited_for},
    {"no_such_barrier", &no_such_barrier},
};

}  // namespace

// As ptx_fault (faults.cu); `memory` holds 256 floats that the machine knows.
extern "C" const char* ptx_fault_sm90(const char* name, float* memory) {
  for (const Fault& fault : kFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    const char* message = launch(fault.name, fault.kernel, {2, kThreads, kBytes, 2}, nullptr, memory);
    return message == nullptr ? "" : message;
  }
  return nullptr;
}
