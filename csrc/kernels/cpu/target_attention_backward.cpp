// Backward pass of target_attention on the CPU (formula and shapes: ../target_attention.h).
//
//   p[t, h, n]  = exp(s[t, h, n] - lse[t, h])              recomputed tile by tile
//   ds          = p * (dout . v - delta)                   delta[t, h] = dout . out - dlse
//   dq[t, h]    = scale * sum_n ds k[n]    dk[n] = scale * sum_(t, h) ds q[t, h]    dv[n] = sum_(t, h) p dout[t, h]
//
// One item is a range of history rows against all targets of the request, so every row of dk and dv has one owner and
// is written once. dq is summed over the item's tiles; where a history is cut into several items their partial dq are
// added in order of rows. When v is k, dk holds the sum of both roles.
#include "target_attention_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// scores (log 2 units) -> p, dp -> ds, for one query row.
template <class A>
void differentiate_row(A* scores, A* dp, int64_t n, A lse, A delta) {
  constexpr int kStep = kLanes<A>;
  const int64_t whole = n / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep) {
    const vec_t<A> w = exp2<A>(load(scores + i) - lse);
    store(scores + i, w);
    store(dp + i, w * (load(dp + i) - delta));
  }
  if (whole < n) {
    const vec_t<A> w = exp2<A>(load_first(scores + whole, n - whole, -kInfinity<A>) - lse);
    store_first(scores + whole, w, n - whole);
    store_first(dp + whole, w * (load_first(dp + whole, n - whole, A(0)) - delta), n - whole);
  }
}

// One block of targets, packed [Hk, targets * G].
template <class A>
struct Block {
  A* queries;  // [rows, Dk]
  A* douts;    // [rows, Dv]
  A* lse;      // [rows] in units of log 2
  A* delta;    // [rows]
  int64_t target_begin = -1, target_end = -1;
};

template <class T>
void load_block(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t target_end,
                Block<accumulator_t<T>>& block) {
  using A = accumulator_t<T>;
  const TargetAttentionParams& p = params.forward;
  if (block.target_begin == target_begin) return;
  block.target_begin = target_begin;
  block.target_end = target_end;
  pack_rows<T>(p, p.q, p.q_target_stride, p.q_head_stride, p.key_dim, target_begin, target_end, block.queries);
  pack_rows<T>(p, params.dout, p.heads * p.value_dim, p.value_dim, p.value_dim, target_begin, target_end,
               block.douts);
  for (int64_t t = target_begin; t < target_end; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t at = t * p.heads + h;
      const int64_t row = packed_row(p, target_end - target_begin, t - target_begin, h);
      const T* out = static_cast<const T*>(p.out) + at * p.value_dim;
      const A* dout = block.douts + row * p.value_dim;
      A dot = 0;
      for (int64_t i = 0; i < p.value_dim; ++i) dot += dout[i] * widen(out[i]);
      block.lse[row] = static_cast<const A*>(p.lse)[at] * A(kLog2E);
      block.delta[row] = dot - (params.dlse == nullptr ? A(0) : static_cast<const A*>(params.dlse)[at]);
    }
  }
}

// Gradients of one tile's rows: in the output itself where it has the accumulation type, else in a buffer.
template <class T>
accumulator_t<T>* clear_tile(void* output, int64_t row_size, RowRange tile, accumulator_t<T>* buffer) {
  using A = accumulator_t<T>;
  A* rows = buffer;
  if constexpr (sizeof(T) == sizeof(A)) rows = static_cast<A*>(output) + tile.begin * row_size;
  for (int64_t i = 0; i < (tile.end - tile.begin) * row_size; ++i) rows[i] = 0;
  return rows;
}

template <class T>
void write_tile(void* output, int64_t row_size, RowRange tile, const accumulator_t<T>* rows) {
  if constexpr (sizeof(T) == sizeof(accumulator_t<T>)) return;
  narrow<T>(rows, static_cast<T*>(output) + tile.begin * row_size, (tile.end - tile.begin) * row_size);
}

// dq rows of a request, packed [Hk, targets * G], to the output.
template <class T>
void write_dq(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t target_end,
              const accumulator_t<T>* dq) {
  const TargetAttentionParams& p = params.forward;
  for (int64_t t = target_begin; t < target_end; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = packed_row(p, target_end - target_begin, t - target_begin, h);
      narrow<T>(dq + row * p.key_dim, static_cast<T*>(params.dq) + (t * p.heads + h) * p.key_dim, p.key_dim);
    }
  }
}

template <class T>
void backward_item(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                   const TargetAttentionItem& item, void* scratch_memory, void* partial) {
  using A = accumulator_t<T>;
  const TargetAttentionParams& p = params.forward;
  const int64_t targets = item.target_end - item.target_begin;
  const int64_t group = p.heads / p.kv_heads;
  const int64_t block_targets = min(targets, tiling.block_targets);
  const int64_t block_rows = block_targets * p.heads;
  const int64_t score_count = block_targets * group * tiling.tile_rows;
  const int64_t k_row = p.kv_heads * p.key_dim, v_row = p.kv_heads * p.value_dim;

  Scratch<A> scratch{static_cast<A*>(scratch_memory)};
  A* own_dq = scratch.take(targets * p.heads * p.key_dim);
  A* dq = partial != nullptr ? static_cast<A*>(partial) : own_dq;
  Block<A> block{scratch.take(block_rows * p.key_dim), scratch.take(block_rows * p.value_dim),
                 scratch.take(block_rows), scratch.take(block_rows)};
  A* scores = scratch.take(score_count);
  A* dp = scratch.take(score_count);
  constexpr bool kConverts = sizeof(T) != sizeof(A);
  A* k_buffer = kConverts ? scratch.take(tiling.tile_rows * k_row) : nullptr;
  A* dk_buffer = kConverts ? scratch.take(tiling.tile_rows * k_row) : nullptr;
  A* v_buffer = kConverts && !p.shared ? scratch.take(tiling.tile_rows * v_row) : nullptr;
  A* dv_buffer = kConverts && !p.shared ? scratch.take(tiling.tile_rows * v_row) : nullptr;

  for (int64_t i = 0; i < targets * p.heads * p.key_dim; ++i) dq[i] = 0;

  for (int64_t begin = item.row_begin; begin < item.row_end; begin += tiling.tile_rows) {
    const RowRange tile{begin, min(begin + tiling.tile_rows, item.row_end)};
    const Tile<A> keys = load_tile<T>(p.k, p.k_row_stride, p.k_head_stride, p.kv_heads, p.key_dim, tile.begin,
                                      tile.end, k_buffer);
    const Tile<A> values = p.shared ? keys
                                    : load_tile<T>(p.v, p.v_row_stride, p.v_head_stride, p.kv_heads, p.value_dim,
                                                   tile.begin, tile.end, v_buffer);
    A* dk = clear_tile<T>(params.dk, k_row, tile, dk_buffer);
    A* dv = p.shared ? dk : clear_tile<T>(params.dv, v_row, tile, dv_buffer);

    for (int64_t first = item.target_begin; first < item.target_end; first += block_targets) {
      const int64_t last = min(first + block_targets, item.target_end);
      const RowRange seen_by_any = seen_rows(p, item, first, last, tile);
      if (seen_by_any.begin >= seen_by_any.end) continue;
      load_block<T>(params, first, last, block);
      for_each_run(p, item, first, last, tile, [&](int64_t a, int64_t b, RowRange seen) {
        const int64_t count = (b - a) * group;
        const int64_t width = seen.end - seen.begin;
        const int64_t row_in_tile = seen.begin - tile.begin;
        for (int64_t j = 0; j < p.kv_heads; ++j) {
          const int64_t row = (j * (last - first) + a - first) * group;  // in the block
          const int64_t dq_row = (j * targets + a - item.target_begin) * group;
          const Matrix<const A> q{block.queries + row * p.key_dim, p.key_dim};
          const Matrix<const A> dout{block.douts + row * p.value_dim, p.value_dim};
          const Matrix<const A> k = keys.at(seen.begin, j), v = values.at(seen.begin, j);
          const Matrix<A> dk_rows{dk + row_in_tile * k_row + j * p.key_dim, k_row};
          const Matrix<A> dv_rows{dv + row_in_tile * v_row + j * p.value_dim, v_row};
          const Matrix<A> dq_rows{dq + dq_row * p.key_dim, p.key_dim};
          const Matrix<const A> weights{scores, width}, ds{dp, width};

          gemm<A>(Layout::kPlain, Layout::kTransposed, count, width, p.key_dim, A(p.scale * kLog2E), q, k, A(0),
                  {scores, width});
          gemm<A>(Layout::kPlain, Layout::kTransposed, count, width, p.value_dim, A(1), dout, v, A(0), {dp, width});
          for (int64_t i = 0; i < count; ++i) {
            differentiate_row(scores + i * width, dp + i * width, width, block.lse[row + i], block.delta[row + i]);
          }
          gemm<A>(Layout::kTransposed, Layout::kPlain, width, p.value_dim, count, A(1), weights, dout, A(1), dv_rows);
          gemm<A>(Layout::kTransposed, Layout::kPlain, width, p.key_dim, count, A(p.scale), ds, q, A(1), dk_rows);
          gemm<A>(Layout::kPlain, Layout::kPlain, count, p.key_dim, width, A(p.scale), ds, k, A(1), dq_rows);
        }
      });
    }
    write_tile<T>(params.dk, k_row, tile, dk);
    if (!p.shared) write_tile<T>(params.dv, v_row, tile, dv);
  }
  if (partial == nullptr) write_dq<T>(params, item.target_begin, item.target_end, dq);
}

template <class T>
void backward_merge(const TargetAttentionBackwardParams& params, const TargetAttentionMerge& merge, void* partials,
                    int64_t partial_size) {
  using A = accumulator_t<T>;
  const TargetAttentionParams& p = params.forward;
  A* total = static_cast<A*>(partials) + merge.partial_begin * partial_size;
  const int64_t size = (merge.target_end - merge.target_begin) * p.heads * p.key_dim;
  for (int64_t i = 1; i < merge.partial_end - merge.partial_begin; ++i) {
    const A* next = total + i * partial_size;
    for (int64_t d = 0; d < size; ++d) total[d] += next[d];
  }
  write_dq<T>(params, merge.target_begin, merge.target_end, total);
}

}  // namespace

void target_attention_backward_item(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                                    const TargetAttentionItem& item, void* scratch, void* partial) {
  visit_dtype(params.forward.dtype, [&](auto type) {
    backward_item<typename decltype(type)::element>(params, tiling, item, scratch, partial);
  });
}

void target_attention_backward_merge(const TargetAttentionBackwardParams& params, const TargetAttentionMerge& merge,
                                     void* partials, int64_t partial_size) {
  visit_dtype(params.forward.dtype, [&](auto type) {
    backward_merge<typename decltype(type)::element>(params, merge, partials, partial_size);
  });
}

}  // namespace STCA_ISA
}  // namespace stca
