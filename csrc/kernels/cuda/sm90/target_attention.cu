// target_attention on Hopper where v is k and a row is up to 1,024 wide: forward pass, gradient of the history and
// gradient of q, which are one kernel (formula and shapes: ../../target_attention.h; source: mission.md section 1).
//
// Each pass keeps 64 rows, streams tiles of 64 rows past them, turns the products of kept and streamed rows into
// weights [64, 64], and adds weights times streamed rows to an output [64, width]:
//
//   pass     | kept rows                 | streamed rows           | products        | weights  | output
//   forward  | 64 of q                   | 64 of history           | S               | P        | out
//   history  | 64 of history             | 32 of dout, 32 of q     | dP^T, S^T       | P^T, dS^T| dk
//   queries  | 32 of q, the same of dout | 64 of history           | S over dP       | dS over 0| dq
//
// A block holds 512 columns of everything. A wider row takes a cluster of two blocks, which exchange their parts of the
// products. Three warpgroups share a block's work: one computes products and weights, two add weights times rows to 256
// columns of the output each, in registers. A thread of the latter asks the copy engine for tiles; three are in flight.
#include "target_attention.h"

#include "tensor_map.h"
#include "wgmma.cuh"

namespace stca {
namespace cuda {
namespace sm90 {
namespace {

enum class Pass { kForward, kHistory, kQueries };

constexpr int kRows = 64;     // kept rows
constexpr int kColumns = 64;  // streamed rows of a tile
constexpr int kWidth = 512;   // columns that a block holds
constexpr int kSlabs = kWidth / 64;
constexpr int kSlab = 64 * kSlabRow;  // bytes of 64 rows of 64 columns
constexpr int kTile = kSlabs * kSlab;
constexpr int kStages = 3;
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kScores = 2;      // the warpgroup of products and weights
constexpr int kHeldSteps = 28;  // of 32 steps of 16 columns, those whose kept rows lie in registers

// Query rows of a tile, and history rows.
template <Pass kPass>
constexpr int kQueryRows = kPass == Pass::kForward ? 64 : 32;

// Of a query row that is streamed.
struct QueryInfo {
  Weighing weighing;
  int64_t visible[2];
};

// Asks for those of 32 query rows from the request's `first` on; lane by lane.
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
using Info =
    std::conditional_t<kPass == Pass::kForward, QueryRow, std::conditional_t<kPass == Pass::kHistory, QueryInfo, Row>>;

template <Pass kPass, int kBlocks>
struct Memory {
  static constexpr bool kReceives = kBlocks > 1 || kPass == Pass::kQueries;
  static constexpr int kWeightBuffers = kReceives ? 1 : 2;
  static constexpr int kKept = kStages * kTile;                        // a slab: the steps that registers do not hold
  static constexpr int kWeights = kKept + kSlab;                       // slabs
  static constexpr int kReceived = kWeights + kWeightBuffers * kSlab;  // products of the other block, float
  static constexpr int kFactors = kReceived + (kReceives ? kRows * kColumns * 4 : 0);
  static constexpr int kInfo = kFactors + kWeightBuffers * kRows * 4;  // of query rows
  static constexpr int kItem = kInfo + (kPass == Pass::kHistory ? 2 : 1) * kQueryRows<kPass> * int(sizeof(Info<kPass>));
  static constexpr int kBarriers = kItem + int(sizeof(Item));
  static constexpr int kBytes = kBarriers + 12 * 8;
  static_assert(kBytes <= kLargeSharedBytes);
};

// Barriers of a block.
struct Barriers {
  uint32_t base;
  STCA_DEVICE uint32_t full(int stage) const { return base + 8 * stage; }            // a tile has arrived
  STCA_DEVICE uint32_t free(int stage) const { return base + 24 + 8 * stage; }       // nobody reads it any more
  STCA_DEVICE uint32_t weighed(int buffer) const { return base + 48 + 8 * buffer; }  // weights are there
  STCA_DEVICE uint32_t used(int buffer) const { return base + 64 + 8 * buffer; }     // products with them are done
  STCA_DEVICE uint32_t received() const { return base + 80; }                        // the other block's products
  STCA_DEVICE uint32_t read() const { return base + 88; }                            // the other block has read ours
};

// What a pass streams.
struct Streams {
  CUtensorMap history, q, dout;
};

// Row `row` of the 64 that an item keeps, or nullptr where there is none.
template <Pass kPass, class T>
STCA_DEVICE const T* kept_row(const TargetAttentionBackwardParams& b, const Item& item, const Info<kPass>* rows,
                              int row) {
  const TargetAttentionParams& p = b.forward;
  if constexpr (kPass == Pass::kHistory) {
    const int n = item.split_begin + row;
    if (n >= item.history_rows) return nullptr;
    return static_cast<const T*>(p.k) + (item.row_begin + n) * p.k_row_stride + item.kv_head * p.k_head_stride;
  } else {
    const auto& own = rows[row % kQueryRows<kPass>];
    if (item.tile * kQueryRows<kPass> + row % kQueryRows<kPass> >= item.query_rows) return nullptr;
    if constexpr (kPass == Pass::kQueries) {
      if (row >= kQueryRows<kPass>) return static_cast<const T*>(b.dout) + own.dout;
    }
    return static_cast<const T*>(p.q) + own.q;
  }
}

// Columns of this block: steps up to kHeldSteps to registers, as the left operand, the others to a slab.
template <Pass kPass, class T>
STCA_DEVICE void load_kept(uint32_t (&kept)[kHeldSteps][4], char* slab, const TargetAttentionBackwardParams& b,
                           const Item& item, const Info<kPass>* rows, int column) {
  const int t = opaque(int(threadIdx.x) % kWarpgroup), c = t % 4;
  const int width = int(b.forward.key_dim) - column;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const T* row = kept_row<kPass, T>(b, item, rows, t / kWarp * 16 + t % kWarp / 4 + 8 * i);
    const int left = opaque(row == nullptr ? 0 : width - 2 * c);  // columns from this lane's first on
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(row + column + 2 * c);
#pragma unroll
    for (int k = 0; k < kHeldSteps; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        kept[k][2 * j + i] = 16 * k + 8 * j < left ? pairs[8 * k + 4 * j] : 0;
      }
    }
  }
#pragma unroll 1
  for (int i = t; i < kRows * 8; i += kWarpgroup) {
    const int chunk = i % 8, at = 16 * kHeldSteps + 8 * chunk;
    const T* row = kept_row<kPass, T>(b, item, rows, i / 8);
    Chunk value{};
    if (row != nullptr && at < width) value = *reinterpret_cast<const Chunk*>(row + column + at);
    *reinterpret_cast<Chunk*>(slab + swizzled(i / 8, chunk)) = value;
  }
  fence_async_proxy();
  sync_warpgroup(1);
}

template <Pass kPass, class T, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    attend(const __grid_constant__ Streams streams, const __grid_constant__ TargetAttentionBackwardParams b,
           const Cut cut, const Work work, const Weighing* weighing, const Partials partials) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using M = Memory<kPass, kBlocks>;
  constexpr int kQueries = kQueryRows<kPass>;
  const TargetAttentionParams& p = b.forward;
  char* memory = shared_memory();
  const uint32_t base = shared_address(memory);
  float* factors = reinterpret_cast<float*>(memory + M::kFactors);
  auto* info = reinterpret_cast<Info<kPass>*>(memory + M::kInfo);
  Item& item = *reinterpret_cast<Item*>(memory + M::kItem);
  const Barriers barriers{base + M::kBarriers};
  const int rank = kBlocks == 1 ? 0 : int(cluster_rank());
  const int group = int(threadIdx.x) / kWarpgroup, thread = int(threadIdx.x) % kWarpgroup;
  const int column = rank * kWidth;
  const bool first_lane = threadIdx.x % kWarp == 0;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(barriers.full(stage), 1);
      init_barrier(barriers.free(stage), kThreads / kWarp);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      init_barrier(barriers.weighed(buffer), kWarpgroup / kWarp);
      init_barrier(barriers.used(buffer), 2 * kWarpgroup / kWarp);
    }
    init_barrier(barriers.received(), 1);
    init_barrier(barriers.read(), kWarpgroup / kWarp);
    fence_barrier_init();
  }
  if constexpr (kPass == Pass::kQueries) {  // rows of weights that are never written
    for (int i = int(threadIdx.x); i < kSlab / 16; i += kThreads) {
      reinterpret_cast<Chunk*>(memory + M::kWeights)[i] = Chunk{};
    }
    fence_async_proxy();
  }
  sync_block();
  if (kBlocks > 1) sync_cluster();

  // What an item streams: rows from `begin` to `end` of the history, or of its queries.
  auto streamed_by = [&]() -> Range {
    const int first = item.tile * kQueries;
    if constexpr (kPass == Pass::kHistory) {
      return {0, item.query_rows};
    } else if constexpr (kPass == Pass::kForward) {
      return seen_by_tile<kQueries, kThreads>(p, item, info, [&](int row) { return query_row(p, item, first + row); });
    } else {
      return seen_by_tile<kQueries, kThreads>(p, item, info,
                                              [&](int row) { return backward_row(p, item, first + row, weighing); });
    }
  };
  constexpr int kStep = kPass == Pass::kHistory ? kQueries : kColumns;  // rows of the stream that a tile takes
  auto range = [] { return opaque(int(blockIdx.x)) / kBlocks; };
  if (!start_range(&item, work, range())) return;
  int at = 0;  // tiles so far, of all items
  if (group == kScores) {
    take_registers<184>();
    const float scale = float(p.scale) * kLog2E;
    do {
      load_item(&item, p, cut, work, range());
      const Range streamed = streamed_by();
      uint32_t kept[kHeldSteps][4];
      load_kept<kPass, T>(kept, memory + M::kKept, b, item, info, column);
      float most[2] = {-infinity(), -infinity()}, sum[2] = {0, 0};
      const int end_at = at + (streamed.end - streamed.begin + kStep - 1) / kStep;
      const int offset = streamed.begin - at * kStep;
      if constexpr (kPass == Pass::kHistory) {
        if (thread < kWarp && at < end_at) {
          request_info(info + at % 2 * kQueries, p, item, streamed.begin, weighing, thread);
        }
      }
#pragma unroll 1
      for (; at < end_at; ++at) {
        const int stage = at % kStages, buffer = at % M::kWeightBuffers;
        const uint64_t streamed_rows = by_columns(base + stage * kTile), kept_rest = by_columns(base + M::kKept);
        float s[32];
        wait(barriers.full(stage), at / kStages & 1);
        fence_products();
#pragma unroll
        for (int k = 0; k < kHeldSteps; ++k) {
          product_64<T>(s, kept[k], streamed_rows + step(k / 4 * kSlab + k % 4 * 32), k > 0);
        }
#pragma unroll
        for (int k = kHeldSteps; k < kWidth / 16; ++k) {
          product_64<T>(s, kept_rest + step(k % 4 * 32), streamed_rows + step(k / 4 * kSlab + k % 4 * 32), true);
        }
        commit_products();
        const int from = offset + at * kStep, valid = streamed.end - from;
        wait_products<0>();
        pin(s);
        const int t = opaque(thread), warp_row = t / kWarp * 16, row = warp_row + t % kWarp / 4;  // and row + 8

        if (valid < kStep) {  // rows of others, which may hold NaN: their weight is 0, and 0 times NaN is NaN
          for (int i = t; i < kColumns * (kTile / kColumns / 16); i += kWarpgroup) {
            const int foreign = i % kColumns, chunk = i / kColumns;
            if (foreign % kStep < valid) continue;
            *reinterpret_cast<Chunk*>(memory + stage * kTile + chunk / 8 * kSlab + swizzled(foreign, chunk % 8)) =
                Chunk{};
          }
        }
        if constexpr (kBlocks > 1) {
          wait(barriers.read(), at & 1 ^ 1);
          const uint32_t there = remote(base + M::kReceived + t * 16, cluster_rank() ^ 1);
          const uint32_t barrier = remote(barriers.received(), cluster_rank() ^ 1);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            send(there + i * 2048, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3], barrier);
          }
          if (t == 0) arrive_expecting(barriers.received(), kRows * kColumns * 4);
          wait(barriers.received(), at & 1);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float4 other = *reinterpret_cast<const float4*>(memory + M::kReceived + i * 2048 + t * 16);
            s[4 * i] += other.x;
            s[4 * i + 1] += other.y;
            s[4 * i + 2] += other.z;
            s[4 * i + 3] += other.w;
          }
        }

        if constexpr (kPass == Pass::kForward) {
          if constexpr (kBlocks > 1) {
            sync_warp();
            if (first_lane) arrive_remote(remote(barriers.read(), cluster_rank() ^ 1));
          }
#pragma unroll
          for (int i = 0; i < 32; ++i) s[i] = rounded_product(scale, s[i]);
          const Range sees[2] = {{info[row].begin, info[row].end}, {info[row + 8].begin, info[row + 8].end}};
          if (any_in_warp(max(sees[0].begin, sees[1].begin) > from ||
                          min(sees[0].end, sees[1].end) < from + kColumns)) {
#pragma unroll
            for (int i = 0; i < 32; ++i) {
              const int n = from + i / 4 * 8 + t % 4 * 2 + i % 2, r = i / 2 % 2;
              if (n < sees[r].begin || n >= sees[r].end) s[i] = -infinity();
            }
          }
          float factor[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float largest = most[r];
#pragma unroll
            for (int i = 2 * r; i < 32; i += 4) largest = fmaxf(largest, fmaxf(s[i], s[i + 1]));
            for (int by = 1; by < 4; by *= 2) largest = fmaxf(largest, shuffle_xor(largest, by));
            const float shift = largest == -infinity() ? 0.0f : largest;
            factor[r] = exp2(most[r] - shift);
            most[r] = largest;
            float added = 0;
#pragma unroll
            for (int i = 2 * r; i < 32; i += 4) {
              s[i] = exp2(s[i] - shift);
              s[i + 1] = exp2(s[i + 1] - shift);
              added += s[i] + s[i + 1];
            }
            sum[r] = sum[r] * factor[r] + added;
          }
          wait(barriers.used(buffer), at / M::kWeightBuffers & 1 ^ 1);
          if (t % 4 == 0) {
            factors[buffer * kRows + row] = factor[0];
            factors[buffer * kRows + row + 8] = factor[1];
          }
        } else if constexpr (kPass == Pass::kHistory) {
          wait_copies<0>();
          sync_warpgroup(1);  // what belongs to the queries of this tile is there
          const QueryInfo* columns = info + at % 2 * kQueries;
          if (t < kWarp && at + 1 < end_at) {
            request_info(info + (at + 1) % 2 * kQueries, p, item, from + kStep, weighing, t);
          }
          if constexpr (kBlocks > 1) {
            if (first_lane) arrive_remote(remote(barriers.read(), cluster_rank() ^ 1));
          }
          const int n = item.split_begin + row;
#pragma unroll
          for (int i = 0; i < 8; ++i) {  // queries: columns of S^T, and of dP^T 32 before them
            const QueryInfo& query = columns[i / 2 * 8 + t % 4 * 2 + i % 2];
            const Weighing of = query.weighing;
            int begin = 0, end = of.inverse == 0 ? 0 : item.history_rows;
            if (p.visible != nullptr) {
              begin = int(max(int64_t(0), query.visible[0]));
              end = int(min(int64_t(end), query.visible[1]));
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float &dp = s[i / 2 * 4 + 2 * r + i % 2], &score = s[16 + i / 2 * 4 + 2 * r + i % 2];
              const bool seen = begin <= n + 8 * r && n + 8 * r < end;
              const float weight = exp2(rounded_product(scale, score) - of.most) * of.inverse;
              score = seen ? weight * (dp - of.delta) * float(p.scale) : 0.0f;
              dp = seen ? weight : 0.0f;
            }
          }
          wait(barriers.used(buffer), at / M::kWeightBuffers & 1 ^ 1);
        } else {
          // The first two warps hold S, the other two dP of the same rows: the former hand over the second half of the
          // columns for that of the others' first half, and each weighs one half.
          const bool low = t < kWarpgroup / 2;
          float4* handed = reinterpret_cast<float4*>(memory + M::kReceived + (kBlocks > 1 ? 0 : at % 2 * 8192));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            handed[i * kWarpgroup + t] = {low ? s[16 + 4 * i] : s[4 * i], low ? s[17 + 4 * i] : s[4 * i + 1],
                                          low ? s[18 + 4 * i] : s[4 * i + 2], low ? s[19 + 4 * i] : s[4 * i + 3]};
          }
          sync_warpgroup(1);
          const int query = row % kQueries, first = from + (low ? 0 : kColumns / 2) + t % 4 * 2;
          const Weighing of[2] = {info[query].weighing, info[query + 8].weighing};
          int begin[2], end[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            begin[r] = info[query + 8 * r].begin - first;
            end[r] = of[r].inverse == 0 ? begin[r] : info[query + 8 * r].end - first;
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float4 other = handed[i * kWarpgroup + (t ^ kWarpgroup / 2)];
            const float each[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int n = 8 * i + j % 2, r = j / 2;
              const float score = low ? s[4 * i + j] : each[j], dp = low ? each[j] : s[16 + 4 * i + j];
              const float weight = exp2(rounded_product(scale, score) - of[r].most) * of[r].inverse;
              s[4 * i + j] = begin[r] <= n && n < end[r] ? weight * (dp - of[r].delta) * float(p.scale) : 0.0f;
            }
          }
          if constexpr (kBlocks > 1) {
            sync_warp();
            if (first_lane) arrive_remote(remote(barriers.read(), cluster_rank() ^ 1));
          }
          wait(barriers.used(buffer), at / M::kWeightBuffers & 1 ^ 1);
        }
        sync_warp();
        // Weights of the queries pass are half as many: rows from 32 on stay 0.
        constexpr bool kHalf = kPass == Pass::kQueries;
#pragma unroll
        for (int k = 0; k < (kHalf ? 2 : 4); ++k) {
          uint32_t pairs[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) pairs[i] = narrow_pair(s[8 * k + 2 * i], s[8 * k + 2 * i + 1], T{});
          const int to = kHalf ? warp_row % kQueries + t % 16 : warp_row + t % 16;
          const int chunk = (kHalf && t >= kWarpgroup / 2 ? 4 : 0) + 2 * k + t % kWarp / 16;
          store_matrices(base + M::kWeights + buffer * kSlab + swizzled(to, chunk), pairs);
        }
        fence_async_proxy();
        sync_warp();
        if (first_lane) {
          arrive(barriers.weighed(buffer));
          arrive(barriers.free(stage));
        }
      }
      if constexpr (kPass == Pass::kForward) {
        const int t = opaque(thread), row = t / kWarp * 16 + t % kWarp / 4;
        // When the last weights are used, what the output is multiplied by takes the place of their factors.
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          for (int by = 1; by < 4; by *= 2) sum[r] += shuffle_xor(sum[r], by);
        }
        if (at > 0) wait(barriers.used((at - 1) % M::kWeightBuffers), (at - 1) / M::kWeightBuffers & 1);
        if (t % 4 == 0) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int own = row + 8 * r, query = item.tile * kQueries + own;
            factors[own] = item.partial < 0 ? inverse(sum[r]) : 1.0f;
            if (rank == 0 && query < item.query_rows) {
              if (item.partial < 0) {
                write_softmax(p, info[own].index, most[r], sum[r]);
              } else {
                float* softmax = partials.softmax + 2 * (int64_t(item.partial) * kQueries + own);
                softmax[0] = most[r];
                softmax[1] = sum[r];
              }
            }
          }
        }
      }
      sync_block();
    } while (item.more);
  } else {
    give_registers<160>();
    do {
      load_item(&item, p, cut, work, range());
      const Range streamed = streamed_by();
      const int end_at = at + (streamed.end - streamed.begin + kStep - 1) / kStep;
      const int offset = streamed.begin - at * kStep;
      auto request = [&](int at) {
        const int stage = at % kStages, from = offset + at * kStep;
        const uint32_t to = base + stage * kTile, barrier = barriers.full(stage);
        wait(barriers.free(stage), at / kStages & 1 ^ 1);
        arrive_expecting(barrier, kTile);
#pragma unroll 1
        for (int slab = 0; slab < kSlabs; ++slab) {
          const int x = column + 64 * slab;
          if constexpr (kPass == Pass::kHistory) {
            const int first = int(item.target_begin * p.heads) + from;
            copy_tile(to + slab * kSlab, streams.dout, x, 0, first, barrier);
            copy_tile(to + slab * kSlab + kSlab / 2, streams.q, x, 0, first, barrier);
          } else {
            copy_tile(to + slab * kSlab, streams.history, x, item.kv_head, int(item.row_begin) + from, barrier);
          }
        }
      };
      if (threadIdx.x == 0) {
        for (int tile = at; tile < min(at + kStages, end_at); ++tile) request(tile);
      }
      sync_warp();
      float out[128];
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] = 0;
#pragma unroll 1
      for (; at < end_at; ++at) {
        const int stage = at % kStages, buffer = at % M::kWeightBuffers;
        wait(barriers.weighed(buffer), at / M::kWeightBuffers & 1);
        if constexpr (kPass == Pass::kForward) {
          const int row = opaque(thread) / kWarp * 16 + opaque(thread) % kWarp / 4;
          const float factor[2] = {factors[buffer * kRows + row], factors[buffer * kRows + row + 8]};
          if (any_in_warp(factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
            for (int i = 0; i < 128; ++i) out[i] *= factor[i / 2 % 2];
          }
        }
        wait(barriers.full(stage), at / kStages & 1);  // long since; what copies wrote is seen by who waited for them
        pin(out);
        fence_products();
        const uint64_t weights = by_columns(base + M::kWeights + buffer * kSlab);
        const uint64_t rows = by_rows(base + stage * kTile + group * (kSlabs / 2) * kSlab, kSlab);
#pragma unroll
        for (int k = 0; k < kColumns / 16; ++k) {
          product_256<T>(out, weights + step(32 * k), rows + step(k * 16 * kSlabRow));
        }
        commit_products();
        wait_products<0>();
        pin(out);
        sync_warp();
        if (first_lane) {
          arrive(barriers.used(buffer));
          arrive(barriers.free(stage));
        }
        if (threadIdx.x == 0 && at + kStages < end_at) request(at + kStages);
        sync_warp();
      }
      sync_block();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int t = opaque(thread), own = t / kWarp * 16 + t % kWarp / 4 + 8 * r;
        const int begin = column + group * (kWidth / 2) + t % 4 * 2;
        const int width = int(p.value_dim);
        float* sums = nullptr;  // where the row goes in float32, or as T
        T* to = nullptr;
        float factor = 1;
        if constexpr (kPass == Pass::kHistory) {
          const int n = item.split_begin + own;
          if (n >= item.history_rows) continue;
          const int64_t first = ((item.row_begin + n) * p.kv_heads + item.kv_head) * width;
          sums = b.wide ? static_cast<float*>(b.dk) + first : nullptr;
          to = static_cast<T*>(b.dk) + first;
        } else {
          const int query = item.tile * kQueries + own;
          if (own >= kQueries || query >= item.query_rows) continue;
          if (kPass == Pass::kForward) factor = factors[own];
          if (item.partial < 0) {
            to = static_cast<T*>(kPass == Pass::kForward ? p.out : b.dq) + info[own].index * width;
          } else {
            sums = partials.sums + (int64_t(item.partial) * kQueries + own) * width;
          }
        }
        if (sums != nullptr) {
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            if (begin + 8 * i >= width) continue;
            *reinterpret_cast<float2*>(sums + begin + 8 * i) = {out[4 * i + 2 * r], out[4 * i + 2 * r + 1]};
          }
        } else {
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            if (begin + 8 * i >= width) continue;
            *reinterpret_cast<uint32_t*>(to + begin + 8 * i) =
                narrow_pair(factor * out[4 * i + 2 * r], factor * out[4 * i + 2 * r + 1], T{});
          }
        }
      }
    } while (item.more);
  }
  if (kBlocks > 1) sync_cluster();  // no block leaves while the other may still send to it
#endif
}

// One pass: the tensor maps of what it streams, and the kernel.
template <class T, int kBlocks, Pass kPass>
const char* launch_pass(const TargetAttentionBackwardParams& b, const Cut& cut, const Work& work,
                        const Weighing* weighing, const Partials& partials, cudaStream_t stream) {
  const TargetAttentionParams& p = b.forward;
  const bool bfloat = p.dtype == Dtype::kBFloat16;
  Streams streams{};
  const char* error = nullptr;
  if (kPass == Pass::kHistory) {
    const int64_t rows = p.num_targets * p.heads;
    error = make_tensor_map(streams.q, bfloat, p.q, rows, 1, p.key_dim, p.q_head_stride, 0, kColumns / 2);
    if (error == nullptr) {
      error = make_tensor_map(streams.dout, bfloat, b.dout, rows, 1, p.value_dim, p.value_dim, 0, kColumns / 2);
    }
  } else {
    error = make_tensor_map(streams.history, bfloat, p.k, p.num_rows, p.kv_heads, p.key_dim, p.k_row_stride,
                            p.k_head_stride, kColumns);
  }
  if (error != nullptr) return error;
  using M = Memory<kPass, kBlocks>;
  auto* kernel = &attend<kPass, T, kBlocks>;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, M::kBytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(kBlocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(kBlocks * cut.slots));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = M::kBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  if (status == cudaSuccess) {
    status = cudaLaunchKernelEx(&config, kernel, streams, b, cut, work, weighing, partials);
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(status);
}

template <class T, int kBlocks>
const char* forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, cudaStream_t stream) {
  const Cut cut{kRows, kColumns, device.multiprocessors / kBlocks, false};
  const Work work = work_at(workspace, p.num_requests, cut.slots);
  float* sums =
      reinterpret_cast<float*>(static_cast<char*>(workspace) + aligned_bytes(work_bytes(p.num_requests, cut.slots)));
  const Partials partials{sums, sums + most_partials(cut.slots) * kRows * p.value_dim};
  const char* error = launch_work(p, cut, work, stream);
  if (error == nullptr) {
    TargetAttentionBackwardParams b{};
    b.forward = p;
    error = launch_pass<T, kBlocks, Pass::kForward>(b, cut, work, nullptr, partials, stream);
  }
  return error != nullptr ? error : launch_merge(p, cut, work, partials, stream);
}

template <class T, int kBlocks>
const char* backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                     const Weighing* weighing, float* sums, cudaStream_t stream) {
  const TargetAttentionParams& p = b.forward;
  const int slots = device.multiprocessors / kBlocks;
  const Cut rows{kRows, kQueryRows<Pass::kHistory>, slots, true},
      queries{kQueryRows<Pass::kQueries>, kColumns, slots, false};
  const Work work = work_at(workspace, p.num_requests, slots);
  const char* error = launch_work(p, rows, work, stream);
  if (error == nullptr) error = launch_pass<T, kBlocks, Pass::kHistory>(b, rows, work, weighing, {}, stream);
  if (error == nullptr) error = launch_work(p, queries, work, stream);
  if (error == nullptr) {
    error = launch_pass<T, kBlocks, Pass::kQueries>(b, queries, work, weighing, {sums, nullptr}, stream);
  }
  return error != nullptr ? error : launch_merge_of_q(b, queries, work, sums, stream);
}

// Calls f(Element<T>(), blocks) for the call's type and width.
template <class F>
auto visit_call(const TargetAttentionParams& p, F f) {
  auto with_type = [&](auto type) {
    return p.key_dim > kWidth ? f(type, std::integral_constant<int, 2>()) : f(type, std::integral_constant<int, 1>());
  };
  return p.dtype == Dtype::kBFloat16 ? with_type(Element<bfloat16>()) : with_type(Element<float16>());
}

}  // namespace

// Rows of at most 128, and gradients of wide rows for so few query rows that loading a tile of history takes longer
// than using it, are faster by the common kernels: measured on an H200, benchmarks/NOTES.md.
bool takes(const TargetAttentionParams& p, const CudaDevice& device) {
  constexpr int64_t kMost = int64_t(1) << 31;
  return device.capability == 9 && p.shared && (p.dtype == Dtype::kBFloat16 || p.dtype == Dtype::kFloat16) &&
         p.key_dim > 128 && p.key_dim <= 2 * kWidth && p.key_dim % 8 == 0 && p.history_index == nullptr &&
         p.num_rows < kMost && rows_aligned(p.q, 2, p.q_target_stride, p.q_head_stride) &&
         rows_aligned(p.k, 2, p.k_row_stride, p.k_head_stride);
}

bool takes_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device) {
  const TargetAttentionParams& p = b.forward;
  const int64_t query_rows = p.num_targets * p.heads;
  return takes(p, device) && p.kv_heads == 1 && p.q_target_stride == p.heads * p.q_head_stride &&
         (p.key_dim <= kWidth || query_rows >= 32 * p.num_requests) && query_rows < int64_t(1) << 31 &&
         rows_aligned(b.dout, 2, 0, 0);
}

int64_t workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  return aligned_bytes(work_bytes(p.num_requests, device.multiprocessors)) +
         most_partials(device.multiprocessors) * kRows * (p.value_dim + 2) * int64_t(sizeof(float));
}

int64_t partial_rows(const CudaDevice& device) { return most_partials(device.multiprocessors) * kRows; }

const char* launch_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  return visit_call(p, [&](auto type, auto blocks) {
    return forward<typename decltype(type)::element, decltype(blocks)::value>(p, device, workspace, stream);
  });
}

const char* launch_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                            const Weighing* weighing, float* sums, Stream stream) {
  return visit_call(b.forward, [&](auto type, auto blocks) {
    return backward<typename decltype(type)::element, decltype(blocks)::value>(b, device, workspace, weighing, sums,
                                                                               stream);
  });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
