// The kernel that cuts a call into items (see work.cuh): one block, every thread counts a run of requests.
#include "work.cuh"

namespace stca {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// The sum of `value` over all threads before this one; `total` of all. `sums` is shared memory, one number a warp.
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

__global__ void __launch_bounds__(kThreads) cut_work(const TargetAttentionParams p, const Cut cut, const Work work) {
  int64_t* sums = reinterpret_cast<int64_t*>(shared_memory());
  const int64_t run = (p.num_requests + kThreads - 1) / kThreads;
  const int64_t begin = min(p.num_requests, int64_t(threadIdx.x) * run), end = min(p.num_requests, begin + run);
  const int64_t group = p.heads / p.kv_heads;
  auto tiles = [&](int64_t r) {
    const int64_t rows = cut.history ? p.history_offsets[r + 1] - p.history_offsets[r]
                                     : (p.target_offsets[r + 1] - p.target_offsets[r]) * group;
    return (rows + cut.tile_rows - 1) / cut.tile_rows * p.kv_heads;
  };
  auto length = [&](int64_t r) { return p.history_offsets[r + 1] - p.history_offsets[r]; };

  int64_t blocks = 0, all_blocks;
  for (int64_t r = begin; r < end; ++r) blocks += tiles(r) * ((length(r) + cut.column_rows - 1) / cut.column_rows);
  scan(blocks, sums, all_blocks);
  const int64_t share = (all_blocks + cut.slots - 1) / cut.slots;
  const int64_t chunk = max(int64_t(kMinimalSplit), share) * cut.column_rows;

  int64_t items = 0, partials = 0, all_items, all_partials;
  auto count = [&](int64_t r) {
    const int64_t splits = cut.history ? 1 : splits_of(length(r), chunk);
    items += tiles(r) * splits;
    if (splits > 1) partials += tiles(r) * splits;
  };
  for (int64_t r = begin; r < end; ++r) count(r);
  items = scan(items, sums, all_items);
  partials = scan(partials, sums, all_partials);
  for (int64_t r = begin; r < end; ++r) {
    work.item_begin[r] = items;
    work.partial_begin[r] = partials;
    count(r);
  }
  if (threadIdx.x == 0) {
    *work.chunk = chunk;
    work.item_begin[p.num_requests] = all_items;
    work.partial_begin[p.num_requests] = all_partials;
  }
}

}  // namespace

const char* launch_work(const TargetAttentionParams& params, const Cut& cut, const Work& work, void* stream) {
  return launch("target_attention work", &cut_work, 1, kThreads, kThreads / kWarp * int(sizeof(int64_t)),
                static_cast<Stream>(stream), params, cut, work);
}

}  // namespace cuda
}  // namespace stca
