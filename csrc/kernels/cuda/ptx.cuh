// The instructions that the kernels use, each as one function, and how a kernel is launched.
//
// Fragments of mma, by lane, with g = lane / 4 and c = lane % 4 (PTX manual, "Matrix Fragments for mma.m16n8k16"):
//   a[0..3]  pairs at (row, k) = (g, 2c), (g + 8, 2c), (g, 2c + 8), (g + 8, 2c + 8) of A [16, 16]
//   b[0..1]  pairs at (k, column) = (2c, g), (2c + 8, g) of B [16, 8], k and k + 1 in one register
//   d[0..3]  (g, 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1) of D [16, 8]
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "common.cuh"

#define STCA_DEVICE __device__ __forceinline__

namespace stca {
namespace cuda {

using Stream = cudaStream_t;

STCA_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char stca_shared[];
  return stca_shared;
}
STCA_DEVICE void sync_block() { __syncthreads(); }
STCA_DEVICE void sync_warp() { __syncwarp(); }

template <class V>
STCA_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class V>
STCA_DEVICE V shuffle_up(V value, int by) {
  return __shfl_up_sync(0xffffffffu, value, by);
}

STCA_DEVICE bool any_in_warp(bool value) { return __any_sync(0xffffffffu, value); }

// 16 bytes to global memory in one access: the compiler splits an assignment into one for each
// number that went into it.
STCA_DEVICE void store_chunk(const Chunk& chunk, void* to) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(chunk.words[0]),
               "r"(chunk.words[1]), "r"(chunk.words[2]), "r"(chunk.words[3])
               : "memory");
}

// The same to shared memory.
STCA_DEVICE void store_shared_chunk(const Chunk& chunk, void* to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
               "r"(chunk.words[0]), "r"(chunk.words[1]), "r"(chunk.words[2]), "r"(chunk.words[3])
               : "memory");
}

// x. What follows from it is found where it is used, and not kept in registers, of which there are too few.
STCA_DEVICE int found_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// a * b, rounded before something is added: nvcc would make one instruction of both in one kernel and not in another,
// and the forward and the backward pass must turn the same score into the same weight.
STCA_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }

// 2^x in one instruction. What lies below 2^-126 becomes 0; exp2f takes three instructions more to keep it.
STCA_DEVICE float exp2_or_zero(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

STCA_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

template <bool kTransposed>
STCA_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

STCA_DEVICE float widen(float x) { return x; }
STCA_DEVICE float widen(bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
STCA_DEVICE float widen(float16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
// Byte i of four int8. Added to 128 it is the last byte of a float from 2^23 on: GPUs convert integers at a fraction of
// the rate at which they subtract.
STCA_DEVICE float widen_byte(uint32_t bytes, int i) {
  return __uint_as_float(__byte_perm(bytes ^ 0x80808080u, 0x4b000000u, 0x7650u + uint32_t(i))) - (0x1p23f + 128);
}
STCA_DEVICE void narrow(float x, float& out) { out = x; }
STCA_DEVICE void narrow(float x, bfloat16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
STCA_DEVICE void narrow(float x, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }

template <class T>
STCA_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define STCA_MMA(type, name)                                                                                 \
  template <>                                                                                                \
  __device__ __forceinline__ void mma<type>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                      \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                        \
  }
STCA_MMA(bfloat16, "bf16")
STCA_MMA(float16, "f16")
#undef STCA_MMA

// 16 bytes of shared memory: `bytes` of them from global memory, zeros for the rest.
STCA_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
// 4 bytes of shared memory: those of global memory, or zeros.
STCA_DEVICE void copy_word_async(void* shared, const void* global, bool is_there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(is_there ? 4 : 0)
               : "memory");
}
STCA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroupsLeft>
STCA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// What a kernel has on the current device, for as many threads and as much shared memory as it is always launched with.
// A device whose memory is full may refuse it, and is asked again at the next launch. Its blocks are asked once, for by
// their number a call lays out its workspace before it launches.
struct Residence {
  cudaError_t error;  // of allowing it the shared memory
  int blocks;         // that a multiprocessor holds
};
inline Residence residence(const void* kernel, int threads, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, Residence> known;  // asking takes as long as a launch
  int device = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({device, kernel}, Residence{cudaErrorNotReady, 0});
  Residence& own = at->second;
  if (own.error == cudaSuccess) return own;
  own.error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (own.error == cudaSuccess && is_new) {
    own.error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&own.blocks, kernel, threads, size_t(shared_bytes));
  }
  if (own.error != cudaSuccess) cudaGetLastError();  // forgets the error, which the launch reports
  return own;
}

template <class Kernel>
int blocks_per_multiprocessor(Kernel kernel, int threads, int shared_bytes, int) {
  return residence(reinterpret_cast<const void*>(kernel), threads, shared_bytes).blocks;
}

// Enqueues a kernel. nullptr, or the message of the CUDA error.
template <class... Parameters, class... Arguments>
const char* launch(const char*, void (*kernel)(Parameters...), const Grid& grid, Stream stream,
                   const Arguments&... arguments) {
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks > 0x7fffffff) return "more blocks than a grid holds";
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024) {
    error = residence(reinterpret_cast<const void*>(kernel), grid.threads, grid.shared_bytes).error;
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {unsigned(grid.cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(grid.blocks));
    config.blockDim = dim3(unsigned(grid.threads));
    config.dynamicSmemBytes = size_t(grid.shared_bytes);
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = grid.cluster > 0 ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // forgets the error, or the next check of another kernel would report it
  return cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace stca
