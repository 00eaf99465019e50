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

struct TensorMaps {
  CUtensorMap k, v, q, dout;
};

// A block's rows: 64 kept ones for each warpgroup that multiplies, and stages of two tiles of streamed ones.
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
  static constexpr int kStageBytes = kStages * 2 * kTileBytes;
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

// Clears rows from `valid` on of one tile or two, by all threads that multiply, before any of them does. They are
// another request's and may hold NaN: their weight is 0, and 0 times NaN is NaN.
template <class F, int kTiles>
STCA_DEVICE void clear_rows(char* tiles, int valid) {
  constexpr int kChunks = kTiles * F::kTileBytes / 16;
  for (int i = int(threadIdx.x) - kWarpgroup; i < kChunks; i += F::kGroups * kWarpgroup) {
    const int row = i % F::kStep, chunk = i / F::kStep;
    if (row < valid) continue;
    *reinterpret_cast<Chunk*>(tiles + chunk / 8 * F::kTileSlab + swizzled(row, chunk % 8)) = Chunk{};
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

// What a block that keeps query rows works with, in the forward pass and for dq.
template <class F>
struct QueryBlock {
  const TargetAttentionBackwardParams& b;
  const TargetAttentionParams& p;
  const Tiling& tiling;
  const Schedule& schedule;
  const Weighing* weighing;
  const Partials& partials;
  char* memory;
  Stages<F> stages;
  typename F::Row* rows;  // [kKept]
  Item& item;
  int group;  // of 64 query rows; -1: asks for tiles

  // Loads the next item. The history rows that its queries see are tiles from `at` on.
  STCA_DEVICE StreamTiles<F::kStep> next_stream(int at) const {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const Range seen = seen_by_tile<F::kKept, F::kThreads>(
        p, item, rows, [&](int row) { return F::describe(*this, item.tile * F::kKept + row); });
    return {at + (seen.end - seen.begin + F::kStep - 1) / F::kStep, seen.begin - at * F::kStep, seen.end};
  }
  // The first of a thread's two rows among those that the block keeps; the other is 8 further on.
  STCA_DEVICE int first_row(int t) const { return kRows * group + row_of(t); }
  STCA_DEVICE bool has(int row) const { return item.tile * F::kKept + row < item.query_rows; }

  // Loads rows of q or of dout: where row i starts is start_of(i), in elements.
  template <class StartOf>
  STCA_DEVICE void load(Held (&held)[F::kWidth / 16], const void* tensor, int64_t width, int t,
                        StartOf start_of) const {
    const typename F::Element* from[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row(t) + 8 * r;
      from[r] = has(row) ? static_cast<const typename F::Element*>(tensor) + start_of(rows[row]) : nullptr;
    }
    load_held(held, from, int(width), t);
  }

  // Waits for tile `at`. Those of its rows that the queries' request does not have are cleared in the tile that is
  // multiplied by weights: k, or v where `which` is 1.
  STCA_DEVICE void wait_for_tile(const StreamTiles<F::kStep>& stream, int at, int which) const {
    wait(stages.full(at), stages.phase(at));
    const int valid = stream.end - stream.first_row(at);
    if (valid < F::kStep) clear_rows<F, 1>(memory + stages.tile(at, which) - stages.tiles, valid);
  }
};

// Asks for all tiles of an item from tile `at` on, by one thread.
template <class F>
STCA_DEVICE void request_history(const QueryBlock<F>& c, const TensorMaps& maps, const StreamTiles<F::kStep>& stream,
                                 int at) {
#pragma unroll 1
  for (; at < stream.last; ++at) {
    const int first = int(c.item.row_begin) + stream.first_row(at);
    const uint32_t full = c.stages.full(at);
    wait(c.stages.free(at), c.stages.phase(at) ^ 1);
    arrive_expecting(full, 2 * F::kTileBytes);
#pragma unroll
    for (int slab = 0; slab < F::kWidth / 64; ++slab) {
      copy_tile(c.stages.tile(at, 0) + slab * F::kTileSlab, maps.k, 64 * slab, c.item.kv_head, first, full);
      copy_tile(c.stages.tile(at, 1) + slab * F::kTileSlab, maps.v, 64 * slab, c.item.kv_head, first, full);
    }
  }
}

// All items of the block's range. F says what a warpgroup holds of its rows (Own), and load(), attend() and finish()
// what becomes of it.
template <class F>
STCA_DEVICE void run_queries(const QueryBlock<F>& c) {
  const int t = int(threadIdx.x) % kWarpgroup;
  if (c.group == 1) pass_turn<F>(1);
  int at = 0;  // tiles so far, of all items
  do {
    const auto stream = c.next_stream(at);
    typename F::Own own;
    F::load(c, own, t);
    F::attend(c, own, stream, at, t);
    F::finish(c, own, t);
    at = stream.last;
  } while (c.item.more);
}

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_projected_sm90_kernel(const __grid_constant__ TensorMaps maps,
                                           const __grid_constant__ TargetAttentionBackwardParams b, const Tiling tiling,
                                           const Schedule schedule, const Weighing* weighing, const Partials partials) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  char* memory = shared_memory();
  const uint32_t base = shared_address(memory);
  const QueryBlock<F> c{b,
                        b.forward,
                        tiling,
                        schedule,
                        weighing,
                        partials,
                        memory,
                        {base, base + F::kBarriers},
                        reinterpret_cast<typename F::Row*>(memory + F::kInfo),
                        *reinterpret_cast<Item*>(memory + F::kItem),
                        int(threadIdx.x) / kWarpgroup - 1};
  c.stages.init();
  if (!start_range(&c.item, schedule, int(blockIdx.x))) return;
  if (c.group >= 0) {
    take_registers<F::kGroups == 1 ? 224 : 240>();
    run_queries(c);
  } else {
    give_registers<F::kGroups == 1 ? 32 : 24>();
    int at = 0;
    do {
      const auto stream = c.next_stream(at);
      if (threadIdx.x == 0) request_history(c, maps, stream, at);
      sync_warp();
      at = stream.last;
    } while (c.item.more);
  }
#endif
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
