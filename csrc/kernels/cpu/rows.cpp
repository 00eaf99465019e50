// Copies and sums of whole rows on the CPU (meaning of every argument: ../rows.h).
#include "../rows.h"

#include "vec.h"

namespace stca {
namespace STCA_ISA {
namespace {

constexpr int64_t kColumns = 1024;  // of a sum at a time: stays in a first-level cache while its rows stream by
constexpr int kTogether = 4;        // rows read side by side: the sum is loaded and stored once for all of them
constexpr int kAhead = 12;          // rows fetched before they are needed, into the second-level cache
constexpr int64_t kSumBlock = 64;   // rows added one after the other

constexpr int64_t kPastCaches = 32 << 20;  // bytes of a result that no cache would hold for whoever reads it next

// Whether a result is written past the caches: an ordinary store reads the line that it fills first.
inline bool past_caches(int64_t rows, int64_t row_bytes, const void* to) {
  return rows * row_bytes >= kPastCaches && (row_bytes | int64_t(reinterpret_cast<intptr_t>(to))) % kVecBytes == 0;
}

template <bool kPast>
inline void put(char* bytes, FloatVec x) {
  float* to = reinterpret_cast<float*>(bytes);
#if defined(__AVX512F__)
  if constexpr (kPast) return _mm512_stream_ps(to, (__m512)x);
#elif defined(__AVX2__)
  if constexpr (kPast) return _mm256_stream_ps(to, (__m256)x);
#endif
  store(to, x);
}

// Other threads see what was written past the caches after this.
inline void finish_puts() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// By vectors, kVectors loaded before they are stored: one at a time took 1.5 times as long in the caches. libc's memcpy
// takes another path at these sizes, half as fast here.
template <bool kPast = false>
inline void copy_row(const char* from, char* to, int64_t bytes) {
  constexpr int kVectors = 4;
  auto at = [&](int64_t i) { return load(reinterpret_cast<const float*>(from + i)); };
  int64_t i = 0;
  for (; i + kVectors * kVecBytes <= bytes; i += kVectors * kVecBytes) {
    const FloatVec x[kVectors] = {at(i), at(i + kVecBytes), at(i + 2 * kVecBytes), at(i + 3 * kVecBytes)};
    for (int v = 0; v < kVectors; ++v) put<kPast>(to + i + v * kVecBytes, x[v]);
  }
  for (; i + kVecBytes <= bytes; i += kVecBytes) put<kPast>(to + i, at(i));
  if (i == bytes) return;
  if (bytes >= kVecBytes) return store(reinterpret_cast<float*>(to + bytes - kVecBytes), at(bytes - kVecBytes));
  __builtin_memcpy(to, from, bytes);
}

// The last segment that starts at or before `place`; of empty ones that start there the last one too.
inline int64_t segment_of(const int64_t* offsets, int64_t count, int64_t place) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= place ? low : high) = middle;
  }
  return low;
}

// `repeats` copies of a row of at most one vector, by whole vectors: what is written beyond them, within `capacity`
// bytes, later copies write again.
inline void store_repeats(FloatVec vector, int64_t step, const char* row, int64_t row_bytes, int64_t repeats, char* to,
                          int64_t capacity) {
  const int64_t bytes = repeats * row_bytes;
  int64_t i = 0;
  for (; i < bytes && i + kVecBytes <= capacity; i += step) store(reinterpret_cast<float*>(to + i), vector);
  for (; i < bytes; i += row_bytes) __builtin_memcpy(to + i, row, row_bytes);
}

// A row of one word: as many as a vector holds at a time, put together in registers (by way of memory it took twice as
// long).
template <class Word>
void repeat_word(const char* row, int64_t repeats, char* to, int64_t capacity) {
  constexpr uint64_t kOfEachWord = ~uint64_t(0) / Word(~Word(0));
  Word word;
  __builtin_memcpy(&word, row, sizeof word);
  const FloatVec vector = (FloatVec)(Int64Vec{} + int64_t(word * kOfEachWord));
  store_repeats(vector, kVecBytes, row, sizeof word, repeats, to, capacity);
}

template <bool kPast>
inline void repeat_row(const char* row, int64_t row_bytes, int64_t repeats, char* to, int64_t capacity) {
  if (row_bytes == 4) return repeat_word<uint32_t>(row, repeats, to, capacity);
  if (row_bytes == 8) return repeat_word<uint64_t>(row, repeats, to, capacity);
  if (row_bytes == 2) return repeat_word<uint16_t>(row, repeats, to, capacity);
  if (row_bytes == 1) return repeat_word<uint8_t>(row, repeats, to, capacity);
  if (row_bytes <= kVecBytes) {
    float first[kLanes<float>] = {};
    __builtin_memcpy(first, row, row_bytes);
    return store_repeats(load(first), row_bytes, row, row_bytes, repeats, to, capacity);
  }
  for (int64_t k = 0; k < repeats; ++k) copy_row<kPast>(row, to + k * row_bytes, row_bytes);
}

// block_sum += rows, one after the other, while those from rows[kAhead] on are fetched.
template <int kRows, class T>
void add_rows(const T* const* rows, int64_t width, accumulator_t<T>* block_sum) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  const T *from[kRows], *next[kRows];  // in registers: for all the compiler knows, block_sum lies over `rows`
  for (int r = 0; r < kRows; ++r) {
    from[r] = rows[r];
    next[r] = rows[kAhead + r];
  }
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) {
    auto sum = load(block_sum + c);
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(next[r] + c, 0, 2);
      sum += load_wide(from[r] + c);
    }
    store(block_sum + c, sum);
  }
  for (; c < width; ++c) {
    for (int r = 0; r < kRows; ++r) block_sum[c] += widen(from[r][c]);
  }
}

// What blocks of rows add up to, and what rounding took from it: an item seen a million times is summed as exactly as
// one seen kSumBlock times.
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
  void add(const A* block_sum, int64_t width) {
    for (int64_t c = 0; c < width; c += kLanes<A>) {
      const auto before = load(total + c), x = load(block_sum + c), sum = before + x, taken = sum - before;
      store(lost + c, load(lost + c) + ((before - (sum - taken)) + (x - taken)));
      store(total + c, sum);
    }
  }

  // Of infinities nothing is lost, but `lost` is not a number then.
  void write(A* to, int64_t width) const {
    for (int64_t c = 0; c < width; ++c) to[c] = total[c] + (lost[c] - lost[c] == A(0) ? lost[c] : A(0));
  }
};

// sum_rows() of two rows or more, kColumns wide at most: narrower than a vector (kNarrow) or not.
template <class T, bool kNarrow, class RowAt>
void sum_several(int64_t count, int64_t width, bool mean, RowAt row_at, T* out) {
  using A = accumulator_t<T>;
  A block_sum[kColumns];
  auto add_block = [&](int64_t first, int64_t last) {
    if constexpr (kNarrow) {
      for (int64_t c = 0; c < width; ++c) {
        A sum = 0;
        for (int64_t i = first; i < last; ++i) sum += widen(row_at(i)[c]);
        block_sum[c] = sum;
      }
    } else {
      for (int64_t c = 0; c < width; c += kLanes<A>) store(block_sum + c, vec_t<A>{});
      const T* rows[kSumBlock + kTogether + kAhead];
      for (int64_t i = first; i < last + kTogether + kAhead; ++i) rows[i - first] = row_at(i < count ? i : count - 1);
      int64_t i = 0;
      for (; i + kTogether <= last - first; i += kTogether) add_rows<kTogether>(rows + i, width, block_sum);
      for (; i < last - first; ++i) add_rows<1>(rows + i, width, block_sum);
    }
  };
  if (count <= kSumBlock) {
    add_block(0, count);
  } else {
    RunningSum<A> sum(width);
    for (int64_t i = 0; i < count; i += kSumBlock) {
      add_block(i, i + kSumBlock < count ? i + kSumBlock : count);
      sum.add(block_sum, width);
    }
    sum.write(block_sum, width);
  }
  if (mean) {
    for (int64_t c = 0; c < width; ++c) block_sum[c] /= A(count);
  }
  narrow<T>(block_sum, out, width);
}

// out [width] = the sum of row_at(i) for i in [0, count), or their mean; more than kColumns only of one row or none.
template <class T, class RowAt>
void sum_rows(int64_t count, int64_t width, bool mean, RowAt row_at, T* out) {
  if (count == 0) {
    __builtin_memset(static_cast<void*>(out), 0, width * sizeof(T));
  } else if (count == 1) {
    copy_row(reinterpret_cast<const char*>(row_at(0)), reinterpret_cast<char*>(out), width * sizeof(T));
  } else if (width < kLanes<accumulator_t<T>>) {
    sum_several<T, true>(count, width, mean, row_at, out);
  } else {
    sum_several<T, false>(count, width, mean, row_at, out);
  }
}

// Rows [begin, end) of request r, from its last one to its first one: a run of rows that the same suffixes hold is one
// wide row of each. Rows further from the end are in fewer suffixes.
template <class T>
void sum_suffixes(const SuffixSumParams& p, int64_t r, int64_t begin, int64_t end, int64_t* active) {
  const int64_t last = p.offsets[r + 1];
  int64_t count = 0;
  auto length = [&](int64_t s) { return p.ends[s + 1] - p.ends[s]; };
  for (int64_t place = p.of_request[r]; place < p.of_request[r + 1]; ++place) active[count++] = p.order[place];
  while (end > begin) {
    int64_t kept = 0, first = begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t s = active[i], starts = last - length(s);
      if (starts >= end) continue;
      active[kept++] = s;
      first = starts > first ? starts : first;
    }
    count = kept;
    const int64_t size = (end - first) * p.width, step = count <= 1 ? size : kColumns;
    for (int64_t column = 0; column < size; column += step) {
      auto row_at = [&](int64_t i) {
        return static_cast<const T*>(p.rows) + (p.ends[active[i] + 1] - (last - first)) * p.width + column;
      };
      sum_rows<T>(count, size - column < step ? size - column : step, false, row_at,
                  static_cast<T*>(p.sums) + first * p.width + column);
    }
    end = first;
  }
}

// Columns [column, column + width) of segment s.
template <class T>
void sum_segment(const SegmentSumParams& params, int64_t s, int64_t column, int64_t width) {
  const int64_t first = params.offsets[s], count = params.offsets[s + 1] - first, stride = params.width;
  const T* rows = static_cast<const T*>(params.rows) + column;
  T* out = static_cast<T*>(params.sums) + s * stride + column;
  if (params.order == nullptr) {
    rows += first * stride;
    sum_rows<T>(count, width, params.mean, [=](int64_t i) { return rows + i * stride; }, out);
  } else {
    const int64_t* order = params.order + first;
    sum_rows<T>(count, width, params.mean, [=](int64_t i) { return rows + order[i] * stride; }, out);
  }
}

}  // namespace

void repeat_rows(const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes, int64_t begin, int64_t end,
                 void* to) {
  const auto repeat = past_caches(offsets[count], row_bytes, to) ? repeat_row<true> : repeat_row<false>;
  int64_t r = segment_of(offsets, count, begin);
  for (int64_t i = begin; i < end; i = offsets[r + 1]) {
    while (offsets[r + 1] <= i) ++r;
    const char* row = static_cast<const char*>(from) + r * row_bytes;
    char* first = static_cast<char*>(to) + i * row_bytes;
    const int64_t repeats = (offsets[r + 1] < end ? offsets[r + 1] : end) - i;
    repeat(row, row_bytes, repeats, first, (end - i) * row_bytes);
  }
  finish_puts();
}

void copy_suffixes(const void* from, const Suffixes& suffixes, int64_t row_bytes, int64_t begin, int64_t end,
                   void* to) {
  const auto copy = past_caches(suffixes.ends[suffixes.count], row_bytes, to) ? copy_row<true> : copy_row<false>;
  int64_t s = segment_of(suffixes.ends, suffixes.count, begin);
  for (int64_t i = begin; i < end; i = suffixes.ends[s + 1]) {
    while (suffixes.ends[s + 1] <= i) ++s;
    const int64_t stop = suffixes.ends[s + 1], rows = (stop < end ? stop : end) - i;
    copy(static_cast<const char*>(from) + (suffixes.lasts[s] - (stop - i)) * row_bytes,
         static_cast<char*>(to) + i * row_bytes, rows * row_bytes);
  }
  finish_puts();
}

void segment_sum(const SegmentSumParams& params, int64_t begin, int64_t end, int64_t column_begin, int64_t column_end) {
  visit_own_dtype(params.dtype, [&](auto type) {
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t column = column_begin; column < column_end; column += kColumns) {
        const int64_t width = column_end - column < kColumns ? column_end - column : kColumns;
        sum_segment<typename decltype(type)::element>(params, s, column, width);
      }
    }
  });
}

void suffix_sum(const SuffixSumParams& params, int64_t begin, int64_t end, int64_t* active) {
  visit_own_dtype(params.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    int64_t r = segment_of(params.offsets, params.requests, begin);
    for (int64_t i = begin; i < end; i = params.offsets[r + 1]) {
      while (params.offsets[r + 1] <= i) ++r;
      sum_suffixes<T>(params, r, i, params.offsets[r + 1] < end ? params.offsets[r + 1] : end, active);
    }
  });
}

}  // namespace STCA_ISA
}  // namespace stca
