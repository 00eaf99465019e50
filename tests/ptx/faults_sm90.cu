// Kernels with one fault each in what only Hopper has, which the machine must report (tests/cuda/test_ptx.py), and one
// without. They are launched with clusters of two blocks.
#include <cstring>

#include "../../csrc/kernels/cuda/sm90/tensor_map.h"
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

__global__ void too_many_bytes_expected(float*) {
  const uint32_t barrier = made_barrier(1), other = cluster_rank() ^ 1;
  if (threadIdx.x == 0) arrive_expecting(barrier, 32);
  if (threadIdx.x == 0) send(remote(shared_address(shared_memory()), other), 1, 2, 3, 4, remote(barrier, other));
  wait(barrier, 0);
  sync_cluster();
}

__global__ void block_leaves_its_cluster(float*) {
  const uint32_t barrier = made_barrier(1), other = cluster_rank() ^ 1;
  if (threadIdx.x == 0) arrive_expecting(barrier, 16);
  if (cluster_rank() == 1) return;
  // Block 1 has left when these come, and nothing comes from there.
  for (int i = 0; i < 64; ++i) __syncthreads();
  if (threadIdx.x == 0) send(remote(shared_address(shared_memory()), other), 1, 2, 3, 4, remote(barrier, other));
}

__global__ void bytes_that_nobody_waits_for(float*) {
  const uint32_t barrier = made_barrier(1), other = cluster_rank() ^ 1;
  if (threadIdx.x == 0) arrive_expecting(barrier, 16);
  if (threadIdx.x == 0) send(remote(shared_address(shared_memory()), other), 1, 2, 3, 4, remote(barrier, other));
}

// Ones as ordinary writes to both slabs, then the fence and the barrier that products need.
__device__ uint32_t filled_slabs() {
  for (int chunk = int(threadIdx.x); chunk < 2 * kSlab / 16; chunk += kThreads) {
    reinterpret_cast<Chunk*>(shared_memory())[chunk] = {{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}};
  }
  fence_async_proxy();
  sync_block();
  return shared_address(shared_memory());
}

__global__ void operand_past_the_end(float* memory) {
  const uint32_t base = filled_slabs();
  float d[32];
  fence_products();
  product_64<stca::bfloat16>(d, by_columns(base), operand(base + kSlab, 16, 2048), false);
  commit_products();
  wait_products<0>();
  pin(d);
  memory[threadIdx.x] = d[0];
}

__global__ void operand_overwritten_too_early(float* memory) {
  const uint32_t base = filled_slabs();
  float d[32];
  fence_products();
  product_64<stca::bfloat16>(d, by_columns(base), by_columns(base + kSlab), false);
  commit_products();
  reinterpret_cast<float*>(shared_memory())[threadIdx.x] = 0;
  wait_products<0>();
  pin(d);
  if (blockIdx.x == 0) memory[threadIdx.x] = d[0];
}

__global__ void result_read_before_its_wait(float* memory) {
  const uint32_t base = filled_slabs();
  float d[32];
  fence_products();
  product_64<stca::bfloat16>(d, by_columns(base), by_columns(base + kSlab), false);
  commit_products();
  pin(d);
  if (blockIdx.x == 0) memory[threadIdx.x] = d[0];
  wait_products<0>();
}

__global__ void product_of_half_a_warpgroup(float* memory) {
  const uint32_t base = filled_slabs();
  if (threadIdx.x >= kThreads / 2) return;
  float d[32];
  fence_products();
  product_64<stca::bfloat16>(d, by_columns(base), by_columns(base + kSlab), false);
  commit_products();
  wait_products<0>();
  pin(d);
  if (blockIdx.x == 0) memory[threadIdx.x] = d[0];
}

constexpr Fault kFaults[] = {
    {"hopper_none", &hopper_none},
    {"product_without_fence", &product_without_fence},
    {"product_without_barrier", &product_without_barrier},
    {"product_without_wait", &product_without_wait},
    {"phase_that_never_ends", &phase_that_never_ends},
    {"one_arrival_too_many", &one_arrival_too_many},
    {"sent_but_not_waited_for", &sent_but_not_waited_for},
    {"no_such_barrier", &no_such_barrier},
    {"too_many_bytes_expected", &too_many_bytes_expected},
    {"block_leaves_its_cluster", &block_leaves_its_cluster},
    {"bytes_that_nobody_waits_for", &bytes_that_nobody_waits_for},
    {"operand_past_the_end", &operand_past_the_end},
    {"operand_overwritten_too_early", &operand_overwritten_too_early},
    {"result_read_before_its_wait", &result_read_before_its_wait},
    {"product_of_half_a_warpgroup", &product_of_half_a_warpgroup},
};

// With copies of a tile, which is all of `memory`: 8 rows of 128 bytes.
constexpr int kTile = 1024;

struct TileFault {
  const char* name;
  void (*kernel)(float* memory, CUtensorMap map);
};

__device__ void ask_for_tile(const CUtensorMap& map, uint32_t barrier, int expected = kTile, int offset = 0) {
  if (threadIdx.x != 0) return;
  expected > 0 ? arrive_expecting(barrier, expected) : arrive(barrier);
  copy_tile(shared_address(shared_memory()) + offset, map, 0, 0, 0, barrier);
}

__device__ void use_tile(float* memory) {
  if (blockIdx.x == 0) memory[threadIdx.x] = reinterpret_cast<const float*>(shared_memory())[threadIdx.x];
}

__global__ void tile_none(float*, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier);
  wait(barrier, 0);
  sync_cluster();
}

__global__ void tile_read_too_early(float* memory, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier);
  if (threadIdx.x == 0) use_tile(memory);
  wait(barrier, 0);
}

__global__ void tile_of_another_phase(float* memory, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier);
  wait(barrier, 1);  // of the phase before the first, which has passed
  use_tile(memory);
}

__global__ void tile_of_no_expected_bytes(float* memory, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier, 0);
  wait(barrier, 0);
  use_tile(memory);
}

__global__ void tile_into_what_is_read(float* memory, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier);
  wait(barrier, 0);
  const float read = reinterpret_cast<const float*>(shared_memory())[threadIdx.x];
  ask_for_tile(map, barrier);
  wait(barrier, 1);
  if (blockIdx.x == 0 && read < 0) memory[0] = read;
}

__global__ void tile_over_ordinary_writes(float*, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  reinterpret_cast<float*>(shared_memory())[threadIdx.x] = 0;
  sync_block();
  ask_for_tile(map, barrier);
  wait(barrier, 0);
}

__global__ void tile_of_odd_address(float*, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier, kTile, 16);
  wait(barrier, 0);
}

// Row by row into the place of a tile, by a map whose boxes are single rows.
__device__ void ask_for_rows(const CUtensorMap& map, uint32_t barrier, int offset = 0) {
  if (threadIdx.x != 0) return;
  arrive_expecting(barrier, kTile);
  for (int row = 0; row < 8; ++row) {
    copy_tile(shared_address(shared_memory()) + offset + row * kSlabRow, map, 0, 0, 7 - row, barrier);
  }
}

__global__ void row_none(float*, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_rows(map, barrier);
  wait(barrier, 0);
}

__global__ void row_of_odd_address(float*, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_rows(map, barrier, kSlabRow / 2);
  wait(barrier, 0);
}

__global__ void row_that_nobody_waits_for(float*, const __grid_constant__ CUtensorMap map) {
  ask_for_rows(map, made_barrier(1));
}

__global__ void tile_that_nobody_waits_for(float*, const __grid_constant__ CUtensorMap map) {
  ask_for_tile(map, made_barrier(1));
}

// A block copies to both when its own threads are done with the place; those of the other block may not be.
__global__ void tile_into_what_another_block_reads(float* memory, const __grid_constant__ CUtensorMap map) {
  const uint32_t barrier = made_barrier(1);
  ask_for_tile(map, barrier);
  wait(barrier, 0);
  const float read = reinterpret_cast<const float*>(shared_memory())[threadIdx.x];
  sync_block();
  if (threadIdx.x == 0) arrive_expecting(barrier, kTile);
  if (threadIdx.x == 0 && blockIdx.x == 0) {
    copy_tile_to(3, shared_address(shared_memory()), map, 0, 0, 0, barrier);
  }
  wait(barrier, 1);
  if (blockIdx.x == 0 && read < 0) memory[0] = read;
  sync_cluster();
}

constexpr TileFault kTileFaults[] = {
    {"tile_none", &tile_none},
    {"tile_read_too_early", &tile_read_too_early},
    {"tile_of_another_phase", &tile_of_another_phase},
    {"tile_of_no_expected_bytes", &tile_of_no_expected_bytes},
    {"tile_into_what_is_read", &tile_into_what_is_read},
    {"tile_into_what_another_block_reads", &tile_into_what_another_block_reads},
    {"tile_over_ordinary_writes", &tile_over_ordinary_writes},
    {"tile_of_odd_address", &tile_of_odd_address},
    {"tile_that_nobody_waits_for", &tile_that_nobody_waits_for},
    {"row_none", &row_none},
    {"row_of_odd_address", &row_of_odd_address},
    {"row_that_nobody_waits_for", &row_that_nobody_waits_for},
};

}  // namespace

// As ptx_fault (faults.cu); `memory` holds 256 floats that the machine knows.
extern "C" const char* ptx_fault_sm90(const char* name, float* memory) {
  for (const Fault& fault : kFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    const char* message = launch(fault.name, fault.kernel, {2, kThreads, kBytes, 2}, nullptr, memory);
    return message == nullptr ? "" : message;
  }
  for (const TileFault& fault : kTileFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    CUtensorMap map;
    const int box_rows = std::strncmp(name, "row", 3) == 0 ? 1 : 8;
    const char* message = make_tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, memory, 8, 1, 64, 64, 64, box_rows);
    if (message == nullptr) message = launch(fault.name, fault.kernel, {2, kThreads, kBytes, 2}, nullptr, memory, map);
    return message == nullptr ? "" : message;
  }
  return nullptr;
}
