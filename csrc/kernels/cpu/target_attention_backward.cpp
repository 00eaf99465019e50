// Backward pass of target_attention on the CPU (formula and shapes: ../target_attention.h).
//
//   p[t, h, n]  = exp(s[t, h, n] - lse[t, h])    recomputed tile by tile, or from the scores that were kept
//   ds          = p * (dout . v - delta)                   delta[t, h] = dout . out - dlse
//   dq[t, h]    = scale * sum_n ds k[n]    dk[n] = scale * sum_(t, h) ds q[t, h]    dv[n] = sum_(t, h) p dout[t, h]
//
// One item is a range of history rows against all targets of the request, so every row of dk and dv has one owner and
// is written once. dq is summed over the item's tiles, in the thread's scratch memory; where a history is cut into
// several items theirs are added in order of rows. When v is k, dk holds the sum of both roles.
#include "target_attention_run.h"

namespace stca {
namespace STCA_ISA {
namespace {

// Scores in units of log 2, rounded as the forward pass rounded their maximum: before anything is subtracted.
template <class A>
void scale_scores(A* scores, int64_t n, int64_t stride, A unit) {
  if (unit == A(1)) return;
  for (int64_t i = 0; i < n; ++i) store(scores + i * stride, load(scores + i * stride) * unit);
}

// scores -> p and dp -> scale * ds, [n, stride], for the `columns` query rows from `row` on (one vector of them).
template <class A, class S>
void differentiate(A* scores, A* dp, int64_t n, int64_t stride, int64_t columns, const Run<S>& run, int64_t row, A unit,
                   A scale) {
  const vec_t<A> row_max = load_first(run.row_max + row, columns, A(0));
  const vec_t<A> inverse = load_first(run.inverse + row, columns, A(0));
  const vec_t<A> delta = load_first(run.delta + row, columns, A(0));
  scale_scores(scores, n, stride, unit);
  for (int64_t i = 0; i < n; ++i) {
    const vec_t<A> w = exp2<A>(load(scores + i * stride) - row_max) * inverse;
    store(scores + i * stride, w);
    store(dp + i * stride, w * (load(dp + i * stride) - delta) * scale);
  }
}

// The same for one query row, whose scores and dp [n] lie one after the other, with room for a whole last vector.
template <class A, class S>
void differentiate_row(A* scores, A* dp, int64_t n, const Run<S>& run, int64_t row, A unit, A scale) {
  scale_scores(scores, (n + kLanes<A> - 1) / kLanes<A>, kLanes<A>, unit);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const vec_t<A> w = exp2<A>(load(scores + i) - run.row_max[row]) * run.inverse[row];
    store(scores + i, w);
    store(dp + i, w * (load(dp + i) - run.delta[row]) * scale);
  }
}

// scores and dp of a run's query rows that share history head j, with `height` rows of the tile, become p and ds in the
// forms that the products take.
template <class S>
struct Weights {
  Strided<operand_t<S>> transposed, ds_transposed, ds;
  bool both;  // roles of a history row in one product, [p | ds] [douts; queries]: `transposed` holds p and ds
};

template <class S>
Weights<S> weigh_few(const TargetAttentionParams& p, const Run<S>& run, int64_t j, Rows<S> k, Rows<S> v, int64_t height,
                     int64_t prefetch_rows, product_t<operand_t<S>>* scores, product_t<operand_t<S>>* dp) {
  using A = product_t<operand_t<S>>;
  const int64_t count = run.count, stride = whole_lanes<A>(height);
  const bool both = p.shared;
  if (both) dp = scores + count * stride;
  multiply_dots(count, by_rows(run.scaled + j * count * run.padded_key_dim, run.padded_key_dim), height,
                by_rows(k.data, k.stride), operands<S>(p.key_dim), scores, stride, prefetch_rows);
  multiply_dots(count, by_rows(run.douts(j), run.padded_value_dim), height, by_rows(v.data, v.stride),
                operands<S>(p.value_dim), dp, stride, prefetch_rows);
  for (int64_t c = 0; c < count; ++c) {
    differentiate_row(scores + c * stride, dp + c * stride, height, run, j * count + c, score_unit<S>(p), A(p.scale));
  }
  A* spare = scores + divide_up(count, 2) * stride;  // left by p in pairs
  Weights<S> w{round_columns<S>(scores, both ? 2 * count : count, stride, scores), {}, {}, both};
  if (!both) w.ds_transposed = round_columns<S>(dp, count, stride, spare);
  w.ds = by_rows(round_rows<S>(dp, count, height, stride, dp), stride);
  return w;
}

// Kept scores, whose rows lie `stride` apart; none where `data` is nullptr.
template <class A>
struct Kept {
  const A* data;
  int64_t stride;
};

template <class S>
Weights<S> weigh_many(const TargetAttentionParams& p, const Run<S>& run, int64_t j, Rows<S> k, Rows<S> v,
                      int64_t height, Kept<product_t<operand_t<S>>> kept, product_t<operand_t<S>>* scores,
                      product_t<operand_t<S>>* dp) {
  using E = operand_t<S>;
  using A = product_t<E>;
  const int64_t count = run.count, stride = panels_size<A>(count, 1);
  const int64_t key_depth = operands<S>(p.key_dim), value_depth = operands<S>(p.value_dim);
  if (kept.data == nullptr) {
    multiply<S>(height, whole_lanes<A>(count), p.key_dim, by_rows(k.data, k.stride),
                Panels<E>{run.query_panels + j * panels_size<E>(count, key_depth), key_depth}, scores, stride, false);
  } else {
    for (int64_t n = 0; n < height; ++n) {
      __builtin_memcpy(scores + n * stride, kept.data + n * kept.stride, count * sizeof(A));
    }
  }
  multiply<S>(height, whole_lanes<A>(count), p.value_dim, by_rows(v.data, v.stride),
              Panels<E>{run.dout_panels + j * panels_size<E>(count, value_depth), value_depth}, dp, stride, false,
              kFineSumBlock);
  for (int64_t c = 0; c < count; c += kLanes<A>) {
    differentiate(scores + c, dp + c, height, stride, min(kLanes<A>, count - c), run, j * count + c, score_unit<S>(p),
                  A(p.scale));
  }
  A* spare = scores + divide_up(height, 2) * stride;
  Weights<S> w{by_rows(round_rows<S>(scores, height, count, stride, scores), stride), {}, {}, false};
  w.ds_transposed = by_rows(round_rows<S>(dp, height, count, stride, spare), stride);
  w.ds = round_columns<S>(dp, height, stride, dp);
  return w;
}

// What an item works with: pieces of the thread's scratch memory, the first of which holds its result.
template <class T>
struct Workspace {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  A* dq;  // [Hk, targets * G, Dk] of the item
  Run<S> run;
  A *scores, *dp;  // of the query rows of a history head and the rows of a tile
  TileBuffers<S> buffers;
  A *dk, *dv;  // gradients of a tile, where they are rounded before they are written
};

template <class T>
Workspace<T> workspace_of(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                          int64_t targets, Scratch& scratch) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const TargetAttentionParams& p = params.forward;
  // Blocks of more targets may be smaller, by target_attention_block_targets(), but room for many must do for fewer.
  const int64_t block_targets = min(targets, tiling.block_targets);
  const int64_t stacked = block_targets * (p.heads / p.kv_heads), rows = block_targets * p.heads;
  const int64_t key_depth = operands<S>(p.key_dim), padded_key_dim = key_depth * kTerms<S>;
  const int64_t value_depth = operands<S>(p.value_dim), padded_value_dim = value_depth * kTerms<S>;
  const int64_t tile_heads = tiling.tile_rows * p.kv_heads;
  const bool rounds = sizeof(T) != sizeof(A) && !params.wide;

  Workspace<T> work;
  work.dq = scratch.take<A>(targets * p.heads * p.key_dim);
  work.run = {padded_key_dim,
              padded_value_dim,
              scratch.take<S>(rows * (padded_value_dim + padded_key_dim)),
              scratch.take<S>(rows * padded_key_dim),
              scratch.take<S>(stacked * padded_value_dim),
              scratch.take<E>(p.kv_heads * panels_size<E>(stacked, key_depth)),
              scratch.take<E>(p.kv_heads * panels_size<E>(stacked, value_depth)),
              scratch.take<A>(rows),
              scratch.take<A>(rows),
              scratch.take<A>(rows)};
  work.scores = scratch.take<A>(panels_size<A>(stacked, tiling.tile_rows));
  work.dp = scratch.take<A>(panels_size<A>(stacked, tiling.tile_rows));
  work.dk = rounds ? scratch.take<A>(tile_heads * p.key_dim) : nullptr;
  work.dv = rounds && !p.shared ? scratch.take<A>(tile_heads * p.value_dim) : nullptr;
  work.buffers = tile_buffers<T>(p, tiling.tile_rows, scratch);
  return work;
}

// A tile's rows, and where their gradients are made: dv is dk when v is k, and both are nullptr where nobody wants
// them.
template <class T>
struct HistoryTile {
  RowRange rows;
  int64_t k_row, v_row;  // elements of a row
  accumulator_t<T>*dk, *dv;
  Tiles<tile_t<T>> of;
};

// Gradients of one tile's rows: in a buffer, or, without, in the output itself, which has the accumulation type then.
template <class A>
A* gradient_tile(const TargetAttentionBackwardParams& params, void* output, int64_t row_size, RowRange tile, A* buffer,
                 bool clear) {
  if (output == nullptr) return nullptr;
  A* rows = buffer != nullptr ? buffer : static_cast<A*>(output) + (tile.begin - params.first_row) * row_size;
  for (int64_t i = 0; clear && i < (tile.end - tile.begin) * row_size; ++i) rows[i] = 0;
  return rows;
}

template <class T>
void write_tile(const TargetAttentionBackwardParams& params, void* output, int64_t row_size, RowRange tile,
                const accumulator_t<T>* buffer) {
  if (output == nullptr || buffer == nullptr) return;
  narrow<T>(buffer, static_cast<T*>(output) + (tile.begin - params.first_row) * row_size,
            (tile.end - tile.begin) * row_size);
}

// Adds what rows `seen` of the tile and targets [a, b), which see just these, give each other. `add`: to gradients that
// are there already.
template <class T>
void differentiate_run(const TargetAttentionBackwardParams& params, const TargetAttentionItem& item, int64_t a,
                       int64_t b, RowRange seen, const HistoryTile<T>& tile, bool add, Workspace<T>& work) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  const TargetAttentionParams& p = params.forward;
  Run<S>& run = work.run;
  load_run<T>(params, a, b, run);
  const int64_t targets = item.target_end - item.target_begin, group = p.heads / p.kv_heads;
  const int64_t count = run.count, height = seen.end - seen.begin;
  const int64_t prefetch_rows = copies_tiles<T>(p) ? 0 : run.few ? kPrefetchRows : tile.rows.end - tile.rows.begin;
  for (int64_t j = 0; j < p.kv_heads; ++j) {
    const Rows<S> k{tile.of.k.at(seen.begin, j), tile.of.k.row_stride};
    const Rows<S> v{tile.of.v.at(seen.begin, j), tile.of.v.row_stride};
    Kept<A> kept{};
    if (p.scores != nullptr) kept = {kept_scores<A>(p, item.request, seen.begin, a, j), kept_stride(p, item.request)};
    const Weights<S> w = run.few ? weigh_few(p, run, j, k, v, height, prefetch_rows, work.scores, work.dp)
                                 : weigh_many(p, run, j, k, v, height, kept, work.scores, work.dp);
    if (tile.dk != nullptr) {
      A* dk = tile.dk + (seen.begin - tile.rows.begin) * tile.k_row + j * p.key_dim;
      A* dv = tile.dv + (seen.begin - tile.rows.begin) * tile.v_row + j * p.value_dim;
      multiply<S>(height, p.value_dim, w.both ? 2 * count : count, w.transposed,
                  Rows<S>{run.douts(j), run.padded_value_dim}, dv, tile.v_row, add);
      if (!w.both) {
        multiply<S>(height, p.key_dim, count, w.ds_transposed, Rows<S>{run.queries(j), run.padded_key_dim}, dk,
                    tile.k_row, add || p.shared);
      }
    }
    A* dq = work.dq + (j * targets + a - item.target_begin) * group * p.key_dim;
    if (count <= kMaxAccumulatedRows) {
      accumulate_few_rows<S>(count, p.key_dim, height, w.ds, k, dq, p.key_dim, prefetch_rows);
    } else {
      multiply<S>(count, p.key_dim, height, w.ds, k, dq, p.key_dim, true);
    }
  }
}

template <class T>
void backward_item(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                   const TargetAttentionItem& item, void* memory) {
  const TargetAttentionParams& p = params.forward;
  const int64_t targets = item.target_end - item.target_begin;
  Scratch scratch(memory);
  Workspace<T> work = workspace_of<T>(params, tiling, targets, scratch);
  const int64_t block_targets = target_attention_block_targets(tiling, targets);
  const int64_t k_row = p.kv_heads * p.key_dim, v_row = p.kv_heads * p.value_dim;
  for (int64_t i = 0; i < targets * p.heads * p.key_dim; ++i) work.dq[i] = 0;

  for (int64_t begin = item.row_begin; begin < item.row_end; begin += tiling.tile_rows) {
    const RowRange rows{begin, min(begin + tiling.tile_rows, item.row_end)};
    // The first product overwrites a buffer, so nothing is cleared where it reaches all rows. The output itself is
    // cleared always: that brings its rows into the cache.
    const bool clear = work.dk == nullptr || p.visible != nullptr || targets == 0;
    HistoryTile<T> tile{rows, k_row, v_row, gradient_tile(params, params.dk, k_row, rows, work.dk, clear), {}, {}};
    tile.dv = p.shared ? tile.dk : gradient_tile(params, params.dv, v_row, rows, work.dv, clear);
    const RowRange seen_by_any = seen_rows(p, item, item.target_begin, item.target_end, rows);
    if (seen_by_any.begin < seen_by_any.end) {
      tile.of = load_tiles<T>(p, rows, work.buffers);
      for (int64_t first = item.target_begin; first < item.target_end; first += block_targets) {
        const int64_t last = min(first + block_targets, item.target_end);
        for_each_run(p, item, first, last, rows, [&](int64_t a, int64_t b, RowRange seen) {
          differentiate_run(params, item, a, b, seen, tile, clear || first > item.target_begin, work);
        });
      }
    }
    write_tile<T>(params, params.dk, k_row, rows, work.dk);
    if (!p.shared) write_tile<T>(params, params.dv, v_row, rows, work.dv);
  }
}

// Adds an item's dq to that of the rows before, and rounds what has met all rows.
template <class T>
void backward_add(const TargetAttentionBackwardParams& params, const TargetAttentionItem& item,
                  const accumulator_t<T>* dq) {
  using A = accumulator_t<T>;
  const TargetAttentionParams& p = params.forward;
  const int64_t targets = item.target_end - item.target_begin, width = p.key_dim;
  const bool first = item.row_begin == p.history_offsets[item.request];
  const bool last = item.row_end == p.history_offsets[item.request + 1];
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const A* own = dq + grouped_row(p, targets, t, h) * width;
      const int64_t at = ((item.target_begin + t) * p.heads + h) * width;
      T* out = static_cast<T*>(params.dq) + at;
      if (first && last) {
        narrow<T>(own, out, width);
        continue;
      }
      A* sums = static_cast<A*>(params.dq_sums) + at;
      for (int64_t d = 0; d < width; ++d) sums[d] = first ? own[d] : sums[d] + own[d];
      if (last && static_cast<void*>(sums) != out) narrow<T>(sums, out, width);
    }
  }
}

}  // namespace

int64_t target_attention_backward_scratch(const TargetAttentionBackwardParams& params,
                                          const TargetAttentionTiling& tiling, int64_t targets) {
  Scratch scratch(nullptr);
  visit_own_dtype(params.forward.dtype,
                  [&](auto type) { workspace_of<typename decltype(type)::element>(params, tiling, targets, scratch); });
  return scratch.bytes();
}

void target_attention_backward_item(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                                    const TargetAttentionItem& item, void* scratch) {
  visit_own_dtype(params.forward.dtype,
                  [&](auto type) { backward_item<typename decltype(type)::element>(params, tiling, item, scratch); });
}

void target_attention_backward_add(const TargetAttentionBackwardParams& params, const TargetAttentionItem& item,
                                   const void* scratch) {
  visit_own_dtype(params.forward.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    backward_add<T>(params, item, static_cast<const accumulator_t<T>*>(scratch));
  });
}

void target_attention_add_rows(Dtype dtype, const void* from, const int64_t* index, int64_t count, int64_t width,
                               int64_t begin, int64_t end, void* to) {
  visit_own_dtype(dtype, [&](auto type) {
    using A = accumulator_t<typename decltype(type)::element>;
    for (int64_t i = 0; i < count; ++i) {
      A* sums = static_cast<A*>(to) + index[i] * width;
      const A* own = static_cast<const A*>(from) + i * width;
      const A* after = static_cast<const A*>(to) + index[min(i + 1, count - 1)] * width;
      for (int64_t d = begin; d < end; d += 64 / int64_t(sizeof(A))) __builtin_prefetch(after + d, 1);
      for (int64_t d = begin; d < end; ++d) sums[d] += own[d];
    }
  });
}

}  // namespace STCA_ISA
}  // namespace stca
