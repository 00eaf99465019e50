// A block of the attention kernels that every architecture runs: what it holds, and the steps that they share.
//
// A kernel's layout F says how a block is cut: F::kRows query rows and F::kHistoryRows history rows of a tile, kSlices
// warps side by side over the columns of a row, and where in shared memory everything lies.
#pragma once

#include "int8_tile.cuh"

namespace stca {
namespace cuda {

// Shared memory, and where a thread stands in the block.
template <class F>
struct Block {
  using T = typename F::Element;
  using Row = typename F::Row;

  const TargetAttentionParams& p;
  const Aligned& aligned;
  char* memory;
  Item& item;
  Row* rows;      // [kRows] the query rows of a tile
  float* sums;    // [kSlices, kRows, kSumPitch] products of a tile, to be added up over slices
  int slice;      // of the thread's warp
  int first_row;  // of the warp, among the rows whose outputs the block holds
  int column;     // where the slice begins

  STCA_DEVICE Block(const TargetAttentionParams& p, const Aligned& aligned)
      : p(p),
        aligned(aligned),
        memory(shared_memory()),
        item(*at<Item>(F::kItem)),
        rows(at<Row>(F::kInfo)),
        sums(at<float>(F::kSums)),
        slice(int(threadIdx.x) / kWarp % F::kSlices),
        first_row(int(threadIdx.x) / kWarp / F::kSlices * 16 * F::kRowFragments),
        column(slice * F::kWarpColumns) {}

  template <class V>
  STCA_DEVICE V* at(int offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }

  // Columns that the slice has of rows of `dim` elements.
  STCA_DEVICE int width_of(int64_t dim) const { return max(0, min(F::kWarpColumns, int(dim) - column)); }

  // Asks for query rows of q from the item's row `first` on. `rows` describes them.
  STCA_DEVICE void load_queries(T* to, int first) const {
    load_rows<F::kMaxWidth, F::kRows, F::kThreads>(to, item.query_rows - first, int(p.key_dim), aligned.q,
                                                   [&](int row) { return static_cast<const T*>(p.q) + rows[row].q; });
  }

  // The slice's part of left [16 M, depth] right [8 N, depth]^T, to `to` in `sums`.
  template <int M, int N>
  STCA_DEVICE void multiply(const T* left, const T* right, int depth, float* to) const {
    float c[M][N][4];
    clear(c);
    warp_product<false, false, F::kWarpColumns>(c, left, F::kPitch, right, F::kPitch, depth);
    for_each_element(c, [&](int row, int n, float value) { to[row * F::kSumPitch + n] = value; });
  }

  // The product of query row `row` and history row `n` of the tile: the slices' parts, added up in order.
  STCA_DEVICE float product(int row, int n) const {
    float total = 0;
#pragma unroll
    for (int each = 0; each < F::kSlices; ++each) total += sums[(each * F::kRows + row) * F::kSumPitch + n];
    return total;
  }

  // Writes the warp's rows of an output of the tile of query rows that starts at row `first` of the item: results, or,
  // where several ranges share the tile, partial results [partials, kRows, dim].
  template <int M, int N>
  STCA_DEVICE void write_queries(const float (&c)[M][N][4], int first, int64_t dim, int width, void* results,
                                 float* partials) const {
    const int query_rows = item.query_rows - first - first_row;
    if (item.partial < 0) {
      store_rows<T>(c, width, [&](int row) {
        return row < query_rows ? static_cast<T*>(results) + rows[first_row + row].index * dim + column : nullptr;
      });
    } else {
      float* to = partials + (int64_t(item.partial) * F::kRows + first_row) * dim + column;
      store_rows<float>(c, width, [&](int row) { return row < query_rows ? to + row * dim : nullptr; });
    }
  }
};

// The history rows of an item that any of its queries sees, tile by tile through kStages stages of shared memory; rows
// of int8 through bytes of a tile at F::kBytesOfKeys and F::kBytesOfValues, and one stage.
template <class F>
struct HistoryTiles {
  using T = typename F::Element;
  using S = typename F::Stored;
  using Bytes = Int8Tile<T, F::kMaxWidth, F::kHistoryRows, F::kThreads>;
  static constexpr bool kAhead = F::kStages > 1 || F::kScaled;  // whether the next tile is copied while one is used
  static_assert(!F::kScaled || F::kStages == 1);

  const Block<F>& block;
  Range seen;
  History<S> keys, values;

  STCA_DEVICE int count() const { return (seen.end - seen.begin + F::kHistoryRows - 1) / F::kHistoryRows; }
  STCA_DEVICE int first_row(int tile) const { return seen.begin + tile * F::kHistoryRows; }
  STCA_DEVICE T* k(int tile) const { return block.template at<T>(F::kKeys + tile % F::kStages * F::kTile); }
  STCA_DEVICE T* v(int tile) const { return block.template at<T>(F::kValues + tile % F::kStages * F::kTile); }

  // Asks for a tile.
  STCA_DEVICE void load(int tile) const {
    const int from = first_row(tile);
    const TargetAttentionParams& p = block.p;
    if constexpr (F::kScaled) {
      bytes_of_keys().load(tile, keys, from, seen.end, p.key_dim, block.aligned.k);
      if constexpr (!F::kShared) bytes_of_values().load(tile, values, from, seen.end, p.value_dim, block.aligned.v);
    } else {
      load_history_rows<F::kMaxWidth, F::kHistoryRows, F::kThreads>(k(tile), keys, from, seen.end, p.key_dim,
                                                                    block.aligned.k);
      if constexpr (!F::kShared) {
        load_history_rows<F::kMaxWidth, F::kHistoryRows, F::kThreads>(v(tile), values, from, seen.end, p.value_dim,
                                                                      block.aligned.v);
      }
    }
    commit_copies();
  }

  // Makes rows of T of those of int8 that have come.
  STCA_DEVICE void convert(int tile) const {
    bytes_of_keys().convert(tile, int(block.p.key_dim), k(tile));
    if constexpr (!F::kShared) bytes_of_values().convert(tile, int(block.p.value_dim), v(tile));
  }

  // Calls use(tile) for each of them, while the next one is copied where there is room for it. The first has been asked
  // for.
  template <class Use>
  STCA_DEVICE void for_each(const Use& use) const {
    const int tiles = count();
    for (int tile = 0; tile < tiles; ++tile) {
      wait_copies<0>();
      sync_block();
      if constexpr (F::kScaled) convert(tile);
      if (kAhead && tile + 1 < tiles) load(tile + 1);
      if constexpr (F::kScaled) sync_block();
      use(tile);
      if (!kAhead && tile + 1 < tiles) {
        sync_block();
        load(tile + 1);
      }
    }
    wait_copies<0>();
  }

 private:
  STCA_DEVICE Bytes bytes_of_keys() const { return {block.memory + F::kBytesOfKeys, int(threadIdx.x)}; }
  STCA_DEVICE Bytes bytes_of_values() const { return {block.memory + F::kBytesOfValues, int(threadIdx.x)}; }
};

}  // namespace cuda
}  // namespace stca
