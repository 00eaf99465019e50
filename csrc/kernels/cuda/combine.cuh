// How partial results of tiles that several ranges share are added up, always in the same order.
//
// A block takes one query row and some of its columns. Its warps stand side by side over the columns, and where these
// are few, the others take turns with the splits: with few rows there may be hundreds of splits.
#pragma once

#include "target_attention.cuh"

namespace stca {
namespace cuda {

constexpr int kCombineWarps = 8, kCombineThreads = kCombineWarps * kWarp;
constexpr int kCombineVector = 4, kCombineColumns = kWarp * kCombineVector;  // columns of a lane, and of a warp
constexpr int kCombineBytes = kCombineWarps * kCombineColumns * int(sizeof(float));

struct Combine {
  int64_t rows;  // at most
  int columns;   // of a block
  int parts;     // blocks of a row

  int64_t grid() const { return rows * parts; }
};

inline Combine combine_of(const TargetAttentionParams& p, const Tiling& tiling, int64_t dim) {
  const int64_t rows = min(int64_t(tiling.num_ranges) * tiling.tile_rows, p.num_targets * p.heads);
  const int columns = rows < 2 * tiling.num_ranges ? kCombineColumns : kCombineWarps * kCombineColumns;
  return {rows, columns, int(divide_up(dim, columns))};
}

// A query row of a tile that several ranges share.
struct SplitRow {
  int64_t index;  // target * H + head
  int64_t first;  // the range that holds the tile's first split
  int splits, row, tile_rows;

  // The row of the partial results [partials * tile_rows] that split s wrote.
  STCA_DEVICE int64_t partial(int s) const { return (2 * (first + s) + (s == 0 ? 1 : 0)) * tile_rows + row; }
};

STCA_DEVICE SplitRow split_row(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                               int64_t number) {
  const int64_t last = find(schedule.combine_begin, tiling.num_ranges, number);
  const Point at = schedule.points[last];
  const Shape s = shape_of(p, tiling, at.request);
  const int row = int(number - schedule.combine_begin[last]), group = int(p.heads) / int(p.kv_heads);
  const int query = at.tile % s.tiles * tiling.tile_rows + row;
  return {(s.target_begin + query / group) * p.heads + int64_t(at.tile / s.tiles) * group + query % group,
          at.first_range, int(last) - at.first_range + 1, row, tiling.tile_rows};
}

// Calls write(column, sum over splits of factor(partial) * sums[partial][column]) for the block's columns of a row.
template <class Factor, class Write>
STCA_DEVICE void add_splits(const SplitRow& row, const float* sums, int64_t dim, const Combine& combine, int part,
                            Factor factor, Write write) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int begin = part * combine.columns, width = min(combine.columns, int(dim) - begin);
  const int wide = (width + kCombineColumns - 1) / kCombineColumns, turns = kCombineWarps / wide;
  float own[kCombineVector] = {};
  int64_t column[kCombineVector];
#pragma unroll
  for (int i = 0; i < kCombineVector; ++i) {  // past the end it is any column, so that no load waits for a condition
    column[i] = begin + min(width - 1, warp % wide * kCombineColumns + lane + i * kWarp);
  }
#pragma unroll 4
  for (int s = warp / wide; s < (warp < turns * wide ? row.splits : 0); s += turns) {
    const int64_t partial = row.partial(s);
    const float weight = factor(partial);
#pragma unroll
    for (int i = 0; i < kCombineVector; ++i) own[i] += weight * sums[partial * dim + column[i]];
  }
  float* all = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int i = 0; i < kCombineVector; ++i) all[warp * kCombineColumns + lane + i * kWarp] = own[i];
  sync_block();
  for (int c = int(threadIdx.x); c < width; c += kCombineThreads) {
    float sum = 0;
    for (int turn = 0; turn < turns; ++turn) sum += all[turn * wide * kCombineColumns + c];
    write(begin + c, sum);
  }
}

}  // namespace cuda
}  // namespace stca
