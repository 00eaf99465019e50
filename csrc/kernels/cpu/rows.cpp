// Copies and sums of whole rows on the CPU (meaning of every argument: ../rows.h).
#include "../rows.h"

#include "vec.h"

namespace stca {
namespace STCA_ISA {
namespace {

constexpr int64_t kColumns = 1024;  // of a sum at a time: stays in a first-level cache while its rows stream by
constexpr int kTogether = 4;        // rows read side by side: the sum is loaded and stored once for all of them
constexpr int kAhead = 12;          // rows fetched before they are needed, into the second-level cache
constexpr int64_t kChain = 64;      // rows added one after the other

// By vectors, kVectors loaded before they are stored: one at a time took 1.5 times as long in the caches. libc's memcpy
// takes another path at these sizes, half as fast here.
inline void copy_row(const char* from, char* to, int64_t bytes) {
  constexpr int kVectors = 4;
  auto at = [&](int64_t i) { return load(reinterpret_cast<const float*>(from + i)); };
  int64_t i = 0;
  for (; i + kVectors * kVecBytes <= bytes; i += kVectors * kVecBytes) {
    const FloatVec x[kVectors] = {at(i), at(i + kVecBytes), at(i + 2 * kVecBytes), at(i + 3 * kVecBytes)};
    for (int v = 0; v < kVectors; ++v) store(reinterpret_cast<float*>(to + i + v * kVecBytes), x[v]);
  }
  for (; i + kVecBytes <= bytes; i += kVecBytes) store(reinterpret_cast<float*>(to + i), at(i));
  if (i < bytes) __builtin_memcpy(to + i, from + i, bytes - i);
}

// chain += rows, one after the other, while those from rows[kAhead] on are fetched.
template <int kRows, class T>
void add_rows(const T* const* rows, int64_t width, accumulator_t<T>* chain) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) {
    auto sum = load(chain + c);
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(rows[kAhead + r] + c, 0, 2);
      sum += load_wide(rows[r] + c);
    }
    store(chain + c, sum);
  }
  for (; c < width; ++c) {
    for (int r = 0; r < kRows; ++r) chain[c] += widen(rows[r][c]);
  }
}

// What chains of rows add up to, and what rounding took from it: an item seen a million times is summed as exactly as
// one seen kChain times.
template <class A>
struct RunningSum {
  A total[kColumns], lost[kColumns];

  explicit RunningSum(int64_t width) {
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      store(total + c, vec_t<A>{});
      store(lost + c, vec_t<A>{});
    }
  }

  // Knuth's two-sum. Columns past `width` hold nothing of use, and nobody reads them.
  void add(const A* chain, int64_t width) {
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      const auto before = load(total + c), x = load(chain + c), sum = before + x, taken = sum - before;
      store(lost + c, load(lost + c) + ((before - (sum - taken)) + (x - taken)));
      store(total + c, sum);
    }
  }

  // Of infinities nothing is lost, but `lost` is not a number then.
  void write(A* to, int64_t width) const {
    for (int64_t c = 0; c < width; ++c) to[c] = total[c] + (lost[c] - lost[c] == A(0) ? lost[c] : A(0));
  }
};

template <class T>
void sum_segment(const SegmentSumParams& p, int64_t begin, int64_t end, int64_t column, int64_t width, T* out) {
  using A = accumulator_t<T>;
  const int64_t bytes = width * sizeof(T);
  auto row_at = [&](int64_t place) {
    return static_cast<const T*>(p.rows) + (p.order == nullptr ? place : p.order[place]) * p.width + column;
  };
  if (end == begin) {
    __builtin_memset(static_cast<void*>(out), 0, bytes);
    return;
  }
  if (end - begin == 1) {
    copy_row(reinterpret_cast<const char*>(row_at(begin)), reinterpret_cast<char*>(out), bytes);
    return;
  }
  A chain[kColumns];
  auto add_chain = [&](int64_t first, int64_t last) {
    for (int64_t c = 0; c < width; c += kLanes<A>) store(chain + c, vec_t<A>{});
    const T* rows[kChain + kTogether + kAhead];
    for (int64_t i = first; i < last + kTogether + kAhead; ++i) rows[i - first] = row_at(i < end ? i : end - 1);
    int64_t i = 0;
    for (; i + kTogether <= last - first; i += kTogether) add_rows<kTogether>(rows + i, width, chain);
    for (; i < last - first; ++i) add_rows<1>(rows + i, width, chain);
  };
  if (end - begin <= kChain) {
    add_chain(begin, end);
  } else {
    RunningSum<A> sum(width);
    for (int64_t i = begin; i < end; i += kChain) {
      add_chain(i, i + kChain < end ? i + kChain : end);
      sum.add(chain, width);
    }
    sum.write(chain, width);
  }
  if (p.mean) {
    for (int64_t c = 0; c < width; ++c) chain[c] /= A(end - begin);
  }
  narrow<T>(chain, out, width);
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
