// c [M, N] (+)= a [M, K] b [K, N] on matrices that sit in cache, by one register-blocked inner kernel.
//
// The inner kernel keeps a block of c in registers and adds up outer products: an element of a, from anywhere, times
// a few contiguous vectors of b. So a may be read along rows or columns without packing; only b's rows must be
// contiguous, in panels of kPanel columns. Sums run over k in order, `chain` terms at a time: the result never depends
// on memory addresses.
#pragma once

#include "vec.h"

namespace stca {
namespace STCA_ISA {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns of a panel: two vectors; a register block is then 6 x 2 of 16 registers, or 12 x 2 of 32.
template <class A>
constexpr int kPanel = 2 * kLanes<A>;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif
constexpr int64_t kDepth = 256;  // of k at a time: a panel then takes half of a first-level cache of 32 KB
constexpr int64_t kChain = 64;   // of k in one sum: rounding errors of equal sign then add up 64 times, not K times
constexpr int64_t kFineChain =
    32;                            // the same where gradients feel it, out and dp: a tenth slower, half the error of dq
constexpr int64_t kPackRows = 32;  // with more rows of c, a panel is copied once to be read without stride

// Element (i, k) is at data[i * row + k * column].
template <class A>
struct Strided {
  const A* data;
  int64_t row, column;
};

// Panel p, row k, is at data[p * panel + k * row].
template <class A>
struct Panels {
  const A* data;
  int64_t panel, row;
  bool padded;  // every panel has all its kPanel columns in memory, one row after the other
};

template <class A>
Panels<A> plain_rows(const A* data, int64_t stride) {
  return {data, kPanel<A>, stride, false};
}

// What transpose_to_panels made of rows of that width.
template <class A>
Panels<A> padded_panels(const A* data, int64_t width) {
  return {data, width * kPanel<A>, kPanel<A>, true};
}

template <class A>
constexpr int64_t whole_panels(int64_t columns) {
  return (columns + kPanel<A> - 1) / kPanel<A> * kPanel<A>;
}

// Columns of padded panels that hold `count` columns: whole vectors, the last one filled up.
template <class A>
constexpr int64_t whole_lanes(int64_t count) {
  return (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// c [R, columns <= W vectors] (+)= a [R, K] b [K, W vectors]
template <class A, int R, int W>
inline void multiply_block(int64_t depth, Strided<A> a, const A* b, int64_t b_row, A* c, int64_t c_row, int64_t columns,
                           bool accumulate) {
  constexpr int kStep = kLanes<A>;
  vec_t<A> sum[R][W] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec_t<A> right[W];
    for (int w = 0; w < W; ++w) right[w] = load(b + k * b_row + w * kStep);
    for (int r = 0; r < R; ++r) {
      const A left = a.data[r * a.row + k * a.column];
      for (int w = 0; w < W; ++w) sum[r][w] += left * right[w];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) {
      A* to = c + r * c_row + w * kStep;
      const int64_t left = columns - w * kStep;
      if (left >= kStep) {
        store(to, accumulate ? load(to) + sum[r][w] : sum[r][w]);
      } else if (left > 0) {
        store_first(to, accumulate ? load_first(to, left, A(0)) + sum[r][w] : sum[r][w], left);
      }
    }
  }
}

// The same for a number of rows known at run time only, 1 to R, and any depth, as sums of `chain` terms.
template <class A, int R, int W>
inline void multiply_rows(int64_t rows, int64_t depth, Strided<A> a, const A* b, int64_t b_row, A* c, int64_t c_row,
                          int64_t columns, bool accumulate, int64_t chain) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<A, R - 1, W>(rows, depth, a, b, b_row, c, c_row, columns, accumulate, chain);
  }
  for (int64_t k = 0; k < depth; k += chain) {
    multiply_block<A, R, W>(min(chain, depth - k), {a.data + k * a.column, a.row, a.column}, b + k * b_row, b_row, c,
                            c_row, columns, accumulate || k > 0);
  }
}

// All rows of one panel, in blocks of nearly equal height.
template <class A, int R, int W>
void multiply_panel(int64_t rows, int64_t depth, Strided<A> a, const A* b, int64_t b_row, A* c, int64_t c_row,
                    int64_t columns, bool accumulate, int64_t chain) {
  for (int64_t i = 0; i < rows;) {
    const int64_t height = divide_up(rows - i, divide_up(rows - i, R));
    multiply_rows<A, R, W>(height, depth, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row,
                           columns, accumulate, chain);
    i += height;
  }
}

// Copies `columns` columns of a panel's rows to [rows, kPanel], filled up with zeros.
template <class A>
void copy_panel(const A* from, int64_t stride, int64_t rows, int64_t columns, A* to) {
  if (columns == kPanel<A>) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int c = 0; c < kPanel<A>; ++c) to[i * kPanel<A> + c] = from[i * stride + c];
    }
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < kPanel<A>; ++c) to[i * kPanel<A> + c] = c < columns ? from[i * stride + c] : A(0);
    }
  }
}

// c [rows, columns] (+)= a [rows, depth] b [depth, columns]; with padded panels columns may be whole_lanes().
template <class A>
void multiply(int64_t rows, int64_t columns, int64_t depth, Strided<A> a, Panels<A> b, A* c, int64_t c_row,
              bool accumulate, int64_t chain = kChain) {
  alignas(64) A packed[kDepth * kPanel<A>];
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t part = min(kDepth, depth - k);
    const bool add = accumulate || k > 0;
    for (int64_t j = 0; j < columns; j += kPanel<A>) {
      const int64_t width = min(kPanel<A>, columns - j);
      const A* panel = b.data + j / kPanel<A> * b.panel + k * b.row;
      int64_t panel_row = b.row;
      if (!b.padded && (width < kPanel<A> || rows > kPackRows)) {
        copy_panel(panel, panel_row, part, width, packed);
        panel = packed;
        panel_row = kPanel<A>;
      }
      const Strided<A> left{a.data + k * a.column, a.row, a.column};
      if (width > kLanes<A>) {
        multiply_panel<A, kBlockRows, 2>(rows, part, left, panel, panel_row, c + j, c_row, width, add, chain);
      } else {
        multiply_panel<A, 2 * kBlockRows, 1>(rows, part, left, panel, panel_row, c + j, c_row, width, add, chain);
      }
    }
  }
}

// Rows of x [rows, width] as the columns of a matrix in panels: out [panels, width, kPanel], the last one padded by 0.
template <class A>
void transpose_to_panels(const A* x, int64_t rows, int64_t width, A factor, A* out) {
  for (int64_t j = 0; j < rows; j += kPanel<A>) {
    const int64_t columns = min(kPanel<A>, rows - j);
    for (int64_t c = 0; c < kPanel<A>; ++c) {
      if (c < columns) {
        for (int64_t k = 0; k < width; ++k) out[k * kPanel<A> + c] = x[(j + c) * width + k] * factor;
      } else {
        for (int64_t k = 0; k < width; ++k) out[k * kPanel<A> + c] = 0;
      }
    }
    out += width * kPanel<A>;
  }
}

// Where, among the panels of rows of that width, column `column` starts.
template <class A>
constexpr int64_t panel_column(int64_t column, int64_t width) {
  return column / kPanel<A> * width * kPanel<A> + column % kPanel<A>;
}

// Elements that transpose_to_panels writes.
template <class A>
constexpr int64_t panels_size(int64_t rows, int64_t width) {
  return whole_panels<A>(rows) * width;
}

}  // namespace STCA_ISA
}  // namespace stca
