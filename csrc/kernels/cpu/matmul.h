// c [M, N] (+)= a [M, K] b [K, N] on matrices that sit in cache, by one register-blocked inner kernel.
//
// The inner kernel keeps a block of c in registers and adds up outer products: an operand of a, from anywhere, times
// a few contiguous vectors of b. So a may be read along rows or columns without packing; only b's rows must be
// contiguous, in panels of kPanel columns. Sums run over k in order, `sum_block` operands at a time, and the sums of
// blocks are added up in order too: the result never depends on memory addresses.
#pragma once

#include "operand.h"

namespace stca {
namespace STCA_ISA {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns of a panel: two vectors.
template <class A>
constexpr int kPanel = 2 * kLanes<A>;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
// Rows of a block, whose sums stay in registers: 6 x 2 of 16, 12 x 2 of 32. Of several sum blocks, 6 rows, so that 32
// registers hold the sums of earlier blocks as well (up to kDepth); else these wait in c.
constexpr bool kKeepsTotals = kRegisters == 32;
constexpr int kBlockRows = kKeepsTotals ? 12 : 6;
constexpr int kBlockedRows = 6;
constexpr int kNarrowRows = 10;    // where one vector of columns is left: with more, addresses of rows leave registers
constexpr int64_t kDepth = 256;    // of k at a time: of a panel, what a first-level cache of 32 KB holds
constexpr int64_t kSumBlock = 64;  // of k in one sum: rounding errors of equal sign then add up 64 times, not K times
constexpr int64_t kFineSumBlock = 32;  // the same where gradients feel it, out and dp: half the error of dq
// Sum blocks are added up in registers for this many operands before c or a total takes them; one block where there are
// too few registers.
constexpr int64_t kTotal = kKeepsTotals ? kDepth : 1;
constexpr int64_t kPrefetchRows = 32;  // a row is prefetched so many rows before it is read, also past the last one
constexpr int64_t kPackRows = 32;      // with more rows of c, a panel is copied once to be read without stride

// b, its rows `stride` elements apart in memory: copied to panels where that pays, and where operands are pairs.
template <class S>
struct Rows {
  const S* data;
  int64_t stride;
};

// The same of a matrix that is not in the caches yet, in its own type: always copied, on its only way through memory.
template <class T>
struct Streamed {
  const T* data;
  int64_t stride;
};

// b in panels, each [depth in operands, kPanel], one after the other.
template <class E>
struct Panels {
  const E* data;
  int64_t depth;
};

template <class A>
constexpr int64_t whole_panels(int64_t columns) {
  return (columns + kPanel<A> - 1) / kPanel<A> * kPanel<A>;
}

// Columns of padded panels that hold `count` columns: whole vectors, the last one filled up.
template <class A>
constexpr int64_t whole_lanes(int64_t count) {
  return (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// c [R, columns <= W vectors] (+)= sum. Loops are unrolled, and less than W vectors copied, so that `sum` can be
// registers; as a function of its own it was memory, and a backward pass of few targets took up to 1.4 times as long.
template <class A, int R, int W>
[[gnu::always_inline]] inline void write_block(const vec_t<A> (&sum)[R][W], A* c, int64_t c_row, int64_t columns,
                                               bool accumulate) {
  constexpr int kStep = kLanes<A>, kWidth = W * kStep;
  if (columns < kWidth) {
    A copy[R][kWidth];
#pragma GCC unroll 24
    for (int i = 0; i < R * W; ++i) store(copy[i / W] + i % W * kStep, sum[i / W][i % W]);
    for (int r = 0; r < R; ++r) {
      for (int64_t i = 0; i < columns; ++i) c[r * c_row + i] = (accumulate ? c[r * c_row + i] : A(0)) + copy[r][i];
    }
  } else if (accumulate) {
#pragma GCC unroll 24
    for (int i = 0; i < R * W; ++i) {
      A* to = c + i / W * c_row + i % W * kStep;
      store(to, load(to) + sum[i / W][i % W]);
    }
  } else {
#pragma GCC unroll 24
    for (int i = 0; i < R * W; ++i) store(c + i / W * c_row + i % W * kStep, sum[i / W][i % W]);
  }
}

// c [R, columns <= W vectors] (+)= a [R, K] b [K, W vectors], as sums of `sum_block` operands; of one where R is large.
template <class E, int R, int W>
inline void multiply_block(int64_t depth, Strided<E> a, const E* b, int64_t b_row, product_t<E>* c, int64_t c_row,
                           int64_t columns, bool accumulate, int64_t sum_block) {
  using A = product_t<E>;
  constexpr int kStep = kLanes<A>;
  constexpr bool kTotals = kKeepsTotals && R * W <= 2 * kBlockedRows;
  vec_t<A> total[R][W] = {};
  for (int64_t k = 0; k < depth;) {
    const bool add = accumulate || k > 0;
    vec_t<A> sum[R][W] = {};
    for (const int64_t end = min(k + sum_block, depth); k < end; ++k) {
      vec_t<E> right[W];
      for (int w = 0; w < W; ++w) right[w] = load(b + k * b_row + w * kStep);
      for (int r = 0; r < R; ++r) {
        const vec_t<E> left = broadcast<E>(a.data[r * a.row + k * a.column]);
        for (int w = 0; w < W; ++w) sum[r][w] = multiply_add<E>(sum[r][w], left, right[w]);
      }
    }
    if constexpr (kTotals) {
      for (int r = 0; r < R; ++r) {
        for (int w = 0; w < W; ++w) total[r][w] += sum[r][w];
      }
    } else {
      write_block<A, R, W>(sum, c, c_row, columns, add);
    }
  }
  if constexpr (kTotals) write_block<A, R, W>(total, c, c_row, columns, accumulate);
}

// The same for a number of rows known at run time only, 1 to R.
template <class E, int R, int W>
inline void multiply_rows(int64_t rows, int64_t depth, Strided<E> a, const E* b, int64_t b_row, product_t<E>* c,
                          int64_t c_row, int64_t columns, bool accumulate, int64_t sum_block) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<E, R - 1, W>(rows, depth, a, b, b_row, c, c_row, columns, accumulate, sum_block);
  }
  if (accumulate && depth >= kFineSumBlock) {  // c is read at the end only
    for (int r = 0; r < R; ++r) {
      for (int w = 0; w < W; ++w) __builtin_prefetch(c + r * c_row + w * kLanes<E>, 1);
    }
  }
  multiply_block<E, R, W>(depth, a, b, b_row, c, c_row, columns, accumulate, sum_block);
}

// Where a panel's operands lie: rows of at least `columns` of them.
template <class E>
struct Panel {
  const E* data;
  int64_t row;
};

// Brings rows of a matrix into the caches, from that level on.
template <int kLevel, class E>
inline void prefetch(int64_t rows, int64_t width, Strided<E> a) {
  for (int64_t r = 0; r < rows; ++r) {
    const E* row = a.data + r * a.row;
    for (int64_t k = 0; k < width; k += 64 / int64_t(sizeof(E))) __builtin_prefetch(row + k, 0, 4 - kLevel);
  }
}

// All rows of c in the columns of one panel, in blocks of nearly equal height.
template <class E, int R, int W>
void multiply_blocks(int64_t rows, int64_t depth, Strided<E> a, Panel<E> b, product_t<E>* c, int64_t c_row,
                     int64_t columns, bool accumulate, int64_t sum_block) {
  const int64_t blocks = divide_up(rows, R), least = rows / max(blocks, 1), higher = rows - blocks * least;
  for (int64_t i = 0, block = 0; block < blocks; ++block) {
    const int64_t height = least + (block < higher);
    if (a.column == 1 && depth <= kSumBlock) {
      // The CPU's own prefetcher does not follow short parts of wide rows. Where each row has few sums, memory sets the
      // pace, so rows are prefetched further ahead.
      if constexpr (W == 1) {
        prefetch<2, E>(height, depth, {a.data + (i + kPrefetchRows) * a.row, a.row, 1});
      } else {
        prefetch<1, E>(height, depth, {a.data + (i + height) * a.row, a.row, 1});
      }
    }
    multiply_rows<E, R, W>(height, depth, {a.data + i * a.row, a.row, a.column}, b.data, b.row, c + i * c_row, c_row,
                           columns, accumulate, sum_block);
    i += height;
  }
}

template <class E, int R>
void multiply_panel(int64_t rows, int64_t depth, Strided<E> a, Panel<E> b, product_t<E>* c, int64_t c_row,
                    int64_t columns, bool accumulate, int64_t sum_block) {
  if (columns > kLanes<E>) {
    multiply_blocks<E, R, 2>(rows, depth, a, b, c, c_row, columns, accumulate, sum_block);
  } else {
    multiply_blocks<E, kNarrowRows, 1>(rows, depth, a, b, c, c_row, columns, accumulate, sum_block);
  }
}

// Columns [j, j + columns) of b from operand k on, of whose rows `depth` are used by `rows` rows of a.
template <class E>
Panel<E> panel_of(Panels<E> b, int64_t j, int64_t, int64_t k, int64_t, int64_t, E*) {
  return {b.data + j * b.depth + k * kPanel<E>, kPanel<E>};
}

template <class T>
Panel<operand_t<tile_t<T>>> panel_of(Streamed<T> b, int64_t j, int64_t columns, int64_t k, int64_t depth, int64_t,
                                     operand_t<tile_t<T>>* packed) {
  using S = tile_t<T>;
  constexpr int kWidth = kPanel<operand_t<S>>;
  const T* from = b.data + k * kTerms<S> * b.stride + j;
  operand_t<S>* to = packed;
  for (int64_t i = 0; i < depth; i += kTerms<S>, from += kTerms<S> * b.stride, to += kWidth) {
    if constexpr (kTerms<S> == 2) {
      pair_rows(from, i + 1 < depth ? from + b.stride : nullptr, columns, to);
      continue;
    } else if (columns == kWidth) {
      // The next panel, for nothing behind the last one: the CPU's own prefetcher does not follow rows that lie far
      // apart.
      prefetch<1, T>(1, kWidth, {from + kWidth, b.stride, 1});
      widen<T>(from, to, kWidth);
    } else {
      for (int64_t c = 0; c < kWidth; ++c) to[c] = c < columns ? widen(from[c]) : S(0);
    }
  }
  return {packed, kWidth};
}

template <class S>
Panel<operand_t<S>> panel_of(Rows<S> b, int64_t j, int64_t columns, int64_t k, int64_t depth, int64_t rows,
                             operand_t<S>* packed) {
  if constexpr (kTerms<S> == 1) {
    if (columns == kPanel<S> && rows <= kPackRows) {
      const S* from = b.data + k * b.stride + j;
      prefetch<2, S>(depth, kPanel<S>, {from + kPanel<S>, b.stride, 1});  // the next one, as above
      return {from, b.stride};
    }
  }
  return panel_of(Streamed<S>{b.data, b.stride}, j, columns, k, depth, rows, packed);
}

// c [rows, columns] (+)= a [rows, depth] b [depth, columns], depth in elements; with Panels columns may be
// whole_lanes(). Where a's rows end within an operand, it is filled up with zeros.
template <class S, class B>
void multiply(int64_t rows, int64_t columns, int64_t depth, Strided<operand_t<S>> a, B b, product_t<operand_t<S>>* c,
              int64_t c_row, bool accumulate, int64_t sum_block = kSumBlock) {
  using E = operand_t<S>;
  alignas(64) E packed[kDepth * kPanel<E>];
  for (int64_t k = 0; k < operands<S>(depth); k += kDepth) {
    const int64_t part = min(kDepth * kTerms<S>, depth - k * kTerms<S>), steps = operands<S>(part);
    const bool add = accumulate || k > 0;
    const Strided<E> left{a.data + k * a.column, a.row, a.column};
    for (int64_t j = 0; j < columns; j += kPanel<E>) {
      const int64_t width = min(kPanel<E>, columns - j);
      const Panel<E> panel = panel_of(b, j, width, k, part, rows, packed);
      if (steps <= sum_block) {
        multiply_panel<E, kBlockRows>(rows, steps, left, panel, c + j, c_row, width, add, sum_block);
      } else {
        multiply_panel<E, kBlockedRows>(rows, steps, left, panel, c + j, c_row, width, add, sum_block);
      }
    }
  }
}

// Rows of x [rows, width] as the columns of a matrix in panels: out [panels, width, kPanel], the last one padded by 0.
template <class E>
void transpose_to_panels(const E* x, int64_t rows, int64_t width, E* out) {
  for (int64_t j = 0; j < rows; j += kPanel<E>) {
    const int64_t columns = min(kPanel<E>, rows - j);
    for (int64_t c = 0; c < kPanel<E>; ++c) {
      for (int64_t k = 0; k < width; ++k) out[k * kPanel<E> + c] = c < columns ? x[(j + c) * width + k] : E{};
    }
    out += width * kPanel<E>;
  }
}

// Where, among the panels of rows of that width, column `column` starts.
template <class E>
constexpr int64_t panel_column(int64_t column, int64_t width) {
  return column / kPanel<E> * width * kPanel<E> + column % kPanel<E>;
}

// Operands that transpose_to_panels writes.
template <class E>
constexpr int64_t panels_size(int64_t rows, int64_t width) {
  return whole_panels<E>(rows) * width;
}

}  // namespace STCA_ISA
}  // namespace stca
