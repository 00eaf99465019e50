// What the two backward kernels of target_attention share: weights and their gradients from scores, and the workspace.
#pragma once

#include "target_attention.cuh"

namespace stca {
namespace cuda {

// What turns the scores of a query row into weights and their gradients, [T, H]: p = 2^(score in units of log 2 -
// row_max)
// * inverse, and delta = dout . out - dlse.
struct alignas(16) Weighing {
  float row_max, inverse, delta, unused;
};

// The same of a query row of an item, in shared memory; nothing where it sees no row.
struct Row : QueryRow {
  int64_t dout;  // where it starts in dout, in elements
  Weighing weighing;
};

STCA_DEVICE Row backward_row(const TargetAttentionParams& p, const Item& item, int row, const Weighing* weighing) {
  Row own{query_row(p, item, row), 0, {}};
  own.dout = own.index * p.value_dim;
  if (own.begin < own.end) own.weighing = weighing[own.index];
  return own;
}

struct Weights {
  float p, ds;
};

// p and scale * ds of a query row and history row n of its request; 0 where it does not see n within the item's split.
STCA_DEVICE Weights weights_of(const Row& row, int n, float scale, float score, float dp) {
  const Weighing& of = row.weighing;
  if (n < row.begin || n >= row.end || of.inverse == 0) return {0, 0};
  const float weight = exp2(rounded_product(scale * kLog2E, score) - of.row_max) * of.inverse;
  return {weight, weight * (dp - of.delta) * scale};
}

// Workspace: how the call is cut, by one kernel after the other, the weighing of query rows, then what dq needs.
inline int64_t max_schedule_bytes(const TargetAttentionParams& p, const CudaDevice& device) {
  return aligned_bytes(schedule_bytes(p.num_requests, kMaxBlocks * device.multiprocessors));
}
inline Weighing* weighing_at(void* workspace, const TargetAttentionParams& p, const CudaDevice& device) {
  return reinterpret_cast<Weighing*>(static_cast<char*>(workspace) + max_schedule_bytes(p, device));
}
inline int64_t weighing_bytes(const TargetAttentionParams& p) {
  return aligned_bytes(p.num_targets * p.heads * int64_t(sizeof(Weighing)));
}

// The weighing is there before, and the combine of dq's parts comes after.
const char* launch_combine_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                              const float* partials, Stream stream);
// Gradients of k and v, and the shared memory that they take.
int backward_shared_bytes_of_history(const TargetAttentionParams& params);
const char* launch_backward_of_history(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                       void* workspace, Stream stream);

}  // namespace cuda
}  // namespace stca
