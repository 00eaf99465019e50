// What the two backward kernels of target_attention share: weights and their gradients from scores, and the workspace.
#pragma once

#include "target_attention.cuh"

namespace stca {
namespace cuda {

// Of a query row, what turns its scores into weights and their gradients too; nothing where it sees no row.
struct Row : QueryRow {
  int64_t dout;                // where it starts in dout, in elements
  float most, inverse, delta;  // p = 2^(score in units of log 2 - most) * inverse
};

STCA_DEVICE Row backward_row(const TargetAttentionParams& p, const Item& item, int row, const float* delta) {
  Row own{query_row(p, item, row), 0, 0, 0, 0};
  own.dout = own.index * p.value_dim;
  if (own.begin < own.end) {
    const float* softmax = static_cast<const float*>(p.softmax) + 2 * own.index;
    own.most = softmax[0];
    own.inverse = softmax[1] == 0 ? 0.0f : 1 / softmax[1];
    own.delta = delta[own.index];
  }
  return own;
}

struct Weights {
  float p, ds;
};

// p and scale * ds of a query row and history row n of its request; 0 where it does not see n within the item's split.
STCA_DEVICE Weights weights_of(const Row& row, int n, float scale, float score, float dp) {
  if (n < row.begin || n >= row.end || row.inverse == 0) return {0, 0};
  const float weight = exp2(rounded_product(scale * kLog2E, score) - row.most) * row.inverse;
  return {weight, weight * (dp - row.delta) * scale};
}

// Workspace: how the call is cut, delta [T, H], then what the gradients of q need.
inline float* delta_at(void* workspace, const TargetAttentionParams& p) {
  return reinterpret_cast<float*>(static_cast<char*>(workspace) + aligned_bytes(work_bytes(p.num_requests)));
}
inline int64_t delta_bytes(const TargetAttentionParams& p) {
  return aligned_bytes(p.num_targets * p.heads * int64_t(sizeof(float)));
}

// Gradients of k and v, from delta, and the shared memory that they take.
int backward_shared_bytes_of_history(const TargetAttentionParams& params);
const char* launch_backward_of_history(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                       void* workspace, Stream stream);

}  // namespace cuda
}  // namespace stca
