// Attention of the targets of each request to that request's history, on raw pointers.
//
//   s[t, h, n] = scale * q[t, h] . k[n, h / G]        n over the visible history rows of t's request, G = H / Hk
//   lse[t, h]  = log sum_n exp(s[t, h, n])
//   out[t, h]  = sum_n exp(s[t, h, n] - lse[t, h]) v[n, h / G]
//
// A target that sees no row gets out = 0 and lse = -inf. Source: docs/mathematics.md, arXiv 2511.06077. Letters of
// shapes: docs/glossary.md.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu_isa.h"
#include "dtype.h"

namespace stca {

// Scales of int8 rows, row n of head j of which stands for scale[n, j] times what it holds.
struct RowScales {
  const float* data;  // [P, Hk]; nullptr: rows are of the call's type
  int64_t row_stride, head_stride;
};

// Strides count elements; the last dimension of every tensor of rows is contiguous.
struct TargetAttentionParams {
  Dtype dtype;
  int64_t num_requests;  // R
  int64_t num_targets;   // T
  int64_t num_rows;      // N, rows of all histories
  int64_t heads;         // H
  int64_t kv_heads;      // Hk, divides H
  int64_t key_dim;       // Dk
  int64_t value_dim;     // Dv
  double scale;
  bool shared;  // v is k: one tile of history serves both products, one gradient comes back

  const void* q;               // [T, H, Dk]
  const void* k;               // [P, Hk, Dk]; P = N without an index
  const void* v;               // [P, Hk, Dv]
  RowScales k_scale, v_scale;  // forward only; v's are nowhere where v is k, and on CUDA both or neither are given
  int64_t q_target_stride, q_head_stride;
  int64_t k_row_stride, k_head_stride;
  int64_t v_row_stride, v_head_stride;

  const int64_t* target_offsets;   // [R + 1]
  const int64_t* history_offsets;  // [R + 1]
  const int64_t* visible;          // [T, 2], rows relative to the request's first; nullptr: all rows
  const int64_t* history_index;    // [N], history row n is row history_index[n] of k and v; nullptr: row n

  void* out;  // [T, H, Dv] contiguous
  void* lse;  // [T, H] contiguous, accumulation type
  // [T, H, 2] contiguous, accumulation type: the largest score in units of log 2, and the sum of 2^(s - largest). The
  // backward pass takes weights from these, since lse rounds what a large score leaves of it.
  void* max_and_sum;

  // On the CPU only: scores kept by the forward pass for the backward pass, accumulation type, not yet times
  // score_unit(). Request r's lie from scores[H * pair_offsets[r]] on, [L, Hk, m * G]. nullptr: none.
  void* scores;
  const int64_t* pair_offsets;  // [R + 1] pairs (target, history row) of the requests before

  int64_t pool_rows;  // P
  int* reports;       // on CUDA only: see CudaDevice
};

// The gradients of one scalar with respect to q, k and v; `forward.out` and `forward.max_and_sum` are inputs here. On
// the CPU dk and dv are both nullptr where neither is wanted.
struct TargetAttentionBackwardParams {
  TargetAttentionParams forward;
  const void* dout;  // [T, H, Dv] contiguous
  const void* dlse;  // [T, H] contiguous, accumulation type; nullptr: zero
  void* dq;          // [T, H, Dk] contiguous
  void* dk;          // [rows, Hk, Dk] contiguous, of history rows; the sum of both roles when v is k
  void* dv;          // [rows, Hk, Dv] contiguous; nullptr when v is k
  bool wide;         // dk and dv are of the accumulation type: rows of them are still to be added up
  // On the CPU only, where a call may be made in ranges of history rows, one after the other:
  int64_t first_row;  // the history row that dk and dv start with
  void* dq_sums;      // [T, H, Dk] contiguous, accumulation type: where a history in pieces adds up dq, which it may be
};

// How a call is cut: targets in blocks whose query rows fill a matrix product, history in tiles that stay in cache.
struct TargetAttentionTiling {
  int64_t block_targets;  // targets of one block, at most
  int64_t tile_rows;      // history rows of one tile, at most
};

// One piece of work, for one thread: some targets of one request against some rows of its history.
struct TargetAttentionItem {
  int64_t request;
  int64_t target_begin, target_end;  // rows of q
  int64_t row_begin, row_end;        // rows of k
  int64_t partial;                   // number of its partial result; -1: nothing to combine, writes the output itself
  int64_t combine;                   // which of the plan's combines that is part of; -1: of none
};

// Partial results that add up to one block of the output: forward combines them by lse when all are there, backward
// adds each one's dq to those before.
struct TargetAttentionCombine {
  int64_t target_begin, target_end;
  int64_t partial_begin, partial_end;  // in order of history rows
};

// Depends on the offsets, the visible ranges and the thread count only, so a result is the same on every run.
struct TargetAttentionPlan {
  TargetAttentionTiling tiling;
  std::vector<TargetAttentionItem> items;  // largest first
  std::vector<TargetAttentionCombine> combines;
  int64_t partial_count;
  int64_t partial_size;  // accumulator elements of one partial result, forward
  int64_t max_targets;   // of an item
};

// Targets of a block where `targets` are cut into blocks of nearly equal size. Both passes cut by this, so that kept
// scores are read by the blocks that wrote them.
int64_t target_attention_block_targets(const TargetAttentionTiling& tiling, int64_t targets);

// Accumulator elements of a partial result: out [targets * H, Dv] unnormalised, then row_max and row_sum [targets * H].
int64_t target_attention_partial_size(const TargetAttentionParams& params, int64_t targets);

TargetAttentionPlan plan_target_attention(const TargetAttentionParams& params, int threads);
// Of history rows [row_begin, row_end). Pieces of one history are in order of rows among the items.
TargetAttentionPlan plan_target_attention_backward(const TargetAttentionParams& params, int threads, int64_t row_begin,
                                                   int64_t row_end);
// History rows of such a range where dk and dv are `wide`: their memory does not depend on the history's length then.
int64_t target_attention_rows_at_once(const TargetAttentionParams& params, int threads);

// Bytes of scratch memory that a thread needs for items of up to `targets` targets: as the same instruction set's item
// kernel lays it out.
STCA_DECLARE_CPU_KERNEL(int64_t, target_attention_scratch, const TargetAttentionParams& params,
                        const TargetAttentionTiling& tiling, int64_t targets)
STCA_DECLARE_CPU_KERNEL(int64_t, target_attention_backward_scratch, const TargetAttentionBackwardParams& params,
                        const TargetAttentionTiling& tiling, int64_t targets)

// Forward, item by item (any order, any thread), then the combines. `partials` is [partial_count, partial_size].
STCA_DECLARE_CPU_KERNEL(void, target_attention_item, const TargetAttentionParams& params,
                        const TargetAttentionTiling& tiling, const TargetAttentionItem& item, void* scratch,
                        void* partial)
STCA_DECLARE_CPU_KERNEL(void, target_attention_combine, const TargetAttentionParams& params,
                        const TargetAttentionCombine& combine, void* partials, int64_t partial_size)

// Backward. Every history row lies in exactly one item: its gradient has one owner. The item's dq is left in scratch,
// and added to that of earlier rows of the same request when those are there.
STCA_DECLARE_CPU_KERNEL(void, target_attention_backward_item, const TargetAttentionBackwardParams& params,
                        const TargetAttentionTiling& tiling, const TargetAttentionItem& item, void* scratch)
STCA_DECLARE_CPU_KERNEL(void, target_attention_backward_add, const TargetAttentionBackwardParams& params,
                        const TargetAttentionItem& item, const void* scratch)
// to[index[i]] += from[i] for i in [0, count), columns [begin, end) of rows of `width` in the accumulation type.
STCA_DECLARE_CPU_KERNEL(void, target_attention_add_rows, Dtype dtype, const void* from, const int64_t* index,
                        int64_t count, int64_t width, int64_t begin, int64_t end, void* to)

}  // namespace stca
