// How the products of a tile, [64, 64] in the registers of a warpgroup, become weights: in place, by thread t.
#pragma once

#include "passes.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// The softmax of the thread's two query rows: the largest score in units of log 2, and the sum of 2^(score - row_max)
// over the thread's own columns.
struct RowState {
  float row_max[2], row_sum[2];
};

// Forward: scores of a tile, whose first history row is `from`, become weights; `factor` gets what the output up to now
// must be multiplied by.
template <int kScores>
STCA_DEVICE void weigh_scores(float (&s)[kScores], RowState& own, float (&factor)[2], const QueryRow* rows, int from,
                              float scale, int t) {
  const int row = row_of(t);
#pragma unroll
  for (int i = 0; i < kScores; ++i) s[i] = rounded_product(scale, s[i]);
  const Range sees[2] = {{rows[row].begin, rows[row].end}, {rows[row + 8].begin, rows[row + 8].end}};
  if (any_in_warp(max(sees[0].begin, sees[1].begin) > from || min(sees[0].end, sees[1].end) < from + 2 * kScores)) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int n = from + i / 4 * 8 + t % 4 * 2 + i % 2, r = i / 2 % 2;
      if (n < sees[r].begin || n >= sees[r].end) s[i] = -kInfinity;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = own.row_max[r];
#pragma unroll
    for (int i = 2 * r; i < kScores; i += 4) largest = fmaxf(largest, fmaxf(s[i], s[i + 1]));
    for (int by = 1; by < 4; by *= 2) largest = fmaxf(largest, shuffle_xor(largest, by));
    const float shift = largest == -kInfinity ? 0.0f : largest;
    factor[r] = exp2_or_zero(own.row_max[r] - shift);
    own.row_max[r] = largest;
    float added = 0;
#pragma unroll
    for (int i = 2 * r; i < kScores; i += 4) {
      s[i] = exp2_or_zero(s[i] - shift);
      s[i + 1] = exp2_or_zero(s[i + 1] - shift);
      added += s[i] + s[i + 1];
    }
    own.row_sum[r] = own.row_sum[r] * factor[r] + added;
  }
}

// Gradient of the history: dP^T and S^T of 32 queries become P^T and dS^T.
STCA_DEVICE void weigh_streamed_queries(float (&s)[32], const TargetAttentionParams& p, const Item& item,
                                        const QueryInfo* columns, float scale, int t) {
  const int n = item.split_begin + row_of(t);
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
      const float weight = exp2_or_zero(rounded_product(scale, score) - of.row_max) * of.inverse;
      score = seen ? weight * (dp - of.delta) * float(p.scale) : 0.0f;
      dp = seen ? weight : 0.0f;
    }
  }
}

// Gradient of q: S and, 32 rows below, dP become dS, of which the thread holds 16. The warps hand each other 8 KB
// through shared memory.
STCA_DEVICE void weigh_kept_queries(float (&s)[32], const TargetAttentionParams& p, const BackwardRow* rows,
                                    float4* handed, int from, float scale, int t) {
  // The first two warps hold S, the other two dP of the same rows: the former hand over the second half of the
  // columns for that of the others' first half, and each weighs one half.
  constexpr int kQueries = kQueryRows<Pass::kQueries>;
  const bool low = t < kWarpgroup / 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    handed[i * kWarpgroup + t] = {low ? s[16 + 4 * i] : s[4 * i], low ? s[17 + 4 * i] : s[4 * i + 1],
                                  low ? s[18 + 4 * i] : s[4 * i + 2], low ? s[19 + 4 * i] : s[4 * i + 3]};
  }
  sync_warpgroup(1);
  const int query = row_of(t) % kQueries, first = from + (low ? 0 : kColumns / 2) + t % 4 * 2;
  const Weighing of[2] = {rows[query].weighing, rows[query + 8].weighing};
  int begin[2], end[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    begin[r] = rows[query + 8 * r].begin - first;
    end[r] = of[r].inverse == 0 ? begin[r] : rows[query + 8 * r].end - first;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 other = handed[i * kWarpgroup + (t ^ kWarpgroup / 2)];
    const float each[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = 8 * i + j % 2, r = j / 2;
      const float score = low ? s[4 * i + j] : each[j], dp = low ? each[j] : s[16 + 4 * i + j];
      const float weight = exp2_or_zero(rounded_product(scale, score) - of[r].row_max) * of[r].inverse;
      s[4 * i + j] = begin[r] <= n && n < end[r] ? weight * (dp - of[r].delta) * float(p.scale) : 0.0f;
    }
  }
}

// Stores the weights of 16 columns, the `step`th of a slab's, and of 16 rows, a warp's.
STCA_DEVICE void store_step(uint32_t slab, int first_row, int step, const uint32_t (&pairs)[4], int t) {
  store_matrices(slab + swizzled(first_row + t % 16, 2 * step + t % kWarp / 16), pairs);
}

// Stores the weights to a slab. Those of the gradient of q are half as many: rows from 32 on stay 0. Where `ds` is not
// nullptr, dS^T, the second half of those of the gradient of the history, goes there too, as the threads hold it.
template <Pass kPass, class T>
STCA_DEVICE void store_weights(uint32_t slab, const float (&s)[32], Chunk* ds, int t) {
  constexpr bool kHalf = kPass == Pass::kQueries;
  const int warp_row = t / kWarp * 16, first_row = kHalf ? warp_row % kQueryRows<kPass> : warp_row;
  sync_warp();
#pragma unroll
  for (int k = 0; k < (kHalf ? 2 : 4); ++k) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = narrow_pair(s[8 * k + 2 * i], s[8 * k + 2 * i + 1], T{});
    store_step(slab, first_row, (kHalf && t >= kWarpgroup / 2 ? 2 : 0) + k, pairs, t);
    if constexpr (kPass == Pass::kHistory) {
      if (k >= 2 && ds != nullptr) store_chunk({pairs[0], pairs[1], pairs[2], pairs[3]}, ds + (k - 2) * kWarpgroup + t);
    }
  }
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
