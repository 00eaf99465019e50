// What the backward pass packs for a run of targets before it meets the tiles of their history: queries, gradients of
// outputs, and what turns scores into weights and their gradients.
#pragma once

#include "dots.h"
#include "target_attention_tile.h"

namespace stca {
namespace STCA_ISA {

// The query rows of a run of targets and the gradients of their outputs, for each history head: as rows (of whole
// operands), and, where they are many, as the columns of a matrix.
template <class S>
struct Run {
  using A = product_t<operand_t<S>>;
  int64_t padded_key_dim, padded_value_dim;
  S* rows;                     // for each history head gradients [targets * G, Dv], then queries [targets * G, Dk]
  S* scaled;                   // [Hk, targets * G, Dk] by scale_queries()
  S* outs;                     // [targets * G, Dv] of one history head, where they are few
  operand_t<S>* query_panels;  // [Hk, panels_size()]
  operand_t<S>* dout_panels;   // [Hk, panels_size()]
  A* row_max;                  // [Hk, targets * G] largest score in units of log 2
  A* inverse;                  // [Hk, targets * G] 1 / sum of 2^(score - row_max)
  A* delta;                    // [Hk, targets * G]
  bool few = false;            // scores and dp are [rows, history rows] then, and [history rows, rows] else
  int64_t count = 0;           // targets * G
  int64_t target_begin = -1, target_end = -1;

  S* douts(int64_t j) const { return rows + j * count * (padded_value_dim + padded_key_dim); }
  S* queries(int64_t j) const { return douts(j) + count * padded_value_dim; }
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
      vec_t<A> block_sum{};
      for (const int64_t end = min(d + kFineSumBlock, depth); d < end; ++d) {
        E out[kLanes<E>];
        for (int64_t c = 0; c < kLanes<E>; ++c)
          out[c] = load_operand(outs[c] + d * kTerms<S>, 1, p.value_dim - d * kTerms<S>);
        block_sum = multiply_add<E>(block_sum, load(out), load(dout + d * kPanel<E>));
      }
      part += block_sum;
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
  const int64_t padded_width = whole_operands<S>(p.value_dim);
  stack_rows<T>(p, p.out, p.heads * p.value_dim, p.value_dim, p.value_dim, target_begin, target_end, j, run.outs);
  for (int64_t row = 0; row < count; ++row) {
    A products[kLanes<A>];
    multiply_dots(1, by_rows(run.douts(j) + row * padded_width, padded_width), 1,
                  by_rows(run.outs + row * padded_width, padded_width), operands<S>(p.value_dim), products, kLanes<A>);
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
  run.few = prefer_dot_products<E>(count, min(key_depth, value_depth));
  run.count = count;
  for (int64_t j = 0; j < p.kv_heads; ++j) {
    S *queries = run.queries(j), *douts = run.douts(j);
    stack_rows<T>(p, p.q, p.q_target_stride, p.q_head_stride, p.key_dim, target_begin, target_end, j, queries);
    stack_rows<T>(p, params.dout, p.heads * p.value_dim, p.value_dim, p.value_dim, target_begin, target_end, j, douts);
    S* scaled = run.scaled + j * count * run.padded_key_dim;
    scale_queries(p, queries, count * run.padded_key_dim, scaled);
    if (run.few) continue;
    transpose_to_panels(as_operands(scaled), count, key_depth, run.query_panels + j * panels_size<E>(count, key_depth));
    transpose_to_panels(as_operands(douts), count, value_depth,
                        run.dout_panels + j * panels_size<E>(count, value_depth));
  }
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = grouped_row(p, targets, t, h);
      const A* max_and_sum = static_cast<const A*>(p.max_and_sum) + 2 * ((target_begin + t) * p.heads + h);
      const bool saw_nothing = max_and_sum[1] == A(0);
      run.row_max[row] = saw_nothing ? A(0) : max_and_sum[0];
      run.inverse[row] = saw_nothing ? A(0) : A(1) / max_and_sum[1];
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

}  // namespace STCA_ISA
}  // namespace stca
