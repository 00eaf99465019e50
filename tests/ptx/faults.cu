// Kernels with one fault each, which the machine must report (tests/cuda/test_ptx.py), and one without.
#include <cstring>

#include "../../csrc/kernels/cuda/ptx.cuh"

namespace {

using namespace stca::cuda;

constexpr int kThreads = 64, kBytes = kThreads * int(sizeof(Chunk));

struct Fault {
  const char* name;
  void (*kernel)(float* memory);  // [kThreads * 4] floats, [i] = i
  int blocks = 1;
};

__device__ int* shared_ints() { return reinterpret_cast<int*>(shared_memory()); }
__device__ int thread() { return int(threadIdx.x); }

// Reverses the memory through shared memory: what the others do wrong, right.
__global__ void none(float* memory) {
  Chunk* chunks = reinterpret_cast<Chunk*>(shared_memory());
  copy_async(chunks + thread(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<0>();
  sync_block();
  const float* floats = reinterpret_cast<const float*>(chunks);
  for (int i = 0; i < 4; ++i) memory[4 * thread() + i] = floats[4 * kThreads - 1 - (4 * thread() + i)];
}

__global__ void no_barrier(float* memory) {
  shared_ints()[thread()] = thread();
  memory[thread()] = float(shared_ints()[kThreads - 1 - thread()]);
}

__global__ void no_warp_barrier(float* memory) {
  shared_ints()[thread()] = thread();
  memory[thread()] = float(shared_ints()[thread() ^ 1]);
}

__global__ void overwritten_too_early(float* memory) {
  shared_ints()[thread()] = thread();
  sync_block();
  memory[thread()] = float(shared_ints()[kThreads - 1 - thread()]);
  shared_ints()[thread()] = 0;
}

__global__ void barrier_for_some(float*) {
  if (thread() < kWarp) sync_block();
}

__global__ void shuffle_for_some(float* memory) {
  if (thread() != 5) memory[thread()] = shuffle_xor(1.0f, 1);
}

__global__ void warp_at_two_instructions(float* memory) {
  memory[thread()] = thread() % 2 == 0 ? shuffle_xor(1.0f, 1) : float(any_in_warp(true));
}

__global__ void read_past_the_end(float* memory) {
  const float behind = memory[4 * thread() + 4];
  sync_block();
  memory[thread()] = behind;
}

__global__ void write_before_the_begin(float* memory) { memory[thread() - 1] = 0; }

__global__ void write_past_shared_memory(float*) { shared_ints()[4 * thread() + 4] = 0; }

__global__ void copy_past_the_end(float* memory) {
  copy_async(shared_memory() + 16 * thread(), memory + 4 * thread() + 4, 16);
  commit_copies();
  wait_copies<0>();
}

__global__ void copy_of_odd_address(float* memory) { copy_async(shared_memory() + 16 * thread(), memory + 1, 16); }

__global__ void copy_without_wait(float* memory) {
  copy_async(shared_memory() + 16 * thread(), memory + 4 * thread(), 16);
  commit_copies();
}

__global__ void copy_used_before_its_wait(float* memory) {
  copy_async(shared_memory() + 16 * thread(), memory + 4 * thread(), 16);
  commit_copies();
  memory[4 * thread()] = reinterpret_cast<const float*>(shared_memory())[4 * thread()];
  wait_copies<0>();
}

__global__ void copy_by_another_thread(float* memory) {
  copy_async(shared_memory() + 16 * thread(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<0>();
  memory[thread()] = reinterpret_cast<const float*>(shared_memory())[4 * (kThreads - 1 - thread())];
}

// The next copy into a stage that other warps still read: the classical fault of a pipeline.
__global__ void copy_into_what_is_read(float* memory) {
  Chunk* chunks = reinterpret_cast<Chunk*>(shared_memory());
  copy_async(chunks + thread(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<0>();
  sync_block();
  const float read = reinterpret_cast<const float*>(chunks)[4 * (kThreads - 1 - thread())];
  copy_async(chunks + thread(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<0>();
  sync_block();
  memory[4 * thread()] = read;
}

// Waits for all groups but one, and uses the one.
__global__ void copy_of_a_late_group(float* memory) {
  Chunk* chunks = reinterpret_cast<Chunk*>(shared_memory());
  copy_async(chunks + thread(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<1>();
  memory[4 * thread()] = reinterpret_cast<const float*>(chunks)[4 * thread()];
  wait_copies<0>();
}

// A stage that a warp fills and reads on its own: its lanes must meet before it is read and before it is filled again.
template <bool kBeforeReads, bool kAfterReads>
__device__ void use_stage_of_a_warp(float* memory) {
  const int lane = thread() % kWarp;
  Chunk* stage = reinterpret_cast<Chunk*>(shared_memory()) + (thread() - lane);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    copy_async(stage + lane, memory + 4 * thread(), 16);
    commit_copies();
    wait_copies<0>();
    if (kBeforeReads) sync_warp();
    sum += reinterpret_cast<const float*>(stage)[4 * (kWarp - 1 - lane)];
    if (kAfterReads) sync_warp();
  }
  memory[4 * thread()] = sum;
}

__global__ void stage_none(float* memory) { use_stage_of_a_warp<true, true>(memory); }

__global__ void stage_read_too_early(float* memory) { use_stage_of_a_warp<false, true>(memory); }

__global__ void stage_filled_too_early(float* memory) { use_stage_of_a_warp<true, false>(memory); }

// Launched with two blocks.
__global__ void block_reads_what_another_wrote(float* memory) {
  if (blockIdx.x == 0 && thread() == 0) memory[0] = 1;
  if (blockIdx.x == 1 && thread() == 0) memory[1] = memory[0];
}

__global__ void barrier_in_a_branch(float* memory) {
  if (memory[thread()] > 3) sync_block();
}

__global__ void matrix_of_odd_address(float* memory) {
  shared_ints()[thread()] = 0;
  uint32_t fragment[4];
  load_matrices<false>(fragment, shared_memory() + 8);
  memory[thread()] = float(fragment[0]);
}

__global__ void two_copies_to_one_place(float* memory) {
  copy_async(shared_memory(), memory + 4 * thread(), 16);
  commit_copies();
  wait_copies<0>();
}

__global__ void global_memory_without_barrier(float* memory) {
  memory[thread()] = 1;
  memory[128 + thread()] = memory[kThreads - 1 - thread()];
}

__global__ void vector_of_odd_address(float* memory) {
  reinterpret_cast<Chunk*>(memory + 129)[thread() % 16] = Chunk{{1, 2, 3, 4}};
}

constexpr Fault kFaults[] = {
    {"none", &none},
    {"no_barrier", &no_barrier},
    {"no_warp_barrier", &no_warp_barrier},
    {"overwritten_too_early", &overwritten_too_early},
    {"barrier_for_some", &barrier_for_some},
    {"shuffle_for_some", &shuffle_for_some},
    {"warp_at_two_instructions", &warp_at_two_instructions},
    {"read_past_the_end", &read_past_the_end},
    {"write_before_the_begin", &write_before_the_begin},
    {"write_past_shared_memory", &write_past_shared_memory},
    {"copy_past_the_end", &copy_past_the_end},
    {"copy_of_odd_address", &copy_of_odd_address},
    {"copy_without_wait", &copy_without_wait},
    {"copy_used_before_its_wait", &copy_used_before_its_wait},
    {"copy_by_another_thread", &copy_by_another_thread},
    {"copy_into_what_is_read", &copy_into_what_is_read},
    {"copy_of_a_late_group", &copy_of_a_late_group},
    {"stage_none", &stage_none},
    {"stage_read_too_early", &stage_read_too_early},
    {"stage_filled_too_early", &stage_filled_too_early},
    {"block_reads_what_another_wrote", &block_reads_what_another_wrote, 2},
    {"barrier_in_a_branch", &barrier_in_a_branch},
    {"matrix_of_odd_address", &matrix_of_odd_address},
    {"two_copies_to_one_place", &two_copies_to_one_place},
    {"global_memory_without_barrier", &global_memory_without_barrier},
    {"vector_of_odd_address", &vector_of_odd_address},
};

}  // namespace

// The machine's error, "" if there was none, nullptr for an unknown name. `memory` holds 256 floats.
extern "C" void ptx_add_memory(const void* begin, size_t bytes);
extern "C" void ptx_remove_memory(const void* begin);

extern "C" const char* ptx_fault_sm90(const char* name, float* memory);

extern "C" const char* ptx_fault(const char* name, float* memory) {
  ptx_add_memory(memory, kBytes);
  const char* message = ptx_fault_sm90(name, memory);
  for (const Fault& fault : kFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    message = launch(fault.name, fault.kernel, {fault.blocks, kThreads, kBytes}, nullptr, memory);
    if (message == nullptr) message = "";
  }
  ptx_remove_memory(memory);
  return message;
}
