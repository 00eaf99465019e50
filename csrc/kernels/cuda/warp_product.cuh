// Products of two tiles in shared memory, by one warp, into registers.
#pragma once

#include "ptx.cuh"

namespace stca {
namespace cuda {

// Two tiles of 16-bit elements, and how this lane reads them (arguments as of warp_product).
template <bool kTransposedA, bool kTransposedB, class T, int M, int N>
struct HalfTiles {
  static_assert(N % 2 == 0);
  const T* a;  // where the lane's first row of a matrix of a starts, and of b
  int lda;
  const T* b;
  int ldb;

  STCA_DEVICE HalfTiles(const T* a_tile, int lda, const T* b_tile, int ldb) : lda(lda), ldb(ldb) {
    const int lane = int(threadIdx.x) % kWarp, half = lane / 16, odd = lane / 8 % 2, in8 = lane % 8;
    a = a_tile + (kTransposedA ? (in8 + 8 * half) * lda + 8 * odd : lane % 16 * lda + 8 * half);
    b = b_tile + (kTransposedB ? (in8 + 8 * odd) * ldb + 8 * half : (in8 + 8 * half) * ldb + 8 * odd);
  }

  // Rows of a, elements k to k + 15 of the depth.
  STCA_DEVICE void load_left(uint32_t (&left)[M][4], int k) const {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      load_matrices<kTransposedA>(left[m], kTransposedA ? a + k * lda + 16 * m : a + 16 * m * lda + k);
    }
  }

  // Columns 8 n to 8 n + 15 of b.
  STCA_DEVICE void load_right(uint32_t (&right)[4], int k, int n) const {
    load_matrices<kTransposedB>(right, kTransposedB ? b + k * ldb + 8 * n : b + 8 * n * ldb + k);
  }

  STCA_DEVICE static void multiply(float (&c)[M][N][4], const uint32_t (&left)[M][4], const uint32_t (&right)[4],
                                   int n) {
    const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      mma<T>(c[m][n], left[m], first);
      mma<T>(c[m][n + 1], left[m], second);
    }
  }
};

// The whole depth and all columns: while some matrices are multiplied, those of the next step are on their way.
template <int kDepth, class Tiles, int M, int N>
STCA_DEVICE void add_whole_product(float (&c)[M][N][4], const Tiles& tiles) {
  constexpr int kSteps = kDepth / 16 * (N / 2);
  uint32_t left[2][M][4], right[2][4];
  tiles.load_left(left[0], 0);
  tiles.load_right(right[0], 0, 0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int k = step / (N / 2), next = step + 1, next_k = next / (N / 2);
    if (next < kSteps) {
      if (next_k != k) tiles.load_left(left[next_k % 2], 16 * next_k);
      tiles.load_right(right[next % 2], 16 * next_k, next % (N / 2) * 2);
    }
    Tiles::multiply(c, left[k % 2], right[step % 2], step % (N / 2) * 2);
  }
}

// Any depth and number of columns, a step of the depth after the other.
template <class Tiles, int M, int N>
STCA_DEVICE void add_part_of_product(float (&c)[M][N][4], const Tiles& tiles, int depth, int columns) {
#pragma unroll 1
  for (int k = 0; k < depth; k += 16) {
    uint32_t left[M][4], right[4];
    tiles.load_left(left, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      if (8 * n >= columns) continue;
      tiles.load_right(right, k, n);
      Tiles::multiply(c, left, right, n);
    }
  }
}

// c[m][n] += left * right for one element of the depth, on ordinary cores. `left` holds the lane's rows.
template <bool kTransposedB, int M, int N>
STCA_DEVICE void add_outer_product(float (&c)[M][N][4], const float (&left)[M][2], const float* b, int ldb, int k,
                                   int columns) {
  const int q = int(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (8 * n >= columns) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * n + 2 * q + i;
      const float right = kTransposedB ? b[k * ldb + column] : b[column * ldb + k];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        c[m][n][i] += left[m][0] * right;
        c[m][n][i + 2] += left[m][1] * right;
      }
    }
  }
}

// c [16 M, 8 N] += a [16 M, depth] b [depth, 8 N]; depth is a multiple of 16, at most kDepth. Element (m, k) of a is
// a[m * lda + k], or a[k * lda + m] where transposed; (k, n) of b is b[n * ldb + k], or b[k * ldb + n]. Columns from
// `columns` on are left out, 16 at a time. c[m][n] is a fragment of mma (see ptx.cuh), for float too.
template <bool kTransposedA, bool kTransposedB, int kDepth, class T, int M, int N>
STCA_DEVICE void warp_product(float (&c)[M][N][4], const T* a, int lda, const T* b, int ldb, int depth,
                              int columns = 8 * N) {
  if constexpr (sizeof(T) == 2) {
    const HalfTiles<kTransposedA, kTransposedB, T, M, N> tiles(a, lda, b, ldb);
    // This is not `depth == kDepth`, of which ptxas 13.0 makes a predicate output of the minimum that gave `depth`: on
    // an H200 results of smaller depths were wrong.
    if (depth > kDepth - 16 && columns >= 8 * N) return add_whole_product<kDepth>(c, tiles);
    add_part_of_product(c, tiles, depth, columns);
  } else {
    const int row = int(threadIdx.x) % kWarp / 4;
#pragma unroll 1
    for (int k = 0; k < depth; ++k) {
      float left[M][2];
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) {
        left[i / 2][i % 2] = kTransposedA ? a[k * lda + row + 8 * i] : a[(row + 8 * i) * lda + k];
      }
      add_outer_product<kTransposedB>(c, left, b, ldb, k, columns);
    }
  }
}

}  // namespace cuda
}  // namespace stca
