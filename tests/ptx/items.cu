// Lists what csrc/kernels/cuda/schedule.cuh gives each range, by a kernel that walks them as the attention kernels do
// (tests/cuda/test_schedule.py).
#include <cstdlib>
#include <cstring>

#include "../../csrc/kernels/cuda/schedule.cuh"

namespace {

using namespace stca::cuda;

constexpr int kFields = 7;

__global__ void list_items(stca::TargetAttentionParams p, Tiling tiling, Schedule schedule, int64_t* items,
                           int64_t most) {
  Item& item = *reinterpret_cast<Item*>(shared_memory());
  int64_t* to = items + blockIdx.x * most * kFields;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int64_t fields[kFields] = {item.target_begin, item.row_begin, item.kv_head, item.tile,
                                     item.split_begin,  item.split_end, item.partial};
    if (threadIdx.x == 0) std::memcpy(to, fields, sizeof(fields));
    to += kFields;
  } while (item.more);
}

}  // namespace

extern "C" void ptx_add_memory(const void* begin, size_t bytes);
extern "C" void ptx_remove_memory(const void* begin);

// items [num_ranges, most, kFields] gets the items of each range, the rest stays; offsets are [requests + 1]. The
// machine's error, "" if there was none.
extern "C" const char* ptx_items(int64_t requests, const int64_t* target_offsets, const int64_t* history_offsets,
                                 int64_t heads, int64_t kv_heads, const Tiling* tiling, int64_t* items, int64_t most) {
  stca::TargetAttentionParams p{};
  p.num_requests = requests;
  p.num_targets = target_offsets[requests];
  p.num_rows = history_offsets[requests];
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.target_offsets = target_offsets;
  p.history_offsets = history_offsets;
  void* memory = std::calloc(1, schedule_bytes(requests, tiling->num_ranges));
  const Schedule schedule = schedule_at(memory, requests, tiling->num_ranges);
  ptx_add_memory(memory, schedule_bytes(requests, tiling->num_ranges));
  const char* error = launch_schedule(p, *tiling, schedule, nullptr);
  if (error == nullptr) {
    error = launch("items", &list_items, {tiling->num_ranges, kWarp, int(sizeof(Item))}, nullptr, p, *tiling, schedule,
                   items, most);
  }
  ptx_remove_memory(memory);
  std::free(memory);
  return error == nullptr ? "" : error;
}
