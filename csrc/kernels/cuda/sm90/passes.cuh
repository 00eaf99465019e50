// What the passes of kernel.cuh keep, stream and hold in shared memory.
#pragma once

#include "../target_attention_backward.cuh"
#include "history_rows.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

enum class Pass { kForward, kHistory, kQueries, kKept };

constexpr int kRows = 64;             // kept rows
constexpr int kColumns = 64;          // streamed rows of a tile
constexpr int kSlab = 64 * kSlabRow;  // bytes of 64 rows of 64 columns

// How a block is laid out: its columns; the warpgroups that share the output, 128 or 256 columns each; tiles that it
// has room for; steps of 16 columns whose kept rows lie in registers; blocks of a multiprocessor; and registers of a
// thread that makes products and weights, and of one of the output.
template <int kOwnWidth, int kOwnOutputs, int kOwnStages, int kOwnHeldSteps, int kOwnResident, int kScoreCount,
          int kOutputCount>
struct BlockLayout {
  static constexpr int kWidth = kOwnWidth;
  static constexpr int kSlabs = kWidth / 64;
  static constexpr int kTile = kSlabs * kSlab;
  static constexpr int kStages = kOwnStages;
  static constexpr int kOutputs = kOwnOutputs;  // and the number of the warpgroup of products and weights
  static constexpr int kOutputColumns = kWidth / kOutputs;
  static constexpr int kThreads = (kOutputs + 1) * kWarpgroup;
  static constexpr int kHeldSteps = kOwnHeldSteps;
  static constexpr int kRestSlabs = kSlabs - kHeldSteps / 4;  // of kept rows, in shared memory
  static constexpr int kResident = kOwnResident;
  static constexpr int kScoreRegisters = kScoreCount;
  static constexpr int kOutputRegisters = kOutputCount;
  static constexpr int kEntryRegisters = 65536 / (kResident * kThreads) / 8 * 8;  // of a thread, before they are shared
  // The compiler wants the registers of one instruction to be there at entry.
  static constexpr int kProductColumns = kEntryRegisters > 128 ? kOutputColumns : 128;
  static_assert(kHeldSteps % 4 == 0);
  static_assert(kResident * kWarpgroup * (kScoreCount + kOutputs * kOutputCount) <= 65536);
};

// Query rows of a tile.
template <Pass kPass>
constexpr int kQueryRows = kPass == Pass::kForward || kPass == Pass::kKept ? 64 : 32;

// What is known of a query row that is streamed.
struct QueryInfo {
  Weighing weighing;
  int64_t visible[2];
};

// Asks for what is known of 32 query rows from the request's row `first` on, a row for each lane.
STCA_DEVICE void request_info(QueryInfo* to, const TargetAttentionParams& p, const Item& item, int first,
                              const Weighing* weighing, int lane) {
  const bool valid = first + lane < item.query_rows;  // the others weigh nothing
  const int64_t at = item.target_begin * p.heads + (valid ? first + lane : 0);
  copy_async(&to[lane].weighing, weighing + at, valid ? 16 : 0);
  if (p.visible != nullptr) copy_async(to[lane].visible, p.visible + at / p.heads * 2, 16);
  commit_copies();
}

// What is known of query rows: of the kept ones, or of the streamed ones of two tiles.
template <Pass kPass>
using Info = std::conditional_t<kPass == Pass::kForward || kPass == Pass::kKept, QueryRow,
                                std::conditional_t<kPass == Pass::kHistory, QueryInfo, BackwardRow>>;

// A block's shared memory. Where weights have no room for two tiles, one's must have been used before the next's come.
// The pass that uses what the gradient of the history kept runs in the latter's memory.
template <Pass kPass, class L, int kBlocks>
struct Memory {
  static constexpr bool kReceives = kBlocks > 1 || kPass == Pass::kQueries;
  static constexpr int kMost =
      (kLargeSharedBytes + 1024) / L::kResident - 1024 - 4096;  // but for 4 KB of what is small
  static constexpr int kNeeded = L::kStages * L::kTile + L::kRestSlabs * kSlab + (kReceives ? kRows * kColumns * 4 : 0);
  static constexpr int kWeightBuffers = kNeeded + 2 * kSlab <= kMost ? 2 : 1;
  static constexpr int kKept = L::kStages * L::kTile;                  // slabs: the steps that registers do not hold
  static constexpr int kWeights = kKept + L::kRestSlabs * kSlab;       // slabs
  static constexpr int kReceived = kWeights + kWeightBuffers * kSlab;  // products of the other block, float
  static constexpr int kFactors = kReceived + (kReceives ? kRows * kColumns * 4 : 0);
  static constexpr int kInfo = kFactors + kWeightBuffers * kRows * 4;  // of query rows
  static constexpr int kItem = kInfo + (kPass == Pass::kHistory ? 2 : 1) * kQueryRows<kPass> * int(sizeof(Info<kPass>));
  static constexpr int kChunk = kItem + int(sizeof(Item));
  static constexpr int kBarriers = kChunk + int(sizeof(ItemChunk));
  static constexpr int kBytes = kBarriers + (2 * L::kStages + 6) * 8;
  static_assert(L::kResident * (kBytes + 1024) <= kLargeSharedBytes + 1024);
  static_assert(kPass != Pass::kHistory || kQueryRows<Pass::kKept> * int(sizeof(Info<Pass::kKept>)) <= kItem - kInfo);
};

// Barriers of a block: six, and two for each stage behind them.
struct Barriers {
  uint32_t base;
  STCA_DEVICE uint32_t weighed(int buffer) const { return base + 8 * buffer; }    // weights are there
  STCA_DEVICE uint32_t used(int buffer) const { return base + 16 + 8 * buffer; }  // products with them are done
  STCA_DEVICE uint32_t received() const { return base + 32; }                     // the other block's products
  STCA_DEVICE uint32_t read() const { return base + 40; }                         // the other block has read ours
  STCA_DEVICE uint32_t full(int stage) const { return base + 48 + 16 * stage; }   // a tile has arrived
  STCA_DEVICE uint32_t free(int stage) const { return base + 56 + 16 * stage; }   // nobody reads it any more
};

// What a pass streams.
struct Streams {
  RowMaps history;
  CUtensorMap q, dout;
};

// What a block works with.
template <Pass kOwnPass, class T, class OwnLayout, int kOwnBlocks>
struct Context {
  using Element = T;
  using L = OwnLayout;
  using M = Memory<kOwnPass == Pass::kKept ? Pass::kHistory : kOwnPass, L, kOwnBlocks>;
  static constexpr Pass kPass = kOwnPass;
  static constexpr int kBlocks = kOwnBlocks;  // of a cluster
  static constexpr int kQueries = kQueryRows<kPass>;
  static constexpr int kStep = kPass == Pass::kHistory ? kQueries : kColumns;  // rows of the stream that a tile takes

  const Streams& streams;
  const TargetAttentionBackwardParams& b;
  const TargetAttentionParams& p;
  const Tiling& tiling;
  const Schedule& schedule;
  const Weighing* weighing;
  const Partials& partials;
  char* ds;  // [blocks, kKeptBytes]
  char* memory;
  uint32_t base;      // its address
  float* factors;     // [kWeightBuffers, kRows]
  Info<kPass>* info;  // of query rows
  Item& item;
  ItemChunk& chunk;
  Barriers barriers;
  int rank;    // of the block in its cluster
  int group;   // the thread's warpgroup
  int column;  // the first that the block holds
  bool first_lane;

  STCA_DEVICE static int stage(int at) { return at % L::kStages; }
  STCA_DEVICE static uint32_t phase(int at) { return at / L::kStages & 1; }
  STCA_DEVICE uint32_t tile(int at) const { return base + stage(at) * L::kTile; }
  STCA_DEVICE int range() const { return opaque(int(blockIdx.x)) / kBlocks; }
  // The same block in another pass, which has the same memory.
  template <Pass kOther>
  STCA_DEVICE Context<kOther, T, L, kBlocks> in_pass() const {
    auto* const own_info = reinterpret_cast<Info<kOther>*>(info);
    return {streams, b,        p,    tiling, schedule, weighing, partials, ds,     memory,    base,
            factors, own_info, item, chunk,  barriers, rank,     group,    column, first_lane};
  }
};

// The tiles that an item streams. They are numbered on from those of the items before.
template <int kStep>
struct StreamTiles {
  int last;    // the number behind that of the last tile
  int offset;  // tile `at` starts with row offset + at * kStep
  int end;     // rows of the stream end here
  int begin;   // and begin here: not always with a tile where ds was kept

  STCA_DEVICE int first_row(int at) const { return offset + at * kStep; }
  STCA_DEVICE bool has(int at) const { return first_row(at) < end; }
};

// The stream of an item whose first tile has number `at`: all queries of a history row's request, or the history rows
// that any of the queries sees, in tiles of which ds was kept where it was.
template <class C>
STCA_DEVICE StreamTiles<C::kStep> stream_of(const C& c, int at) {
  const int first = c.item.tile * C::kQueries;
  Range rows{0, c.item.query_rows};
  if constexpr (C::kPass == Pass::kForward || C::kPass == Pass::kKept) {
    auto* const info = C::kBlocks > 1 ? c.info + opaque(0) : c.info;  // else a place in it is held between the steps
    rows = seen_by_tile<C::kQueries, C::L::kThreads>(c.p, c.item, info,
                                                     [&](int row) { return query_row(c.p, c.item, first + row); });
  } else if constexpr (C::kPass == Pass::kQueries) {
    rows = seen_by_tile<C::kQueries, C::L::kThreads>(
        c.p, c.item, c.info, [&](int row) { return backward_row(c.p, c.item, first + row, c.weighing); });
  }
  int from = rows.begin;
  if constexpr (C::kPass == Pass::kKept) {
    if (rows.begin < rows.end) from -= (from - c.item.split_begin) % C::kStep;
  }
  return {at + (rows.end - from + C::kStep - 1) / C::kStep, from - at * C::kStep, rows.end, rows.begin};
}

// Calls f(c) for each 64 history rows of a chunk of the item's, then, where they kept dS, f(c in the pass that uses it)
// for each 64 query rows; and so on with the next chunk.
template <class C, class F>
STCA_DEVICE void for_each_step_of_chunks(const C& c, F f) {
  Item& item = c.item;
  const auto queries = c.template in_pass<Pass::kKept>();
  start_chunks<typename C::Element, kRows, C::kQueries>(c.chunk, c.p, item, is_kept(item, c.tiling));
  do {
    for (int from = c.chunk.begin; from < c.chunk.end; from = item.split_end) {
      take_rows(item, from, min(c.chunk.end, from + kRows));
      f(c);
    }
    for (int tile = 0; is_kept(item, c.tiling) && tile * queries.kQueries < item.query_rows; tile = item.tile + 1) {
      take_rows(item, c.chunk.begin, c.chunk.end, tile);
      f(queries);
    }
  } while (next_chunk(c.chunk));
}

// All items of the block's range, and their steps: calls f(c in the pass of a step).
template <class C, class F>
STCA_DEVICE void for_each_step(const C& c, F f) {
  do {
    // What follows from the tiling is found for each item, and not kept meanwhile: registers are scarce.
    load_item(
        &c.item, c.p,
        {opaque(c.tiling.tile_rows), opaque(c.tiling.block_rows), 0, false, c.tiling.unit_rows, c.tiling.left_out},
        c.schedule, c.range());
    if constexpr (C::kPass == Pass::kHistory) {
      for_each_step_of_chunks(c, f);
    } else {
      f(c);
    }
  } while (c.item.more);
}

// Returns row `row` of the 64 that an item keeps, or nullptr where there is none.
template <Pass kPass, class T>
STCA_DEVICE const T* kept_row(const TargetAttentionBackwardParams& b, const Item& item, const Info<kPass>* rows,
                              int row) {
  const TargetAttentionParams& p = b.forward;
  if constexpr (kPass == Pass::kHistory) {
    const int n = item.split_begin + row;
    if (n >= item.history_rows) return nullptr;
    const int64_t at = item.row_begin + n;
    const int64_t own = p.history_index == nullptr ? at : clamp(p.history_index[at], p.pool_rows - 1);
    return static_cast<const T*>(p.k) + own * p.k_row_stride + item.kv_head * p.k_head_stride;
  } else {
    const auto& own = rows[row % kQueryRows<kPass>];
    if (item.tile * kQueryRows<kPass> + row % kQueryRows<kPass> >= item.query_rows) return nullptr;
    if constexpr (kPass == Pass::kQueries) {
      if (row >= kQueryRows<kPass>) return static_cast<const T*>(b.dout) + own.dout;
    }
    return static_cast<const T*>(p.q) + own.q;
  }
}

// Loads this block's columns of the kept rows: steps up to kHeldSteps to registers, as the left operand, the others to
// slabs.
template <class L, Pass kPass, class T>
STCA_DEVICE void load_kept(uint32_t (&kept)[L::kHeldSteps][4], char* slabs, const TargetAttentionBackwardParams& b,
                           const Item& item, const Info<kPass>* rows, int column) {
  const int t = opaque(int(threadIdx.x) % kWarpgroup), c = t % 4;
  const int width = int(b.forward.key_dim) - column;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const T* row = kept_row<kPass, T>(b, item, rows, row_of(t) + 8 * i);
    const int left = opaque(row == nullptr ? 0 : width - 2 * c);  // columns from this lane's first on
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(row + column + 2 * c);
#pragma unroll
    for (int k = 0; k < L::kHeldSteps; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        kept[k][2 * j + i] = 16 * k + 8 * j < left ? pairs[8 * k + 4 * j] : 0;
      }
    }
  }
#pragma unroll 1
  for (int i = t; i < kRows * 8 * L::kRestSlabs; i += kWarpgroup) {
    const int chunk = i % (8 * L::kRestSlabs), own = i / (8 * L::kRestSlabs), at = 16 * L::kHeldSteps + 8 * chunk;
    const T* row = kept_row<kPass, T>(b, item, rows, own);
    Chunk value{};
    if (row != nullptr && at < width) value = *reinterpret_cast<const Chunk*>(row + column + at);
    *reinterpret_cast<Chunk*>(slabs + chunk / 8 * kSlab + swizzled(own, chunk % 8)) = value;
  }
  fence_async_proxy();
  sync_warpgroup(1);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
