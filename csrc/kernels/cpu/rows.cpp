// Copies and sums of whole rows on the CPU (meaning of every argument: ../rows.h).
#include "../rows.h"

#include "vec.h"

namespace stca {
namespace STCA_ISA {
namespace {

constexpr int64_t kColumns = 1024;  // of a sum at a time: stays in a first-level cache while its rows stream by
constexpr int kRows = 8;            // added in one pass over the running sums
constexpr int64_t kSettle = 1024;   // rows after which a running sum takes up what it lost

// A sum and what rounding took from it: an item seen a million times adds up as exactly as one seen twice.
template <class A>
struct RunningSum {
  A total[kColumns], lost[kColumns];
};

// total + x, with the rounding error of that addition added to `lost` (Knuth's two-sum).
template <class X>
inline void add(X x, X& total, X& lost) {
  const X sum = total + x, taken = sum - total;
  lost += (total - (sum - taken)) + (x - taken);
  total = sum;
}

// x(first) + x(first + 1) + ..., R of them in pairs of pairs: the sum of equal rows is exact.
template <class X, int R, class F>
inline X sum_of_rows(F x, int first = 0) {
  if constexpr (R == 1) {
    return x(first);
  } else {
    return sum_of_rows<X, R / 2>(x, first) + sum_of_rows<X, R / 2>(x, first + R / 2);
  }
}

// Adds the sum of R rows, a power of 2, over `width` elements.
template <class T, int R>
void add_rows(const T* const* rows, int64_t width, RunningSum<accumulator_t<T>>& sums) {
  using A = accumulator_t<T>;
  constexpr int kStep = kLanes<A>;
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) {
    vec_t<A> total = load(sums.total + c), lost = load(sums.lost + c);
    add(sum_of_rows<vec_t<A>, R>([&](int r) { return load_wide(rows[r] + c); }), total, lost);
    store(sums.total + c, total);
    store(sums.lost + c, lost);
  }
  for (; c < width; ++c) {
    add(sum_of_rows<A, R>([&](int r) { return widen(rows[r][c]); }), sums.total[c], sums.lost[c]);
  }
}

// Adds what was lost to the total. Of infinities nothing is, but `lost` is not a number then.
template <class A>
void settle(RunningSum<A>& sums, int64_t width) {
  for (int64_t c = 0; c < width; ++c) {
    const A lost = sums.lost[c] - sums.lost[c] == A(0) ? sums.lost[c] : A(0);
    sums.lost[c] = 0;
    add(lost, sums.total[c], sums.lost[c]);
  }
}

template <class T>
void sum_segment(const SegmentSumParams& p, int64_t begin, int64_t end, int64_t column, int64_t width, T* out) {
  using A = accumulator_t<T>;
  const T* first = static_cast<const T*>(p.rows) + column;
  auto row = [&](int64_t i) { return first + (p.order == nullptr ? i : p.order[i]) * p.width; };
  RunningSum<A> sums;
  for (int64_t c = 0; c < width; ++c) sums.total[c] = sums.lost[c] = 0;
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) {
    const T* const rows[] = {row(i),     row(i + 1), row(i + 2), row(i + 3),
                             row(i + 4), row(i + 5), row(i + 6), row(i + 7)};
    add_rows<T, kRows>(rows, width, sums);
    if ((i - begin) % kSettle == 0) settle(sums, width);  // before `lost` is large enough to lose something itself
  }
  for (; i < end; ++i) {
    const T* const rows[] = {row(i)};
    add_rows<T, 1>(rows, width, sums);
  }
  settle(sums, width);
  if (p.mean && end > begin) {
    for (int64_t c = 0; c < width; ++c) sums.total[c] /= A(end - begin);
  }
  narrow<T>(sums.total, out, width);
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
