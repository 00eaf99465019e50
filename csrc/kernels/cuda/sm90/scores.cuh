// The warpgroup that computes products and weights: tile by tile, from the streamed rows to weights in shared memory.
#pragma once

#include "weights.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// s = kept rows times those of tile `at`, [64, 64] in the registers of the warpgroup.
template <class C>
STCA_DEVICE void multiply_kept(const C& c, const uint32_t (&kept)[C::L::kHeldSteps][4], float (&s)[32], int at) {
  using T = typename C::Element;
  constexpr int kHeldSteps = C::L::kHeldSteps;
  const uint64_t streamed_rows = by_columns(c.tile(at));
  const uint64_t kept_rest = by_columns(c.base + C::M::kKept);
  wait(c.barriers.full(c.stage(at)), c.phase(at));
  fence_products();
#pragma unroll
  for (int k = 0; k < kHeldSteps; ++k) {
    product<false>(T{}, s, kept[k], streamed_rows + step(k / 4 * kSlab + k % 4 * 32), k > 0);
  }
#pragma unroll
  for (int k = kHeldSteps; k < C::L::kWidth / 16; ++k) {
    product_64<T>(s, kept_rest + step((k - kHeldSteps) / 4 * kSlab + k % 4 * 32),
                  streamed_rows + step(k / 4 * kSlab + k % 4 * 32), true);
  }
  commit_products();
  wait_products<0>();
  pin(s);
}

// Clears the rows of a tile from `valid` on, when all four warps have multiplied them. They are other requests' and may
// hold NaN: their weight is 0, and 0 times NaN is NaN.
template <class C>
STCA_DEVICE void clear_foreign_rows(const C& c, int at, int valid, int t) {
  sync_warpgroup(1);
  for (int i = t; i < C::L::kTile / 16; i += kWarpgroup) {
    const int foreign = i % kColumns, chunk = i / kColumns;
    if (foreign % C::kStep < valid) continue;
    *reinterpret_cast<Chunk*>(c.memory + c.stage(at) * C::L::kTile + chunk / 8 * kSlab + swizzled(foreign, chunk % 8)) =
        Chunk{};
  }
}

// Sends the products of this block's columns to the other block of the cluster, and adds those that it sends.
template <class C>
STCA_DEVICE void exchange_products(const C& c, float (&s)[32], int at, int t) {
  wait(c.barriers.read(), at & 1 ^ 1);
  const uint32_t there = remote(c.base + C::M::kReceived + t * 16, cluster_rank() ^ 1);
  const uint32_t barrier = remote(c.barriers.received(), cluster_rank() ^ 1);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    send(there + i * 2048, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3], barrier);
  }
  if (t == 0) arrive_expecting(c.barriers.received(), kRows * kColumns * 4);
  wait(c.barriers.received(), at & 1);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float4 other = *reinterpret_cast<const float4*>(c.memory + C::M::kReceived + i * 2048 + t * 16);
    s[4 * i] += other.x;
    s[4 * i + 1] += other.y;
    s[4 * i + 2] += other.z;
    s[4 * i + 3] += other.w;
  }
}

// Lets the other block of the cluster send again: this one has read what it sent.
template <class C>
STCA_DEVICE void release_received(const C& c) {
  if constexpr (C::kBlocks > 1) {
    if (c.first_lane) arrive_remote(remote(c.barriers.read(), cluster_rank() ^ 1));
  }
}

// Waits until the warpgroups of the output are done with the weights whose place those of tile `at` take.
template <class C>
STCA_DEVICE void wait_for_buffer(const C& c, int at) {
  constexpr int kBuffers = C::M::kWeightBuffers;
  wait(c.barriers.used(at % kBuffers), at / kBuffers & 1 ^ 1);
}

// Forward: scores become weights; what the output up to now must be multiplied by goes to shared memory.
template <class C>
STCA_DEVICE void weigh_forward(const C& c, RowState& state, float (&s)[32], int at, int from, float scale, int t) {
  if constexpr (C::kBlocks > 1) sync_warp();
  release_received(c);
  float factor[2];
  weigh_scores(s, state, factor, c.info, from, scale, t);
  wait_for_buffer(c, at);
  if (t % 4 == 0) {
    float* factors = c.factors + at % C::M::kWeightBuffers * kRows + row_of(t);
    factors[0] = factor[0];
    factors[8] = factor[1];
  }
}

// Gradient of the history: what is known of the queries of tile `at` has been asked for a tile before.
template <class C>
STCA_DEVICE void weigh_history(const C& c, float (&s)[32], int at, int from, bool more, float scale, int t) {
  wait_copies<0>();
  sync_warpgroup(1);  // what belongs to the queries of this tile is there
  const QueryInfo* columns = c.info + at % 2 * C::kQueries;
  if (t < kWarp && more) {
    request_info(c.info + (at + 1) % 2 * C::kQueries, c.p, c.item, from + C::kStep, c.weighing, t);
  }
  release_received(c);
  weigh_streamed_queries(s, c.p, c.item, columns, scale, t);
  wait_for_buffer(c, at);
}

// Gradient of q.
template <class C>
STCA_DEVICE void weigh_queries(const C& c, float (&s)[32], int at, int from, float scale, int t) {
  auto* handed = reinterpret_cast<float4*>(c.memory + C::M::kReceived + (C::kBlocks > 1 ? 0 : at % 2 * 8192));
  weigh_kept_queries(s, c.p, c.info, handed, from, scale, t);
  if constexpr (C::kBlocks > 1) sync_warp();
  release_received(c);
  wait_for_buffer(c, at);
}

// Hands the weights of tile `at` to the warpgroups of the output, and needs the tile no more itself.
template <class C>
STCA_DEVICE void hand_over(const C& c, const float (&s)[32], int at, int t) {
  const int buffer = at % C::M::kWeightBuffers;
  store_weights<C::kPass, typename C::Element>(c.base + C::M::kWeights + buffer * kSlab, s, t);
  fence_async_proxy();
  sync_warp();
  if (c.first_lane) {
    arrive(c.barriers.weighed(buffer));
    arrive(c.barriers.free(c.stage(at)));
  }
}

// Forward, when the last weights of an item are used: what the output is multiplied by takes the place of their
// factors, and the rows' softmax is written.
template <class C>
STCA_DEVICE void finish_rows(const C& c, RowState& state, int at, int t) {
  constexpr int kBuffers = C::M::kWeightBuffers;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    for (int by = 1; by < 4; by *= 2) state.row_sum[r] += shuffle_xor(state.row_sum[r], by);
  }
  if (at > 0) wait(c.barriers.used((at - 1) % kBuffers), (at - 1) / kBuffers & 1);
  if (t % 4 != 0) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own = row_of(t) + 8 * r, query = c.item.tile * C::kQueries + own;
    c.factors[own] = c.item.partial < 0 ? inverse(state.row_sum[r]) : 1.0f;
    if (c.rank != 0 || query >= c.item.query_rows) continue;
    if (c.item.partial < 0) {
      write_max_and_sum(c.p, c.info[own].index, state.row_max[r], state.row_sum[r]);
    } else {
      float* to = c.partials.max_and_sum + 2 * (int64_t(c.item.partial) * C::kQueries + own);
      to[0] = state.row_max[r];
      to[1] = state.row_sum[r];
    }
  }
}

// All items of the block's range, as far as their weights.
template <class C>
STCA_DEVICE void run_scores(const C& c) {
  const int thread = int(threadIdx.x) % kWarpgroup;
  const float scale = float(c.p.scale) * kLog2E;
  int at = 0;  // tiles so far, of all items
  do {
    load_item(&c.item, c.p, c.tiling, c.schedule, c.range());
    const auto stream = stream_of(c, at);
    uint32_t kept[C::L::kHeldSteps][4];
    load_kept<typename C::L, C::kPass, typename C::Element>(kept, c.memory + C::M::kKept, c.b, c.item, c.info,
                                                            c.column);
    RowState state{{-kInfinity, -kInfinity}, {0, 0}};
    if constexpr (C::kPass == Pass::kHistory) {
      if (thread < kWarp && at < stream.last) {
        request_info(c.info + at % 2 * C::kQueries, c.p, c.item, stream.first_row(at), c.weighing, thread);
      }
    }
#pragma unroll 1
    for (; at < stream.last; ++at) {
      float s[32];
      multiply_kept(c, kept, s, at);
      const int t = opaque(thread), from = stream.first_row(at);
      if (stream.end - from < C::kStep) clear_foreign_rows(c, at, stream.end - from, t);
      if constexpr (C::kBlocks > 1) exchange_products(c, s, at, t);
      if constexpr (C::kPass == Pass::kForward) {
        weigh_forward(c, state, s, at, from, scale, t);
      } else if constexpr (C::kPass == Pass::kHistory) {
        weigh_history(c, s, at, from, at + 1 < stream.last, scale, t);
      } else {
        weigh_queries(c, s, at, from, scale, t);
      }
      hand_over(c, s, at, t);
    }
    if constexpr (C::kPass == Pass::kForward) finish_rows(c, state, at, opaque(thread));
    sync_block();
  } while (c.item.more);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
