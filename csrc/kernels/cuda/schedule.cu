// The kernel that cuts a call into ranges (see schedule.cuh), in one block.
#include "schedule.cuh"

namespace stca {
namespace cuda {
namespace {

constexpr int kThreads = 512;

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
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before + up_to - value;
}

// to[i] = value_of(0) + ... + value_of(i - 1) for i up to `count`.
template <class F>
STCA_DEVICE void prefix_sums(int64_t* to, int64_t count, int64_t* sums, F value_of) {
  int64_t before = 0, total;
  for (int64_t first = 0; first <= count; first += kThreads) {
    const int64_t i = first + threadIdx.x, own = scan(i < count ? value_of(i) : 0, sums, total);
    if (i <= count) to[i] = before + own;
    before += total;
  }
}

// Returns the place of a unit. Half of a tile's kTileCost stands before its blocks and half behind them, for both sides
// of a cut pay as much again. A cut that falls there moves to the tile's end: the range takes up to kTileCost / 2 units
// more, and needs no part of the tile for them. Tiles of history are never cut: the nearer end is taken.
STCA_DEVICE Point point_at(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           int64_t unit) {
  const int64_t request = find(schedule.unit_begin, p.num_requests + 1, unit);
  if (request == p.num_requests) return {request, 0, 0, 0};
  const Shape s = shape_of(p, tiling, request);
  const int64_t local = unit - schedule.unit_begin[request];
  const int tile = int(local / (s.blocks + kTileCost)), place = int(local % (s.blocks + kTileCost));
  const int block = place - kTileCost / 2;
  if (tiling.history ? 2 * block < s.blocks : block <= 0) return {request, tile, 0, 0};
  if (!tiling.history && block < s.blocks) return {request, tile, block, 0};
  return next_tile(p, schedule, s, {request, tile, 0, 0});
}

__global__ void __launch_bounds__(kThreads)
    target_attention_schedule_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule) {
  int64_t* sums = reinterpret_cast<int64_t*>(shared_memory());
  prefix_sums(schedule.unit_begin, p.num_requests, sums, [&](int64_t r) {
    const Shape s = shape_of(p, tiling, r);
    return p.kv_heads * s.tiles * (s.blocks + kTileCost);
  });
  sync_block();

  const int64_t units = schedule.unit_begin[p.num_requests];
  const int64_t ranges = max(int64_t(1), min(int64_t(tiling.num_ranges), units / kMinimalRange));
  for (int64_t b = threadIdx.x; b <= tiling.num_ranges; b += kThreads) {
    schedule.points[b] = point_at(p, tiling, schedule, units * min(b, ranges) / ranges);
  }
  sync_block();

  prefix_sums(schedule.combine_begin, tiling.num_ranges, sums, [&](int64_t b) -> int64_t {
    Point& at = schedule.points[b];
    if (at.block == 0 || same_tile(at, schedule.points[b + 1])) return 0;
    const Point begin{at.request, at.tile, 0, 0};
    int64_t first = 0;
    for (int64_t high = b; high - first > 1;) {
      const int64_t middle = (first + high) / 2;
      (before(begin, schedule.points[middle]) ? high : first) = middle;
    }
    at.first_range = int(first);
    const Shape s = shape_of(p, tiling, at.request);
    return min(tiling.tile_rows, s.query_rows - at.tile % s.tiles * tiling.tile_rows);
  });
}

}  // namespace

const char* launch_schedule(const TargetAttentionParams& params, const Tiling& tiling, const Schedule& schedule,
                            void* stream) {
  return launch("target_attention schedule", &target_attention_schedule_kernel,
                {1, kThreads, kThreads / kWarp * int(sizeof(int64_t))}, static_cast<Stream>(stream), params, tiling,
                schedule);
}

}  // namespace cuda
}  // namespace stca
