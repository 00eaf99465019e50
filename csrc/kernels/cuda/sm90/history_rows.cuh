// Rows of the history on their way to shared memory, by one warp: a box where they follow each other in the tensor, as
// they do without an index and within a page, else row by row. The swizzle follows from where a row goes, so both give
// the same slabs.
#pragma once

#include "../target_attention.cuh"
#include "tensor_map.h"
#include "wgmma.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Where kCount rows of a request's history lie.
template <int kCount>
struct TileRows {
  int first;                // of the box, where it is one
  bool box;                 // the same in all lanes
  int own[kCount / kWarp];  // the rows that the lane asks for, where it is none
};

// Those from row `from` of the request on. Rows from `end` on, which weigh nothing, are whatever a box holds there, and
// the one before where rows are asked for one by one.
template <int kCount>
STCA_DEVICE TileRows<kCount> find_rows(const TargetAttentionParams& p, const Item& item, int from, int end, int lane) {
  TileRows<kCount> rows{int(item.row_begin) + from, true, {}};
  if (p.history_index == nullptr) return rows;
  const int64_t* index = p.history_index + item.row_begin;
  const auto at = [&](int n) { return int(clamp(index[min(n, end - 1)], p.pool_rows - 1)); };
  rows.first = at(from);
  bool scattered = false;
#pragma unroll
  for (int i = 0; i < kCount / kWarp; ++i) {
    const int row = from + i * kWarp + lane;
    rows.own[i] = at(row);
    scattered |= row < end && rows.own[i] != rows.first + i * kWarp + lane;
  }
  rows.box = !any_in_warp(scattered);
  return rows;
}

// Asks for 64 columns, from column x on, of one head of the rows.
template <int kCount>
STCA_DEVICE void request_slab(const TileRows<kCount>& rows, uint32_t to, const RowMaps& maps, int x, int head,
                              uint32_t barrier, int lane) {
  if (rows.box) {
    if (lane == 0) copy_tile(to, maps.tile, x, head, rows.first, barrier);
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount / kWarp; ++i) {
    copy_tile(to + (i * kWarp + lane) * kSlabRow, maps.row, x, head, rows.own[i], barrier);
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
