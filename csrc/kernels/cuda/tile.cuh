// Tiles in shared memory: how they are loaded, and how what a warp makes of them is written.
//
// Rows of up to kMaxWidth elements are cut into column slices of at most 128, one for each of kSlices warps side by
// side. A warp holds its part of an output of that width in registers, and contracts over its own slice where the width
// is summed over; those sums are then added up over slices through shared memory.
#pragma once

#include <cstring>
#include <type_traits>

#include "../cuda_device.h"
#include "warp_product.cuh"

namespace stca {
namespace cuda {

template <class A>
__host__ STCA_DEVICE constexpr A min(A a, A b) {
  return a < b ? a : b;
}
template <class A>
__host__ STCA_DEVICE constexpr A max(A a, A b) {
  return a > b ? a : b;
}
// The nearest number in [0, most].
STCA_DEVICE int64_t clamp(int64_t x, int64_t most) { return max(int64_t(0), min(x, most)); }
__host__ STCA_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ STCA_DEVICE constexpr int round_up(int a, int b) { return (a + b - 1) / b * b; }

// Tells the host what is wrong with the integers of a call. Threads that find the same may all write: it is one value.
STCA_DEVICE void report(int* reports, CudaCheck what) { static_cast<volatile int*>(reports)[int(what)] = 1; }

// Reports offsets [count + 1] that do not go from 0 to `total` without decreasing, the one at i and its neighbour.
STCA_DEVICE void check_offset(int* reports, CudaCheck what, const int64_t* offsets, int64_t i, int64_t count,
                              int64_t total) {
  if (offsets[i] > offsets[i + 1] || (i == 0 && offsets[0] != 0) || (i + 1 == count && offsets[count] != total)) {
    report(reports, what);
  }
}

// The last r in [0, count) with begin[r] <= value.
STCA_DEVICE int64_t find(const int64_t* begin, int64_t count, int64_t value) {
  int64_t low = 0;
  for (int64_t high = count; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    (begin[middle] <= value ? low : high) = middle;
  }
  return low;
}

// Whether every row starts at a multiple of 16 bytes; strides count elements.
inline bool rows_aligned(const void* data, int64_t element, int64_t stride, int64_t other_stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * element % 16 == 0 && other_stride * element % 16 == 0;
}

// Elements of a 16-byte access.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// Loads `count` elements, of up to 16 bytes together; the rest becomes 0.
template <class T>
STCA_DEVICE void load_vector(const T* from, int count, bool aligned, float (&to)[kVector<T>]) {
  T elements[kVector<T>];
  if (aligned) {
    const Chunk chunk = *reinterpret_cast<const Chunk*>(from);
    memcpy(elements, &chunk, sizeof(chunk));
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) to[i] = widen(elements[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) to[i] = i < count ? widen(from[i]) : 0.0f;
  }
}

template <class T>
STCA_DEVICE void store_vector(const float (&from)[kVector<T>], int count, bool aligned, T* to) {
  T elements[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) narrow(from[i], elements[i]);
  if (aligned) {
    Chunk chunk;
    memcpy(&chunk, elements, sizeof(chunk));
    store_chunk(chunk, to);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i < count) to[i] = elements[i];
    }
  }
}

// S: what rows of the history are in global memory, T itself or int8 with a scale for each.
template <class T, int kWidth, class S = T>
struct Columns {
  using Element = T;
  using Stored = S;
  static constexpr bool kScaled = !std::is_same_v<S, T>;
  static constexpr int kMaxWidth = kWidth;
  static constexpr int kWarpColumns = kMaxWidth < 128 ? kMaxWidth : 128;
  static constexpr int kSlices = kMaxWidth / kWarpColumns;
  static constexpr int kPitch = kMaxWidth + kVector<T>;   // rows start 16 bytes apart among the banks
  static constexpr int kChunks = kMaxWidth / kVector<T>;  // 16-byte copies of a row
};

// Calls f(row, column, value) for each element of a fragment array that this lane holds.
template <int M, int N, class F>
STCA_DEVICE void for_each_element(float (&c)[M][N][4], F f) {
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(16 * m + lane / 4 + i / 2 * 8, 8 * n + 2 * (lane % 4) + i % 2, c[m][n][i]);
    }
  }
}

template <int M, int N>
STCA_DEVICE void clear(float (&c)[M][N][4]) {
  for_each_element(c, [](int, int, float& value) { value = 0; });
}

// What a thread has of a tile of kRows rows: one chunk of columns, of rows `row`, row + kStep, ..., for then nothing
// but a row's address is left to be found for each copy; neighbours have neighbouring chunks of a row. A tile may have
// fewer chunks than there are threads, whose `row` then lies behind it.
template <class T, int kMaxWidth, int kRows, int kThreads>
struct OwnChunks {
  static constexpr int kChunks = Columns<T, kMaxWidth>::kChunks, kStep = min(kThreads / kChunks, kRows);
  static constexpr int kCount = kRows / kStep;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  int row, column;

  STCA_DEVICE explicit OwnChunks(int thread) : row(thread / kChunks), column(thread % kChunks * kVector<T>) {}
};

// Copies kRows rows to shared memory, rows `valid` and up as zeros, columns `width` and up as zeros to a multiple
// of 16. Asynchronous where all rows start at multiples of 16 bytes (`aligned`). row_of(i) is where row i starts; it is
// asked for all of the thread's rows in order, also for those past `valid`, which are not read. `thread`: which of the
// kThreads, that of a block or of a warp, this one is.
template <int kMaxWidth, int kRows, int kThreads, class T, class RowOf>
STCA_DEVICE void load_rows(T* to, int valid, int width, bool aligned, RowOf row_of, int thread = int(threadIdx.x)) {
  using C = Columns<T, kMaxWidth>;
  using Own = OwnChunks<T, kMaxWidth, kRows, kThreads>;
  constexpr int kStep = Own::kStep, kOwn = Own::kCount;
  constexpr int kBatch = kOwn < 8 ? kOwn : 8;  // rows whose addresses are read from memory at once
  static_assert(kOwn % kBatch == 0);
  const auto [first, column] = Own(thread);
  if (column >= round_up(width, 16) || (kThreads / C::kChunks > kRows && first >= kRows)) return;
  const int count = max(0, min(kVector<T>, width - column));
  const int own = count > 0 ? valid - first : 0;  // rows 0, kStep, ... of this thread are copied below this
  T* target = to + first * C::kPitch + column;
  if (aligned && count % kVector<T> == 0) {
#pragma unroll
    for (int i = 0; i < kOwn; i += kBatch) {
      const T* source[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) source[j] = row_of(first + (i + j) * kStep) + column;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int row = (i + j) * kStep;
        copy_async(target + row * C::kPitch, source[j], row < own ? 16 : 0);
      }
    }
  } else {
#pragma unroll 1
    for (int row = 0; row < kRows; row += kStep, target += kStep * C::kPitch) {
      const T* source = row_of(first + row) + column;
      if (aligned) {
        copy_async(target, source, row < own ? count * int(sizeof(T)) : 0);
        continue;
      }
      for (int e = 0; e < kVector<T>; ++e) {
        target[e] = row < own && e < count ? source[e] : T{};
      }
    }
  }
}

// Writes the rows of a fragment array, columns below `width`: row_of(i) is where row i goes, or nullptr for nowhere.
// Neighbours are written in pairs where the row's memory allows it.
template <class T, int M, int N, class RowOf>
STCA_DEVICE void store_rows(const float (&c)[M][N][4], int width, RowOf row_of) {
  struct alignas(2 * sizeof(T)) Pair {
    T elements[2];
  };
  const int lane = found_anew(int(threadIdx.x)) % kWarp, column = 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    T* to = row_of(16 * (i / 2) + 8 * (i % 2) + lane / 4);
    if (to == nullptr) continue;
    to += column;
    if (width % 2 == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Pair) == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (8 * n + column >= width) continue;
        Pair pair;
        narrow(c[i / 2][n][i % 2 * 2], pair.elements[0]);
        narrow(c[i / 2][n][i % 2 * 2 + 1], pair.elements[1]);
        *reinterpret_cast<Pair*>(to + 8 * n) = pair;
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * n + column + e < width) narrow(c[i / 2][n][i % 2 * 2 + e], to[8 * n + e]);
        }
      }
    }
  }
}

// The inverse for floats: 0 for columns from `width` on, and for a row where row_of(i) is nullptr.
template <int M, int N, class RowOf>
STCA_DEVICE void read_rows(float (&c)[M][N][4], int width, RowOf row_of) {
  const int lane = found_anew(int(threadIdx.x)) % kWarp, column = 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const float* from = row_of(16 * (i / 2) + 8 * (i % 2) + lane / 4);
    const int valid = from == nullptr ? 0 : width - column;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) c[i / 2][n][i % 2 * 2 + e] = 8 * n + e < valid ? from[column + 8 * n + e] : 0.0f;
    }
  }
}

}  // namespace cuda
}  // namespace stca
