// out [count, rows] = a [count, width] b [rows, width]^T for a few rows of a, as dot products.
//
// multiply() keeps rows of a product as lanes of a vector: with one to eight query rows most lanes would be empty. Here
// lanes run along the width, each row of b is read once, in order, for all of a's, and only at the end are the lanes
// of as many products as a vector has lanes added up together. Every product is summed in the same order, wherever it
// stands in its block.
#pragma once

#include "matmul.h"
#include "scaled_rows.h"

namespace stca {
namespace STCA_ISA {

// Whether a product of `count` rows, `width` operands wide, is better made here than by multiply(): where adding up the
// lanes, about 4 vectors of work for each product, costs less than the lanes that multiply() leaves empty. Rows of
// 128 operands and more, as measured in float32, are better off here up to a whole vector of them, for which the
// softmax is along rows too.
template <class E>
constexpr bool prefer_dot_products(int64_t count, int64_t width) {
  return count <= 2 || (count <= kLanes<E> && width >= 128) || count * (width + 4 * kLanes<E>) <= width * kLanes<E>;
}

// Lanes l with l & kHalf from b, the others from a, each added to its neighbour l ^ kHalf.
template <class A, int kHalf>
inline vec_t<A> add_neighbours(vec_t<A> a, vec_t<A> b) {
  typename Lanes<A>::Bits own, other;
  for (int l = 0; l < kLanes<A>; ++l) {
    const int from = (l & kHalf) != 0 ? kLanes<A> : 0;
    own[l] = from + l;
    other[l] = from + (l ^ kHalf);
  }
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

// Lane i of the result: the sum of all lanes of x[i].
template <class A, int kHalf = kLanes<A> / 2>
inline vec_t<A> sum_lanes(vec_t<A>* x) {
  for (int i = 0; i < kHalf; ++i) x[i] = add_neighbours<A, kHalf>(x[i], x[i + kHalf]);
  if constexpr (kHalf > 1) return sum_lanes<A, kHalf / 2>(x);
  return x[0];
}

// Lane by lane, the products of C rows of a with `kStreams` rows of b over elements [begin, end). Rows of b are
// prefetched `ahead` elements before they are read.
template <class E, int C, int kStreams, class Row>
inline void dot_streams(Strided<E> a, const Row (&rows)[kStreams], int64_t begin, int64_t end, int64_t ahead,
                        vec_t<product_t<E>> (&part)[kStreams][C]) {
  constexpr int kStep = kLanes<E>;
  int64_t k = begin;
  for (; k + kStep <= end; k += kStep) {
    vec_t<E> left[C];
    for (int c = 0; c < C; ++c) left[c] = load(a.data + c * a.row + k);
    for (int i = 0; i < kStreams; ++i) {
      __builtin_prefetch(rows[i] + (k + ahead), 0, 2);
      const vec_t<E> right = load_operands(rows[i], k, kStep);
      for (int c = 0; c < C; ++c) part[i][c] = multiply_add<E>(part[i][c], left[c], right);
    }
  }
  if (k == end) return;
  for (int i = 0; i < kStreams; ++i) {
    const vec_t<E> right = load_operands(rows[i], k, end - k);
    for (int c = 0; c < C; ++c) {
      part[i][c] = multiply_add<E>(part[i][c], load_first(a.data + c * a.row + k, end - k, E{}), right);
    }
  }
}

// The products of C rows of a with R = kLanes / C rows of b: [C, R]. A row behind the `last` one of b is that one.
template <class E, int C, class B>
inline vec_t<product_t<E>> dot_block(Strided<E> a, B b, int64_t last, int64_t width, int64_t prefetch_rows) {
  using A = product_t<E>;
  constexpr int kStep = kLanes<E>, R = kStep / C, kStreams = R < 4 ? R : 4;
  vec_t<A> total{};
  for (int64_t begin = 0; begin < width; begin += kSumBlock * kStep) {
    vec_t<A> sums[kStep];
    for (int r = 0; r < R; r += kStreams) {
      decltype(row_of(b, 0)) rows[kStreams];
      for (int i = 0; i < kStreams; ++i) rows[i] = row_of(b, min(r + i, last));
      vec_t<A> part[kStreams][C] = {};
      dot_streams<E, C, kStreams>(a, rows, begin, min(begin + kSumBlock * kStep, width), prefetch_rows * stride_of(b),
                                  part);
      for (int i = 0; i < kStreams; ++i) {
        for (int c = 0; c < C; ++c) sums[c * R + r + i] = part[i][c];
      }
    }
    total += sum_lanes<A>(sums);
  }
  return total;
}

// C rows of a with one vector of rows of b, `height` of them real.
template <class E, int C, class B>
inline void dot_rows(Strided<E> a, B b, int64_t height, int64_t width, product_t<E>* out, int64_t out_row,
                     int64_t prefetch_rows) {
  using A = product_t<E>;
  constexpr int R = kLanes<A> / C;
  for (int64_t n = 0; n < min(height, kLanes<A>); n += R) {
    const vec_t<A> block = dot_block<E, C>(a, rows_from(b, n), height - 1 - n, width, prefetch_rows);
    A products[kLanes<A>];
    store(products, block);
    for (int c = 0; c < C; ++c) __builtin_memcpy(out + c * out_row + n, products + c * R, R * sizeof(A));
  }
}

// Writes whole vectors of each row of out: up to whole_lanes(height) columns, those beyond `height` without meaning.
// b is Strided, or ScaledRows. `width` counts operands; while a row is read, the one `ahead` of it is fetched.
template <class E, class B>
void multiply_dots(int64_t count, Strided<E> a, int64_t height, B b, int64_t width, product_t<E>* out, int64_t out_row,
                   int64_t prefetch_rows = 0) {
  constexpr int kMaxRows = kLanes<E> < 4 ? kLanes<E> : 4;
  for (int64_t n = 0; n < height; n += kLanes<E>) {
    const B rows = rows_from(b, n);
    int64_t c = 0;
    for (; c + kMaxRows <= count; c += kMaxRows) {
      dot_rows<E, kMaxRows>({a.data + c * a.row, a.row, 1}, rows, height - n, width, out + c * out_row + n, out_row,
                            prefetch_rows);
    }
    for (; c < count; ++c) {
      dot_rows<E, 1>({a.data + c * a.row, a.row, 1}, rows, height - n, width, out + c * out_row + n, out_row,
                     prefetch_rows);
    }
  }
}

// W vectors of operands from a row of b, or from two where they are pairs and `rows` is more than 1.
template <class S, int W, bool kWhole>
inline void load_right(Rows<S> from, int64_t k, int64_t rows, int64_t columns, vec_t<operand_t<S>>* right) {
  constexpr int kStep = kLanes<operand_t<S>>;
  const int64_t stride = from.stride;
  const S* b = from.data + k * kTerms<S> * stride;
  for (int w = 0; w < W; w += kTerms<S>) {
    if constexpr (kTerms<S> == 1) {
      const int64_t left = max(min(columns - w * kStep, kStep), 0);
      right[w] = kWhole ? load(b + w * kStep) : load_first(b + w * kStep, left, S(0));
    } else {
      const int64_t left = kWhole ? kStep * kTerms<S> : columns - w * kStep;
      load_pairs(b + w * kStep, rows > 1 ? b + w * kStep + stride : nullptr, left, right + w);
    }
  }
}

template <class S, int W, bool kWhole>
inline void load_right(ScaledRows from, int64_t k, int64_t, int64_t columns, FloatVec* right) {
  constexpr int kStep = kLanes<float>;
  const ScaledRow row = row_of(from, k);
  for (int w = 0; w < W; ++w) right[w] = load_operands(row, w * kStep, kWhole ? kStep : columns - w * kStep);
}

// c [R, columns <= W vectors] += a [R, depth] b [depth, columns]
template <class S, int R, int W, bool kWhole, class B>
inline void add_block(int64_t depth, Strided<operand_t<S>> a, B b, int64_t columns, product_t<operand_t<S>>* c,
                      int64_t c_row, int64_t prefetch_rows) {
  using E = operand_t<S>;
  using A = product_t<E>;
  constexpr int kStep = kLanes<A>;
  for (int64_t k = 0; k < operands<S>(depth);) {
    vec_t<A> sum[R][W] = {};
    for (const int64_t end = min(k + kFineSumBlock, operands<S>(depth)); k < end; ++k) {
      const auto* row = b.data + k * kTerms<S> * b.stride;
      vec_t<E> right[W];
      load_right<S, W, kWhole>(b, k, depth - k * kTerms<S>, columns, right);
      for (int t = 0; t < kTerms<S>; ++t) {
        for (int w = 0; w < W; w += kTerms<S>)
          __builtin_prefetch(row + (t + prefetch_rows) * b.stride + w * kStep, 0, 2);
      }
      for (int r = 0; r < R; ++r) {
        const vec_t<E> left = broadcast<E>(a.data[r * a.row + k * a.column]);
        for (int w = 0; w < W; ++w) sum[r][w] = multiply_add<E>(sum[r][w], left, right[w]);
      }
    }
    write_block<A, R, W>(sum, c, c_row, columns, true);
  }
}

// The columns from `column` on.
template <class S>
inline Rows<S> columns_from(Rows<S> b, int64_t column) {
  return {b.data + column, b.stride};
}

// Vectors of columns added to at a time: with their sums, R of each, operands and a weight stay in registers.
template <int R>
constexpr int kAddedVectors = R * 4 <= kRegisters / 2       ? 4
                              : R * 2 <= kRegisters * 3 / 4 ? 2
                                                            : 1;

template <class S, int R, class B>
void add_rows(int64_t count, int64_t columns, int64_t depth, Strided<operand_t<S>> a, B b, product_t<operand_t<S>>* c,
              int64_t c_row, int64_t prefetch_rows) {
  if constexpr (R > 1) {
    if (count < R) return add_rows<S, R - 1>(count, columns, depth, a, b, c, c_row, prefetch_rows);
  }
  constexpr int W = kAddedVectors<R>, kNarrowest = W < 2 ? W : 2;
  constexpr int64_t kWidth = W * kLanes<operand_t<S>>, kNarrow = kNarrowest * kLanes<operand_t<S>>;
  for (int64_t j = 0; j < columns;) {
    const B right = columns_from(b, j);
    if (columns - j >= kWidth) {
      add_block<S, R, W, true>(depth, a, right, kWidth, c + j, c_row, prefetch_rows);
      j += kWidth;
    } else if (columns - j >= kNarrow) {
      add_block<S, R, kNarrowest, true>(depth, a, right, kNarrow, c + j, c_row, prefetch_rows);
      j += kNarrow;
    } else {
      add_block<S, R, kNarrowest, false>(depth, a, right, columns - j, c + j, c_row, prefetch_rows);
      j = columns;
    }
  }
}

// c [count, columns] += a [count, depth] b [depth, columns] for up to kMaxAccumulatedRows rows of a, without packing; b
// is Rows or ScaledRows. While a row of b is read, the one `prefetch_rows` ahead of it is fetched.
constexpr int kMaxAccumulatedRows = 8;

template <class S, class B>
void accumulate_few_rows(int64_t count, int64_t columns, int64_t depth, Strided<operand_t<S>> a, B b,
                         product_t<operand_t<S>>* c, int64_t c_row, int64_t prefetch_rows) {
  add_rows<S, kMaxAccumulatedRows>(count, columns, depth, a, b, c, c_row, prefetch_rows);
}

}  // namespace STCA_ISA
}  // namespace stca
