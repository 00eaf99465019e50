// Forward pass of target_attention on the CPU (formula and shapes: ../target_attention.h).
//
// One item is a block of targets against a range of history rows. It walks the range tile by tile with an online
// softmax: scores exist for one tile at a time, between two matrix products. The query rows that share a history
// head are stacked, so reordered attention (Hk = 1) is one product of m * H rows. Few items are split over the
// history; their partial results (out unnormalised, maximum, sum) are merged in order.
//
// Scores are kept in units of log 2, so that the exponential is 2^x and needs no multiplication of its own.
#include "target_attention_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// Running state of the query rows of one block, packed [Hk, targets * G]; also the layout of a partial result.
template <class A>
struct Softmax {
  A* sum;      // [rows, Dv] of 2^(s - most) v
  A* most;     // [rows] largest score so far
  A* weights;  // [rows] sum of 2^(s - most)

  Softmax(A* memory, int64_t rows, int64_t width) : sum(memory), most(sum + rows * width), weights(most + rows) {}

  void reset(int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows * width; ++i) sum[i] = 0;
    for (int64_t i = 0; i < rows; ++i) most[i] = -kInfinity<A>;
    for (int64_t i = 0; i < rows; ++i) weights[i] = 0;
  }
};

template <class A>
inline void scale_row(A* row, int64_t n, A factor) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

// Replaces scores by 2^(score - maximum) and brings the row's running state to the new maximum.
template <class A>
void exponentiate_row(A* scores, int64_t n, A* most, A* weight, A* sum, int64_t width) {
  constexpr int kStep = kLanes<A>;
  const int64_t whole = n / kStep * kStep;
  vec_t<A> high = broadcast<A>(-kInfinity<A>);
  for (int64_t i = 0; i < whole; i += kStep) {
    const vec_t<A> s = load(scores + i);
    high = s > high ? s : high;
  }
  if (whole < n) {
    const vec_t<A> s = load_first(scores + whole, n - whole, -kInfinity<A>);
    high = s > high ? s : high;
  }
  const A tile_most = max<A>(high);
  const A new_most = tile_most > *most ? tile_most : *most;
  // All scores are -inf: weights of 0, not 2^(-inf + inf).
  const A shift = new_most == -kInfinity<A> ? A(0) : new_most;
  vec_t<A> total{};
  for (int64_t i = 0; i < whole; i += kStep) {
    const vec_t<A> w = exp2<A>(load(scores + i) - shift);
    store(scores + i, w);
    total += w;
  }
  if (whole < n) {
    const vec_t<A> w = exp2<A>(load_first(scores + whole, n - whole, -kInfinity<A>) - shift);
    store_first(scores + whole, w, n - whole);
    total += w;
  }
  const A factor = exp2<A>(*most - shift);
  if (factor != A(1)) scale_row(sum, width, factor);
  *weight = *weight * factor + stca::STCA_ISA::sum<A>(total);
  *most = new_most;
}

// Normalises one row and writes it; a row that saw nothing is 0 with lse -inf.
template <class T>
void write_row(const TargetAttentionParams& p, int64_t target, int64_t head, const accumulator_t<T>* sum,
               accumulator_t<T> most, accumulator_t<T> weight) {
  using A = accumulator_t<T>;
  const int64_t row = target * p.heads + head;
  T* out = static_cast<T*>(p.out) + row * p.value_dim;
  const bool saw_nothing = weight == A(0);
  for (int64_t i = 0; i < p.value_dim; ++i) out[i] = narrow<T>(saw_nothing ? A(0) : sum[i] / weight);
  static_cast<A*>(p.lse)[row] = saw_nothing ? -kInfinity<A> : A(kLn2 * (most + __builtin_log2(double(weight))));
}

template <class T>
void forward_item(const TargetAttentionParams& p, const TargetAttentionTiling& tiling,
                  const TargetAttentionItem& item, void* scratch_memory, void* partial) {
  using A = accumulator_t<T>;
  const int64_t targets = item.target_end - item.target_begin;
  const int64_t group = p.heads / p.kv_heads;
  const int64_t rows = targets * p.heads;

  Scratch<A> scratch{static_cast<A*>(scratch_memory)};
  A* queries = scratch.take(rows * p.key_dim);
  A* scores = scratch.take(targets * group * tiling.tile_rows);
  A* state_memory = scratch.take(rows * (p.value_dim + 2));
  constexpr bool kConverts = sizeof(T) != sizeof(A);
  A* key_buffer = kConverts ? scratch.take(tiling.tile_rows * p.kv_heads * p.key_dim) : nullptr;
  A* value_buffer = kConverts && !p.shared ? scratch.take(tiling.tile_rows * p.kv_heads * p.value_dim) : nullptr;

  Softmax<A> state(partial != nullptr ? static_cast<A*>(partial) : state_memory, rows, p.value_dim);
  state.reset(rows, p.value_dim);
  pack_rows<T>(p, p.q, p.q_target_stride, p.q_head_stride, p.key_dim, item.target_begin, item.target_end, queries);

  for (int64_t begin = item.row_begin; begin < item.row_end; begin += tiling.tile_rows) {
    const RowRange tile{begin, min(begin + tiling.tile_rows, item.row_end)};
    const RowRange seen_by_any = seen_rows(p, item, item.target_begin, item.target_end, tile);
    if (seen_by_any.begin >= seen_by_any.end) continue;
    const Tile<A> keys = load_tile<T>(p.k, p.k_row_stride, p.k_head_stride, p.kv_heads, p.key_dim, tile.begin,
                                      tile.end, key_buffer);
    const Tile<A> values = p.shared ? keys
                                    : load_tile<T>(p.v, p.v_row_stride, p.v_head_stride, p.kv_heads, p.value_dim,
                                                   tile.begin, tile.end, value_buffer);
    for_each_run(p, item, item.target_begin, item.target_end, tile, [&](int64_t a, int64_t b, RowRange seen) {
      const int64_t count = (b - a) * group;
      const int64_t width = seen.end - seen.begin;
      for (int64_t j = 0; j < p.kv_heads; ++j) {
        const int64_t first = (j * targets + a - item.target_begin) * group;
        gemm<A>(Layout::kPlain, Layout::kTransposed, count, width, p.key_dim, A(p.scale * kLog2E),
                {queries + first * p.key_dim, p.key_dim}, keys.at(seen.begin, j), A(0), {scores, width});
        for (int64_t i = 0; i < count; ++i) {
          exponentiate_row(scores + i * width, width, state.most + first + i, state.weights + first + i,
                           state.sum + (first + i) * p.value_dim, p.value_dim);
        }
        gemm<A>(Layout::kPlain, Layout::kPlain, count, p.value_dim, width, A(1), {scores, width},
                values.at(seen.begin, j), A(1), {state.sum + first * p.value_dim, p.value_dim});
      }
    });
  }
  if (partial != nullptr) return;
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = packed_row(p, targets, t, h);
      write_row<T>(p, item.target_begin + t, h, state.sum + row * p.value_dim, state.most[row], state.weights[row]);
    }
  }
}

template <class T>
void forward_merge(const TargetAttentionParams& p, const TargetAttentionMerge& merge, void* partials,
                   int64_t partial_size) {
  using A = accumulator_t<T>;
  const int64_t targets = merge.target_end - merge.target_begin;
  const int64_t rows = targets * p.heads;
  A* first_partial = static_cast<A*>(partials) + merge.partial_begin * partial_size;
  Softmax<A> total(first_partial, rows, p.value_dim);
  for (int64_t t = 0; t < targets; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = packed_row(p, targets, t, h);
      A* sum = total.sum + row * p.value_dim;
      A most = total.most[row];
      A weight = total.weights[row];
      for (int64_t i = 1; i < merge.partial_end - merge.partial_begin; ++i) {
        const Softmax<A> next(first_partial + i * partial_size, rows, p.value_dim);
        const A* next_sum = next.sum + row * p.value_dim;
        const A new_most = next.most[row] > most ? next.most[row] : most;
        const A shift = new_most == -kInfinity<A> ? A(0) : new_most;
        const A keep = exp2<A>(most - shift), add = exp2<A>(next.most[row] - shift);
        for (int64_t d = 0; d < p.value_dim; ++d) sum[d] = sum[d] * keep + next_sum[d] * add;
        weight = weight * keep + next.weights[row] * add;
        most = new_most;
      }
      write_row<T>(p, merge.target_begin + t, h, sum, most, weight);
    }
  }
}

}  // namespace

void target_attention_item(const TargetAttentionParams& params, const TargetAttentionTiling& tiling,
                           const TargetAttentionItem& item, void* scratch, void* partial) {
  visit_dtype(params.dtype, [&](auto type) {
    forward_item<typename decltype(type)::element>(params, tiling, item, scratch, partial);
  });
}

void target_attention_merge(const TargetAttentionParams& params, const TargetAttentionMerge& merge, void* partials,
                            int64_t partial_size) {
  visit_dtype(params.dtype, [&](auto type) {
    forward_merge<typename decltype(type)::element>(params, merge, partials, partial_size);
  });
}

}  // namespace STCA_ISA
}  // namespace stca
