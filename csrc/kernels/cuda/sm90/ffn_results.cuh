// What becomes of the sums of a tile: the gate, its derivative, or numbers as they are, written to global memory.
//
// A thread has two neighbouring columns of every eight. Four threads that share a row hand each other theirs, so that
// each writes eight columns, 16 bytes, of every 32.
#pragma once

#include "ffn_tiles.cuh"

namespace stca {
namespace cuda {
namespace sm90 {
namespace ffn {

// 1 / (1 + e^-x), within a few units in the last place of float32: the result has 16 bits.
STCA_DEVICE float fast_sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }

// Thread c of four gives pair k to thread k, and then has the four pairs of eight neighbouring columns, the c-th eight.
STCA_DEVICE Chunk gather_columns(const uint32_t (&pairs)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t low_other = shuffle_xor(odd ? pairs[0] : pairs[1], 1);
  const uint32_t high_other = shuffle_xor(odd ? pairs[2] : pairs[3], 1);
  const uint32_t low[2] = {odd ? low_other : pairs[0], odd ? pairs[1] : low_other};
  const uint32_t up[2] = {odd ? high_other : pairs[2], odd ? pairs[3] : high_other};
  const uint32_t first = shuffle_xor(high ? low[0] : up[0], 2), second = shuffle_xor(high ? low[1] : up[1], 2);
  return high ? Chunk{{first, second, up[0], up[1]}} : Chunk{{low[0], low[1], first, second}};
}

// Where a thread writes rows of a matrix [rows, columns] of 16 bits: its first row of the tile, and column.
template <class T>
struct Writer {
  T* data;
  int64_t stride;  // between rows
  int rows, columns, row, column;

  STCA_DEVICE Writer(T* data, int64_t stride, const FfnProductParams& p, const Tile& tile, int group)
      : data(data),
        stride(stride),
        rows(int(p.rows)),
        columns(int(p.columns)),
        row(tile.row + group * 64 + row_of(int(threadIdx.x) % kWarpgroup)),
        column(tile.column + int(threadIdx.x) % 4 * 8) {}

  // Pairs of every eight columns, from column `from` of the tile on, of the first of the thread's rows or the second.
  STCA_DEVICE void write(const uint32_t (&pairs)[4], int from, int second) const {
    const Chunk chunk = gather_columns(pairs);
    const int at = row + 8 * second;
    if (at < rows && column + from < columns) store_chunk(chunk, data + at * stride + column + from);
  }
};

// The sums of a tile as they are.
template <class T>
STCA_DEVICE void write_sums(const float (&sums)[128], const FfnProductParams& p, const Tile& tile, int group) {
  const Writer<T> to(static_cast<T*>(p.to), p.columns, p, tile, group);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* pair = sums + 4 * (i / 2 * 4 + j) + i % 2 * 2;
      pairs[j] = narrow_pair(pair[0], pair[1], T{});
    }
    to.write(pairs, i / 2 * 32, i % 2);
  }
}

// g = u * silu(v), and u and v where they are wanted; u are the first half of a thread's sums.
template <class T>
STCA_DEVICE void write_gate(const float (&sums)[128], const FfnProductParams& p, const Tile& tile, int group) {
  const Writer<T> to(static_cast<T*>(p.to), p.columns, p, tile, group);
  const Writer<T> to_u(static_cast<T*>(p.uv), 2 * p.columns, p, tile, group);
  const Writer<T> to_v(static_cast<T*>(p.uv) + p.columns, 2 * p.columns, p, tile, group);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    uint32_t g[4], up[4], gate[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float *u = sums + 4 * (i / 2 * 4 + j) + i % 2 * 2, *v = u + 64;
      g[j] = narrow_pair(u[0] * v[0] * fast_sigmoid(v[0]), u[1] * v[1] * fast_sigmoid(v[1]), T{});
      up[j] = narrow_pair(u[0], u[1], T{});
      gate[j] = narrow_pair(v[0], v[1], T{});
    }
    to.write(g, i / 2 * 32, i % 2);
    if (p.uv == nullptr) continue;
    to_u.write(up, i / 2 * 32, i % 2);
    to_v.write(gate, i / 2 * 32, i % 2);
  }
}

// Two numbers of 16 bits in a pair.
template <class T>
STCA_DEVICE float2 widen_pair(uint32_t pair) {
  T low, high;
  low.bits = uint16_t(pair);
  high.bits = uint16_t(pair >> 16);
  return {widen(low), widen(high)};
}

// du = dg * silu(v) in place of u, and dv = dg * u * silu'(v) in place of v.
template <class T>
STCA_DEVICE void differentiate_gate(const float* dg, uint32_t& u, uint32_t& v) {
  const float2 up = widen_pair<T>(u), gate = widen_pair<T>(v);
  const float s0 = fast_sigmoid(gate.x), s1 = fast_sigmoid(gate.y);
  u = narrow_pair(dg[0] * gate.x * s0, dg[1] * gate.y * s1, T{});
  v = narrow_pair(dg[0] * up.x * s0 * (1 + gate.x * (1 - s0)), dg[1] * up.y * s1 * (1 + gate.y * (1 - s1)), T{});
}

// The sums are dg. u and v of the tile come through the ring, from step `at` on.
template <class T, int kCluster>
STCA_DEVICE void write_gate_gradients(const float (&sums)[128], const Ring<kCluster>& ring, const FfnProductParams& p,
                                      const Tile& tile, int group, int at) {
  const Writer<T> to_u(static_cast<T*>(p.to), 2 * p.columns, p, tile, group);
  const Writer<T> to_v(static_cast<T*>(p.to) + p.columns, 2 * p.columns, p, tile, group);
  const int row = group * 64 + row_of(int(threadIdx.x) % kWarpgroup), word = int(threadIdx.x) % 4 * 4;
#pragma unroll
  for (int side = 0; side < kTileColumns / 64; ++side) {
    ring.wait_until_full(at + side);
    const char* stage = shared_memory() + (at + side) % kStages * kStage + word;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t u[4], v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const char* from = stage + swizzled(row + i % 2 * 8, i / 2 * 4 + j);
        u[j] = *reinterpret_cast<const uint32_t*>(from);
        v[j] = *reinterpret_cast<const uint32_t*>(from + kLeft);
        differentiate_gate<T>(sums + 4 * (side * 8 + i / 2 * 4 + j) + i % 2 * 2, u[j], v[j]);
      }
      to_u.write(u, side * 64 + i / 2 * 32, i % 2);
      to_v.write(v, side * 64 + i / 2 * 32, i % 2);
    }
    ring.release(at + side);
  }
}

// Adds the sums to those of the rows before, in float32. No other block writes them.
STCA_DEVICE void add_sums(const float (&sums)[128], const FfnProductParams& p, const Tile& tile, int group) {
  const int row = tile.row + group * 64 + row_of(int(threadIdx.x) % kWarpgroup);
  const int column = tile.column + int(threadIdx.x) % 4 * 2, columns = int(p.columns);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= int(p.rows)) continue;
    float* to = static_cast<float*>(p.to) + (tile.split * p.rows + row + 8 * r) * p.columns + column;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      if (column + 8 * j >= columns) continue;
      float2* const pair = reinterpret_cast<float2*>(to + 8 * j);
      const float2 before = *pair;
      *pair = {before.x + sums[4 * j + 2 * r], before.y + sums[4 * j + 2 * r + 1]};
    }
  }
}

}  // namespace ffn
}  // namespace sm90
}  // namespace cuda
}  // namespace stca
