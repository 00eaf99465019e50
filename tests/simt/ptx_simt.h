// The emulator's half of csrc/kernels/cuda/ptx.cuh: functions of the same names, for the CPU. Fragments lie in lanes as
// ptx.cuh says.
#pragma once

#include <cmath>
#include <tuple>

#include "../../csrc/kernels/cuda/common.cuh"
#include "simt.h"

#define STCA_DEVICE inline

namespace stca {
namespace cuda {

using Stream = void*;

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

inline float widen(float x) { return x; }

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

inline void narrow(float x, float& out) { out = x; }

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
const char* launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Stream,
                   const Arguments&... arguments) {
  if (grid.blocks == 0) return nullptr;
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
      {name, int(grid.blocks), grid.threads, grid.shared_bytes},
      [](const void* it) { std::apply(static_cast<const Call*>(it)->kernel, static_cast<const Call*>(it)->arguments); },
      &call);
  return nullptr;
}

// Blocks of a kernel that a multiprocessor holds, with as much shared memory as one block may have.
template <class Kernel>
int blocks_per_multiprocessor(Kernel, int, int shared_bytes, int most_shared_bytes) {
  const int blocks = most_shared_bytes / shared_bytes;
  return blocks < 4 ? blocks : 4;
}

}  // namespace cuda
}  // namespace stca
