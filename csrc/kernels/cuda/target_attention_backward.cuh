// What the backward kernels of target_attention share: what a block holds, and weights and their gradients from scores.
#pragma once

#include "block.cuh"

namespace stca {
namespace cuda {

// What turns the scores of a query row into weights and their gradients, [T, H]: p = 2^(score in units of log 2 -
// row_max) * inverse, and delta = dout . out - dlse.
struct alignas(16) Weighing {
  float row_max, inverse, delta, unused;
};

// A query row of an item, in shared memory. The weighing of a row that sees nothing stays 0.
struct BackwardRow : QueryRow {
  int64_t dout;  // where it starts in dout, in elements
  Weighing weighing;
};

STCA_DEVICE BackwardRow backward_row(const TargetAttentionParams& p, const Item& item, int row,
                                     const Weighing* weighing) {
  BackwardRow own{query_row(p, item, row), 0, {}};
  own.dout = own.index * p.value_dim;
  if (own.begin < own.end) own.weighing = weighing[own.index];
  return own;
}

struct Weights {
  float p, ds;
};

// p and scale * ds of a query row and history row n of its request; 0 where it does not see n within the item's split.
STCA_DEVICE Weights weights_of(const BackwardRow& row, int n, float scale, float score, float dp) {
  const Weighing& of = row.weighing;
  if (n < row.begin || n >= row.end || of.inverse == 0) return {0, 0};
  const float weight = exp2f(rounded_product(scale * kLog2E, score) - of.row_max) * of.inverse;
  return {weight, weight * (dp - of.delta) * scale};
}

// A block of either kernel: a tile of query rows, with dout.
template <class F>
struct BackwardBlock : Block<F> {
  using T = typename F::Element;
  using Block<F>::p;

  const TargetAttentionBackwardParams& b;
  T *queries, *douts;          // [kRows, kPitch]
  int key_width, value_width;  // columns of the slice

  STCA_DEVICE BackwardBlock(const TargetAttentionBackwardParams& b, const Aligned& aligned)
      : Block<F>(b.forward, aligned),
        b(b),
        queries(this->template at<T>(F::kQueries)),
        douts(this->template at<T>(F::kDouts)),
        key_width(this->width_of(p.key_dim)),
        value_width(this->width_of(p.value_dim)) {}

  // Asks for query rows of q and dout from the item's row `first` on. `rows` describes them.
  STCA_DEVICE void load_queries_and_douts(int first) const {
    this->load_queries(queries, first);
    load_rows<F::kMaxWidth, F::kRows, F::kThreads>(
        douts, this->item.query_rows - first, int(p.value_dim), this->aligned.dout,
        [&](int row) { return static_cast<const T*>(b.dout) + this->rows[row].dout; });
    commit_copies();
  }

  // Calls f(i, row, n) for each element i of a tile of weights that this thread owns: query row and history row.
  template <class Each>
  STCA_DEVICE static void for_own_elements(Each f) {
    const int thread = found_anew(int(threadIdx.x));
#pragma unroll
    for (int i = 0; i < F::kElements; ++i) {
      const int at = thread + i * F::kThreads;
      f(i, at / F::kHistoryRows, at % F::kHistoryRows);
    }
  }

  // The products in shared memory that belong to the thread's elements.
  STCA_DEVICE void read_products(float (&product)[F::kElements]) const {
    for_own_elements([&](int i, int row, int n) { product[i] = this->product(row, n); });
  }
};

// What the kernel of dk and dv keeps of a chunk of history, to make dq of it without products of queries and history a
// second time: ds, and what dq is so far. Both are of fixed size for each range, whatever the history's length.
// Requests of so many query rows that a partial dq of them takes more leave dq to the other kernel.
constexpr int kKeptBytes = 256 * 1024;      // of ds, for each range
constexpr int kPartialBytes = 1024 * 1024;  // of a partial dq; a range has up to two
struct Kept {
  char* ds;         // [num_ranges, kKeptBytes]
  float* partials;  // [2 * num_ranges, tile_rows, Dk]
};

// The two kernels: how each cuts a call, what shared memory a block takes, and its launch. The first makes dq too for
// requests of up to tile_rows query rows, which the second leaves out.
Tiling dkv_tiling(const TargetAttentionParams& p, const CudaDevice& device);
int dkv_shared_bytes(const TargetAttentionParams& p);
const char* launch_dkv(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                       const Weighing* weighing, const Kept& kept, Stream stream);
Tiling dq_tiling(const TargetAttentionParams& p, const CudaDevice& device, int left_out);
int dq_shared_bytes(const TargetAttentionParams& p);
const char* launch_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                      const Weighing* weighing, float* partials, Stream stream);

// Adds up the partial dq of tiles that several ranges share, in order of splits.
const char* launch_combine_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                              const float* partials, Stream stream);

}  // namespace cuda
}  // namespace stca
