// Copies and sums of whole rows on the CPU (meaning of every argument: ../rows.h).
#include "../rows.h"

#include "vec.h"

namespace stca {
namespace STCA_ISA {
namespace {

constexpr int64_t kColumns = 1024;  // of a sum at a time: stays in a first-level cache while its rows stream by
constexpr int64_t kChain = 32;      // rows added one after the other

// chain += row. One row at a time: the prefetcher follows one stream, two together took twice as long.
template <class T>
void add_row(const T* row, int64_t width, accumulator_t<T>* chain) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) store(chain + c, load(chain + c) + load_wide(row + c));
  for (; c < width; ++c) chain[c] += widen(row[c]);
}

// What chains of rows add up to, and what rounding took from it: an item seen a million times is summed as exactly as
// one seen kChain times.
template <class A>
struct RunningSum {
  A total[kColumns], lost[kColumns];

  explicit RunningSum(int64_t width) {
    for (int64_t c = 0; c < width; ++c) total[c] = lost[c] = 0;
  }

  // Knuth's two-sum.
  void add(const A* chain, int64_t width) {
    for (int64_t c = 0; c < width; ++c) {
      const A sum = total[c] + chain[c], taken = sum - total[c];
      lost[c] += (total[c] - (sum - taken)) + (chain[c] - taken);
      total[c] = sum;
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
  A chain[kColumns];
  auto add_chain = [&](int64_t first, int64_t last) {
    for (int64_t c = 0; c < width; ++c) chain[c] = 0;
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = p.order == nullptr ? i : p.order[i];
      add_row(static_cast<const T*>(p.rows) + row * p.width + column, width, chain);
    }
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
  if (p.mean && end > begin) {
    for (int64_t c = 0; c < width; ++c) chain[c] /= A(end - begin);
  }
  narrow<T>(chain, out, width);
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
