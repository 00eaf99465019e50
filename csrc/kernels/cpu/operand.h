// What a matrix product multiplies: numbers of the accumulation type, or, where the CPU multiplies bfloat16 itself,
// pairs of bfloat16 that are adjacent along the reduction dimension. The product is of the accumulation type either
// way.
//
// The left matrix is read operand by operand, from rows as they lie in memory, or transposed, from pairs made of two
// rows. The right one is read in panels of whole vectors, again made of pairs of rows.
#pragma once

#include "vec.h"

namespace stca {
namespace STCA_ISA {

// Two bfloat16, the earlier one in the low half.
struct __attribute__((packed, aligned(2), may_alias)) Pair {
  int32_t bits;
};

template <>
struct Lanes<Pair> {
  using Vec = Int32Vec;
};

// tile_t<T>: the type of T's rows in a tile, T itself where it is multiplied as it is.
// operand_t<S>: what is multiplied of a tile's rows; product_t<E>: what operands are summed in.
template <class T>
struct Tiled {
  using type = accumulator_t<T>;
};
template <class S>
struct Operand {
  using type = S;
};
template <class E>
struct Product {
  using type = E;
};
#if defined(__AVX512BF16__)
template <>
struct Tiled<bfloat16> {
  using type = bfloat16;
};
template <>
struct Operand<bfloat16> {
  using type = Pair;
};
template <>
struct Product<Pair> {
  using type = float;
};
#endif
template <class T>
using tile_t = typename Tiled<T>::type;
template <class S>
using operand_t = typename Operand<S>::type;
template <class E>
using product_t = typename Product<E>::type;

// kTerms: elements of one operand. operands(): operands of a row. whole_operands(): elements that those operands hold,
// which is a row's width in a tile.
template <class S>
constexpr int64_t kTerms = sizeof(operand_t<S>) / sizeof(S);
template <class S>
constexpr int64_t operands(int64_t width) {
  return (width + kTerms<S> - 1) / kTerms<S>;
}
template <class S>
constexpr int64_t whole_operands(int64_t width) {
  return operands<S>(width) * kTerms<S>;
}

template <class E>
inline vec_t<product_t<E>> multiply_add(vec_t<product_t<E>> sum, vec_t<E> left, vec_t<E> right) {
  return sum + left * right;
}

#if defined(__AVX512BF16__)

typedef uint16_t Halves __attribute__((vector_size(kVecBytes)));
constexpr int kHalves = kVecBytes / 2;  // bfloat16 in a vector, twice its pairs

template <>
inline Int32Vec broadcast<Pair>(Pair x) {
  return Int32Vec{} + x.bits;
}
template <>
inline FloatVec multiply_add<Pair>(FloatVec sum, Int32Vec left, Int32Vec right) {
  return (FloatVec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

// To the nearest bfloat16: those of `low`, then those of `high`.
inline Halves round_to_halves(FloatVec low, FloatVec high) {
  return (Halves)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// Pairs (low[i], high[i]) for the i of the lower or the upper half of the lanes.
inline Int32Vec interleave(Halves low, Halves high, bool upper) {
  Halves from;
  for (int i = 0; i < kHalves; ++i) from[i] = i / 2 + (upper ? kHalves / 2 : 0) + (i % 2) * kHalves;
  return (Int32Vec)__builtin_shuffle(low, high, from);
}

// Pairs (low[i], high[i]) of a vector that holds one after the other.
inline Int32Vec interleave(Halves both) {
  Halves from;
  for (int i = 0; i < kHalves; ++i) from[i] = i / 2 + (i % 2) * (kHalves / 2);
  return (Int32Vec)__builtin_shuffle(both, from);
}

inline Halves load_halves(const bfloat16* from, int64_t count) {
  Halves x{};
  if (count >= kHalves) {
    __builtin_memcpy(&x, from, sizeof x);
  } else if (count > 0) {
    __builtin_memcpy(&x, from, count * sizeof(bfloat16));
  }
  return x;
}

// Up to kHalves columns of two rows as pairs, zeros behind them; without a second row, pairs with zeros.
inline void load_pairs(const bfloat16* low, const bfloat16* high, int64_t columns, Int32Vec* pairs) {
  const Halves a = load_halves(low, columns), b = high == nullptr ? Halves{} : load_halves(high, columns);
  pairs[0] = interleave(a, b, false);
  pairs[1] = interleave(a, b, true);
}

// The same of any width, in whole vectors.
inline void pair_rows(const bfloat16* low, const bfloat16* high, int64_t columns, Pair* to) {
  for (int64_t c = 0; c < columns; c += kHalves) {
    Int32Vec pairs[2];
    load_pairs(low + c, high == nullptr ? nullptr : high + c, columns - c, pairs);
    __builtin_memcpy(to + c, pairs, sizeof pairs);
  }
}

// Rounds x [n, width] to bfloat16. Rows of both start `stride` elements apart, in whole vectors; a row of odd width
// gets a zero behind it. `to` may be x.
inline void round_rows_to(const float* x, int64_t n, int64_t width, int64_t stride, bfloat16* to) {
  for (int64_t i = 0; i < n; ++i, x += stride, to += stride) {
    for (int64_t c = 0; c < width; c += kHalves) {
      const bool whole = c + kLanes<float> < stride;
      const Halves rounded = round_to_halves(load(x + c), whole ? load(x + c + kLanes<float>) : FloatVec{});
      __builtin_memcpy(to + c, &rounded, whole ? sizeof rounded : sizeof rounded / 2);
    }
    if (width % 2 != 0) to[width] = {};
  }
}

// Rounds x [n, stride] to pairs (row 2 i, row 2 i + 1); the last row of an odd number is paired with zeros. The stride
// is whole vectors. `to` may be x.
inline void round_row_pairs_to(const float* x, int64_t n, int64_t stride, Pair* to) {
  for (int64_t i = 0; i < n; i += 2, x += 2 * stride, to += stride) {
    for (int64_t c = 0; c < stride; c += kLanes<float>) {
      const FloatVec second = i + 1 < n ? load(x + stride + c) : FloatVec{};
      const Int32Vec pairs = interleave(round_to_halves(load(x + c), second));
      __builtin_memcpy(to + c, &pairs, sizeof pairs);
    }
  }
}
#endif

// Element (i, k) is at data[i * row + k * column].
template <class E>
struct Strided {
  const E* data;
  int64_t row, column;
};

template <class S>
inline const operand_t<S>* as_operands(const S* data) {
  return reinterpret_cast<const operand_t<S>*>(data);
}

// Rows of a tile as a left matrix. Their stride is a multiple of kTerms.
template <class S>
inline Strided<operand_t<S>> by_rows(const S* data, int64_t stride) {
  return {as_operands(data), stride / kTerms<S>, 1};
}

// One operand, whose terms lie `stride` apart, `count` of them.
template <class T>
inline operand_t<tile_t<T>> load_operand(const T* from, int64_t stride, int64_t count) {
  if constexpr (kTerms<tile_t<T>> == 1) {
    return widen(*from);
  } else {
    return {int32_t(uint32_t(from->bits) | (count > 1 ? uint32_t(from[stride].bits) << 16 : 0u))};
  }
}

// One row for a tile, filled up to whole operands with zeros.
template <class T>
inline void load_row(const T* from, int64_t width, tile_t<T>* to) {
  if constexpr (sizeof(T) == sizeof(tile_t<T>)) {
    __builtin_memcpy(to, from, width * sizeof(T));
  } else {
    widen<T>(from, to, width);
  }
  for (int64_t k = width; k < whole_operands<tile_t<T>>(width); ++k) to[k] = {};
}

// The same of a row of int8 that stands for `scale` times what it holds.
template <class S>
inline void load_scaled_row(const int8_t* from, float scale, int64_t width, S* to) {
  using A = accumulator_t<S>;
  int64_t k = 0;
#if defined(__AVX512BF16__)
  if constexpr (kTerms<S> == 2) {
    for (; k + kHalves <= width; k += kHalves) {
      const Halves x = round_to_halves(load_wide(from + k) * scale, load_wide(from + k + kLanes<float>) * scale);
      __builtin_memcpy(to + k, &x, sizeof x);
    }
  }
#endif
  if constexpr (sizeof(S) == sizeof(float)) {
    for (; k + kLanes<float> <= width; k += kLanes<float>) store(to + k, load_wide(from + k) * scale);
  }
  for (; k < width; ++k) to[k] = narrow<S>(A(from[k]) * A(scale));
  for (; k < whole_operands<S>(width); ++k) to[k] = {};
}

// Sums x [n, width] in the form that a tile's rows have, `stride` elements of S apart, in whole vectors: x itself, or x
// rounded into `to`, which takes half of x's memory and may be x.
template <class S>
const S* round_rows(const product_t<operand_t<S>>* x, int64_t n, int64_t width, int64_t stride, void* to) {
  if constexpr (kTerms<S> == 1) {
    return x;
  } else {
    round_rows_to(x, n, width, stride, static_cast<S*>(to));
    return static_cast<S*>(to);
  }
}

// The transpose of x [n, stride] as a left matrix.
template <class S>
Strided<operand_t<S>> round_columns(const product_t<operand_t<S>>* x, int64_t n, int64_t stride, void* to) {
  if constexpr (kTerms<S> == 1) {
    return {x, 1, stride};
  } else {
    operand_t<S>* pairs = static_cast<operand_t<S>*>(to);
    round_row_pairs_to(x, n, stride, pairs);
    return {pairs, 1, stride};
  }
}

}  // namespace STCA_ISA
}  // namespace stca
