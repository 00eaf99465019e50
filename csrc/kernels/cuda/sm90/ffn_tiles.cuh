// A product of swiglu_ffn_norm on Hopper, [rows, depth] by [depth, columns]: how a block is laid out, how operands come
// to it, and how they are multiplied.
//
// A block makes tiles of 128 rows by 256 columns, one after the other. Two warpgroups have 64 rows of sums each in
// their registers; a thread of a third one asks the copy engine for operands, 64 of `depth` at a time, into a ring of
// four stages. Two blocks, one's rows below the other's, work side by side: each asks for its own rows of the left
// operand. Where they are a cluster, each asks for half of the right one, which goes to both; else each asks for all of
// it. What becomes of the sums: ffn_results.cuh.
#pragma once

#include "../../swiglu_ffn_norm_cuda.h"
#include "wgmma.cuh"

namespace stca {
namespace cuda {
namespace sm90 {
namespace ffn {

constexpr int kTileRows = 128;
constexpr int kTileColumns = 256;
constexpr int kStep = 64;             // of `depth`
constexpr int kSlab = 64 * kSlabRow;  // bytes of 64 rows of 64 columns
constexpr int kLeft = kTileRows / 64 * kSlab;
constexpr int kRight = kTileColumns / 64 * kSlab;
constexpr int kStage = kLeft + kRight;
constexpr int kStages = 4;
constexpr int kBarriers = kStages * kStage;
constexpr int kBytes = kBarriers + 2 * kStages * 8;
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kCopies = 2;  // the warpgroup that asks for operands
static_assert(kBytes <= kLargeSharedBytes);

// How each product has its operands, and what its tiles are.
template <FfnProduct kProduct, int kOwnCluster>
struct Form {
  static constexpr FfnProduct kKind = kProduct;
  static constexpr int kCluster = kOwnCluster;  // blocks of a cluster
  // Contracted over their rows, as they lie in memory.
  static constexpr bool kLeftByRows = kProduct == FfnProduct::kWeights;
  static constexpr bool kRightByRows = kProduct != FfnProduct::kGateBackward && kProduct != FfnProduct::kInput;
  // u and v of the same columns lie side by side in a tile.
  static constexpr bool kPairs = kProduct == FfnProduct::kGate;
  static constexpr int kColumns = kPairs ? kTileColumns / 2 : kTileColumns;  // of the result, in a tile
  // Steps behind those of a tile's operands that bring 64 columns of its u and its v each.
  static constexpr int kSideSteps = kProduct == FfnProduct::kGateBackward ? kTileColumns / 64 : 0;
};

struct Maps {
  CUtensorMap left;
  CUtensorMap right[2];  // of each half
  CUtensorMap side[2];   // u and v
};

// One tile, or its part over a run of steps.
struct Tile {
  int row, column, split, begin, end;
};

// The tiles of a product, of pairs of blocks. `swath` pairs with the same columns follow each other, then those of the
// next columns: what they need comes from memory once, weights, which all need, stay in the cache.
struct Tiles {
  int pairs, columns, splits, steps, swath;
  STCA_DEVICE int count() const { return pairs * columns * splits; }
  STCA_DEVICE Tile at(int number, int rank, int tile_columns) const {
    const int split = number / (pairs * columns), inside = number % (pairs * columns);
    const int first = inside / (swath * columns) * swath, left = pairs - first, high = left < swath ? left : swath;
    const int within = inside - first * columns;
    return {((first + within % high) * 2 + rank) * kTileRows, within / high * tile_columns, split,
            int(int64_t(steps) * split / splits), int(int64_t(steps) * (split + 1) / splits)};
  }
};

// The stages, and whose turn it is with them. In a cluster a stage is free when both blocks' warps are done with it,
// for copies of one block go to both.
template <int kCluster>
struct Ring {
  uint32_t base;
  int rank;  // of the block in its pair

  STCA_DEVICE uint32_t stage(int at) const { return base + at % kStages * kStage; }
  STCA_DEVICE uint32_t full(int at) const { return base + kBarriers + at % kStages * 8; }
  STCA_DEVICE uint32_t free(int at) const { return base + kBarriers + (kStages + at % kStages) * 8; }

  STCA_DEVICE void init() const {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(full(stage), 1);
      init_barrier(free(stage), kCluster * kCopies * kWarpgroup / kWarp);
    }
    fence_barrier_init();
  }
  STCA_DEVICE void wait_until_full(int at) const { wait(full(at), at / kStages & 1); }
  // Waits until nobody reads what the stage holds, and says how much will come.
  STCA_DEVICE void claim(int at, int bytes) const {
    wait(free(at), at / kStages & 1 ^ 1);
    arrive_expecting(full(at), bytes);
  }
  // The warp needs the stage no more.
  STCA_DEVICE void release(int at) const {
    sync_warp();
    if (threadIdx.x % kWarp != 0) return;
    arrive(free(at));
    if constexpr (kCluster > 1) arrive_remote(remote(free(at), uint32_t(rank ^ 1)));
  }
};

// Asks for half of one step of the right operand, for both blocks of a cluster, or for this one.
template <class F>
STCA_DEVICE void request_right(const Ring<F::kCluster>& ring, const Maps& maps, const Tile& tile, int k, int half,
                               int at) {
  const uint32_t to = ring.stage(at) + kLeft + half * (kRight / 2), barrier = ring.full(at);
  const int column = tile.column + (F::kPairs ? 0 : half * (kTileColumns / 2));
  const CUtensorMap& map = maps.right[half];
  const auto copy = [&](int slab, int x, int z) {
    if constexpr (F::kCluster > 1) {
      copy_tile_to(3, to + slab * kSlab, map, x, 0, z, barrier);
    } else {
      copy_tile(to + slab * kSlab, map, x, 0, z, barrier);
    }
  };
  if constexpr (F::kRightByRows) {
    for (int slab = 0; slab < 2; ++slab) copy(slab, column + 64 * slab, k);
  } else {
    copy(0, k, column);
  }
}

// Asks for one step of a tile's operands.
template <class F>
STCA_DEVICE void request_operands(const Ring<F::kCluster>& ring, const Maps& maps, const Tile& tile, int step, int at) {
  const uint32_t left = ring.stage(at), barrier = ring.full(at);
  const int k = step * kStep;
  ring.claim(at, kStage);
  if constexpr (F::kLeftByRows) {
    for (int slab = 0; slab < 2; ++slab) {
      copy_tile(left + slab * kSlab, maps.left, tile.row + 64 * slab, 0, k, barrier);
    }
  } else {
    copy_tile(left, maps.left, k, 0, tile.row, barrier);
  }
  if constexpr (F::kCluster > 1) {
    request_right<F>(ring, maps, tile, k, ring.rank, at);
  } else {
    for (int half = 0; half < 2; ++half) request_right<F>(ring, maps, tile, k, half, at);
  }
}

// Asks for everything that the block's tiles need, in the order of its use. One thread runs this.
template <class F>
STCA_DEVICE void run_copies(const Ring<F::kCluster>& ring, const Maps& maps, const Tiles& tiles) {
  int at = 0;  // steps so far, of all tiles
#pragma unroll 1
  for (int number = int(blockIdx.x) / 2; number < tiles.count(); number += int(gridDim.x) / 2) {
    const Tile tile = tiles.at(number, ring.rank, F::kColumns);
#pragma unroll 1
    for (int step = tile.begin; step < tile.end; ++step) request_operands<F>(ring, maps, tile, step, at++);
#pragma unroll 1
    for (int side = 0; side < F::kSideSteps; ++side, ++at) {
      ring.claim(at, 2 * kLeft);
      for (int i = 0; i < 2; ++i) {
        copy_tile(ring.stage(at) + i * kLeft, maps.side[i], tile.column + 64 * side, 0, tile.row, ring.full(at));
      }
    }
  }
}

// The sums of the warpgroup's 64 rows of a tile over `steps` steps, from step `at` of the ring on.
template <class F, class T>
STCA_DEVICE void multiply(float (&sums)[128], const Ring<F::kCluster>& ring, int group, int at, int steps) {
#pragma unroll
  for (int i = 0; i < 128; ++i) sums[i] = 0;
  pin(sums);
#pragma unroll 1
  for (int i = 0; i < steps; ++i, ++at) {
    ring.wait_until_full(at);
    const uint32_t stage = ring.stage(at), rows = stage + group * kSlab, columns = stage + kLeft;
    const uint64_t left = F::kLeftByRows ? by_rows(rows, kSlab) : by_columns(rows);
    const uint64_t right = F::kRightByRows ? by_rows(columns, kSlab) : by_columns(columns);
    constexpr int kAlongRows = 16 * kSlabRow, kAlongColumns = 32;  // bytes of 16 of `depth`
    fence_products();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      add_product<F::kLeftByRows, F::kRightByRows>(sums, left + step(k * (F::kLeftByRows ? kAlongRows : kAlongColumns)),
                                                   right + step(k * (F::kRightByRows ? kAlongRows : kAlongColumns)),
                                                   T{});
    }
    commit_products();
    wait_products<1>();  // those of the step before, whose stage is free then
    if (i > 0) ring.release(at - 1);
  }
  wait_products<0>();
  pin(sums);
  if (steps > 0) ring.release(at - 1);
}

}  // namespace ffn
}  // namespace sm90
}  // namespace cuda
}  // namespace stca
