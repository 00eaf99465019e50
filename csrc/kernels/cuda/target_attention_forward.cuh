// The kernels of the forward pass of target_attention, and how they are launched (formula and shapes:
// ../target_attention.h; source: docs/mathematics.md). Those for rows of the call's type are compiled in
// target_attention.cu, those for rows of int8 in target_attention_int8.cu.
//
// A block holds a tile of query rows in shared memory and streams its split of the history through it: scores of a tile
// of history rows, online softmax, weights times values. Scores never leave the block. When v is k, one tile serves
// both products. Two tiles are in flight: the next is copied while this one is used.
#pragma once

#include "block.cuh"
#include "combine.cuh"
#include "target_attention_few.cuh"

namespace stca {
namespace cuda {

// The online softmax of a query row, in shared memory: registers are scarce.
struct RowState {
  float row_max, row_sum;  // the largest score in units of log 2, and the sum of 2^(score - row_max)
  float factor;            // what the output up to the last tile is to be multiplied by
};

template <class T, int kWidth, bool kKeysAreValues, class S>
struct Forward : Columns<T, kWidth, S> {
  using C = Columns<T, kWidth, S>;
  using C::kMaxWidth;
  using C::kPitch;
  using C::kScaled;
  using C::kSlices;
  using Row = QueryRow;
  static constexpr bool kShared = kKeysAreValues;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices <= 2 ? 4 : 8 / kSlices;
  static constexpr int kRowFragments = kHalf && kMaxWidth == 1024 ? 2 : 1;  // 16-row fragments of a warp
  static constexpr int kRows = 16 * kRowFragments * kRowWarps;              // query rows of a tile
  static constexpr int kHistoryRows = kHalf && kMaxWidth < 1024 ? 32 : 16;  // history rows of a tile
  static constexpr int kBlockRows = kHistoryRows;
  static constexpr int kStages = kScaled || (!kHalf && kMaxWidth == 1024) ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kMaxWidth == 64 ? 4 : kThreads == 128 ? 3 : 1;
  static constexpr int kRowThreads = kThreads / kRows;           // threads that share the softmax of a row
  static constexpr int kOwnScores = kHistoryRows / kRowThreads;  // scores of a tile that a thread turns into weights
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kWeightPitch = kHistoryRows + 16 / int(sizeof(T));

  // Shared memory, in bytes from its start.
  static constexpr int kTile = kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = kRows * kPitch * int(sizeof(T));
  static constexpr int kValues = kKeys + (kShared ? 0 : kStages * kTile);
  static constexpr int kBytesOfTile = kScaled ? Int8Tile<T, kMaxWidth, kHistoryRows, kThreads>::kBytes : 0;
  static constexpr int kBytesOfKeys = kValues + kStages * kTile;
  static constexpr int kBytesOfValues = kBytesOfKeys + (kShared ? 0 : kBytesOfTile);
  static constexpr int kSums = kBytesOfValues + kBytesOfTile;
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kStates = kInfo + kRows * int(sizeof(QueryRow));
  static constexpr int kItem = kStates + kRows * int(sizeof(RowState));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= kSharedBytes);
  static_assert(kRowThreads <= kHistoryRows && kWarp % kRowThreads == 0);
};

template <class F>
struct ForwardBlock : Block<F> {
  using T = typename F::Element;
  using Output = float[F::kRowFragments][F::kWarpColumns / 8][4];
  using Block<F>::p;
  using Block<F>::item;
  using Block<F>::rows;
  using Block<F>::first_row;
  using Block<F>::column;

  T *queries, *weights;     // [kRows, kPitch] and [kRows, kWeightPitch]
  RowState* states;         // [kRows]
  int depth, width;         // columns of the slice: of q and k in whole steps of a product, and of v
  int own_row, own_column;  // the thread's row of the softmax, and its first score there
  float scale;              // of a score in units of log 2

  STCA_DEVICE ForwardBlock(const TargetAttentionParams& params, const Aligned& aligned)
      : Block<F>(params, aligned),
        queries(this->template at<T>(0)),
        weights(this->template at<T>(F::kWeights)),
        states(this->template at<RowState>(F::kStates)),
        depth(max(0, min(F::kWarpColumns, round_up(int(p.key_dim), 16) - column))),
        width(this->width_of(p.value_dim)),
        own_row(int(threadIdx.x) / F::kRowThreads),
        own_column(int(threadIdx.x) % F::kRowThreads),
        scale(float(p.scale) * kLog2E) {}

  // Products of the tile's query rows with a tile of history rows, a part for each slice, to shared memory.
  STCA_DEVICE void multiply_queries(const T* keys) const {
    this->template multiply<F::kRowFragments, F::kHistoryRows / 8>(
        queries + first_row * F::kPitch + column, keys + column, depth,
        this->sums + (this->slice * F::kRows + first_row) * F::kSumPitch);
  }

  // The thread's scores of its row in units of log 2, -inf for history rows that the row does not see. Returns the
  // largest one so far, of all threads of the row. The tile starts with history row `from`.
  STCA_DEVICE float read_scores(float (&scores)[F::kOwnScores], int from) const {
    const int begin = rows[own_row].begin, end = rows[own_row].end;
    float largest = -kInfinity;
#pragma unroll
    for (int i = 0; i < F::kOwnScores; ++i) {
      const int n = own_column + i * F::kRowThreads;
      const bool seen = begin <= from + n && from + n < end;
      const float score = this->product(own_row, n);
      scores[i] = seen ? rounded_product(scale, score) : -kInfinity;
      largest = scores[i] > largest ? scores[i] : largest;
    }
    for (int by = 1; by < F::kRowThreads; by *= 2) {
      const float other = shuffle_xor(largest, by);
      largest = other > largest ? other : largest;
    }
    const float row_max = states[own_row].row_max;
    return row_max > largest ? row_max : largest;
  }

  // Turns products into weights 2^(score - largest score so far), and says in the row's state what the output up to now
  // must be multiplied by for that.
  STCA_DEVICE void weigh(int from) const {
    float scores[F::kOwnScores];
    const float largest = read_scores(scores, from), row_max = states[own_row].row_max;
    const float shift = largest == -kInfinity ? 0.0f : largest;
    float added = 0;
#pragma unroll
    for (int i = 0; i < F::kOwnScores; ++i) {
      const float w = exp2f(scores[i] - shift);
      added += w;
      narrow(w, weights[own_row * F::kWeightPitch + own_column + i * F::kRowThreads]);
    }
    for (int by = 1; by < F::kRowThreads; by *= 2) added += shuffle_xor(added, by);
    sync_warp();  // all lanes of the row have read its state
    if (own_column == 0) {
      const float factor = exp2f(row_max - shift);
      states[own_row] = {largest, states[own_row].row_sum * factor + added, factor};
    }
  }

  // Multiplies each row of the output by its factor.
  STCA_DEVICE void rescale(Output& out) const {
    for_each_element(out, [&](int row, int, float& value) { value *= states[first_row + row].factor; });
  }

  // Adds weights times values of the tile to the output.
  STCA_DEVICE void add_values(Output& out, const T* values) const {
    rescale(out);
    warp_product<false, true, F::kHistoryRows>(out, weights + first_row * F::kWeightPitch, F::kWeightPitch,
                                               values + column, F::kPitch, F::kHistoryRows, width);
  }

  // Writes the row's largest score and sum of weights, and makes the factor what turns the output into the result.
  STCA_DEVICE void finish_row(int first, const Partials& partials) const {
    if (own_column != 0) return;
    RowState& own = states[own_row];
    own.factor = item.partial < 0 ? inverse(own.row_sum) : 1.0f;
    if (first + own_row >= item.query_rows) return;
    if (item.partial < 0) return write_max_and_sum(p, rows[own_row].index, own.row_max, own.row_sum);
    float* max_and_sum = partials.max_and_sum + 2 * (item.partial * F::kRows + own_row);
    max_and_sum[0] = own.row_max;
    max_and_sum[1] = own.row_sum;
  }
};

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_fwd_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule,
                                const Partials partials, const Aligned aligned) {
  using T = typename F::Element;
  const ForwardBlock<F> block(p, aligned);
  Item& item = block.item;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen = seen_by_tile<F::kRows, F::kThreads>(p, item, block.rows,
                                                           [&](int row) { return query_row(p, item, first + row); });
    using S = typename F::Stored;
    const HistoryTiles<F> history{block, seen, keys_of<S>(p, item), values_of<S>(p, item)};
    block.load_queries(block.queries, first);
    commit_copies();
    if (history.count() > 0) history.load(0);

    if (block.own_column == 0) block.states[block.own_row] = {-kInfinity, 0, 1};
    typename ForwardBlock<F>::Output out;
    clear(out);
    history.for_each([&](int tile) {
      block.multiply_queries(history.k(tile));
      sync_block();
      block.weigh(history.first_row(tile));
      sync_block();
      block.add_values(out, history.v(tile));
    });
    sync_block();
    block.finish_row(first, partials);
    sync_block();
    block.rescale(out);
    block.write_queries(out, first, p.value_dim, block.width, p.out, partials.sums);
  } while (item.more);
}

template <class F>
constexpr auto kKernel = &target_attention_fwd_kernel<F>;
template <class T, int kWidth, bool kShared, class S>
constexpr auto kKernel<FewRows<T, kWidth, kShared, S>> =
    &target_attention_fwd_few_kernel<FewRows<T, kWidth, kShared, S>>;

template <class T, int kWidth, bool kShared, class S>
using ForFewRows =
    std::conditional_t<sizeof(T) == 2 && kWidth <= 128, FewRows<T, kWidth, kShared, S>, Forward<T, kWidth, kShared, S>>;

template <class F>
Tiling tiling_of(const CudaDevice& device) {
  const int num_ranges = resident_blocks(device, kKernel<F>, F::kThreads, F::kBytes);
  return {F::kRows, F::kBlockRows, num_ranges, false};
}

template <class F>
int64_t workspace_of(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling tiling = tiling_of<F>(device);
  const int64_t rows = max_partials(tiling.num_ranges) * tiling.tile_rows;
  return aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)) +
         rows * (p.value_dim + 2) * int64_t(sizeof(float));
}

template <class F>
const char* enqueue(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  const Tiling tiling = tiling_of<F>(device);
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * F::kRows * p.value_dim};
  const char* error = launch_schedule(p, tiling, schedule, stream);
  if (error == nullptr) {
    error = launch("target_attention", kKernel<F>, {tiling.num_ranges, F::kThreads, F::kBytes}, stream, p, tiling,
                   schedule, partials, aligned_tensors(p, nullptr));
  }
  if (error != nullptr) return error;
  return launch_combine(p, tiling, schedule, partials, stream);
}

// The same for rows of int8 with scales.
int int8_shared_bytes(const TargetAttentionParams& p);
int64_t int8_workspace(const TargetAttentionParams& p, const CudaDevice& device);
const char* launch_int8(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream);

}  // namespace cuda
}  // namespace stca
