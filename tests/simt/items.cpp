// Lists what csrc/kernels/cuda/work.cuh gives each range, by a kernel that walks them as the attention kernels do
// (tests/cuda/test_work.py).
#include <cstdlib>
#include <cstring>
#include <exception>

#include "../../csrc/kernels/cuda/work.cuh"

namespace {

using namespace stca::cuda;

constexpr int kFields = 7;

void list_items(stca::TargetAttentionParams p, Cut cut, Work work, int64_t* items, int64_t most) {
  Item& item = *reinterpret_cast<Item*>(shared_memory());
  int64_t* to = items + blockIdx.x * most * kFields;
  if (!start_range(&item, work, int(blockIdx.x))) return;
  do {
    load_item(&item, p, cut, work, int(blockIdx.x));
    const int64_t fields[kFields] = {item.target_begin, item.row_begin, item.kv_head, item.tile,
                                     item.split_begin,  item.split_end, item.partial};
    if (threadIdx.x == 0) std::memcpy(to, fields, sizeof(fields));
    to += kFields;
  } while (item.more);
}

}  // namespace

// items [slots, most, kFields] gets the items of each range, the rest stays; offsets are [requests + 1]. The emulator's
// error, "" if there was none.
extern "C" const char* simt_items(int64_t requests, const int64_t* target_offsets, const int64_t* history_offsets,
                                  int64_t heads, int64_t kv_heads, const Cut* cut, int64_t* items, int64_t most) {
  static char message[1000];
  message[0] = 0;
  stca::TargetAttentionParams p{};
  p.num_requests = requests;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.target_offsets = target_offsets;
  p.history_offsets = history_offsets;
  void* memory = std::calloc(1, work_bytes(requests, cut->slots));
  const Work work = work_at(memory, requests, cut->slots);
  simt::add_memory(memory, work_bytes(requests, cut->slots));
  try {
    launch_work(p, *cut, work, nullptr);
    launch("items", &list_items, cut->slots, kWarp, int(sizeof(Item)), nullptr, p, *cut, work, items, most);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), sizeof(message) - 1);
  }
  simt::remove_memory(memory);
  std::free(memory);
  return message;
}
