// Gradients of k and v of target_attention on CUDA (formula: ../target_attention.h; symbols:
// cpu/target_attention_backward.cpp).
//
// A block holds a tile of history rows, so that each row's gradient has one owner, and meets all query rows of its
// request, tile by tile: scores and dp = dout . v again, from them the weights p and ds, then dk += ds^T q and
// dv += p^T dout in registers. When v is k both go into one sum. No atomics: the same bits on every run.
#include "target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace {

template <class T, int kWidth, bool kKeysAreValues>
struct BackwardHistory : Columns<T, kWidth> {
  using Columns<T, kWidth>::kMaxWidth;
  using Columns<T, kWidth>::kSlices;
  using Columns<T, kWidth>::kPitch;
  using Row = BackwardRow;
  static constexpr bool kShared = kKeysAreValues;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices == 1 || (kHalf && kSlices == 2) ? 4 : kSlices == 8 ? 1 : 2;
  static constexpr int kRowFragments = kHalf && kMaxWidth == 1024 ? 2 : 1;                // 16-row fragments of a warp
  static constexpr int kHistoryRows = 16 * kRowFragments * kRowWarps;                     // history rows of a tile
  static constexpr int kRows = kHalf && (kMaxWidth < 256 || kMaxWidth == 512) ? 32 : 16;  // query rows of a tile
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kThreads == 128 || (kHalf && kShared && kMaxWidth == 256) ? 2 : 1;
  static constexpr int kElements =
      kRows * kHistoryRows / kThreads;  // scores of a tile that a thread turns into p and ds
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kWeightPitch = kHistoryRows + kVector<T>;

  static constexpr int kQueryTile = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 0;
  static constexpr int kValues = kShared ? 0 : kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kQueries = kValues + kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kDouts = kQueries + kQueryTile;
  static constexpr int kSums = kDouts + kQueryTile;
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kDs = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kInfo = kDs + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(BackwardRow));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kMaxWidth < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kHistoryRows % kThreads == 0);
};

template <class F>
struct BackwardHistoryBlock : BackwardBlock<F> {
  using T = typename F::Element;
  using Block<F>::item;
  using Block<F>::first_row;
  using Block<F>::column;
  using Gradient = float[F::kRowFragments][F::kWarpColumns / 8][4];

  T *keys, *values;  // [kHistoryRows, kPitch]; one where v is k
  T *weights, *ds;   // [kRows, kWeightPitch]

  STCA_DEVICE BackwardHistoryBlock(const TargetAttentionBackwardParams& b, const Aligned& aligned)
      : BackwardBlock<F>(b, aligned),
        keys(this->template at<T>(F::kKeys)),
        values(this->template at<T>(F::kValues)),
        weights(this->template at<T>(F::kWeights)),
        ds(this->template at<T>(F::kDs)) {}

  // Asks for the item's history rows.
  STCA_DEVICE void load_history(const History<T>& k, const History<T>& v) const {
    load_history_rows<F::kMaxWidth, F::kHistoryRows, F::kThreads>(keys, k, item.split_begin, item.split_end,
                                                                  this->p.key_dim, this->aligned.k);
    if constexpr (!F::kShared) {
      load_history_rows<F::kMaxWidth, F::kHistoryRows, F::kThreads>(values, v, item.split_begin, item.split_end,
                                                                    this->p.value_dim, this->aligned.v);
    }
    commit_copies();
  }

  // Products of a tile of query rows with the warp's history rows, the slice's part of each, to shared memory.
  STCA_DEVICE void multiply_history(const T* queries, const T* history, int width) const {
    this->template multiply<F::kRows / 16, 2 * F::kRowFragments>(
        queries + column, history + first_row * F::kPitch + column, round_up(width, 16),
        this->sums + this->slice * F::kRows * F::kSumPitch + first_row);
  }

  // Turns scores and dp, which is what the products in shared memory are, into the weights p and ds.
  STCA_DEVICE void weigh(const float (&score)[F::kElements]) const {
    this->for_own_elements([&](int i, int row, int n) {
      const Weights w =
          weights_of(this->rows[row], item.split_begin + n, float(this->p.scale), score[i], this->product(row, n));
      narrow(w.p, weights[row * F::kWeightPitch + n]);
      narrow(w.ds, ds[row * F::kWeightPitch + n]);
    });
  }

  // gradient += weights^T rows: dk of ds and q, dv of p and dout.
  STCA_DEVICE void add_queries(Gradient& gradient, const T* tile_weights, const T* queries, int width) const {
    warp_product<true, true, F::kRows>(gradient, tile_weights + first_row, F::kWeightPitch, queries + column, F::kPitch,
                                       F::kRows, width);
  }

  // Writes the warp's rows of a gradient, each of which is owned by this block, as elements of V.
  template <class V>
  STCA_DEVICE void write(const Gradient& gradient, V* to, int64_t dim, int width) const {
    const int history_rows = item.split_end - item.split_begin - first_row;
    const int64_t first = item.row_begin + item.split_begin + first_row, kv_heads = this->p.kv_heads;
    to += (first * kv_heads + item.kv_head) * dim + column;
    store_rows<V>(gradient, width, [&](int row) { return row < history_rows ? to + row * kv_heads * dim : nullptr; });
  }

  STCA_DEVICE void write_as_asked(const Gradient& gradient, void* to, int64_t dim, int width) const {
    if (this->b.wide) {
      write(gradient, static_cast<float*>(to), dim, width);
    } else {
      write(gradient, static_cast<T*>(to), dim, width);
    }
  }
};

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_bwd_dkv_kernel(const TargetAttentionBackwardParams b, const Tiling tiling, const Schedule schedule,
                                    const Weighing* weighing, const Aligned aligned) {
  using T = typename F::Element;
  const TargetAttentionParams& p = b.forward;
  const BackwardHistoryBlock<F> block(b, aligned);
  Item& item = block.item;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    block.load_history(keys_of<T>(p, item), values_of<T>(p, item));
    typename BackwardHistoryBlock<F>::Gradient dk, dv;  // where v is k, dk is the sum of both
    clear(dk);
    clear(dv);
    for (int first = 0; first < item.query_rows; first += F::kRows) {
      sync_block();  // all threads are done with the tile before
      const Range seen = seen_by_tile<F::kRows, F::kThreads>(
          p, item, block.rows, [&](int row) { return backward_row(p, item, first + row, weighing); });
      if (seen.begin == seen.end) continue;
      block.load_queries_and_douts(first);
      wait_copies<0>();
      sync_block();

      float score[F::kElements];
      block.multiply_history(block.queries, block.keys, block.key_width);
      sync_block();
      block.read_products(score);
      sync_block();
      block.multiply_history(block.douts, block.values, block.value_width);
      sync_block();
      block.weigh(score);
      sync_block();
      block.add_queries(dk, block.ds, block.queries, block.key_width);
      block.add_queries(F::kShared ? dk : dv, block.weights, block.douts, block.value_width);
    }
    wait_copies<0>();
    block.write_as_asked(dk, b.dk, p.key_dim, block.key_width);
    if constexpr (!F::kShared) block.write_as_asked(dv, b.dv, p.value_dim, block.value_width);
  } while (item.more);
}

}  // namespace

Tiling dkv_tiling(const TargetAttentionParams& p, const CudaDevice& device) {
  return visit_layout<BackwardHistory>(p, [&](auto layout) -> Tiling {
    using F = typename decltype(layout)::type;
    const int num_ranges = resident_blocks(device, &target_attention_bwd_dkv_kernel<F>, F::kThreads, F::kBytes);
    return {F::kHistoryRows, F::kRows, num_ranges, true};
  });
}

int dkv_shared_bytes(const TargetAttentionParams& p) {
  return visit_layout<BackwardHistory>(p, [](auto layout) { return decltype(layout)::type::kBytes; });
}

const char* launch_dkv(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                       const Weighing* weighing, Stream stream) {
  return visit_layout<BackwardHistory>(b.forward, [&](auto layout) {
    using F = typename decltype(layout)::type;
    return launch("target_attention backward of history", &target_attention_bwd_dkv_kernel<F>,
                  {tiling.num_ranges, F::kThreads, F::kBytes}, stream, b, tiling, schedule, weighing,
                  aligned_tensors(b.forward, b.dout));
  });
}

}  // namespace cuda
}  // namespace stca
