// Copies and sums of whole rows on the CPU (meaning of every argument: ../rows.h).
#include "../rows.h"

#include "vec.h"

namespace stca {
namespace STCA_ISA {
namespace {

constexpr int64_t kColumns = 2048;  // of a sum at a time: stays in a first-level cache while its rows stream by

constexpr int kRows = 4;  // added in one pass over the running sums, each in its turn

// total += rows[0], then rows[1], ... over `width` elements.
template <class T, int R>
void add_rows(const T* const* rows, int64_t width, accumulator_t<T>* total) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) {
    auto sum = load(total + c);
    for (int r = 0; r < R; ++r) sum += load_wide(rows[r] + c);
    store(total + c, sum);
  }
  for (; c < width; ++c) {
    for (int r = 0; r < R; ++r) total[c] += widen(rows[r][c]);
  }
}

template <class T>
void sum_segment(const SegmentSumParams& p, int64_t begin, int64_t end, int64_t column, int64_t width, T* sums) {
  using A = accumulator_t<T>;
  const T* first = static_cast<const T*>(p.rows) + column;
  auto row = [&](int64_t i) { return first + (p.order == nullptr ? i : p.order[i]) * p.width; };
  A total[kColumns];
  for (int64_t c = 0; c < width; ++c) total[c] = 0;
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) {
    const T* const rows[] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
    add_rows<T, kRows>(rows, width, total);
  }
  for (; i < end; ++i) {
    const T* const rows[] = {row(i)};
    add_rows<T, 1>(rows, width, total);
  }
  if (p.mean && end > begin) {
    for (int64_t c = 0; c < width; ++c) total[c] /= A(end - begin);
  }
  narrow<T>(total, sums, width);
}

// By vectors: libc's memcpy takes another path at these sizes, half as fast here.
inline void copy_row(const char* from, char* to, int64_t bytes) {
  int64_t i = 0;
  for (; i + kVecBytes <= bytes; i += kVecBytes)
    store(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  __builtin_memcpy(to + i, from + i, bytes - i);
}

}  // namespace

void repeat_rows(const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes, int64_t begin, int64_t end,
                 void* to) {
  // The segment of row `begin`: the last one that starts at or before it and is not empty.
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= begin ? low : high) = middle;
  }
  for (int64_t i = begin; i < end; ++i) {
    while (offsets[low + 1] <= i) ++low;
    copy_row(static_cast<const char*>(from) + low * row_bytes, static_cast<char*>(to) + i * row_bytes, row_bytes);
  }
}

void copy_rows(const void* from, const int64_t* index, int64_t row_bytes, int64_t begin, int64_t end, void* to) {
  for (int64_t i = begin; i < end; ++i) {
    copy_row(static_cast<const char*>(from) + index[i] * row_bytes, static_cast<char*>(to) + i * row_bytes, row_bytes);
  }
}

void segment_sum(const SegmentSumParams& params, int64_t begin, int64_t end, int64_t column_begin, int64_t column_end) {
  visit_dtype(params.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t column = column_begin; column < column_end; column += kColumns) {
        const int64_t width = column_end - column < kColumns ? column_end - column : kColumns;
        sum_segment<T>(params, params.offsets[s], params.offsets[s + 1], column, width,
                       static_cast<T*>(params.sums) + s * params.width + column);
      }
    }
  });
}

}  // namespace STCA_ISA
}  // namespace stca
