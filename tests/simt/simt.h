// A CUDA grid on the CPU: what csrc/kernels/cuda asks of CUDA, as host functions (ptx_simt.h gives them the names that
// the kernels use).
//
// Every thread of a block is a fiber that runs until it waits for others: at a barrier, or where a warp does something
// together. Blocks run one after the other. What is undefined on a GPU is an error here, which names kernel, block and
// thread: an access outside of all tensors, shared memory and the stack; two threads that touch the same shared memory
// with no barrier in between, one of them writing; a barrier or a warp instruction that not all threads reach; a
// misaligned ldmatrix or cp.async. Shared memory starts as NaN.
//
// Accesses are seen because the compiler calls a function before each one (-fsanitize=kernel-address, outlined), which
// simt.cpp defines. This header has no standard templates in it: the linker could give simt.cpp their instrumented
// copies.
#pragma once

#include <cstdint>
#include <cstring>

namespace simt {

constexpr int kWarp = 32;

struct Index {
  int x;
};

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
char* shared_memory();

// Ends the launch with an error that says `what`, and where.
[[noreturn]] void fail(const char* what);

// Where shuffles, ldmatrix and mma meet: every lane of the warp brings `bytes` bytes and gets those of all 32.
constexpr int kMostBytes = 32;
void exchange(const char* instruction, const void* mine, int bytes, void* all);

template <class V>
struct Values {
  V lanes[kWarp];
  const V& operator[](int lane) const { return lanes[lane]; }
};

template <class V>
Values<V> exchanged(const char* instruction, const V& mine) {
  static_assert(sizeof(V) <= kMostBytes);
  Values<V> values;
  exchange(instruction, &mine, sizeof(V), values.lanes);
  return values;
}

void sync_block();
void sync_warp();

// cp.async: `bytes` of 16 from memory, zeros for the rest; lands at the thread's own wait, in order of commits.
void copy_async(void* shared, const void* global, int bytes);
void commit_copies();
void wait_copies(int groups_left);

// Runs kernel(call) in every thread of every block.
struct Launch {
  const char* name;
  int grid, block, shared_bytes;
};
void run(const Launch& launch, void (*kernel)(const void* call), const void* call);

// Threads of a block are started in an order that this seed chooses; 0: ascending.
void set_seed(unsigned seed);

// Memory that kernels may touch, besides their own.
void add_memory(const void* begin, size_t bytes);
void remove_memory(const void* begin);

}  // namespace simt

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())
