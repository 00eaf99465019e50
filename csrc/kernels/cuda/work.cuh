// How a call is cut into items, by a small kernel that reads the offsets on the device.
//
// Query rows of a request and history head, m * G of them, are cut into tiles; the history into splits of `chunk` rows,
// so long that all items together just fill the machine. An item is one tile against one split. Requests of one split
// write results; the others write partial results, which a second kernel adds up in order of splits. Everything depends
// on the offsets and the machine's size alone: the same bits on every run.
#pragma once

#include "../target_attention.h"
#include "tile.cuh"

namespace stca {
namespace cuda {

struct Work {
  int64_t* chunk;          // [1] history rows of a split
  int64_t* item_begin;     // [R + 1] items of earlier requests
  int64_t* partial_begin;  // [R + 1] partial results of earlier requests
};

// What is cut: query rows by history splits, or history rows alone (each item then meets all query rows).
struct Cut {
  int tile_rows;    // query rows of a tile; history rows where `history`
  int column_rows;  // history rows that an item takes at a time
  int slots;        // items that run at once
  bool history;
};

constexpr int kMinimalSplit = 4;  // times column_rows: shorter splits cost more to add up than they gain

constexpr int64_t work_bytes(int64_t requests) { return (1 + 2 * (requests + 1)) * int64_t(sizeof(int64_t)); }

// Partial results of all splits, at most: splits are longer than all work divided by the slots.
constexpr int64_t most_partials(int slots) { return 2 * int64_t(slots); }

// Items, at most, that a host which does not know the offsets can count.
inline int64_t most_items(const TargetAttentionParams& p, const Cut& cut) {
  const int64_t rows = cut.history ? p.num_rows : p.num_targets * (p.heads / p.kv_heads);
  const int64_t tiles = (divide_up(rows, cut.tile_rows) + p.num_requests) * p.kv_heads;
  return cut.history ? tiles : tiles + most_partials(cut.slots);
}

inline Work work_at(void* memory, int64_t requests) {
  int64_t* at = static_cast<int64_t*>(memory);
  return {at, at + 1, at + 1 + requests + 1};
}

const char* launch_work(const TargetAttentionParams& params, const Cut& cut, const Work& work, void* stream);

// In shared memory: registers are scarce. Rows of one request are counted by int, rows of all requests by int64_t.
struct Item {
  int64_t target_begin, row_begin;  // the request's first target and history row
  int64_t partial;                  // where its partial result goes; -1: results
  int query_rows;                   // m * G
  int history_rows;                 // L
  int kv_head, tile;
  int split_begin, split_end;  // history rows, from the request's first
};

STCA_DEVICE int64_t splits_of(int64_t rows, int64_t chunk) { return max(int64_t(1), (rows + chunk - 1) / chunk); }

// Item `number` to shared memory, when all threads are done with the one before.
STCA_DEVICE void load_item(Item* item, const TargetAttentionParams& p, const Cut& cut, const Work& work,
                           int64_t number) {
  sync_block();
  if (threadIdx.x == 0) {
    const int64_t r = find(work.item_begin, p.num_requests, number), local = number - work.item_begin[r];
    const int64_t targets = p.target_offsets[r + 1] - p.target_offsets[r];
    const int64_t rows = p.history_offsets[r + 1] - p.history_offsets[r];
    const int64_t query_rows = targets * (p.heads / p.kv_heads);
    const int64_t chunk = cut.history ? cut.tile_rows : *work.chunk;
    const int64_t splits = cut.history ? 1 : splits_of(rows, chunk);
    const int64_t tiles = ((cut.history ? rows : query_rows) + cut.tile_rows - 1) / cut.tile_rows;
    const int64_t tile = local / splits % tiles;
    const int64_t begin = (cut.history ? tile : local % splits) * chunk;
    item->target_begin = p.target_offsets[r];
    item->row_begin = p.history_offsets[r];
    item->partial = splits > 1 ? work.partial_begin[r] + local : -1;
    item->query_rows = int(query_rows);
    item->history_rows = int(rows);
    item->kv_head = int(local / splits / tiles);
    item->tile = int(tile);
    item->split_begin = int(begin);
    item->split_end = int(min(rows, begin + chunk));
  }
  sync_block();
}

// Of query row `at` = target * H + head: in how many splits its history was cut, and which row of the partial results,
// [partials * tile_rows], the first split wrote; later ones follow tile_rows apart.
struct SplitRow {
  int64_t splits, first;
};
STCA_DEVICE SplitRow split_row(const TargetAttentionParams& p, const Cut& cut, const Work& work, int64_t at) {
  const int64_t target = at / p.heads, head = at % p.heads, group = p.heads / p.kv_heads;
  const int64_t r = find(p.target_offsets, p.num_requests, target);
  const int64_t splits = splits_of(p.history_offsets[r + 1] - p.history_offsets[r], *work.chunk);
  const int64_t query = (target - p.target_offsets[r]) * group + head % group;
  const int64_t tiles = ((p.target_offsets[r + 1] - p.target_offsets[r]) * group + cut.tile_rows - 1) / cut.tile_rows;
  const int64_t tile = head / group * tiles + query / cut.tile_rows;
  return {splits, (work.partial_begin[r] + tile * splits) * cut.tile_rows + query % cut.tile_rows};
}

}  // namespace cuda
}  // namespace stca
