// Gradients of k and v of target_attention on CUDA, and of q where requests have few enough query rows (formula:
// ../target_attention.h; symbols: cpu/target_attention_backward.cpp).
//
// A block holds a tile of history rows, so that each row's gradient has one owner, and meets all query rows of its
// request, tile by tile: scores and dp = dout . v again, from them the weights p and ds, then dk += ds^T q and
// dv += p^T dout in registers. When v is k both go into one sum. No atomics: the same bits on every run.
//
// Of a chunk of tiles ds is kept in global memory. Then the block does the same with the roles exchanged: a tile of
// query rows in registers meets the chunk's history rows, dq += ds k. Each chunk adds to the partial dq of those
// before.
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
  static constexpr int kBlocks = kThreads == 128 ? 2 : 1;
  static constexpr int kElements =
      kRows * kHistoryRows / kThreads;  // scores of a tile that a thread turns into p and ds
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kWeightPitch = kHistoryRows + kVector<T>;
  static constexpr int kDsPitch =
      kRows + kVector<T>;  // of a tile of kept ds: kHistoryRows query rows, kRows of history

  static constexpr int kQueryTile = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 0;
  static constexpr int kValues = kShared ? 0 : kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kQueries = kValues + kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kDouts = kQueries + kQueryTile;
  static constexpr int kSums = kDouts + kQueryTile;
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kWeightTile = max(kRows * kWeightPitch, kHistoryRows* kDsPitch) * int(sizeof(T));
  static constexpr int kDs = kWeights + kWeightTile;
  static constexpr int kInfo = kDs + kWeightTile;
  static constexpr int kItem = kInfo + kHistoryRows * int(sizeof(BackwardRow));
  static constexpr int kChunk = kItem + int(sizeof(Item));
  static constexpr int kBytes = kChunk + int(sizeof(ItemChunk));
  static_assert(kBytes <= (kHalf || kMaxWidth < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kHistoryRows % kThreads == 0);
  // Steps of kRows history rows lie within a tile, and as many query rows as any request may have fit what is kept.
  static_assert(kHistoryRows % kRows == 0);
  static constexpr int kMostKept = kKeptBytes / int(sizeof(T)) / kHistoryRows;
  static_assert(kMostKept % kHistoryRows == 0);
};

template <class F>
struct BackwardHistoryBlock : BackwardBlock<F> {
  using T = typename F::Element;
  using Block<F>::item;
  using Block<F>::first_row;
  using Block<F>::column;
  using Gradient = float[F::kRowFragments][F::kWarpColumns / 8][4];

  T *keys, *values;  // [kHistoryRows, kPitch]; one where v is k
  T *weights, *ds;   // [kRows, kWeightPitch]; [kHistoryRows, kDsPitch], in turn, when dq is made

  STCA_DEVICE BackwardHistoryBlock(const TargetAttentionBackwardParams& b, const Aligned& aligned)
      : BackwardBlock<F>(b, aligned),
        keys(this->template at<T>(F::kKeys)),
        values(this->template at<T>(F::kValues)),
        weights(this->template at<T>(F::kWeights)),
        ds(this->template at<T>(F::kDs)) {}

  // Asks for the history rows that the block works on.
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

  // The weights p and ds of the query rows from the item's row `first` on and the history rows.
  STCA_DEVICE void meet_queries(int first) const {
    this->load_queries_and_douts(first);
    wait_copies<0>();
    sync_block();
    float score[F::kElements];
    multiply_history(this->queries, keys, this->key_width);
    sync_block();
    this->read_products(score);
    sync_block();
    multiply_history(this->douts, values, this->value_width);
    sync_block();
    weigh(score);
    sync_block();
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

// The chunks of an item's history rows, one after the other, and what is kept of them.
template <class F>
struct HistoryChunks {
  using T = typename F::Element;
  using Gradient = typename BackwardHistoryBlock<F>::Gradient;

  const BackwardHistoryBlock<F>& block;
  const Tiling& tiling;
  const Kept& kept;
  ItemChunk& chunk;

  STCA_DEVICE bool keeps() const { return is_kept(block.item, tiling); }
  // ds of the chunk [m * G, chunk.pitch].
  STCA_DEVICE T* ds() const { return reinterpret_cast<T*>(kept.ds + int64_t(blockIdx.x) * kKeptBytes); }
  // dq of the item's chunks [m * G, Dk].
  STCA_DEVICE float* partial() const {
    return kept.partials + first_partial_row(block.item, tiling, int(blockIdx.x)) * block.p.key_dim;
  }

  // Keeps ds of the tile of history rows that the block works on and of the query rows from `first` on.
  STCA_DEVICE void keep(int first, bool seen) const {
    constexpr int kChunks = F::kHistoryRows / kVector<T>;
    T* to = ds() + int64_t(first) * chunk.pitch + block.item.split_begin - chunk.begin;
    for (int i = found_anew(int(threadIdx.x)); i < F::kRows * kChunks; i += F::kThreads) {
      const int row = i / kChunks, column = i % kChunks * kVector<T>;
      const T* from = block.ds + row * F::kWeightPitch + column;
      store_chunk(seen ? *reinterpret_cast<const Chunk*>(from) : Chunk{}, to + row * chunk.pitch + column);
    }
  }

  // Gradients of the tile of history rows that the block works on.
  STCA_DEVICE void make_dkv(const Weighing* weighing) const {
    const TargetAttentionBackwardParams& b = block.b;
    const Item& item = block.item;
    block.load_history(keys_of<T>(block.p, item), values_of<T>(block.p, item));
    Gradient dk, dv;  // where v is k, dk is the sum of both
    clear(dk);
    clear(dv);
    for (int first = 0; first < item.query_rows; first += F::kRows) {
      sync_block();  // all threads are done with the tile before
      const Range seen = seen_by_tile<F::kRows, F::kThreads>(
          block.p, item, block.rows, [&](int row) { return backward_row(block.p, item, first + row, weighing); });
      if (seen.begin < seen.end) {
        block.meet_queries(first);
        block.add_queries(dk, block.ds, block.queries, block.key_width);
        block.add_queries(F::kShared ? dk : dv, block.weights, block.douts, block.value_width);
      }
      if (keeps()) keep(first, seen.begin < seen.end);
    }
    wait_copies<0>();
    block.write_as_asked(dk, b.dk, block.p.key_dim, block.key_width);
    if constexpr (!F::kShared) block.write_as_asked(dv, b.dv, block.p.value_dim, block.value_width);
  }

  // Asks for kRows history rows from `from` on, and for their ds with the tile of query rows that starts with `first`.
  STCA_DEVICE void load_step(int step, int first, int from, const Range& seen) const {
    const History<T> keys = keys_of<T>(block.p, block.item);
    load_rows<F::kMaxWidth, F::kRows, F::kThreads>(step % 2 == 0 ? block.queries : block.douts, seen.end - from,
                                                   int(block.p.key_dim), block.aligned.k, [&](int row) {
                                                     // Rows before all that is seen have ds = 0, but might be no
                                                     // numbers: another row stands in for them.
                                                     const int n = min(max(from + row, seen.begin), seen.end - 1);
                                                     const int64_t at =
                                                         keys.index == nullptr ? n : clamp(keys.index[n], keys.last);
                                                     return keys.rows + at * keys.stride;
                                                   });
    constexpr int kCopying = min(F::kThreads, F::kHistoryRows * Columns<T, F::kRows>::kChunks);
    if (threadIdx.x < kCopying) {
      const int pitch = chunk.pitch;
      const T* rows = ds() + int64_t(first) * pitch + from - chunk.begin;
      load_rows<F::kRows, F::kHistoryRows, kCopying>(step % 2 == 0 ? block.ds : block.weights,
                                                     block.item.query_rows - first, F::kRows, true,
                                                     [&](int row) { return rows + int64_t(row) * pitch; });
    }
    commit_copies();
  }

  // dq += ds k of the chunk, for the warp's query rows of the tile that starts with row `first`.
  STCA_DEVICE void add_keys(Gradient& dq, int first, const Range& seen) const {
    const int from = chunk.begin + (seen.begin - chunk.begin) / F::kRows * F::kRows;
    const int steps = (seen.end - from + F::kRows - 1) / F::kRows;
    load_step(0, first, from, seen);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_copies<0>();
      sync_block();
      if (step + 1 < steps) load_step(step + 1, first, from + (step + 1) * F::kRows, seen);
      warp_product<false, true, F::kRows>(
          dq, (step % 2 == 0 ? block.ds : block.weights) + block.first_row * F::kDsPitch, F::kDsPitch,
          (step % 2 == 0 ? block.queries : block.douts) + block.column, F::kPitch, F::kRows, block.key_width);
    }
  }

  // dq of all query rows: results with the history's last chunk, where the item has all of the history.
  STCA_DEVICE void make_dq() const {
    const Item& item = block.item;
    const int64_t dim = block.p.key_dim;
    for (int first = 0; first < item.query_rows; first += F::kHistoryRows) {
      sync_block();  // all threads are done with the tile before
      const Range seen = seen_by_tile<F::kHistoryRows, F::kThreads>(block.p, item, block.rows, [&](int row) {
        return BackwardRow{query_row(block.p, item, first + row), 0, {}};
      });
      const int row_begin = first + block.first_row, rows = item.query_rows - row_begin;
      float* sums = partial() + row_begin * dim + block.column;
      Gradient dq;
      const auto sums_of = [&](int row) { return row < rows ? sums + row * dim : nullptr; };
      if (chunk.is_first()) {
        clear(dq);
      } else {
        read_rows(dq, block.key_width, sums_of);
      }
      if (seen.begin < seen.end) add_keys(dq, first, seen);
      if (chunk.completes(item)) {
        store_rows<T>(dq, block.key_width, [&](int row) {
          T* results = static_cast<T*>(block.b.dq) + block.column;
          return row < rows ? results + block.rows[block.first_row + row].index * dim : nullptr;
        });
      } else {
        store_rows<float>(dq, block.key_width, sums_of);
      }
    }
  }
};

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_bwd_dkv_kernel(const TargetAttentionBackwardParams b, const Tiling tiling, const Schedule schedule,
                                    const Weighing* weighing, const Kept kept, const Aligned aligned) {
  using T = typename F::Element;
  const TargetAttentionParams& p = b.forward;
  const BackwardHistoryBlock<F> block(b, aligned);
  const HistoryChunks<F> chunks{block, tiling, kept, *block.template at<ItemChunk>(F::kChunk)};
  Item& item = block.item;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    start_chunks<T, F::kHistoryRows, F::kHistoryRows>(chunks.chunk, p, item, chunks.keeps());
    do {
      for (int from = chunks.chunk.begin; from < chunks.chunk.end; from += F::kHistoryRows) {
        take_rows(item, from, min(chunks.chunk.end, from + F::kHistoryRows));
        chunks.make_dkv(weighing);
      }
      take_rows(item, chunks.chunk.begin, chunks.chunk.end);
      if (chunks.keeps()) chunks.make_dq();
    } while (next_chunk(chunks.chunk));
  } while (item.more);
}

}  // namespace

Tiling dkv_tiling(const TargetAttentionParams& p, const CudaDevice& device) {
  return visit_layout<BackwardHistory>(p, [&](auto layout) -> Tiling {
    using F = typename decltype(layout)::type;
    const int64_t resident = resident_blocks(device, &target_attention_bwd_dkv_kernel<F>, F::kThreads, F::kBytes);
    return kept_tiling(p, resident, F::kHistoryRows, F::kRows, F::kMostKept, kPartialBytes);
  });
}

int dkv_shared_bytes(const TargetAttentionParams& p) {
  return visit_layout<BackwardHistory>(p, [](auto layout) { return decltype(layout)::type::kBytes; });
}

const char* launch_dkv(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                       const Weighing* weighing, const Kept& kept, Stream stream) {
  return visit_layout<BackwardHistory>(b.forward, [&](auto layout) {
    using F = typename decltype(layout)::type;
    return launch("target_attention backward of history", &target_attention_bwd_dkv_kernel<F>,
                  {tiling.num_ranges, F::kThreads, F::kBytes}, stream, b, tiling, schedule, weighing, kept,
                  aligned_tensors(b.forward, b.dout));
  });
}

}  // namespace cuda
}  // namespace stca
