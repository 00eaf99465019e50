// Rows of int8, each of which stands for its scale times what it holds, as a right matrix of the products of few rows:
// converted in registers, so that no more than their bytes are read. Where operands are pairs of bfloat16, rows are
// converted to a tile instead (measured: faster from 4 query rows on).
#pragma once

#include "operand.h"

namespace stca {
namespace STCA_ISA {

// Rows `stride` elements apart, their scales `scale_stride` apart.
struct ScaledRows {
  const int8_t* data;
  int64_t stride;
  const float* scale;
  int64_t scale_stride;
};
struct ScaledRow {
  const int8_t* data;
  FloatVec scale;
  const int8_t* operator+(int64_t column) const { return data + column; }
};

// Row i of either kind.
template <class E>
inline const E* row_of(Strided<E> rows, int64_t i) {
  return rows.data + i * rows.row;
}
inline ScaledRow row_of(ScaledRows rows, int64_t i) {
  return {rows.data + i * rows.stride, broadcast(rows.scale[i * rows.scale_stride])};
}

// Elements from a row to the next.
template <class E>
inline int64_t stride_of(Strided<E> rows) {
  return rows.row;
}
inline int64_t stride_of(ScaledRows rows) { return rows.stride; }

// The rows from row i on.
template <class E>
inline Strided<E> rows_from(Strided<E> rows, int64_t i) {
  return {rows.data + i * rows.row, rows.row, rows.column};
}
inline ScaledRows rows_from(ScaledRows rows, int64_t i) {
  return {rows.data + i * rows.stride, rows.stride, rows.scale + i * rows.scale_stride, rows.scale_stride};
}

// The columns from `column` on.
inline ScaledRows columns_from(ScaledRows rows, int64_t column) {
  return {rows.data + column, rows.stride, rows.scale, rows.scale_stride};
}

// A vector of a row's operands from operand k on, `count` of them and zeros behind.
template <class E>
inline vec_t<E> load_operands(const E* row, int64_t k, int64_t count) {
  return count >= kLanes<E> ? load(row + k) : load_first(row + k, count, E{});
}
inline FloatVec load_operands(ScaledRow row, int64_t k, int64_t count) {
  if (count >= kLanes<float>) return load_wide(row.data + k) * row.scale;
  int8_t bytes[kLanes<float>] = {};
  if (count > 0) __builtin_memcpy(bytes, row.data + k, count);
  return load_wide(bytes) * row.scale;
}

}  // namespace STCA_ISA
}  // namespace stca
