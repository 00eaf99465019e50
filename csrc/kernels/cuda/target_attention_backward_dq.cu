// Gradient of q of target_attention on CUDA (formula: ../target_attention.h; symbols:
// cpu/target_attention_backward.cpp).
//
// As in the forward pass a block holds a tile of query rows, with dout, and streams its split of the history through:
// scores and dp = dout . v, from them ds, then dq += ds k in registers. Splits write partial sums, which
// target_attention_backward.cu adds up in order. It takes the requests that have more query rows than the kernel of dk
// and dv keeps ds of.
#include "target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace {

template <class T, int kWidth, bool kKeysAreValues>
struct BackwardQueries : Columns<T, kWidth> {
  using Columns<T, kWidth>::kMaxWidth;
  using Columns<T, kWidth>::kSlices;
  using Columns<T, kWidth>::kPitch;
  using Row = BackwardRow;
  static constexpr bool kShared = kKeysAreValues;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices == 1 || (kHalf && kSlices == 2)   ? 4
                                   : kSlices == 2 || (kHalf && kSlices == 4) ? 2
                                                                             : 1;
  static constexpr int kRowFragments = 1;                                  // 16-row fragments of a warp
  static constexpr int kRows = 16 * kRowWarps;                             // query rows of a tile
  static constexpr int kHistoryRows = kHalf && kMaxWidth < 512 ? 32 : 16;  // history rows of a tile
  static constexpr int kStages = !kHalf && kMaxWidth == 1024 ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kHalf && kMaxWidth == 64 ? 3 : kHalf && (kMaxWidth == 128 || kMaxWidth == 512) ? 2 : 1;
  static constexpr int kElements = kRows * kHistoryRows / kThreads;  // scores of a tile that a thread turns into ds
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kDsPitch = kHistoryRows + kVector<T>;

  static constexpr int kTile = kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kQueries = 0;
  static constexpr int kDouts = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 2 * kDouts;
  static constexpr int kValues = kKeys + (kShared ? 0 : kStages * kTile);
  static constexpr int kSums = kValues + kStages * kTile;
  static constexpr int kDs = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kDs + kRows * kDsPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(BackwardRow));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kMaxWidth < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kHistoryRows % kThreads == 0);
};

template <class F>
struct BackwardQueriesBlock : BackwardBlock<F> {
  using T = typename F::Element;
  using Block<F>::first_row;
  using Block<F>::column;

  T* ds;  // [kRows, kDsPitch]

  STCA_DEVICE BackwardQueriesBlock(const TargetAttentionBackwardParams& b, const Aligned& aligned)
      : BackwardBlock<F>(b, aligned), ds(this->template at<T>(F::kDs)) {}

  // Products of the warp's query rows with a tile of history rows, the slice's part of each, to shared memory.
  STCA_DEVICE void multiply_queries(const T* queries, const T* history, int width) const {
    this->template multiply<1, F::kHistoryRows / 8>(queries + first_row * F::kPitch + column, history + column,
                                                    round_up(width, 16),
                                                    this->sums + (this->slice * F::kRows + first_row) * F::kSumPitch);
  }

  // Turns scores and dp, which is what the products in shared memory are, into ds. The tile starts with history row
  // `from`.
  STCA_DEVICE void weigh(const float (&score)[F::kElements], int from) const {
    this->for_own_elements([&](int i, int row, int n) {
      const Weights w = weights_of(this->rows[row], from + n, float(this->p.scale), score[i], this->product(row, n));
      narrow(w.ds, ds[row * F::kDsPitch + n]);
    });
  }

  // dq += ds k for the tile.
  STCA_DEVICE void add_keys(float (&dq)[1][F::kWarpColumns / 8][4], const T* keys) const {
    warp_product<false, true, F::kHistoryRows>(dq, ds + first_row * F::kDsPitch, F::kDsPitch, keys + column, F::kPitch,
                                               F::kHistoryRows, this->key_width);
  }
};

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_bwd_dq_kernel(const TargetAttentionBackwardParams b, const Tiling tiling, const Schedule schedule,
                                   const Weighing* weighing, float* partials, const Aligned aligned) {
  using T = typename F::Element;
  const TargetAttentionParams& p = b.forward;
  const BackwardQueriesBlock<F> block(b, aligned);
  Item& item = block.item;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen = seen_by_tile<F::kRows, F::kThreads>(
        p, item, block.rows, [&](int row) { return backward_row(p, item, first + row, weighing); });
    const HistoryTiles<F> history{block, seen, keys_of<T>(p, item), values_of<T>(p, item)};
    block.load_queries_and_douts(first);
    if (history.count() > 0) history.load(0);

    float dq[1][F::kWarpColumns / 8][4];
    clear(dq);
    history.for_each([&](int tile) {
      float score[F::kElements];
      block.multiply_queries(block.queries, history.k(tile), block.key_width);
      sync_block();
      block.read_products(score);
      sync_block();
      block.multiply_queries(block.douts, history.v(tile), block.value_width);
      sync_block();
      block.weigh(score, history.first_row(tile));
      sync_block();
      block.add_keys(dq, history.k(tile));
    });
    block.write_queries(dq, first, p.key_dim, block.key_width, b.dq, partials);
  } while (item.more);
}

}  // namespace

Tiling dq_tiling(const TargetAttentionParams& p, const CudaDevice& device, int left_out) {
  return visit_layout<BackwardQueries>(p, [&](auto layout) -> Tiling {
    using F = typename decltype(layout)::type;
    const int num_ranges = resident_blocks(device, &target_attention_bwd_dq_kernel<F>, F::kThreads, F::kBytes);
    return {F::kRows, F::kHistoryRows, num_ranges, false, 0, left_out};
  });
}

int dq_shared_bytes(const TargetAttentionParams& p) {
  return visit_layout<BackwardQueries>(p, [](auto layout) { return decltype(layout)::type::kBytes; });
}

const char* launch_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                      const Weighing* weighing, float* partials, Stream stream) {
  return visit_layout<BackwardQueries>(b.forward, [&](auto layout) {
    using F = typename decltype(layout)::type;
    return launch("target_attention backward of q", &target_attention_bwd_dq_kernel<F>,
                  {tiling.num_ranges, F::kThreads, F::kBytes}, stream, b, tiling, schedule, weighing, partials,
                  aligned_tensors(b.forward, b.dout));
  });
}

}  // namespace cuda
}  // namespace stca
