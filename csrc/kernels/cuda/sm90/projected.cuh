// What target_attention's kernels on Hopper with v beside k share (formula and shapes: ../../target_attention.h;
// source: docs/mathematics.md): rows of 64 or 128 columns in registers and in slabs, and how a block takes its part.
//
// A block is a warpgroup that asks for tiles, and kGroups warpgroups of 64 kept rows each that multiply the same tiles,
// in turn where there are two: while one's products are made, the other turns its scores into weights.
#pragma once

#include "weights.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// k and v are streamed as tiles of whole rows of one head, a stage the tile of both.
struct HistoryMaps {
  CUtensorMap k, v;
};

template <class T, int kMaxWidth, int kOwnGroups, int kTileRows, int kOwnStages>
struct ProjectedTiles {
  using Element = T;
  static constexpr int kWidth = kMaxWidth;    // columns of k and of v, at most
  static constexpr int kGroups = kOwnGroups;  // warpgroups that multiply
  static constexpr int kKept = kGroups * kRows;
  static constexpr int kStep = kTileRows;  // streamed rows of a tile
  static constexpr int kStages = kOwnStages;
  static constexpr int kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kTileSlab = kStep * kSlabRow;  // bytes of 64 columns of a tile
  static constexpr int kTileBytes = kWidth / 64 * kTileSlab;
  // Registers of a thread that multiplies, and of one that asks for tiles.
  static constexpr int kManyRegisters = kGroups == 1 ? 216 : 232, kFewRegisters = 40;
};

// Barriers of a stage: its tiles have arrived; nobody reads them any more.
template <class F>
struct Stages {
  uint32_t tiles, barriers;

  STCA_DEVICE uint32_t full(int at) const { return barriers + 16 * (at % F::kStages); }
  STCA_DEVICE uint32_t free(int at) const { return barriers + 16 * (at % F::kStages) + 8; }
  // The first or the second tile of a stage.
  STCA_DEVICE uint32_t tile(int at, int which) const { return tiles + (at % F::kStages * 2 + which) * F::kTileBytes; }
  STCA_DEVICE uint32_t phase(int at) const { return at / F::kStages & 1; }

  STCA_DEVICE void init() const {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < F::kStages; ++stage) {
        init_barrier(full(stage), 1);
        init_barrier(free(stage), F::kGroups * kWarpgroup / kWarp);
      }
      fence_barrier_init();
    }
    sync_block();
  }
  // A warp that multiplies is done with a stage.
  STCA_DEVICE void release(int at) const {
    sync_warp();
    if (threadIdx.x % kWarp == 0) arrive(free(at));
  }
};

// Turns of two warpgroups: each waits for the other to have asked for its products. The second one starts with an
// arrival at the first one's barrier.
template <class F>
STCA_DEVICE void take_turn(int group) {
  if constexpr (F::kGroups > 1) sync_threads(2 + group, F::kGroups * kWarpgroup);
}
template <class F>
STCA_DEVICE void pass_turn(int group) {
  if constexpr (F::kGroups > 1) arrive_threads(3 - group, F::kGroups * kWarpgroup);
}

// Loads two rows of up to 16 kSteps columns, nullptr for a row of zeros, as thread t's part of a left operand.
template <int kSteps, class T>
STCA_DEVICE void load_held(Held (&held)[kSteps], const T* const (&rows)[2], int width, int t) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int column = t % 4 * 2, left = rows[r] == nullptr ? 0 : width - column;
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(rows[r] + column);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      held[k][r] = 16 * k < left ? pairs[8 * k] : 0;
      held[k][2 + r] = 16 * k + 8 < left ? pairs[8 * k + 4] : 0;
    }
  }
}

// An accumulator as the left operand of the next product.
template <int kSteps, class T>
STCA_DEVICE void hold(Held (&held)[kSteps], const float (&d)[8 * kSteps], T type) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) held[k][i] = narrow_pair(d[8 * k + 2 * i], d[8 * k + 2 * i + 1], type);
  }
}

// d [64, rows of a tile] = held rows times those of a tile.
template <class F, int kSums>
STCA_DEVICE void multiply_by_columns(float (&d)[kSums], const Held (&held)[F::kWidth / 16], uint32_t tile) {
  const uint64_t rows = by_columns(tile);
#pragma unroll
  for (int k = 0; k < F::kWidth / 16; ++k) {
    product<false>(typename F::Element(), d, held[k], rows + step(k / 4 * F::kTileSlab + k % 4 * 32), k > 0);
  }
}

// out [64, kWidth] += weights [64, rows of a tile] times rows of a tile.
template <class F>
STCA_DEVICE void add_by_rows(float (&out)[F::kWidth / 2], const Held (&weights)[F::kStep / 16], uint32_t tile) {
  const uint64_t rows = by_rows(tile, F::kTileSlab);
#pragma unroll
  for (int k = 0; k < F::kStep / 16; ++k) {
    product<true>(typename F::Element(), out, weights[k], rows + step(k * 16 * kSlabRow), true);
  }
}

// Clears rows from `valid` on of a tile, by all threads that multiply, before any of them does. They are another
// request's and may hold NaN: their weight is 0, and 0 times NaN is NaN.
template <class F>
STCA_DEVICE void clear_rows(char* tile, int valid, int thread) {
  for (int i = thread; i < F::kStep * F::kTileBytes / F::kStep / 16; i += F::kGroups * kWarpgroup) {
    const int row = i % F::kStep, chunk = i / F::kStep;
    if (row < valid) continue;
    *reinterpret_cast<Chunk*>(tile + chunk / 8 * F::kTileSlab + swizzled(row, chunk % 8)) = Chunk{};
  }
  fence_async_proxy();
  sync_threads(1, F::kGroups * kWarpgroup);
}

// Writes the columns of an accumulator's row that thread t holds: row r of its two.
template <int kSums>
STCA_DEVICE void write_row(float* to, const float (&d)[kSums], int r, int width, float, int t) {
#pragma unroll
  for (int i = 0; i < kSums / 4; ++i) {
    const int column = 8 * i + t % 4 * 2;
    if (column < width) *reinterpret_cast<float2*>(to + column) = {d[4 * i + 2 * r], d[4 * i + 2 * r + 1]};
  }
}
// The same times `factor`, as 16 bits.
template <class T, int kSums>
STCA_DEVICE void write_row(T* to, const float (&d)[kSums], int r, int width, float factor, int t) {
#pragma unroll
  for (int i = 0; i < kSums / 4; ++i) {
    const int column = 8 * i + t % 4 * 2;
    if (column >= width) continue;
    *reinterpret_cast<uint32_t*>(to + column) =
        narrow_pair(factor * d[4 * i + 2 * r], factor * d[4 * i + 2 * r + 1], T());
  }
}

// Asks for all tiles of an item from tile `at` on, by one thread.
template <class F, class Stream>
STCA_DEVICE void request_history(const Stages<F>& stages, const HistoryMaps& maps, const Item& item,
                                 const Stream& stream, int at) {
#pragma unroll 1
  for (; at < stream.last; ++at) {
    const int first = int(item.row_begin) + stream.first_row(at);
    wait(stages.free(at), stages.phase(at) ^ 1);
    arrive_expecting(stages.full(at), 2 * F::kTileBytes);
#pragma unroll
    for (int slab = 0; slab < F::kWidth / 64; ++slab) {
      const int to = slab * F::kTileSlab;
      copy_tile(stages.tile(at, 0) + to, maps.k, 64 * slab, item.kv_head, first, stages.full(at));
      copy_tile(stages.tile(at, 1) + to, maps.v, 64 * slab, item.kv_head, first, stages.full(at));
    }
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
