// Gradients of k and v on Hopper (projected.cuh): a block keeps 128 rows of k and v in shared memory, whose gradients
// it alone makes, and streams all queries of their request past them:
//
//   S^T = K Q^T   dP^T = V dO^T   dv += P^T dO   dk += dS^T Q
//
// P^T and dS^T stay in registers, as left operands. The warp that asks for tiles brings what is known of the queries.
#pragma once

#include "projected.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// What is known of a query row that is streamed: the history rows of its request that it sees.
struct StreamedQuery {
  Weighing weighing;
  int begin, end;
};

template <int kCount>
struct DkvStages {
  static constexpr int kStages = kCount;
};
using DkvsOf64 = VariantsOf<DkvStages<4>, DkvStages<8>>;
using DkvsOf128 = VariantsOf<DkvStages<4>, DkvStages<2>>;

template <class T, int kMaxWidth, class Variant>
struct ProjectedDkv : ProjectedTiles<T, kMaxWidth, 2, 64, Variant::kStages> {
  using F = ProjectedTiles<T, kMaxWidth, 2, 64, Variant::kStages>;
  static constexpr int kKeptSlab = F::kKept * kSlabRow;
  static constexpr int kKeptBytes = F::kWidth / 64 * kKeptSlab;  // of k, or of v
  static constexpr int kKeptRows = F::kStageBytes;
  static constexpr int kQueries = kKeptRows + 2 * kKeptBytes;
  static constexpr int kItem = kQueries + F::kStages * F::kStep * int(sizeof(StreamedQuery));
  static constexpr int kBarriers = kItem + int(sizeof(Item));
  static constexpr int kBytes = kBarriers + 16 * F::kStages + 8;
  static_assert(kBytes <= kLargeSharedBytes);
};

template <class F>
struct HistoryBlock {
  const TargetAttentionBackwardParams& b;
  const TargetAttentionParams& p;
  const Tiling& tiling;
  const Schedule& schedule;
  const Weighing* weighing;
  char* memory;
  uint32_t base;
  Stages<F> stages;
  Item& item;
  int group;  // of 64 history rows; -1: asks for tiles

  STCA_DEVICE uint32_t kept(int which) const { return base + F::kKeptRows + which * F::kKeptBytes; }
  STCA_DEVICE uint32_t kept_barrier() const { return base + F::kBarriers + 16 * F::kStages; }
  STCA_DEVICE StreamedQuery* queries(int at) const {
    return reinterpret_cast<StreamedQuery*>(memory + F::kQueries) + at % F::kStages * F::kStep;
  }
  // Loads the next item, whose first tile is `at`, and returns the one behind its last.
  STCA_DEVICE int next_item(int at) const {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    return at + (item.query_rows + F::kStep - 1) / F::kStep;
  }
};

// Describes query row `row` of the item. One past the last sees nothing.
template <class F>
STCA_DEVICE StreamedQuery streamed_query(const HistoryBlock<F>& c, int row) {
  if (row >= c.item.query_rows) return {};
  const int group = int(c.p.heads / c.p.kv_heads);
  const int64_t target = c.item.target_begin + row / group;
  const Weighing weighing = c.weighing[target * c.p.heads + int64_t(c.item.kv_head) * group + row % group];
  StreamedQuery own{weighing, 0, weighing.inverse == 0 ? 0 : c.item.history_rows};
  if (c.p.visible != nullptr) {
    own.begin = int(clamp(c.p.visible[2 * target], own.end));
    own.end = int(clamp(c.p.visible[2 * target + 1], own.end));
  }
  return own;
}

template <class F>
STCA_DEVICE void request_kept(const HistoryBlock<F>& c, const TensorMaps& maps) {
  const int first = int(c.item.row_begin) + c.item.split_begin;
  arrive_expecting(c.kept_barrier(), 2 * F::kKeptBytes);
#pragma unroll
  for (int slab = 0; slab < F::kWidth / 64; ++slab) {
    const int to = slab * F::kKeptSlab;
    copy_tile(c.kept(0) + to, maps.k, 64 * slab, c.item.kv_head, first, c.kept_barrier());
    copy_tile(c.kept(1) + to, maps.v, 64 * slab, c.item.kv_head, first, c.kept_barrier());
  }
}

// Asks for the query rows of tile `at`, from row `from` of the request's on, by one warp.
template <class F>
STCA_DEVICE void request_queries(const HistoryBlock<F>& c, const TensorMaps& maps, int at, int from, int lane) {
  const int group = int(c.p.heads / c.p.kv_heads);
  const int head = c.item.kv_head * group, target = int(c.item.target_begin) + from / group;
  const uint32_t full = c.stages.full(at);
  wait(c.stages.free(at), c.stages.phase(at) ^ 1);
  for (int i = lane; i < F::kStep; i += kWarp) c.queries(at)[i] = streamed_query(c, from + i);
  sync_warp();
  if (lane == 0) {
    arrive_expecting(full, 2 * F::kTileBytes);
#pragma unroll
    for (int slab = 0; slab < F::kWidth / 64; ++slab) {
      copy_tile(c.stages.tile(at, 0) + slab * F::kTileSlab, maps.q, 64 * slab, head, target, full);
      copy_tile(c.stages.tile(at, 1) + slab * F::kTileSlab, maps.dout, 64 * slab, head, target, full);
    }
  }
  sync_warp();
}

template <class F>
STCA_DEVICE void request_rows(const HistoryBlock<F>& c, const TensorMaps& maps) {
  int at = 0;  // tiles so far, of all items
  do {
    const int last = c.next_item(at);
    if (threadIdx.x == 0) request_kept(c, maps);
    if (threadIdx.x < kWarp) {
#pragma unroll 1
      for (int from = 0; at < last; ++at, from += F::kStep) request_queries(c, maps, at, from, int(threadIdx.x));
    }
    at = last;
  } while (c.item.more);
}

// 64 history rows, in the registers of their warpgroup.
template <class F>
struct KeptHistory {
  Held weights[F::kStep / 16], ds[F::kStep / 16];
  float s[F::kStep / 2], dp[F::kStep / 2], dk[F::kWidth / 2], dv[F::kWidth / 2];
};

// d [64, rows of a tile] = the warpgroup's rows of k or of v times those of a tile.
template <class F>
STCA_DEVICE void multiply_kept_rows(const HistoryBlock<F>& c, float (&d)[F::kStep / 2], int which, uint32_t tile) {
  const uint64_t kept = by_columns(c.kept(which) + c.group * kRows * kSlabRow), rows = by_columns(tile);
#pragma unroll
  for (int k = 0; k < F::kWidth / 16; ++k) {
    product_64<typename F::Element>(d, kept + step(k / 4 * F::kKeptSlab + k % 4 * 32),
                                    rows + step(k / 4 * F::kTileSlab + k % 4 * 32), k > 0);
  }
  commit_products();
}

// Where thread t's values i of an accumulator belong: the column, and which of its two rows.
STCA_DEVICE int column_of(int i, int t) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

// S^T becomes P^T.
template <class F>
STCA_DEVICE void weigh_transposed(float (&s)[F::kStep / 2], const StreamedQuery* queries, int n, float scale, int t) {
  pin(s);
#pragma unroll
  for (int i = 0; i < F::kStep / 2; ++i) {
    const StreamedQuery& query = queries[column_of(i, t)];
    const float weight = exp2_or_zero(rounded_product(scale * kLog2E, s[i]) - query.weighing.row_max);
    const int row = n + i / 2 % 2 * 8;
    s[i] = query.begin <= row && row < query.end ? weight * query.weighing.inverse : 0.0f;
  }
}

// dP^T becomes dS^T. A row of v that a query does not see may hold NaN, which a weight of 0 would not stop.
template <class F>
STCA_DEVICE void differentiate(float (&dp)[F::kStep / 2], const float (&weights)[F::kStep / 2],
                               const StreamedQuery* queries, int n, float scale, int t) {
  pin(dp);
#pragma unroll
  for (int i = 0; i < F::kStep / 2; ++i) {
    const StreamedQuery& query = queries[column_of(i, t)];
    const int row = n + i / 2 % 2 * 8;
    const float ds = weights[i] * (dp[i] - query.weighing.delta) * scale;
    dp[i] = query.begin <= row && row < query.end ? ds : 0.0f;
  }
}

// Adds what the queries of tile `at`, from the request's row `from` on, give.
template <class F>
STCA_DEVICE void add_queries(const HistoryBlock<F>& c, KeptHistory<F>& own, int at, int from, int t) {
  const uint32_t q = c.stages.tile(at, 0), dout = c.stages.tile(at, 1);
  const float scale = float(c.p.scale);
  const int n = c.item.split_begin + kRows * c.group + row_of(t), valid = c.item.query_rows - from;
  wait(c.stages.full(at), c.stages.phase(at));
  if (valid < F::kStep) clear_rows<F, 2>(c.memory + (q - c.base), valid);
  fence_products();
  multiply_kept_rows(c, own.s, 0, q);
  multiply_kept_rows(c, own.dp, 1, dout);
  wait_products<1>();
  weigh_transposed<F>(own.s, c.queries(at), n, scale, t);
  hold(own.weights, own.s, typename F::Element());
  wait_products<0>();
  differentiate<F>(own.dp, own.s, c.queries(at), n, scale, t);
  hold(own.ds, own.dp, typename F::Element());
  pin(own.dk);
  pin(own.dv);
  fence_products();
  add_by_rows<F>(own.dv, own.weights, dout);
  add_by_rows<F>(own.dk, own.ds, q);
  commit_products();
  wait_products<0>();
  pin(own.dk);
  pin(own.dv);
  c.stages.release(at);
}

template <class F>
STCA_DEVICE void run_history(const HistoryBlock<F>& c) {
  using T = typename F::Element;
  const int t = int(threadIdx.x) % kWarpgroup;
  int at = 0, items = 0;  // so far
  do {
    const int last = c.next_item(at);
    KeptHistory<F> own;
#pragma unroll
    for (int i = 0; i < F::kWidth / 2; ++i) own.dk[i] = own.dv[i] = 0;
    wait(c.kept_barrier(), items++ & 1);
#pragma unroll 1
    for (int from = 0; at < last; ++at, from += F::kStep) add_queries(c, own, at, from, t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = c.item.split_begin + kRows * c.group + row_of(t) + 8 * r;
      if (n >= c.item.history_rows) continue;
      const int64_t row = (c.item.row_begin + n) * c.p.kv_heads + c.item.kv_head;
      write_row(static_cast<T*>(c.b.dk) + row * c.p.key_dim, own.dk, r, int(c.p.key_dim), 1.0f, t);
      write_row(static_cast<T*>(c.b.dv) + row * c.p.value_dim, own.dv, r, int(c.p.value_dim), 1.0f, t);
    }
  } while (c.item.more);
}

template <class F>
__global__ void __launch_bounds__(F::kThreads, 1)
    target_attention_projected_dkv_sm90_kernel(const __grid_constant__ TensorMaps maps,
                                               const __grid_constant__ TargetAttentionBackwardParams b,
                                               const Tiling tiling, const Schedule schedule, const Weighing* weighing) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  char* memory = shared_memory();
  const uint32_t base = shared_address(memory);
  const HistoryBlock<F> c{b,
                          b.forward,
                          tiling,
                          schedule,
                          weighing,
                          memory,
                          base,
                          {base, base + F::kBarriers},
                          *reinterpret_cast<Item*>(memory + F::kItem),
                          int(threadIdx.x) / kWarpgroup - 1};
  if (threadIdx.x == 0) init_barrier(c.kept_barrier(), 1);
  c.stages.init();
  if (!start_range(&c.item, schedule, int(blockIdx.x))) return;
  if (c.group >= 0) {
    take_registers<232>();
    run_history(c);
  } else {
    give_registers<40>();
    request_rows(c, maps);
  }
#endif
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
