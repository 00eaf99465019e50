// Forward pass of target_attention on the CPU (formula and shapes: ../target_attention.h).
//
// One item is a block of targets against a range of history rows. It walks the range tile by tile with an online
// softmax: scores exist for one tile at a time, between two matrix products. The query rows that share a history
// head are stacked, so reordered attention (Hk = 1) is one product of m * H rows; they are the columns of the scores,
// so that the softmax runs down the columns, a vector of query rows at a time. Few items are split over the
// history; their partial results (out unnormalised, maximum, sum) are combined in order.
#include "target_attention_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// Running state of the query rows of one block, [Hk, targets * G]; also the layout of a partial result.
template <class A>
struct RowState {
  A* out;      // [rows, Dv] of 2^(s - row_max) v
  A* row_max;  // [rows] largest score so far
  A* row_sum;  // [rows] sum of 2^(s - row_max)

  RowState(A* memory, int64_t rows, int64_t width)
      : out(memory), row_max(out + rows * width), row_sum(row_max + rows) {}

  void reset(int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows * width; ++i) out[i] = 0;
    for (int64_t i = 0; i < rows; ++i) row_max[i] = -kInfinity<A>;
    for (int64_t i = 0; i < rows; ++i) row_sum[i] = 0;
  }
};

// Replaces the scores [n, stride] of `columns` query rows (one vector of them) by 2^(unit * score - maximum), and
// brings their running state to the new maximum. Scores in units are stored in between: a compiler would merge product
// and difference, which then sees what rounding took from the maximum, and of scores of 10^8 that is more than 2^8.
template <class A>
void exponentiate(A* scores, int64_t n, int64_t stride, int64_t columns, A unit, A* row_max, A* row_sum, A* out,
                  int64_t width) {
  using Vec = vec_t<A>;
  const Vec old_max = load_first(row_max, columns, A(0));
  Vec new_max = old_max;
  for (int64_t i = 0; i < n; ++i) {
    const Vec s = load(scores + i * stride) * unit;
    store(scores + i * stride, s);
    new_max = s > new_max ? s : new_max;
  }
  // Where all scores are -inf: weights of 0, not 2^(-inf + inf).
  const Vec shift = new_max == -kInfinity<A> ? Vec{} : new_max;
  Vec total{};
  for (int64_t i = 0; i < n;) {
    Vec block_sum{};
    for (const int64_t end = min(i + kSumBlock, n); i < end; ++i) {
      const Vec w = exp2<A>(load(scores + i * stride) - shift);
      store(scores + i * stride, w);
      block_sum += w;
    }
    total += block_sum;
  }
  const Vec factor = exp2<A>(old_max - shift);
  store_first(row_sum, load_first(row_sum, columns, A(0)) * factor + total, columns);
  store_first(row_max, new_max, columns);
  for (int64_t c = 0; c < columns; ++c) {
    if (factor[c] == A(1)) continue;
    for (int64_t d = 0; d < width; ++d) out[c * width + d] *= factor[c];
  }
}

// The same for one query row, whose scores [n] lie one after the other, with room for a whole last vector.
template <class A>
void exponentiate_row(A* scores, int64_t n, A unit, A* row_max, A* row_sum, A* out, int64_t width) {
  using Vec = vec_t<A>;
  Vec highest = broadcast<A>(*row_max);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    store(scores + i, load(scores + i) * unit);
    if (i + kLanes<A> > n) store(scores + i, load_first(scores + i, n - i, -kInfinity<A>));
    const Vec s = load(scores + i);
    highest = s > highest ? s : highest;
  }
  const A new_max = max<A>(highest), shift = new_max == -kInfinity<A> ? A(0) : new_max;
  Vec total{};
  for (int64_t i = 0; i < n; i += kLanes<A>) {  // short enough a chain: a tile has at most 256 rows
    const Vec w = exp2<A>(load(scores + i) - shift);
    store(scores + i, w);
    total += w;
  }
  const A factor = exp2<A>(*row_max - shift);
  *row_sum = *row_sum * factor + stca::STCA_ISA::sum<A>(total);
  *row_max = new_max;
  if (factor == A(1)) return;
  for (int64_t d = 0; d < width; ++d) out[d] *= factor;
}

// Normalises one row in place and writes it; a row that saw nothing is 0 with lse -inf.
template <class T>
void write_row(const TargetAttentionParams& p, int64_t target, int64_t head, accumulator_t<T>* out,
               accumulator_t<T> row_max, accumulator_t<T> row_sum) {
  using A = accumulator_t<T>;
  const int64_t row = target * p.heads + head;
  T* to = static_cast<T*>(p.out) + row * p.value_dim;
  const bool saw_nothing = row_sum == A(0);
  for (int64_t i = 0; i < p.value_dim; ++i) out[i] = saw_nothing ? A(0) : out[i] / row_sum;
  narrow<T>(out, to, p.value_dim);
  static_cast<A*>(p.lse)[row] = saw_nothing ? -kInfinity<A> : A(kLn2 * (row_max + __builtin_log2(double(row_sum))));
  static_cast<A*>(p.max_and_sum)[2 * row] = row_max;
  static_cast<A*>(p.max_and_sum)[2 * row + 1] = row_sum;
}

// The scaled query rows of a run of targets for each history head: as the columns of a matrix, or as they are where
// they are few.
template <class S>
struct Queries {
  S* rows;               // [Hk, targets * G, Dk in whole operands]
  operand_t<S>* panels;  // [Hk, panels_size()]
  int64_t target_begin = -1, target_end = -1;
};

template <class T>
void load_queries(const TargetAttentionParams& p, int64_t target_begin, int64_t target_end,
                  Queries<tile_t<T>>& queries) {
  using S = tile_t<T>;
  using E = operand_t<S>;
  if (queries.target_begin == target_begin && queries.target_end == target_end) return;
  queries.target_begin = target_begin;
  queries.target_end = target_end;
  const int64_t count = (target_end - target_begin) * (p.heads / p.kv_heads), depth = operands<S>(p.key_dim);
  for (int64_t j = 0; j < p.kv_heads; ++j) {
    S* rows = queries.rows + j * count * depth * kTerms<S>;
    stack_rows<T>(p, p.q, p.q_target_stride, p.q_head_stride, p.key_dim, target_begin, target_end, j, rows);
    scale_queries(p, rows, count * depth * kTerms<S>, rows);
    if (prefer_dot_products<E>(count, depth)) continue;
    transpose_to_panels(as_operands(rows), count, depth, queries.panels + j * panels_size<E>(count, depth));
  }
}

// What an item works with: pieces of the thread's scratch memory.
template <class T>
struct Workspace {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  Queries<S> queries;
  A* scores;  // of a run's query rows and a tile's history rows
  A* state;   // a RowState, where the item writes no partial result
  TileBuffers<S> buffers;
};

template <class T>
Workspace<T> workspace_of(const TargetAttentionParams& p, const TargetAttentionTiling& tiling, int64_t targets,
                          Scratch& scratch) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const int64_t count = targets * (p.heads / p.kv_heads), rows = targets * p.heads;
  Workspace<T> work;
  work.queries.rows = scratch.take<S>(rows * whole_operands<S>(p.key_dim));
  work.queries.panels = scratch.take<E>(p.kv_heads * panels_size<E>(count, operands<S>(p.key_dim)));
  work.scores = scratch.take<A>(max(whole_lanes<A>(count), p.kv_heads * kLanes<A>) * tiling.tile_rows);
  work.state = scratch.take<A>(target_attention_partial_size(p, targets));
  work.buffers = tile_buffers<T>(p, tiling.tile_rows, scratch);
  return work;
}

// Targets that see the same rows of a tile: `count` query rows of each history head meet `height` history rows.
template <class T>
struct Run {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  Tiles<S> tile;
  int64_t row_begin, height;
  int64_t count;
  int64_t first_row, head_rows;  // head j's query rows are rows first_row + j * head_rows of the item's state
  bool dots;                     // scores are [heads, count, stride] by dot products, or [heads, height, stride]
  int64_t stride;
  int64_t heads;  // history heads that have scores at a time
  int64_t part;   // history rows that one head's products take before the next head's turn
  int64_t prefetch_rows;

  int64_t first_of(int64_t j) const { return first_row + j * head_rows; }
  A* scores_of(int64_t j, const Workspace<T>& work) const {
    return work.scores + j % heads * (dots ? count : height) * stride;
  }
};

template <class T>
Run<T> run_of(const TargetAttentionParams& p, const TargetAttentionItem& item, int64_t target_begin, int64_t target_end,
              RowRange seen, const Tiles<tile_t<T>>& tile) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  const int64_t group = p.heads / p.kv_heads;
  Run<T> run;
  run.tile = tile;
  run.row_begin = seen.begin;
  run.height = seen.end - seen.begin;
  run.count = (target_end - target_begin) * group;
  run.first_row = (target_begin - item.target_begin) * group;
  run.head_rows = (item.target_end - item.target_begin) * group;
  run.dots = prefer_dot_products<operand_t<S>>(run.count, operands<S>(p.key_dim));
  run.stride = whole_lanes<A>(run.dots ? run.height : run.count);
  // With few query rows all heads take some history rows, then the next ones: memory is read whole and in order.
  run.heads = run.dots || run.count <= min(kLanes<A>, kMaxAccumulatedRows) ? p.kv_heads : 1;
  // Behind an index parts are the blocks in which rows are summed: results have the bits of rows that lie in order.
  run.part = run.heads > 1 || tile.k.index != nullptr ? kFineSumBlock * kTerms<S> : run.height;
  run.prefetch_rows = copies_tiles<T>(p) ? 0 : kPrefetchRows;
  return run;
}

// Calls f(head, first history row, history rows) for the run's heads from `first_head` on, part by part.
template <class T, class F>
void for_each_part(const Run<T>& run, int64_t first_head, F f) {
  for (int64_t n = 0; n < run.height; n += run.part) {
    for (int64_t j = first_head; j < first_head + run.heads; ++j) f(j, n, min(run.part, run.height - n));
  }
}

template <class T>
void compute_scores(const TargetAttentionParams& p, const Run<T>& run, int64_t first_head, const Workspace<T>& work) {
  using S = tile_t<T>;
  using E = operand_t<S>;
  const int64_t depth = operands<S>(p.key_dim), width = whole_operands<S>(p.key_dim), count = run.count;
  for_each_part(run, first_head, [&](int64_t j, int64_t n, int64_t rows) {
    if constexpr (kReadsInt8<T>) {
      if (run.tile.k.scale.data != nullptr) {
        const ScaledPart part = load_scaled_part(run.tile.k, run.row_begin + n, rows, j, width);
        return multiply_dots<E>(count, by_rows(work.queries.rows + j * count * width, width), rows, part.rows, depth,
                                run.scores_of(j, work) + n, run.stride, part.prefetch_rows);
      }
    }
    const Part<S> part = load_part(run.tile.k, run.row_begin + n, rows, j, width, run.prefetch_rows);
    const Strided<E> keys = by_rows(part.data, part.stride);
    if (run.dots) {
      multiply_dots<E>(count, by_rows(work.queries.rows + j * count * width, width), rows, keys, depth,
                       run.scores_of(j, work) + n, run.stride, part.prefetch_rows);
    } else {
      const Panels<E> queries{work.queries.panels + j * panels_size<E>(count, depth), depth};
      multiply<S>(rows, run.stride, p.key_dim, keys, queries, run.scores_of(j, work) + n * run.stride, run.stride,
                  false);
    }
  });
}

// Copies the scores of one head, where they are not dot products, to where the backward pass finds them.
template <class T>
void keep_scores(const TargetAttentionParams& p, const TargetAttentionItem& item, const Run<T>& run, int64_t j,
                 const Workspace<T>& work) {
  using A = accumulator_t<T>;
  if (p.scores == nullptr || run.dots) return;
  const A* scores = run.scores_of(j, work);
  A* kept = kept_scores<A>(p, item.request, run.row_begin, item.target_begin, j);
  const int64_t stride = kept_stride(p, item.request);
  for (int64_t n = 0; n < run.height; ++n) {
    __builtin_memcpy(kept + n * stride, scores + n * run.stride, run.count * sizeof(A));
  }
}

// The scores of one head become weights, rounded as the next product takes them.
template <class T>
void compute_weights(const TargetAttentionParams& p, const Run<T>& run, int64_t j, const Workspace<T>& work,
                     const RowState<accumulator_t<T>>& state) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  const A unit = score_unit<S>(p);
  A *scores = run.scores_of(j, work), *out = state.out + run.first_of(j) * p.value_dim;
  A *row_max = state.row_max + run.first_of(j), *row_sum = state.row_sum + run.first_of(j);
  if (run.dots) {
    for (int64_t c = 0; c < run.count; ++c) {
      exponentiate_row(scores + c * run.stride, run.height, unit, row_max + c, row_sum + c, out + c * p.value_dim,
                       p.value_dim);
    }
    round_rows<S>(scores, run.count, run.height, run.stride, scores);
  } else {
    for (int64_t c = 0; c < run.count; c += kLanes<A>) {
      exponentiate(scores + c, run.height, run.stride, min(kLanes<A>, run.count - c), unit, row_max + c, row_sum + c,
                   out + c * p.value_dim, p.value_dim);
    }
    round_columns<S>(scores, run.height, run.stride, scores);
  }
}

// out [count, Dv] += weights [count, height] values [height, Dv]
template <class T>
void accumulate_values(const TargetAttentionParams& p, const Run<T>& run, int64_t first_head, const Workspace<T>& work,
                       const RowState<accumulator_t<T>>& state) {
  using S = tile_t<T>;
  using E = operand_t<S>;
  for_each_part(run, first_head, [&](int64_t j, int64_t n, int64_t rows) {
    const E* first = reinterpret_cast<const E*>(run.scores_of(j, work)) + n / kTerms<S> * (run.dots ? 1 : run.stride);
    const Strided<E> weights =
        run.dots ? Strided<E>{first, run.stride / kTerms<S>, 1} : Strided<E>{first, 1, run.stride};
    accumulator_t<T>* out = state.out + run.first_of(j) * p.value_dim;
    if constexpr (kReadsInt8<T>) {
      if (run.tile.v.scale.data != nullptr) {
        const ScaledPart part = load_scaled_part(run.tile.v, run.row_begin + n, rows, j, p.value_dim);
        return accumulate_few_rows<S>(run.count, p.value_dim, rows, weights, part.rows, out, p.value_dim,
                                      part.prefetch_rows);
      }
    }
    const Part<S> part = load_part(run.tile.v, run.row_begin + n, rows, j, p.value_dim, run.prefetch_rows);
    const Rows<S> values{part.data, part.stride};
    if (run.count <= kMaxAccumulatedRows) {
      accumulate_few_rows<S>(run.count, p.value_dim, rows, weights, values, out, p.value_dim, part.prefetch_rows);
    } else {
      multiply<S>(run.count, p.value_dim, rows, weights, values, out, p.value_dim, true, kFineSumBlock);
    }
  });
}

template <class T>
void forward_item(const TargetAttentionParams& p, const TargetAttentionTiling& tiling, const TargetAttentionItem& item,
                  void* memory, void* partial) {
  using A = accumulator_t<T>;
  const int64_t targets = item.target_end - item.target_begin, rows = targets * p.heads;
  Scratch scratch(memory);
  Workspace<T> work = workspace_of<T>(p, tiling, targets, scratch);
  RowState<A> state(partial != nullptr ? static_cast<A*>(partial) : work.state, rows, p.value_dim);
  state.reset(rows, p.value_dim);
  const int64_t most = targets * (p.heads / p.kv_heads);  // query rows of a run
  for (int64_t begin = item.row_begin; begin < item.row_end; begin += tiling.tile_rows) {
    const RowRange tile_rows{begin, min(begin + tiling.tile_rows, item.row_end)};
    const RowRange seen_by_any = seen_rows(p, item, item.target_begin, item.target_end, tile_rows);
    if (seen_by_any.begin >= seen_by_any.end) continue;
    const Tiles<tile_t<T>> tile = most <= kMaxAccumulatedRows ? follow_tiles<T>(p, tile_rows, work.buffers, most)
                                                              : load_tiles<T>(p, tile_rows, work.buffers);
    for_each_run(p, item, item.target_begin, item.target_end, tile_rows, [&](int64_t a, int64_t b, RowRange seen) {
      load_queries<T>(p, a, b, work.queries);
      const Run<T> run = run_of<T>(p, item, a, b, seen, tile);
      for (int64_t first_head = 0; first_head < p.kv_heads; first_head += run.heads) {
        compute_scores(p, run, first_head, work);
        for (int64_t j = first_head; j < first_head + run.heads; ++j) {
          keep_scores(p, item, run, j, work);
          compute_weights(p, run, j, work, state);
        }
        accumulate_values(p, run, first_head, work, state);
      }
    });
  }
  if (partial != nullptr) return;
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = grouped_row(p, targets, t, h);
      write_row<T>(p, item.target_begin + t, h, state.out + row * p.value_dim, state.row_max[row], state.row_sum[row]);
    }
  }
}

template <class T>
void forward_combine(const TargetAttentionParams& p, const TargetAttentionCombine& combine, void* partials,
                     int64_t partial_size) {
  using A = accumulator_t<T>;
  const int64_t targets = combine.target_end - combine.target_begin;
  const int64_t rows = targets * p.heads;
  A* first_partial = static_cast<A*>(partials) + combine.partial_begin * partial_size;
  RowState<A> total(first_partial, rows, p.value_dim);
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = grouped_row(p, targets, t, h);
      A* out = total.out + row * p.value_dim;
      A row_max = total.row_max[row];
      A row_sum = total.row_sum[row];
      for (int64_t i = 1; i < combine.partial_end - combine.partial_begin; ++i) {
        const RowState<A> next(first_partial + i * partial_size, rows, p.value_dim);
        const A* next_out = next.out + row * p.value_dim;
        const A new_max = next.row_max[row] > row_max ? next.row_max[row] : row_max;
        const A shift = new_max == -kInfinity<A> ? A(0) : new_max;
        const A keep = exp2<A>(row_max - shift), add = exp2<A>(next.row_max[row] - shift);
        for (int64_t d = 0; d < p.value_dim; ++d) out[d] = out[d] * keep + next_out[d] * add;
        row_sum = row_sum * keep + next.row_sum[row] * add;
        row_max = new_max;
      }
      write_row<T>(p, combine.target_begin + t, h, out, row_max, row_sum);
    }
  }
}

}  // namespace

int64_t target_attention_scratch(const TargetAttentionParams& params, const TargetAttentionTiling& tiling,
                                 int64_t targets) {
  Scratch scratch(nullptr);
  visit_own_dtype(params.dtype,
                  [&](auto type) { workspace_of<typename decltype(type)::element>(params, tiling, targets, scratch); });
  return scratch.bytes();
}

void target_attention_item(const TargetAttentionParams& params, const TargetAttentionTiling& tiling,
                           const TargetAttentionItem& item, void* scratch, void* partial) {
  visit_own_dtype(params.dtype, [&](auto type) {
    forward_item<typename decltype(type)::element>(params, tiling, item, scratch, partial);
  });
}

void target_attention_combine(const TargetAttentionParams& params, const TargetAttentionCombine& combine,
                              void* partials, int64_t partial_size) {
  visit_own_dtype(params.dtype, [&](auto type) {
    forward_combine<typename decltype(type)::element>(params, combine, partials, partial_size);
  });
}

}  // namespace STCA_ISA
}  // namespace stca
