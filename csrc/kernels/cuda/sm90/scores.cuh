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

// Clears the rows of a tile outside of [begin, end), when all four warps have multiplied them. They are other requests'
// or seen by nobody, and may hold NaN: their weight is 0, and 0 times NaN is NaN.
template <class C>
STCA_DEVICE void clear_foreign_rows(const C& c, int at, int begin, int end, int t) {
  sync_warpgroup(1);
  for (int i = t; i < C::L::kTile / 16; i += kWarpgroup) {
    const int foreign = i % kColumns, chunk = i / kColumns;
    if (begin <= foreign % C::kStep && foreign % C::kStep < end) continue;
    *reinterpret_cast<Chunk*>(c.memory + c.stage(at) * C::L::kTile + chunk / 8 * kSlab + swizzled(foreign, chunk % 8)) =
        Chunk{};
  }
}

// Sends the products of this block's columns to the other block of the cluster, and adds those that it sends, after
// `before` exchanges.
template <class C>
STCA_DEVICE void exchange_products(const C& c, float (&s)[32], int before, int t) {
  wait(c.barriers.read(), before & 1 ^ 1);
  const uint32_t there = remote(c.base + C::M::kReceived + t * 16, cluster_rank() ^ 1);
  const uint32_t barrier = remote(c.barriers.received(), cluster_rank() ^ 1);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    send(there + i * 2048, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3], barrier);
  }
  if (t == 0) arrive_expecting(c.barriers.received(), kRows * kColumns * 4);
  wait_for_sent(c.barriers.received(), before & 1);
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

// Where this block keeps dS^T: of each tile of the chunk's history rows and each 32 query rows, two 16-byte parts of
// each thread's. The thread that wrote them reads them: they cross no barrier.
template <class C>
STCA_DEVICE Chunk* kept_ds(const C& c, int history_tile, int query_tile) {
  const int query_tiles = (c.item.query_rows + 31) / 32;
  Chunk* const own = reinterpret_cast<Chunk*>(c.ds + int64_t(opaque(int(blockIdx.x))) * kKeptBytes);
  return own + (history_tile * query_tiles + query_tile) * 2 * kWarpgroup;
}

// Hands the weights of tile `at`, when they are in their slab, to the warpgroups of the output, and needs the tile no
// more itself.
template <class C>
STCA_DEVICE void release_weights(const C& c, int at) {
  fence_async_proxy();
  sync_warp();
  if (c.first_lane) {
    arrive(c.barriers.weighed(at % C::M::kWeightBuffers));
    arrive(c.barriers.free(c.stage(at)));
  }
}

template <class C>
STCA_DEVICE uint32_t weights_slab(const C& c, int at) {
  return c.base + C::M::kWeights + at % C::M::kWeightBuffers * kSlab;
}

// Hands over the weights of tile `at`, whose first streamed row is `from`.
template <class C>
STCA_DEVICE void hand_over(const C& c, const float (&s)[32], int at, int from, int t) {
  Chunk* ds = nullptr;
  if constexpr (C::kPass == Pass::kHistory) {
    if (is_kept(c.item, c.tiling)) ds = kept_ds(c, (c.item.split_begin - c.chunk.begin) / kRows, from / C::kQueries);
  }
  store_weights<C::kPass, typename C::Element>(weights_slab(c, at), s, ds, t);
  release_weights(c, at);
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

// An item as far as its weights, from tile `at` on, after `exchanges` within the cluster.
template <class C>
STCA_DEVICE void make_weights(const C& c, int& at, int& exchanges) {
  const int thread = opaque(int(threadIdx.x)) % kWarpgroup;
  const float scale = float(c.p.scale) * kLog2E;
  const auto stream = stream_of(c, at);
  uint32_t kept[C::L::kHeldSteps][4];
  load_kept<typename C::L, C::kPass, typename C::Element>(kept, c.memory + C::M::kKept, c.b, c.item, c.info, c.column);
  RowState state{{-kInfinity, -kInfinity}, {0, 0}};
  if constexpr (C::kPass == Pass::kHistory) {
    if (thread < kWarp && stream.has(at)) {
      request_info(c.info + at % 2 * C::kQueries, c.p, c.item, stream.first_row(at), c.weighing, thread);
    }
  }
#pragma unroll 1
  for (; stream.has(at); ++at) {
    float s[32];
    multiply_kept(c, kept, s, at);
    const int t = opaque(int(threadIdx.x)) % kWarpgroup, valid = stream.end - stream.first_row(at);
    if (valid < C::kStep) clear_foreign_rows(c, at, 0, valid, t);
    if constexpr (C::kBlocks > 1) {
      exchange_products(c, s, exchanges++, t);
      // Where many registers hold kept rows, what follows from `at` is not to be found before, and held meanwhile.
      if constexpr (C::L::kHeldSteps > 8) at = opaque(at);
    }
    const int from = stream.first_row(at);
    if constexpr (C::kPass == Pass::kForward) {
      weigh_forward(c, state, s, at, from, scale, t);
    } else if constexpr (C::kPass == Pass::kHistory) {
      weigh_history(c, s, at, from, stream.has(at + 1), scale, t);
    } else {
      weigh_queries(c, s, at, from, scale, t);
    }
    hand_over(c, s, at, from, t);
  }
  if constexpr (C::kPass == Pass::kForward) finish_rows(c, state, at, opaque(thread));
  sync_block();
}

// Gradient of q from what was kept: dS^T of 64 query rows and of the chunk's history rows, from tile `at` on.
template <class C>
STCA_DEVICE void fetch_weights(const C& c, int& at) {
  const auto stream = stream_of(c, at);
#pragma unroll 1
  for (; stream.has(at); ++at) {
    const int t = opaque(int(threadIdx.x)) % kWarpgroup;
    const int from = stream.first_row(at), left = c.item.query_rows - c.item.tile * C::kQueries;
    const Chunk* ds = kept_ds(c, (from - c.item.split_begin) / kColumns, 2 * c.item.tile) + t;
    Chunk own[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) own[k] = k < 2 || left > 32 ? ds[k * kWarpgroup] : Chunk{};
    wait(c.barriers.full(c.stage(at)), c.phase(at));
    if (stream.begin > from || stream.end - from < C::kStep) {
      clear_foreign_rows(c, at, stream.begin - from, stream.end - from, t);
    }
    wait_for_buffer(c, at);
    sync_warp();
#pragma unroll
    for (int k = 0; k < 4; ++k) store_step(weights_slab(c, at), t / kWarp * 16, k, own[k].words, t);
    release_weights(c, at);
  }
  sync_block();
}

// All items of the block's range, as far as their weights.
template <class C>
STCA_DEVICE void run_scores(const C& c) {
  int at = 0, exchanges = 0;  // tiles and exchanges so far, of all items
  for_each_step(c, [&](const auto& own) {
    if constexpr (std::decay_t<decltype(own)>::kPass == Pass::kKept) {
      fetch_weights(own, at);
    } else {
      make_weights(own, at, exchanges);
    }
  });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
