// Forward pass of target_attention on Hopper with v beside k: out and the softmax of rows (projected.cuh).
//
// The products of a tile's scores are asked for before those of the last tile's weights and values, so that the softmax
// begins while the latter are made.
#pragma once

#include "projected.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

template <class T, int kWidth, int kGroups>
struct ProjectedForward : ProjectedTiles<T, kWidth, kGroups, kGroups == 1 && kWidth == 128 ? 64 : 128,
                                         kGroups == 2 && kWidth == 64 ? 4 : 3> {
  using Tiles = ProjectedTiles<T, kWidth, kGroups, kGroups == 1 && kWidth == 128 ? 64 : 128,
                               kGroups == 2 && kWidth == 64 ? 4 : 3>;
  static constexpr int kBlocks = 3 - kGroups;  // of a multiprocessor
  static constexpr int kInfo = Tiles::kStages * 2 * Tiles::kTileBytes;
  static constexpr int kItem = kInfo + Tiles::kKept * int(sizeof(QueryRow));
  static constexpr int kBarriers = kItem + int(sizeof(Item));
  static constexpr int kBytes = kBarriers + 16 * Tiles::kStages;
  static_assert(kBlocks * (kBytes + 1024) <= kLargeSharedBytes + 1024);
};

// What a block works with.
template <class F>
struct ProjectedForwardBlock {
  const TargetAttentionParams& p;
  const Tiling& tiling;
  const Schedule& schedule;
  const Partials& partials;
  char* memory;
  Stages<F> stages;
  QueryRow* rows;  // [kKept]
  Item& item;
  int group;  // of 64 query rows

  // Loads the next item. The history rows that its queries see are tiles from `at` on.
  STCA_DEVICE StreamTiles<F::kStep> next_stream(int at) const {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const Range seen = seen_by_tile<F::kKept, F::kThreads>(
        p, item, rows, [&](int row) { return query_row(p, item, item.tile * F::kKept + row); });
    return {at + (seen.end - seen.begin + F::kStep - 1) / F::kStep, seen.begin - at * F::kStep, seen.end};
  }
};

// The state of 64 query rows, in the registers of their warpgroup.
template <class F>
struct ProjectedRows {
  Held q[F::kWidth / 16], weights[F::kStep / 16];  // weights of the last tile
  float s[F::kStep / 2], out[F::kWidth / 2];
  RowState state{{-kInfinity, -kInfinity}, {0, 0}};
};

template <class F>
STCA_DEVICE void load_queries(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own, int t) {
  const typename F::Element* from[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = kRows * c.group + row_of(t) + 8 * r;
    const bool valid = c.item.tile * F::kKept + row < c.item.query_rows;
    from[r] = valid ? static_cast<const typename F::Element*>(c.p.q) + c.rows[row].q : nullptr;
  }
  load_held(own.q, from, int(c.p.key_dim), t);
#pragma unroll
  for (int i = 0; i < F::kWidth / 2; ++i) own.out[i] = 0;
}

// When tile `at` is there: asks for its scores.
template <class F>
STCA_DEVICE void start_scores(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own,
                              const StreamTiles<F::kStep>& stream, int at) {
  wait(c.stages.full(at), c.stages.phase(at));
  const int valid = stream.end - stream.first_row(at);
  if (valid < F::kStep) {
    clear_rows<F>(c.memory + c.stages.tile(at, 1) - c.stages.tiles, valid, int(threadIdx.x) - kWarpgroup);
  }
  take_turn<F>(c.group);
  fence_products();
  multiply_by_columns<F>(own.s, own.q, c.stages.tile(at, 0));
  commit_products();
}

template <class F>
STCA_DEVICE void start_values(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own, int at) {
  pin(own.out);
  fence_products();
  add_by_rows<F>(own.out, own.weights, c.stages.tile(at, 1));
  commit_products();
}

// Scores become weights. `factor`: of the output up to now.
template <class F>
STCA_DEVICE void weigh_tile(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own, float (&factor)[2], int from,
                            int t) {
  pin(own.s);
  weigh_scores(own.s, own.state, factor, c.rows + kRows * c.group, from, float(c.p.scale) * kLog2E, t);
}

// All tiles of an item, from `at` on.
template <class F>
STCA_DEVICE void attend(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own, const StreamTiles<F::kStep>& stream,
                        int at, int t) {
  if (at == stream.last) return;
  float factor[2];
  start_scores(c, own, stream, at);
  pass_turn<F>(c.group);
  wait_products<0>();
  weigh_tile(c, own, factor, stream.first_row(at), t);
  hold(own.weights, own.s, typename F::Element());
#pragma unroll 1
  for (++at; at < stream.last; ++at) {
    start_scores(c, own, stream, at);
    start_values(c, own, at - 1);
    pass_turn<F>(c.group);
    wait_products<1>();
    weigh_tile(c, own, factor, stream.first_row(at), t);
    wait_products<0>();
    pin(own.out);
    c.stages.release(at - 1);
    if (any_in_warp(factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int i = 0; i < F::kWidth / 2; ++i) own.out[i] *= factor[i / 2 % 2];
    }
    hold(own.weights, own.s, typename F::Element());
  }
  start_values(c, own, at - 1);
  wait_products<0>();
  pin(own.out);
  c.stages.release(at - 1);
}

// Writes the rows' output and softmax, or what the item's split gives of them.
template <class F>
STCA_DEVICE void finish(const ProjectedForwardBlock<F>& c, ProjectedRows<F>& own, int t) {
  const int width = int(c.p.value_dim);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = own.state.row_sum[r];
    for (int by = 1; by < 4; by *= 2) sum += shuffle_xor(sum, by);
    const int row = kRows * c.group + row_of(t) + 8 * r;
    if (c.item.tile * F::kKept + row >= c.item.query_rows) continue;
    if (c.item.partial < 0) {
      const int64_t index = c.rows[row].index;
      if (t % 4 == 0) write_max_and_sum(c.p, index, own.state.row_max[r], sum);
      write_row(static_cast<typename F::Element*>(c.p.out) + index * width, own.out, r, width, inverse(sum), t);
    } else {
      const int64_t partial = int64_t(c.item.partial) * F::kKept + row;
      write_row(c.partials.sums + partial * width, own.out, r, width, 1.0f, t);
      if (t % 4 != 0) continue;
      c.partials.max_and_sum[2 * partial] = own.state.row_max[r];
      c.partials.max_and_sum[2 * partial + 1] = sum;
    }
  }
}

template <class F>
STCA_DEVICE void run_queries(const ProjectedForwardBlock<F>& c) {
  const int t = int(threadIdx.x) % kWarpgroup;
  if (c.group == 1) pass_turn<F>(1);
  int at = 0;  // tiles so far, of all items
  do {
    const auto stream = c.next_stream(at);
    ProjectedRows<F> own;
    load_queries(c, own, t);
    attend(c, own, stream, at, t);
    finish(c, own, t);
    at = stream.last;
  } while (c.item.more);
}

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_projected_fwd_sm90_kernel(const __grid_constant__ HistoryMaps maps,
                                               const __grid_constant__ TargetAttentionParams p, const Tiling tiling,
                                               const Schedule schedule, const Partials partials) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  char* memory = shared_memory();
  const uint32_t base = shared_address(memory);
  const ProjectedForwardBlock<F> c{p,
                                   tiling,
                                   schedule,
                                   partials,
                                   memory,
                                   {base, base + F::kBarriers},
                                   reinterpret_cast<QueryRow*>(memory + F::kInfo),
                                   *reinterpret_cast<Item*>(memory + F::kItem),
                                   int(threadIdx.x) / kWarpgroup - 1};
  c.stages.init();
  if (!start_range(&c.item, schedule, int(blockIdx.x))) return;
  if (c.group >= 0) {
    take_registers<F::kManyRegisters>();
    run_queries(c);
  } else {
    give_registers<F::kFewRegisters>();
    int at = 0;
    do {
      const auto stream = c.next_stream(at);
      if (threadIdx.x == 0) request_history(c.stages, maps, c.item, stream, at);
      sync_warp();
      at = stream.last;
    } while (c.item.more);
  }
#endif
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
