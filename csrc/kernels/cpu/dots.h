// out [count, rows] = a [count, width] b [rows, width]^T for a few rows of a, as dot products.
//
// multiply() keeps rows of a product as lanes of a vector: with one to eight query rows most lanes would be empty. Here
// lanes run along the width, each row of b is read once, in order, for all of a's, and only at the end are the lanes
// of as many products as a vector has lanes added up together. Every product is summed in the same order, wherever it
// stands in its block.
#pragma once

#include "matmul.h"

namespace stca {
namespace STCA_ISA {

// Whether a product of `count` rows is better made here than by multiply(). Measured on AVX-512, CPU time of the whole
// forward pass: 8 rows of width 256 take 2.3 ms in place of 3.8, of width 32 7.1 ms in place of 4.6, since adding up
// the lanes then costs more than the products; 1 row of width 32 3.3 ms in place of 4.5.
template <class A>
constexpr bool few_rows(int64_t count, int64_t width) {
  return count <= 2 || (count <= kLanes<A> && width >= 8 * kLanes<A>);
}

constexpr int64_t kAhead = 8;  // rows of b that are fetched before they are needed

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

// The products of C rows of a with R = kLanes / C rows of b: [C, R]. Row r is b's `last` one at most.
template <class A, int C>
inline vec_t<A> dot_block(const A* a, int64_t a_row, const A* b, int64_t b_row, int64_t last, int64_t width) {
  constexpr int kStep = kLanes<A>, R = kStep / C, kStreams = R < 4 ? R : 4;
  vec_t<A> total{};
  for (int64_t begin = 0; begin < width; begin += kChain * kStep) {
    vec_t<A> sums[kStep];
    const int64_t end = min(begin + kChain * kStep, width);
    for (int r = 0; r < R; r += kStreams) {
      const A* rows[kStreams];
      for (int i = 0; i < kStreams; ++i) rows[i] = b + min(r + i, last) * b_row;
      vec_t<A> part[kStreams][C] = {};
      int64_t k = begin;
      for (; k + kStep <= end; k += kStep) {
        vec_t<A> left[C];
        for (int c = 0; c < C; ++c) left[c] = load(a + c * a_row + k);
        for (int i = 0; i < kStreams; ++i) {
          __builtin_prefetch(rows[i] + k + kAhead * b_row);
          const vec_t<A> right = load(rows[i] + k);
          for (int c = 0; c < C; ++c) part[i][c] += left[c] * right;
        }
      }
      if (k < end) {
        for (int i = 0; i < kStreams; ++i) {
          const vec_t<A> right = load_first(rows[i] + k, end - k, A(0));
          for (int c = 0; c < C; ++c) part[i][c] += load_first(a + c * a_row + k, end - k, A(0)) * right;
        }
      }
      for (int i = 0; i < kStreams; ++i) {
        for (int c = 0; c < C; ++c) sums[c * R + r + i] = part[i][c];
      }
    }
    total += sum_lanes<A>(sums);
  }
  return total;
}

// Rows [first, first + C) of a with one vector of rows of b, `height` of them real.
template <class A, int C>
inline void dot_rows(const A* a, int64_t a_row, const A* b, int64_t b_row, int64_t height, int64_t width, A* out,
                     int64_t out_row) {
  constexpr int R = kLanes<A> / C;
  for (int64_t n = 0; n < min(height, kLanes<A>); n += R) {
    const vec_t<A> block = dot_block<A, C>(a, a_row, b + n * b_row, b_row, height - 1 - n, width);
    A products[kLanes<A>];
    store(products, block);
    for (int c = 0; c < C; ++c) __builtin_memcpy(out + c * out_row + n, products + c * R, R * sizeof(A));
  }
}

// Writes whole vectors of each row of out: up to whole_lanes(height) columns, those beyond `height` without meaning.
template <class A>
void multiply_dots(int64_t count, const A* a, int64_t a_row, int64_t height, const A* b, int64_t b_row, int64_t width,
                   A* out, int64_t out_row) {
  constexpr int kMost = kLanes<A> < 4 ? kLanes<A> : 4;
  for (int64_t n = 0; n < height; n += kLanes<A>) {
    const A* rows = b + n * b_row;
    int64_t c = 0;
    for (; c + kMost <= count; c += kMost) {
      dot_rows<A, kMost>(a + c * a_row, a_row, rows, b_row, height - n, width, out + c * out_row + n, out_row);
    }
    for (; c < count; ++c)
      dot_rows<A, 1>(a + c * a_row, a_row, rows, b_row, height - n, width, out + c * out_row + n, out_row);
  }
}

}  // namespace STCA_ISA
}  // namespace stca
