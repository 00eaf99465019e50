// Prefix sums of as many numbers as there are requests, by one block.
#pragma once

#include "tile.cuh"

namespace stca {
namespace cuda {

constexpr int kScanThreads = 512;                                        // of the one block
constexpr int kScanBytes = kScanThreads / kWarp * int(sizeof(int64_t));  // of shared memory: a sum for each warp

// Returns the sum of `value` over all threads before this one, and in `total` over all. `sums` is shared memory for one
// number a warp.
STCA_DEVICE int64_t scan(int64_t value, int64_t* sums, int64_t& total) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  int64_t up_to = value;
  for (int by = 1; by < kWarp; by *= 2) {
    const int64_t other = shuffle_up(up_to, by);
    if (lane >= by) up_to += other;
  }
  sync_block();
  if (lane == kWarp - 1) sums[warp] = up_to;
  sync_block();
  int64_t before = 0;
  total = 0;
#pragma unroll 1
  for (int w = 0; w < kScanThreads / kWarp; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before + up_to - value;
}

// to[i] = value_of(0) + ... + value_of(i - 1) for i up to `count`.
template <class F>
STCA_DEVICE void prefix_sums(int64_t* to, int64_t count, int64_t* sums, F value_of) {
  int64_t before = 0, total;
  for (int64_t first = 0; first <= count; first += kScanThreads) {
    const int64_t i = first + threadIdx.x, own = scan(i < count ? value_of(i) : 0, sums, total);
    if (i <= count) to[i] = before + own;
    before += total;
  }
}

}  // namespace cuda
}  // namespace stca
