// What the two backward kernels of target_attention share: weights and their gradients from scores, and the workspace.
#pragma once

#include "target_attention.cuh"

namespace stca {
namespace cuda {

// What turns the scores of a query row into weights and their gradients, [T, H]: p = 2^(score in units of log 2 - most)
// * inverse, and delta = dout . out - dlse.
struct alignas(16) Weighing {
  float most, inverse, delta, unused;
};

// The same in shared memory, with the history rows that the query row sees, from the request's first.
struct Row {
  float most, inverse, delta;
  int from, to;
};

// kRows of them from query row `first` of the item on, to shared memory, by kThreads of which this is the `thread`th.
template <int kRows, int kThreads>
STCA_DEVICE void load_rows_info(Row* to, const TargetAttentionParams& p, const Item& item, int first,
                                const Weighing* weighing, int thread) {
  for (int row = thread; row < kRows; row += kThreads) {
    Row info{0, 0, 0, 0, 0};
    if (first + row < item.query_rows) {
      const QueryRow at = query_row(p, item, first + row);
      const Weighing of = weighing[at.target * p.heads + at.head];
      info = {of.most, of.inverse, of.delta, 0, item.history_rows};
      clip_to_visible(p, at.target, info.from, info.to);
    }
    to[row] = info;
  }
}

struct Weights {
  float p, ds;
};

// p and scale * ds of a query row and history row n of its request; 0 where it does not see n, or n is not below `end`.
STCA_DEVICE Weights weights_of(const Row& row, int n, int end, float scale, float score, float dp) {
  if (n < row.from || n >= min(row.to, end) || row.inverse == 0) return {0, 0};
  const float weight = exp2(rounded_product(scale * kLog2E, score) - row.most) * row.inverse;
  return {weight, weight * (dp - row.delta) * scale};
}

// Workspace: how the call is cut, by one kernel after the other, the weighing of query rows, then what dq needs.
inline int64_t most_work_bytes(const TargetAttentionParams& p, const CudaDevice& device) {
  return aligned_bytes(work_bytes(p.num_requests, kMostBlocks * device.multiprocessors));
}
inline Weighing* weighing_at(void* workspace, const TargetAttentionParams& p, const CudaDevice& device) {
  return reinterpret_cast<Weighing*>(static_cast<char*>(workspace) + most_work_bytes(p, device));
}
inline int64_t weighing_bytes(const TargetAttentionParams& p) {
  return aligned_bytes(p.num_targets * p.heads * int64_t(sizeof(Weighing)));
}

// Gradients of k and v. The gradients of q are before and after: the weighing, then dq, then the merge of its parts.
const char* launch_merge_of_q(const TargetAttentionBackwardParams& b, const Cut& cut, const Work& work,
                              const float* partials, Stream stream);
const char* launch_backward_of_history(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                       void* workspace, Stream stream);

}  // namespace cuda
}  // namespace stca
