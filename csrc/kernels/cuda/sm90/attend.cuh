// target_attention on Hopper where v is k and a row is up to 1,024 wide: forward pass, gradient of the history and
// gradient of q, which are one kernel (formula and shapes: ../../target_attention.h; source: docs/mathematics.md).
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
#pragma once

#include "weights.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

template <Pass kPass, class T, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    target_attention_sm90_kernel(const __grid_constant__ Streams streams,
                                 const __grid_constant__ TargetAttentionBackwardParams b, const Tiling tiling,
                                 const Schedule schedule, const Weighing* weighing, const Partials partials) {
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
  if (!start_range(&item, schedule, range())) return;
  int at = 0;  // tiles so far, of all items
  if (group == kScores) {
    take_registers<184>();
    const float scale = float(p.scale) * kLog2E;
    do {
      load_item(&item, p, tiling, schedule, range());
      const Range streamed = streamed_by();
      uint32_t kept[kHeldSteps][4];
      load_kept<kPass, T>(kept, memory + M::kKept, b, item, info, column);
      RowState state{{-infinity(), -infinity()}, {0, 0}};
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
        const int t = opaque(thread), row = row_of(t);  // and row + 8

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
          float factor[2];
          weigh_scores(s, state, factor, info, from, scale, t);
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
          weigh_streamed_queries(s, p, item, columns, scale, t);
          wait(barriers.used(buffer), at / M::kWeightBuffers & 1 ^ 1);
        } else {
          auto* handed = reinterpret_cast<float4*>(memory + M::kReceived + (kBlocks > 1 ? 0 : at % 2 * 8192));
          weigh_kept_queries(s, p, info, handed, from, scale, t);
          if constexpr (kBlocks > 1) {
            sync_warp();
            if (first_lane) arrive_remote(remote(barriers.read(), cluster_rank() ^ 1));
          }
          wait(barriers.used(buffer), at / M::kWeightBuffers & 1 ^ 1);
        }
        store_weights<kPass, T>(base + M::kWeights + buffer * kSlab, s, t);
        fence_async_proxy();
        sync_warp();
        if (first_lane) {
          arrive(barriers.weighed(buffer));
          arrive(barriers.free(stage));
        }
      }
      if constexpr (kPass == Pass::kForward) {
        const int t = opaque(thread), row = row_of(t);
        // When the last weights are used, what the output is multiplied by takes the place of their factors.
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          for (int by = 1; by < 4; by *= 2) state.row_sum[r] += shuffle_xor(state.row_sum[r], by);
        }
        if (at > 0) wait(barriers.used((at - 1) % M::kWeightBuffers), (at - 1) / M::kWeightBuffers & 1);
        if (t % 4 == 0) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int own = row + 8 * r, query = item.tile * kQueries + own;
            factors[own] = item.partial < 0 ? inverse(state.row_sum[r]) : 1.0f;
            if (rank == 0 && query < item.query_rows) {
              if (item.partial < 0) {
                write_max_and_sum(p, info[own].index, state.row_max[r], state.row_sum[r]);
              } else {
                float* to = partials.max_and_sum + 2 * (int64_t(item.partial) * kQueries + own);
                to[0] = state.row_max[r];
                to[1] = state.row_sum[r];
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
      load_item(&item, p, tiling, schedule, range());
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
          const int row = row_of(opaque(thread));
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
        const int t = opaque(thread), own = row_of(t) + 8 * r;
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

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
