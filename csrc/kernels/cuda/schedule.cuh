// How a call is cut over the machine, by a small kernel that reads the offsets on the device.
//
// Query rows of a request and history head, m * G of them, are cut into tiles, and each tile meets the history block by
// block. All (request, kv head, tile, history block) in this order are one sequence of units, in which every tile also
// counts kTileCost blocks for loading queries and writing results. Each of the thread blocks that run at once takes an
// equal, contiguous range of it: items, each one tile against consecutive history blocks. Tiles that lie in one range
// write results; the others write partial results, at most two a range, its first and its last, which a second kernel
// adds up in order. Everything depends on the offsets and the number of ranges alone: the same bits on every run.
#pragma once

#include "../target_attention.h"
#include "tile.cuh"

namespace stca {
namespace cuda {

// A place in the sequence.
struct Point {
  int64_t request;
  int tile;         // of the request: kv head times tiles, plus tile of query rows
  int block;        // history block of the tile
  int first_range;  // in cut tiles, where set: the range that begins with the tile's first block
};

struct Schedule {
  int64_t* unit_begin;     // [R + 1] units of earlier requests: those of history blocks, and of kTileCost for each tile
  int64_t* combine_begin;  // [num_ranges + 1] query rows to combine of earlier ranges; a cut tile counts where its last
                           // part lies
  Point* points;           // [num_ranges + 1] where ranges begin
};

// What a call is cut into: tiles of query rows, against blocks of history, or, where `history`, tiles of history rows,
// against blocks of query rows. The latter stay whole, so that every history row's gradient has one owner. Where
// `unit_rows` is set, a tile holds all query rows of a request and head, however many: that also gives every history
// row one owner, and only tiles of up to `tile_rows` query rows have partial results.
struct Tiling {
  int tile_rows;   // query rows of a tile; history rows where `history`
  int block_rows;  // rows of a block, which an item takes at a time: of the history; query rows where `history`
  int num_ranges;  // ranges: thread blocks that run at once
  bool history;
  int unit_rows = 0;  // query rows that make a block of history rows a unit
  int left_out = 0;   // requests of up to so many query rows have no tiles: another kernel takes them
};

constexpr int kTileCost = 4;      // blocks that take as long as loading a tile's queries and writing its results
constexpr int kMinimalRange = 4;  // units: shorter ranges cost more to add up than they gain

constexpr int64_t schedule_bytes(int64_t requests, int num_ranges) {
  return (requests + 1 + num_ranges + 1) * int64_t(sizeof(int64_t)) + (num_ranges + 1) * int64_t(sizeof(Point));
}

constexpr int64_t max_partials(int num_ranges) { return 2 * int64_t(num_ranges); }

inline Schedule schedule_at(void* memory, int64_t requests, int num_ranges) {
  int64_t* at = static_cast<int64_t*>(memory);
  return {at, at + requests + 1, reinterpret_cast<Point*>(at + requests + 1 + num_ranges + 1)};
}

const char* launch_schedule(const TargetAttentionParams& params, const Tiling& tiling, const Schedule& schedule,
                            void* stream);

// Reports a history_index that does not fit. Attention itself clamps what it reads of it, which is in its inner loop.
const char* launch_index_check(const TargetAttentionParams& params, void* stream);

// Rows of one request are counted by int, rows of all requests by int64_t.
struct Shape {
  int64_t target_begin, row_begin;  // the request's first target and history row
  int query_rows, history_rows;     // m * G and L
  int tiles;                        // of one kv head
  int blocks;                       // of one tile, one at least
  int units;                        // of one block
};
STCA_DEVICE Shape shape_of(const TargetAttentionParams& p, const Tiling& tiling, int64_t request) {
  // On a GPU nobody has looked at the offsets. Whatever they are, no row outside of the tensors is read or written,
  // and, since they are made to begin and end where they should, every row of the results is written.
  const auto at = [&](const int64_t* offsets, int64_t r, int64_t total) {
    return r == 0 ? 0 : r == p.num_requests ? total : clamp(offsets[r], total);
  };
  const auto target_at = [&](int64_t r) { return at(p.target_offsets, r, p.num_targets); };
  const auto row_at = [&](int64_t r) { return at(p.history_offsets, r, p.num_rows); };
  Shape s;
  s.target_begin = target_at(request);
  s.row_begin = row_at(request);
  s.query_rows = max(0, int(target_at(request + 1) - s.target_begin) * (int(p.heads) / int(p.kv_heads)));
  s.history_rows = max(0, int(row_at(request + 1) - s.row_begin));
  const int rows = tiling.history ? s.history_rows : s.query_rows,
            columns = tiling.history ? s.query_rows : s.history_rows;
  const auto parts = [](int count, int of) { return (count + of - 1) / of; };
  s.tiles = parts(rows, tiling.tile_rows);
  s.units = 1;
  s.blocks = max(1, parts(columns, tiling.block_rows));
  if (tiling.unit_rows > 0) {
    s.tiles = s.query_rows > 0 || s.history_rows > 0 ? 1 : 0;
    s.units = max(1, parts(s.query_rows, tiling.unit_rows));
  }
  if (tiling.left_out > 0 && s.query_rows <= tiling.left_out) s.tiles = 0;
  return s;
}

STCA_DEVICE bool same_tile(const Point& a, const Point& b) { return a.request == b.request && a.tile == b.tile; }

STCA_DEVICE bool before(const Point& a, const Point& b) {
  return a.request != b.request ? a.request < b.request : a.tile != b.tile ? a.tile < b.tile : a.block < b.block;
}

// Returns where the tile after that of `at` begins; `s` is the shape of its request.
STCA_DEVICE Point next_tile(const TargetAttentionParams& p, const Schedule& schedule, const Shape& s, const Point& at) {
  if (at.tile + 1 < s.tiles * int(p.kv_heads)) return {at.request, at.tile + 1, 0, 0};
  int64_t next = at.request + 1;
  const int64_t* begin = schedule.unit_begin;
  if (next < p.num_requests && begin[next] == begin[next + 1]) next = find(begin, p.num_requests + 1, begin[next]);
  return {next, 0, 0, 0};
}

// What a block works on, in shared memory: registers are scarce.
struct Item {
  Point next;                       // where the item after this one begins
  int64_t target_begin, row_begin;  // the request's first target and history row
  int partial;                      // where its partial result goes; -1: results
  int query_rows;                   // m * G
  int history_rows;                 // L
  int kv_head, tile;
  int split_begin, split_end;  // history rows, from the request's first
  bool more;                   // items of the range come after this one
};

// Sets where a range begins, and returns whether it holds an item. A range belongs to a thread block, or, where rows
// take several blocks, to a cluster.
STCA_DEVICE bool start_range(Item* item, const Schedule& schedule, int range) {
  const Point begin = schedule.points[range], end = schedule.points[range + 1];
  if (threadIdx.x == 0) item->next = begin;
  return before(begin, end);
}

// Loads the range's next item to shared memory, when all threads are done with the one before.
STCA_DEVICE void load_item(Item* item, const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           int range) {
  sync_block();
  if (threadIdx.x == 0) {
    const Point at = item->next, end = schedule.points[range + 1];
    const Shape s = shape_of(p, tiling, at.request);
    const bool last = same_tile(at, end);
    const int until = last ? end.block : s.blocks, tile = at.tile % s.tiles;
    const int64_t begin =
        int64_t(tiling.history ? tile : at.block) * (tiling.history ? tiling.tile_rows : tiling.block_rows);
    const int64_t rows = tiling.history ? tiling.tile_rows : int64_t(until - at.block) * tiling.block_rows;
    const bool whole = at.block == 0 && until == s.blocks;
    item->next = last ? end : next_tile(p, schedule, s, at);
    item->more = before(item->next, end);
    item->target_begin = s.target_begin;
    item->row_begin = s.row_begin;
    item->partial = whole ? -1 : 2 * range + (at.block == 0 ? 1 : 0);
    item->query_rows = s.query_rows;
    item->history_rows = s.history_rows;
    item->kv_head = at.tile / s.tiles;
    item->tile = tile;
    item->split_begin = int(begin);
    item->split_end = int(min(int64_t(s.history_rows), begin + rows));
  }
  sync_block();
}

}  // namespace cuda
}  // namespace stca
