// target_attention on Hopper where v is k and a row is up to 1,024 wide: forward pass, gradients of the history and of
// q, which are one kernel (formula and shapes: ../../target_attention.h; source: docs/mathematics.md).
//
// Each pass keeps 64 rows, streams tiles of 64 rows past them, turns the products of kept and streamed rows into
// weights [64, 64], and adds weights times streamed rows to an output [64, width]:
//
//   pass     | kept rows                 | streamed rows           | products        | weights  | output
//   forward  | 64 of q                   | 64 of history           | S               | P        | out
//   history  | 64 of history             | 32 of dout, 32 of q     | dP^T, S^T       | P^T, dS^T| dk
//   kept     | none                      | 64 of history           | none            | dS^T     | dq of 64 rows of q
//   queries  | 32 of q, the same of dout | 64 of history           | S over dP       | dS over 0| dq
//
// The pass of the history leaves dS^T of a chunk of history in global memory, a bounded part for each block. Then the
// same block, in the pass `kept`, makes dq of it: five products in all. Chunks add to a partial dq one after the other.
// Requests of so many query rows that it would not stay small are left to the pass of the queries, which finds S and dP
// once more.
//
// A block holds 256 or 512 columns of everything (passes.cuh: BlockLayout). A wider row takes a cluster of two blocks,
// which exchange their parts of the products. Of a block's warpgroups one computes products and weights (scores.cuh);
// the others, one or two, add weights times rows to their columns of the output, in registers (outputs.cuh). A thread
// of the latter asks the copy engine for tiles, of which several are in flight.
#pragma once

#include "../choice.h"
#include "outputs.cuh"
#include "scores.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Barriers at their first phase. Those rows of weights that are never written become 0.
template <class C>
STCA_DEVICE void init_block(const C& c) {
  const Barriers& barriers = c.barriers;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < C::L::kStages; ++stage) {
      init_barrier(barriers.full(stage), 1);
      init_barrier(barriers.free(stage), C::L::kThreads / kWarp);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      init_barrier(barriers.weighed(buffer), kWarpgroup / kWarp);
      init_barrier(barriers.used(buffer), C::L::kOutputs * kWarpgroup / kWarp);
    }
    init_barrier(barriers.received(), 1);
    init_barrier(barriers.read(), kWarpgroup / kWarp);
    fence_barrier_init();
  }
  if constexpr (C::kPass == Pass::kQueries) {
    for (int i = int(threadIdx.x); i < C::M::kWeightBuffers * kSlab / 16; i += C::L::kThreads) {
      reinterpret_cast<Chunk*>(c.memory + C::M::kWeights)[i] = Chunk{};
    }
    fence_async_proxy();
  }
  sync_block();
  if (C::kBlocks > 1) sync_cluster();
}

template <Pass kPass, class T, class L, int kBlocks>
__global__ void __launch_bounds__(L::kThreads, L::kResident)
    target_attention_sm90_kernel(const __grid_constant__ Streams streams,
                                 const __grid_constant__ TargetAttentionBackwardParams b, const Tiling tiling,
                                 const Schedule schedule, const Weighing* weighing, const Partials partials,
                                 char* const ds) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using C = Context<kPass, T, L, kBlocks>;
  using M = typename C::M;
  char* memory = shared_memory();
  const uint32_t base = shared_address(memory);
  const int rank = kBlocks == 1 ? 0 : int(cluster_rank());
  const C c{streams,
            b,
            b.forward,
            tiling,
            schedule,
            weighing,
            partials,
            ds,
            memory,
            base,
            reinterpret_cast<float*>(memory + M::kFactors),
            reinterpret_cast<Info<kPass>*>(memory + M::kInfo),
            *reinterpret_cast<Item*>(memory + M::kItem),
            *reinterpret_cast<ItemChunk*>(memory + M::kChunk),
            {base + M::kBarriers},
            rank,
            int(threadIdx.x) / kWarpgroup,
            rank * L::kWidth,
            threadIdx.x % kWarp == 0};
  init_block(c);
  if (!start_range(&c.item, schedule, c.range())) return;
  if (c.group == L::kOutputs) {
    set_registers<L::kEntryRegisters, L::kScoreRegisters>();
    run_scores(c);
  } else {
    set_registers<L::kEntryRegisters, L::kOutputRegisters>();
    run_outputs(c);
  }
  if (kBlocks > 1) sync_cluster();  // no block leaves while the other may still send to it
#endif
}

// Variants of the kernel: how a block is laid out, and how many of them, a cluster, share a row.
template <class OwnLayout, int kOwnBlocks>
struct Variant {
  using L = OwnLayout;
  static constexpr int kBlocks = kOwnBlocks;
};
using Wide = BlockLayout<512, 2, 3, 28, 1, 184, 160>;
using WideOfTwo = BlockLayout<512, 2, 2, 28, 1, 184, 160>;  // with room for the weights of two tiles
// Two blocks of a multiprocessor: one's weights are made under the other's products.
using Narrow = BlockLayout<256, 1, 2, 8, 2, 96, 160>;
using NarrowAlone = BlockLayout<256, 2, 5, 8, 1, 184, 160>;
using Of256 = VariantsOf<Variant<Wide, 1>, Variant<Narrow, 1>, Variant<NarrowAlone, 1>>;
using Of512 = VariantsOf<Variant<Wide, 1>, Variant<Narrow, 2>>;
using Of1024 = VariantsOf<Variant<Wide, 2>, Variant<WideOfTwo, 2>>;

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
