// The warpgroups that add weights times streamed rows to the output, 128 or 256 of a block's columns each. The first
// warp of the block asks the copy engine for tiles.
#pragma once

#include "passes.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Asks for tile `at` when nobody reads what its place holds any more, by one warp.
template <class C>
STCA_DEVICE void request_tile(const C& c, const StreamTiles<C::kStep>& stream, int at, int lane) {
  const int from = stream.first_row(at);
  const uint32_t to = c.tile(at), barrier = c.barriers.full(c.stage(at));
  wait(c.barriers.free(c.stage(at)), c.phase(at) ^ 1);
  if (lane == 0) arrive_expecting(barrier, C::L::kTile);
  if constexpr (C::kPass == Pass::kHistory) {
    if (lane != 0) return;
    const int first = int(c.item.target_begin * c.p.heads) + from;
#pragma unroll 1
    for (int slab = 0; slab < C::L::kSlabs; ++slab) {
      const int x = c.column + 64 * slab;
      copy_tile(to + slab * kSlab, c.streams.dout, x, 0, first, barrier);
      copy_tile(to + slab * kSlab + kSlab / 2, c.streams.q, x, 0, first, barrier);
    }
  } else {
    const auto rows = find_rows<kColumns>(c.p, c.item, from, stream.end, lane);
#pragma unroll 1
    for (int slab = 0; slab < C::L::kSlabs; ++slab) {
      request_slab(rows, to + slab * kSlab, c.streams.history, c.column + 64 * slab, c.item.kv_head, barrier, lane);
    }
  }
}

// A thread's part of the output.
template <class C>
using Output = float[C::L::kOutputColumns / 2];

// Forward: multiplies the output by the factors that tile `at` asks for.
template <class C>
STCA_DEVICE void rescale(const C& c, Output<C>& out, int at) {
  const int row = row_of(opaque(int(threadIdx.x) % kWarpgroup));
  const float* factors = c.factors + at % C::M::kWeightBuffers * kRows + row;
  const float factor[2] = {factors[0], factors[8]};
  if (!any_in_warp(factor[0] != 1 || factor[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < C::L::kOutputColumns / 2; ++i) out[i] *= factor[i / 2 % 2];
}

// Adds weights times rows of tile `at` to the output, when both are there.
template <class C>
STCA_DEVICE void add_weighted_rows(const C& c, Output<C>& out, int at) {
  constexpr int kPart = C::L::kProductColumns;
  const int buffer = at % C::M::kWeightBuffers;
  wait(c.barriers.weighed(buffer), at / C::M::kWeightBuffers & 1);
  if constexpr (C::kPass == Pass::kForward) rescale(c, out, at);
  wait(c.barriers.full(c.stage(at)), c.phase(at));  // long since; what copies wrote is seen by who waited for them
  pin(out);
  fence_products();
  // What was kept lies there transposed: a row for each history row, over which the product is contracted.
  constexpr bool kByRows = C::kPass == Pass::kKept;
  const uint32_t slab = c.base + C::M::kWeights + buffer * kSlab;
  const uint64_t weights = kByRows ? by_rows(slab, kSlab) : by_columns(slab);
  const uint64_t rows = by_rows(c.tile(at) + c.group * (C::L::kOutputColumns / 64) * kSlab, kSlab);
#pragma unroll
  for (int part = 0; part < C::L::kOutputColumns / kPart; ++part) {
    auto& sums = reinterpret_cast<float (&)[kPart / 2]>(out[part * kPart / 2]);
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      add_product<kByRows, true>(sums, weights + step(kByRows ? k * 16 * kSlabRow : 32 * k),
                                 rows + step(part * kPart / 64 * kSlab + k * 16 * kSlabRow), typename C::Element{});
    }
  }
  commit_products();
  wait_products<0>();
  pin(out);
  sync_warp();
  if (c.first_lane) {
    arrive(c.barriers.used(buffer));
    arrive(c.barriers.free(c.stage(at)));
  }
}

// Where a row of the output goes: to `sums` in float32, or to `results`, or, where both are nullptr, nowhere.
template <class T>
struct Destination {
  float* sums;
  T* results;
  float factor;  // of results
};

// dq of row `row` of a tile of which ds was kept, as far as it has been made.
template <class C>
STCA_DEVICE float* kept_sums(const C& c, int row) {
  const int64_t first = first_partial_row(c.item, c.tiling, c.range()) + c.item.tile * C::kQueries;
  return c.partials.sums + (first + row) * c.p.value_dim;
}

template <class C>
STCA_DEVICE Destination<typename C::Element> destination_of(const C& c, int row) {
  using T = typename C::Element;
  const int64_t width = int(c.p.value_dim);
  if constexpr (C::kPass == Pass::kHistory) {
    const int n = c.item.split_begin + row;
    if (n >= c.item.history_rows) return {nullptr, nullptr, 1};
    const int64_t first = ((c.item.row_begin + n) * c.p.kv_heads + c.item.kv_head) * width;
    if (c.b.wide) return {static_cast<float*>(c.b.dk) + first, nullptr, 1};
    return {nullptr, static_cast<T*>(c.b.dk) + first, 1};
  } else {
    if (row >= C::kQueries || c.item.tile * C::kQueries + row >= c.item.query_rows) return {nullptr, nullptr, 1};
    if constexpr (C::kPass == Pass::kKept) {
      if (!c.chunk.completes(c.item)) return {kept_sums(c, row), nullptr, 1};
    } else if (c.item.partial >= 0) {
      return {c.partials.sums + (int64_t(c.item.partial) * C::kQueries + row) * width, nullptr, 1};
    }
    T* const results = static_cast<T*>(C::kPass == Pass::kForward ? c.p.out : c.b.dq);
    return {nullptr, results + c.info[row].index * width, C::kPass == Pass::kForward ? c.factors[row] : 1};
  }
}

// Writes the columns that this thread holds of its two rows.
template <class C>
STCA_DEVICE void write_output(const C& c, const Output<C>& out) {
  using T = typename C::Element;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int t = opaque(int(threadIdx.x) % kWarpgroup);
    const int begin = c.column + c.group * C::L::kOutputColumns + t % 4 * 2, width = int(c.p.value_dim);
    const Destination<T> to = destination_of(c, row_of(t) + 8 * r);
    if (to.sums != nullptr) {
#pragma unroll
      for (int i = 0; i < C::L::kOutputColumns / 8; ++i) {
        if (begin + 8 * i >= width) continue;
        *reinterpret_cast<float2*>(to.sums + begin + 8 * i) = {out[4 * i + 2 * r], out[4 * i + 2 * r + 1]};
      }
    } else if (to.results != nullptr) {
#pragma unroll
      for (int i = 0; i < C::L::kOutputColumns / 8; ++i) {
        if (begin + 8 * i >= width) continue;
        *reinterpret_cast<uint32_t*>(to.results + begin + 8 * i) =
            narrow_pair(to.factor * out[4 * i + 2 * r], to.factor * out[4 * i + 2 * r + 1], T{});
      }
    }
  }
}

// dq of that row as far as earlier chunks have made it, or nullptr where none has, and where there is no such row.
template <class C>
STCA_DEVICE const float* sums_before(const C& c, int row) {
  if (c.chunk.is_first() || c.item.tile * C::kQueries + row >= c.item.query_rows) return nullptr;
  return kept_sums(c, row);
}

// What the output begins with: nothing or, where earlier chunks have begun it, what this thread wrote of them.
template <class C>
STCA_DEVICE void start_output(const C& c, Output<C>& out) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int t = opaque(int(threadIdx.x) % kWarpgroup);
    const int begin = c.column + c.group * C::L::kOutputColumns + t % 4 * 2, width = int(c.p.value_dim);
    const float* sums = nullptr;
    if constexpr (C::kPass == Pass::kKept) sums = sums_before(c, row_of(t) + 8 * r);
#pragma unroll
    for (int i = 0; i < C::L::kOutputColumns / 8; ++i) {
      float2 own{0, 0};
      if (sums != nullptr && begin + 8 * i < width) own = *reinterpret_cast<const float2*>(sums + begin + 8 * i);
      out[4 * i + 2 * r] = own.x;
      out[4 * i + 2 * r + 1] = own.y;
    }
  }
}

// An item from weights to the output, from tile `at` on.
template <class C>
STCA_DEVICE void make_output(const C& c, int& at) {
  const auto stream = stream_of(c, at);
  const int thread = int(threadIdx.x);
  if (thread < kWarp) {
    for (int tile = at; tile < at + C::L::kStages && stream.has(tile); ++tile) request_tile(c, stream, tile, thread);
  }
  sync_warp();
  Output<C> out;
  start_output(c, out);
#pragma unroll 1
  for (; stream.has(at); ++at) {
    add_weighted_rows(c, out, at);
    if (threadIdx.x < kWarp && stream.has(at + C::L::kStages)) {
      request_tile(c, stream, at + C::L::kStages, int(threadIdx.x));
    }
    sync_warp();
  }
  sync_block();
  write_output(c, out);
}

// All items of the block's range, from weights to the output.
template <class C>
STCA_DEVICE void run_outputs(const C& c) {
  int at = 0;  // tiles so far, of all items
  for_each_step(c, [&](const auto& own) { make_output(own, at); });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
