// The instructions that the kernels use, each as one function, and how a kernel is launched. The same kernels run on
// the CPU where STCA_SIMT is defined (tests/simt): these functions are then the emulator's.
//
// Fragments of mma, by lane, with g = lane / 4 and c = lane % 4 (PTX manual, "Matrix Fragments for mma.m16n8k16"):
//   a[0..3]  pairs at (row, k) = (g, 2c), (g + 8, 2c), (g, 2c + 8), (g + 8, 2c + 8) of A [16, 16]
//   b[0..1]  pairs at (k, column) = (2c, g), (2c + 8, g) of B [16, 8], k and k + 1 in one register
//   d[0..3]  (g, 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1) of D [16, 8]
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "../dtype.h"

#if defined(STCA_SIMT)
#include "simt.h"
#define STCA_DEVICE inline
#else
#include <cuda_runtime.h>
#define STCA_DEVICE __device__ __forceinline__
#endif

namespace stca {
namespace cuda {

constexpr int kWarp = 32;

struct alignas(16) Chunk {
  uint32_t words[4];
};

#if defined(STCA_SIMT)

using Stream = void*;
constexpr const char* kNoError = nullptr;

inline char* shared_memory() { return simt::shared_memory(); }
inline void sync_block() { simt::sync_block(); }
inline void sync_warp() { simt::sync_warp(); }

template <class V>
V shuffle_xor(V value, int mask) {
  return simt::exchanged("shfl.xor", value)[threadIdx.x % kWarp ^ mask];
}

template <class V>
V shuffle_up(V value, int by) {
  const int lane = threadIdx.x % kWarp;
  return simt::exchanged("shfl.up", value)[lane < by ? lane : lane - by];
}

inline bool any_in_warp(bool value) {
  for (bool each : simt::exchanged("vote.any", value).lanes) {
    if (each) return true;
  }
  return false;
}

inline void store_chunk(const Chunk& chunk, void* to) { *static_cast<Chunk*>(to) = chunk; }

inline float rounded_product(float a, float b) { return a * b; }
inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }

// Element (row, column) of 8 x 8 matrices whose rows start where the lanes say.
template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* row) {
  const char* name = kTransposed ? "ldmatrix.x4.trans" : "ldmatrix.x4";
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::fail("ldmatrix of a row that is not aligned to 16 bytes");
  const auto rows = simt::exchanged(name, static_cast<const uint16_t*>(row));
  const int lane = threadIdx.x % kWarp;
  for (int j = 0; j < 4; ++j) {
    const int at = 2 * (lane % 4);
    const uint32_t low = kTransposed ? rows[8 * j + at][lane / 4] : rows[8 * j + lane / 4][at];
    const uint32_t high = kTransposed ? rows[8 * j + at + 1][lane / 4] : rows[8 * j + lane / 4][at + 1];
    r[j] = low | high << 16;
  }
}

inline float widen(bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(float16 x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, sizeof(value));
  return float(value);
}

inline void narrow(float x, bfloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  out.bits = x != x ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void narrow(float x, float16& out) {
  const _Float16 value = _Float16(x);
  std::memcpy(&out.bits, &value, sizeof(value));
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const auto lanes = simt::exchanged("mma.m16n8k16", Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  auto element = [](uint32_t pair, int which) { return widen(T{uint16_t(pair >> 16 * which)}); };
  const int g = int(threadIdx.x) % kWarp / 4, c = int(threadIdx.x) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g, high_row = i / 2, column = 2 * c + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float left = element(lanes[row * 4 + k % 8 / 2].a[high_row + k / 8 * 2], k % 2);
      d[i] += left * element(lanes[column * 4 + k % 8 / 2].b[k / 8], k % 2);
    }
  }
}

inline void copy_async(void* shared, const void* global, int bytes) { simt::copy_async(shared, global, bytes); }
inline void commit_copies() { simt::commit_copies(); }
template <int kGroupsLeft>
void wait_copies() {
  simt::wait_copies(kGroupsLeft);
}

template <class... Parameters, class... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), int64_t grid, int block, int shared_bytes, Stream,
                   const Arguments&... arguments) {
  if (grid == 0) return kNoError;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, std::tuple<Parameters...>(arguments...)};
  struct Known {  // as long as the kernel runs, also if it fails
    const void* memory;
    Known(const void* begin, size_t bytes) : memory(begin) { simt::add_memory(begin, bytes); }
    ~Known() { simt::remove_memory(memory); }
  } known(&call, sizeof(call));
  simt::run(
      {name, int(grid), block, shared_bytes},
      [](const void* it) { std::apply(static_cast<const Call*>(it)->kernel, static_cast<const Call*>(it)->arguments); },
      &call);
  return kNoError;
}

// Blocks of a kernel that a multiprocessor holds, with as much shared memory as one block may have.
template <class Kernel>
int blocks_per_multiprocessor(Kernel, int, int shared_bytes, int most_shared_bytes) {
  const int blocks = most_shared_bytes / shared_bytes;
  return blocks < 4 ? blocks : 4;
}

#else  // nvcc

using Stream = cudaStream_t;
constexpr const char* kNoError = nullptr;

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

// 16 bytes to global memory in one access: of an assignment the compiler makes one for each number that went into it.
STCA_DEVICE void store_chunk(const Chunk& chunk, void* to) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(chunk.words[0]),
               "r"(chunk.words[1]), "r"(chunk.words[2]), "r"(chunk.words[3])
               : "memory");
}

// a * b, rounded before something is added: nvcc would make one instruction of both in one kernel and not in another,
// and the forward and the backward pass must turn the same score into the same weight.
STCA_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
STCA_DEVICE float exp2(float x) { return exp2f(x); }
STCA_DEVICE float log2(float x) { return log2f(x); }

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

STCA_DEVICE float widen(bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
STCA_DEVICE float widen(float16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
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
STCA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroupsLeft>
STCA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// What a kernel has on the current device, for as many threads and as much shared memory as it is always launched with.
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
  const auto [at, is_new] = known.try_emplace({device, kernel}, Residence{cudaSuccess, 0});
  Residence& own = at->second;
  if (!is_new) return own;
  own.error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (own.error == cudaSuccess) {
    own.error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&own.blocks, kernel, threads, size_t(shared_bytes));
  }
  if (own.error != cudaSuccess) cudaGetLastError();  // forgets it: the launch reports it
  return own;
}

template <class Kernel>
int blocks_per_multiprocessor(Kernel kernel, int threads, int shared_bytes, int) {
  return residence(reinterpret_cast<const void*>(kernel), threads, shared_bytes).blocks;
}

// nullptr, or what went wrong.
template <class... Parameters, class... Arguments>
const char* launch(const char*, void (*kernel)(Parameters...), int64_t grid, int block, int shared_bytes, Stream stream,
                   const Arguments&... arguments) {
  if (grid == 0) return kNoError;
  if (grid > 0x7fffffff) return "more blocks than a grid holds";
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = residence(reinterpret_cast<const void*>(kernel), block, shared_bytes).error;
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(grid));
    config.blockDim = dim3(unsigned(block));
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  }
  if (error == cudaSuccess) return kNoError;
  cudaGetLastError();  // forgets it, or the next check of another kernel would report it
  return cudaGetErrorString(error);
}

#endif

STCA_DEVICE float widen(float x) { return x; }
STCA_DEVICE void narrow(float x, float& out) { out = x; }

// Gives f(Element<T>()) for the type T that `dtype` names: one that CUDA kernels take.
template <class F>
auto visit_cuda_dtype(Dtype dtype, F f) {
  switch (dtype) {
#define STCA_CUDA_DTYPE_VISIT(enumerator, element, accumulator, name) \
  case Dtype::enumerator:                                             \
    return f(Element<element>());
    STCA_FOR_EACH_CUDA_DTYPE(STCA_CUDA_DTYPE_VISIT)
#undef STCA_CUDA_DTYPE_VISIT
    default:
      throw std::invalid_argument(dtype_name(dtype));
  }
}

}  // namespace cuda
}  // namespace stca
