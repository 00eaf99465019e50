// Backward pass of target_attention on the CPU (formula and shapes: ../target_attention.h).
//
//   p[t, h, n]  = exp(s[t, h, n] - lse[t, h])    recomputed tile by tile
//   ds          = p * (dout . v - delta)                   delta[t, h] = dout . out - dlse
//   dq[t, h]    = scale * sum_n ds k[n]    dk[n] = scale * sum_(t, h) ds q[t, h]    dv[n] = sum_(t, h) p dout[t, h]
//
// One item is a range of history rows against all targets of the request, so every row of dk and dv has one owner and
// is written once. dq is summed over the item's tiles; where a history is cut into several items their partial dq are
// added in order of rows. When v is k, dk holds the sum of both roles.
#include "dots.h"
#include "target_attention_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// The query rows of a run of targets and the gradients of their outputs, for each history head: as rows (of whole
// operands), and, where they are many, as the columns of a matrix.
template <class S>
struct Run {
  using A = product_t<operand_t<S>>;
  int64_t key_room, value_room;
  S* rows;                     // for each history head gradients [targets * G, Dv], then queries [targets * G, Dk]
  S* scaled;                   // [Hk, targets * G, Dk] by scale_queries()
  S* outs;                     // [targets * G, Dv] of one history head, where they are few
  operand_t<S>* query_panels;  // [Hk, panels_size()]
  operand_t<S>* dout_panels;   // [Hk, panels_size()]
  A* most;                     // [Hk, targets * G] largest score in units of log 2
  A* inverse;                  // [Hk, targets * G] 1 / sum of 2^(score - most)
  A* delta;                    // [Hk, targets * G]
  bool few = false;            // scores and dp are [rows, history rows] then, and [history rows, rows] else
  int64_t count = 0;           // targets * G
  int64_t target_begin = -1, target_end = -1;

  S* douts(int64_t j) const { return rows + j * count * (value_room + key_room); }
  S* queries(int64_t j) const { return douts(j) + count * value_room; }
};

// delta of the query rows from `column` on (one vector of them) that share history head j. Sums in the order in which
// multiply() sums dp = dout . v: for a target that sees a single row the two are equal, and ds is exactly 0.
template <class T>
void load_delta(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t j, int64_t count,
                int64_t column, Run<tile_t<T>>& run) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const TargetAttentionParams& p = params.forward;
  const int64_t group = p.heads / p.kv_heads, columns = min(kLanes<A>, count - column);
  const int64_t depth = operands<S>(p.value_dim);
  const E* dout = run.dout_panels + j * panels_size<E>(count, depth) + panel_column<E>(column, depth);
  const T* outs[kLanes<A>];
  A dlse[kLanes<A>];
  for (int64_t c = 0; c < kLanes<A>; ++c) {
    const int64_t row = min(column + c, count - 1);
    const int64_t at = (target_begin + row / group) * p.heads + j * group + row % group;
    outs[c] = static_cast<const T*>(p.out) + at * p.value_dim;
    dlse[c] = params.dlse == nullptr ? A(0) : static_cast<const A*>(params.dlse)[at];
  }
  vec_t<A> total{};
  for (int64_t d = 0; d < depth;) {
    vec_t<A> part{};
    for (const int64_t part_end = min(d + kTotal, depth); d < part_end;) {
      vec_t<A> chain{};
      for (const int64_t end = min(d + kFineChain, depth); d < end; ++d) {
        E out[kLanes<E>];
        for (int64_t c = 0; c < kLanes<E>; ++c)
          out[c] = load_operand(outs[c] + d * kTerms<S>, 1, p.value_dim - d * kTerms<S>);
        chain = multiply_add<E>(chain, load(out), load(dout + d * kPanel<E>));
      }
      part += chain;
    }
    total += part;
  }
  store_first(run.delta + j * count + column, total - load(dlse), columns);
}

// The same of a few rows, in the order of multiply_dots().
template <class T>
void load_few_deltas(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t target_end, int64_t j,
                     Run<tile_t<T>>& run) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  const TargetAttentionParams& p = params.forward;
  const int64_t group = p.heads / p.kv_heads, count = (target_end - target_begin) * group;
  const int64_t room = whole_operands<S>(p.value_dim);
  stack_rows<T>(p, p.out, p.heads * p.value_dim, p.value_dim, p.value_dim, target_begin, target_end, j, run.outs);
  for (int64_t row = 0; row < count; ++row) {
    A products[kLanes<A>];
    multiply_dots(1, by_rows(run.douts(j) + row * room, room), 1, by_rows(run.outs + row * room, room),
                  operands<S>(p.value_dim), products, kLanes<A>);
    const int64_t at = (target_begin + row / group) * p.heads + j * group + row % group;
    const A dlse = params.dlse == nullptr ? A(0) : static_cast<const A*>(params.dlse)[at];
    run.delta[j * count + row] = products[0] - dlse;
  }
}

template <class T>
void load_run(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t target_end,
              Run<tile_t<T>>& run) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const TargetAttentionParams& p = params.forward;
  if (run.target_begin == target_begin && run.target_end == target_end) return;
  run.target_begin = target_begin;
  run.target_end = target_end;
  const int64_t targets = target_end - target_begin;
  const int64_t count = targets * (p.heads / p.kv_heads);
  const int64_t key_depth = operands<S>(p.key_dim), value_depth = operands<S>(p.value_dim);
  run.few = few_rows<E>(count, min(key_depth, value_depth));
  run.count = count;
  for (int64_t j = 0; j < p.kv_heads; ++j) {
    S *queries = run.queries(j), *douts = run.douts(j);
    stack_rows<T>(p, p.q, p.q_target_stride, p.q_head_stride, p.key_dim, target_begin, target_end, j, queries);
    stack_rows<T>(p, params.dout, p.heads * p.value_dim, p.value_dim, p.value_dim, target_begin, target_end, j, douts);
    S* scaled = run.scaled + j * count * run.key_room;
    scale_queries(p, queries, count * run.key_room, scaled);
    if (run.few) continue;
    transpose_to_panels(as_operands(scaled), count, key_depth, run.query_panels + j * panels_size<E>(count, key_depth));
    transpose_to_panels(as_operands(douts), count, value_depth,
                        run.dout_panels + j * panels_size<E>(count, value_depth));
  }
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = grouped_row(p, targets, t, h);
      const A* softmax = static_cast<const A*>(p.softmax) + 2 * ((target_begin + t) * p.heads + h);
      const bool saw_nothing = softmax[1] == A(0);
      run.most[row] = saw_nothing ? A(0) : softmax[0];
      run.inverse[row] = saw_nothing ? A(0) : A(1) / softmax[1];
    }
  }
  for (int64_t j = 0; j < p.kv_heads; ++j) {
    if (run.few) {
      load_few_deltas<T>(params, target_begin, target_end, j, run);
      continue;
    }
    for (int64_t c = 0; c < count; c += kLanes<A>) load_delta<T>(params, target_begin, j, count, c, run);
  }
}

// scores -> p and dp -> scale * ds, [n, stride], for the `columns` query rows from `row` on (one vector of them).
template <class A, class S>
void differentiate(A* scores, A* dp, int64_t n, int64_t stride, int64_t columns, const Run<S>& run, int64_t row, A unit,
                   A scale) {
  const vec_t<A> most = load_first(run.most + row, columns, A(0));
  const vec_t<A> inverse = load_first(run.inverse + row, columns, A(0));
  const vec_t<A> delta = load_first(run.delta + row, columns, A(0));
  for (int64_t i = 0; i < n; ++i) {
    const vec_t<A> w = exp2<A>(load(scores + i * stride) * unit - most) * inverse;
    store(scores + i * stride, w);
    store(dp + i * stride, w * (load(dp + i * stride) - delta) * scale);
  }
}

// The same for one query row, whose scores and dp [n] lie one after the other, with room for a whole last vector.
template <class A, class S>
void differentiate_row(A* scores, A* dp, int64_t n, const Run<S>& run, int64_t row, A unit, A scale) {
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    const vec_t<A> w = exp2<A>(load(scores + i) * unit - run.most[row]) * run.inverse[row];
    store(scores + i, w);
    store(dp + i, w * (load(dp + i) - run.delta[row]) * scale);
  }
}

// Gradients of one tile's rows: in the output itself where it has the accumulation type, else in a buffer.
template <class T>
accumulator_t<T>* gradient_tile(void* output, int64_t row_size, RowRange tile, accumulator_t<T>* buffer, bool clear) {
  using A = accumulator_t<T>;
  A* rows = buffer;
  if constexpr (sizeof(T) == sizeof(A)) rows = static_cast<A*>(output) + tile.begin * row_size;
  for (int64_t i = 0; clear && i < (tile.end - tile.begin) * row_size; ++i) rows[i] = 0;
  return rows;
}

template <class T>
void write_tile(void* output, int64_t row_size, RowRange tile, const accumulator_t<T>* rows) {
  if constexpr (sizeof(T) == sizeof(accumulator_t<T>)) return;
  narrow<T>(rows, static_cast<T*>(output) + tile.begin * row_size, (tile.end - tile.begin) * row_size);
}

// dq rows of a request, [Hk, targets * G, Dk], to the output.
template <class T>
void write_dq(const TargetAttentionBackwardParams& params, int64_t target_begin, int64_t target_end,
              const accumulator_t<T>* dq) {
  const TargetAttentionParams& p = params.forward;
  for (int64_t t = target_begin; t < target_end; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = grouped_row(p, target_end - target_begin, t - target_begin, h);
      narrow<T>(dq + row * p.key_dim, static_cast<T*>(params.dq) + (t * p.heads + h) * p.key_dim, p.key_dim);
    }
  }
}

template <class T>
void backward_item(const TargetAttentionBackwardParams& params, const TargetAttentionTiling& tiling,
                   const TargetAttentionItem& item, void* scratch_memory, void* partial) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const TargetAttentionParams& p = params.forward;
  const int64_t targets = item.target_end - item.target_begin;
  const int64_t group = p.heads / p.kv_heads;
  const int64_t block_targets = min(targets, tiling.block_targets), stacked = block_targets * group;
  const int64_t block_rows = block_targets * p.heads;
  const int64_t k_row = p.kv_heads * p.key_dim, v_row = p.kv_heads * p.value_dim;
  const int64_t key_depth = operands<S>(p.key_dim), key_room = key_depth * kTerms<S>;
  const int64_t value_depth = operands<S>(p.value_dim), value_room = value_depth * kTerms<S>;
  const int64_t tile_heads = tiling.tile_rows * p.kv_heads;

  Scratch scratch{static_cast<char*>(scratch_memory)};
  A* own_dq = scratch.take<A>(targets * p.heads * p.key_dim);
  A* dq = partial != nullptr ? static_cast<A*>(partial) : own_dq;
  Run<S> run{key_room,
             value_room,
             scratch.take<S>(block_rows * (value_room + key_room)),
             scratch.take<S>(block_rows * key_room),
             scratch.take<S>(stacked * value_room),
             scratch.take<E>(p.kv_heads * panels_size<E>(stacked, key_depth)),
             scratch.take<E>(p.kv_heads * panels_size<E>(stacked, value_depth)),
             scratch.take<A>(block_rows),
             scratch.take<A>(block_rows),
             scratch.take<A>(block_rows)};
  A* scores = scratch.take<A>(panels_size<A>(stacked, tiling.tile_rows));
  A* dp_buffer = scratch.take<A>(panels_size<A>(stacked, tiling.tile_rows));
  constexpr bool kConverts = sizeof(T) != sizeof(A);
  const bool history_grads = params.dk != nullptr;
  const bool copies = copies_tiles<T>(p);
  S* k_buffer = copies ? scratch.take<S>(tile_heads * key_room) : nullptr;
  A* dk_buffer = kConverts ? scratch.take<A>(tiling.tile_rows * k_row) : nullptr;
  S* v_buffer = copies && !p.shared ? scratch.take<S>(tile_heads * value_room) : nullptr;
  A* dv_buffer = kConverts && !p.shared ? scratch.take<A>(tiling.tile_rows * v_row) : nullptr;

  const A unit = score_unit<S>(p);
  for (int64_t i = 0; i < targets * p.heads * p.key_dim; ++i) dq[i] = 0;

  for (int64_t begin = item.row_begin; begin < item.row_end; begin += tiling.tile_rows) {
    const RowRange tile{begin, min(begin + tiling.tile_rows, item.row_end)};
    // Not where the first product writes all rows of a buffer; in the output, clearing brings whole rows in for it.
    const bool clear = !kConverts || p.visible != nullptr || targets == 0;
    A* dk = history_grads ? gradient_tile<T>(params.dk, k_row, tile, dk_buffer, clear) : nullptr;
    A* dv = p.shared || !history_grads ? dk : gradient_tile<T>(params.dv, v_row, tile, dv_buffer, clear);
    const RowRange seen_by_any = seen_rows(p, item, item.target_begin, item.target_end, tile);
    if (seen_by_any.begin < seen_by_any.end) {
      const Tile<S> keys =
          load_tile<T>(p, p.k, p.k_row_stride, p.k_head_stride, p.key_dim, tile.begin, tile.end, k_buffer);
      const Tile<S> values =
          p.shared ? keys
                   : load_tile<T>(p, p.v, p.v_row_stride, p.v_head_stride, p.value_dim, tile.begin, tile.end, v_buffer);
      for (int64_t first = item.target_begin; first < item.target_end; first += block_targets) {
        const int64_t last = min(first + block_targets, item.target_end);
        const bool add = clear || first > item.target_begin;
        for_each_run(p, item, first, last, tile, [&](int64_t a, int64_t b, RowRange seen) {
          load_run<T>(params, a, b, run);
          const int64_t count = (b - a) * group;
          const int64_t height = seen.end - seen.begin;
          const int64_t stride = run.few ? whole_lanes<A>(height) : panels_size<A>(count, 1);
          const int64_t ahead = copies ? 0 : run.few ? kAheadRows : tiling.tile_rows;
          for (int64_t j = 0; j < p.kv_heads; ++j) {
            const S* k = keys.at(seen.begin, j);
            const S* v = values.at(seen.begin, j);
            A* dq_rows = dq + (j * targets + a - item.target_begin) * group * p.key_dim;
            const int64_t row = j * count;
            const S *queries = run.queries(j), *douts = run.douts(j), *scaled = run.scaled + row * key_room;
            const bool both = run.few && p.shared;  // roles of a history row in one product, [p | ds] [douts; queries]
            A* dp = both ? scores + count * stride : dp_buffer;

            // scores -> p [height, count] and dp -> ds, in both directions
            Strided<E> weights_t, ds_t, ds;
            if (run.few) {
              multiply_dots(count, by_rows(scaled, key_room), height, by_rows(k, keys.row_stride), key_depth, scores,
                            stride, ahead);
              multiply_dots(count, by_rows(douts, value_room), height, by_rows(v, values.row_stride), value_depth, dp,
                            stride, ahead);
              for (int64_t c = 0; c < count; ++c) {
                differentiate_row(scores + c * stride, dp + c * stride, height, run, row + c, unit, A(p.scale));
              }
              A* room = scores + divide_up(count, 2) * stride;  // left by p in pairs
              weights_t = round_columns<S>(scores, both ? 2 * count : count, stride, scores);
              if (!both) ds_t = round_columns<S>(dp, count, stride, room);
              ds = by_rows(round_rows<S>(dp, count, height, stride, dp), stride);
            } else {
              multiply<S>(height, whole_lanes<A>(count), p.key_dim, by_rows(k, keys.row_stride),
                          Panels<E>{run.query_panels + j * panels_size<E>(count, key_depth), key_depth}, scores, stride,
                          false);
              multiply<S>(height, whole_lanes<A>(count), p.value_dim, by_rows(v, values.row_stride),
                          Panels<E>{run.dout_panels + j * panels_size<E>(count, value_depth), value_depth}, dp, stride,
                          false, kFineChain);
              for (int64_t c = 0; c < count; c += kLanes<A>) {
                differentiate(scores + c, dp + c, height, stride, min(kLanes<A>, count - c), run, row + c, unit,
                              A(p.scale));
              }
              A* room = scores + divide_up(height, 2) * stride;
              weights_t = by_rows(round_rows<S>(scores, height, count, stride, scores), stride);
              ds_t = by_rows(round_rows<S>(dp, height, count, stride, room), stride);
              ds = round_columns<S>(dp, height, stride, dp);
            }
            if (history_grads) {
              A* dk_rows = dk + (seen.begin - tile.begin) * k_row + j * p.key_dim;
              A* dv_rows = dv + (seen.begin - tile.begin) * v_row + j * p.value_dim;
              multiply<S>(height, p.value_dim, both ? 2 * count : count, weights_t, Rows<S>{douts, value_room}, dv_rows,
                          v_row, add);
              if (!both) {
                multiply<S>(height, p.key_dim, count, ds_t, Rows<S>{queries, key_room}, dk_rows, k_row,
                            add || p.shared);
              }
            }
            const Rows<S> key_rows{k, keys.row_stride};
            if (count <= kMostAdded) {
              add_few<S>(count, p.key_dim, height, ds, key_rows, dq_rows, p.key_dim, ahead);
            } else {
              multiply<S>(count, p.key_dim, height, ds, key_rows, dq_rows, p.key_dim, true);
            }
          }
        });
      }
    }
    if (!history_grads) continue;
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
