// The kernel that cuts a call into ranges (see schedule.cuh), in one block.
#include "prefix_sums.cuh"
#include "schedule.cuh"

namespace stca {
namespace cuda {
namespace {

// Returns the place of a unit. Half of a tile's kTileCost stands before its blocks and half behind them, for both sides
// of a cut pay as much again. A cut that falls there moves to the tile's end: the range takes up to kTileCost / 2 units
// more, and needs no part of the tile for them. Tiles of history are never cut: the nearer end is taken.
STCA_DEVICE Point point_at(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           int64_t unit) {
  const int64_t request = find(schedule.unit_begin, p.num_requests + 1, unit);
  if (request == p.num_requests) return {request, 0, 0, 0};
  const Shape s = shape_of(p, tiling, request);
  const int64_t local = (unit - schedule.unit_begin[request]) / s.units;
  const int tile = int(local / (s.blocks + kTileCost)), place = int(local % (s.blocks + kTileCost));
  const int block = place - kTileCost / 2;
  if (tiling.history ? 2 * block < s.blocks : block <= 0) return {request, tile, 0, 0};
  if (!tiling.history && block < s.blocks) return {request, tile, block, 0};
  return next_tile(p, schedule, s, {request, tile, 0, 0});
}

__global__ void __launch_bounds__(kScanThreads)
    target_attention_schedule_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule) {
  int64_t* sums = reinterpret_cast<int64_t*>(shared_memory());
  prefix_sums(schedule.unit_begin, p.num_requests, sums, [&](int64_t r) {
    check_offset(p.reports, CudaCheck::kTargetOffsets, p.target_offsets, r, p.num_requests, p.num_targets);
    check_offset(p.reports, CudaCheck::kHistoryOffsets, p.history_offsets, r, p.num_requests, p.num_rows);
    const Shape s = shape_of(p, tiling, r);
    return p.kv_heads * s.tiles * (s.blocks + kTileCost) * s.units;
  });
  sync_block();

  // A range is no shorter than a block of a tile that has partial results. So no two ranges begin in one block, of
  // which the first would be empty and write nothing where the second kernel adds up.
  const int64_t block_units = tiling.unit_rows > 0 ? divide_up(tiling.tile_rows, tiling.unit_rows) : 1;
  const int64_t units = schedule.unit_begin[p.num_requests];
  const int64_t ranges =
      max(int64_t(1), min(int64_t(tiling.num_ranges), units / max(int64_t(kMinimalRange), block_units)));
  for (int64_t b = threadIdx.x; b <= tiling.num_ranges; b += kScanThreads) {
    schedule.points[b] = point_at(p, tiling, schedule, units * min(b, ranges) / ranges);
  }
  sync_block();

  prefix_sums(schedule.combine_begin, tiling.num_ranges, sums, [&](int64_t b) -> int64_t {
    Point& at = schedule.points[b];
    if (at.block == 0 || same_tile(at, schedule.points[b + 1])) return 0;
    const Shape s = shape_of(p, tiling, at.request);
    if (s.query_rows > s.tiles * tiling.tile_rows) return 0;  // nothing partial is kept of so many
    const Point begin{at.request, at.tile, 0, 0};
    int64_t first = 0;
    for (int64_t high = b; high - first > 1;) {
      const int64_t middle = (first + high) / 2;
      (before(begin, schedule.points[middle]) ? high : first) = middle;
    }
    at.first_range = int(first);
    return min(tiling.tile_rows, s.query_rows - at.tile % s.tiles * tiling.tile_rows);
  });
}

constexpr int kCheckThreads = 256;

__global__ void __launch_bounds__(kCheckThreads)
    target_attention_check_index_kernel(const int64_t* index, const int64_t rows, const int64_t pool_rows,
                                        int* reports) {
  const int64_t n = int64_t(blockIdx.x) * kCheckThreads + threadIdx.x;
  if (n < rows && clamp(index[n], pool_rows - 1) != index[n]) report(reports, CudaCheck::kHistoryIndex);
}

}  // namespace

const char* launch_index_check(const TargetAttentionParams& p, void* stream) {
  if (p.history_index == nullptr) return nullptr;
  return launch("target_attention index", &target_attention_check_index_kernel,
                {divide_up(p.num_rows, kCheckThreads), kCheckThreads}, static_cast<Stream>(stream), p.history_index,
                p.num_rows, p.pool_rows, p.reports);
}

const char* launch_schedule(const TargetAttentionParams& params, const Tiling& tiling, const Schedule& schedule,
                            void* stream) {
  return launch("target_attention schedule", &target_attention_schedule_kernel, {1, kScanThreads, kScanBytes},
                static_cast<Stream>(stream), params, tiling, schedule);
}

}  // namespace cuda
}  // namespace stca
