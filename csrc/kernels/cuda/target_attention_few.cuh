// Forward pass of target_attention where a request has few query rows of a history head, 16 at most on average: then
// reading the history takes the time, and nothing may hold it up.
//
// A block holds 16 query rows, and each of its warps streams history tiles of its own through shared memory of its own:
// no barrier of the block stands in the loop. A warp has the queries, scores, weights and outputs in registers. What
// the warps have found is added up at the end, in their order.
#pragma once

#include "int8_tile.cuh"

namespace stca {
namespace cuda {

template <class T, int kWidth, bool kKeysAreValues, class S>
struct FewRows : Columns<T, kWidth, S> {
  using C = Columns<T, kWidth, S>;
  using C::kMaxWidth;
  using C::kPitch;
  using C::kScaled;
  static constexpr bool kShared = kKeysAreValues;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRows = 16;                                           // query rows of a tile
  static constexpr int kHistoryRows = kShared || kMaxWidth == 64 ? 32 : 16;  // history rows of a warp's tile
  static constexpr int kBlockRows = kWarps * kHistoryRows;                   // of the tiles of all warps
  static constexpr int kStages = kScaled ? 1 : 2;
  static constexpr int kBlocks = kMaxWidth == 64 ? 3 : 2;  // of a multiprocessor that the registers must suffice for

  // Shared memory, in bytes from its start. The outputs of a warp take the place of its tiles.
  static constexpr int kTile = kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kBytesOfKeys = (kShared ? 1 : 2) * kStages * kTile;
  static constexpr int kBytesOfTile = kScaled ? Int8Tile<T, kMaxWidth, kHistoryRows, kWarp>::kBytes : 0;
  static constexpr int kRing = kBytesOfKeys + (kShared ? 1 : 2) * kBytesOfTile;  // of a warp
  static constexpr int kQueries = kWarps * kRing;
  static constexpr int kStates = kQueries + kRows * kPitch * int(sizeof(T));
  static constexpr int kInfo = kStates + kWarps * kRows * int(sizeof(float2));
  static constexpr int kItem = kInfo + kRows * int(sizeof(QueryRow));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= 99 * 1024, "every GPU has the shared memory");
  static_assert(kRows * kMaxWidth * int(sizeof(float)) <= kRing);
};

// Rows lane / 4 and lane / 4 + 8 of the queries, scores and outputs belong to a lane, as fragments of mma.
template <class F>
struct FewRowsWarp {
  using T = typename F::Element;
  static constexpr int kScores = F::kHistoryRows / 8, kOutputs = F::kMaxWidth / 8;

  const TargetAttentionParams& p;
  const QueryRow* rows;  // [kRows] in shared memory
  char* ring;            // the warp's own
  int depth, width;      // columns of q and k, in whole steps of a product, and of v
  float scale;           // of a score in units of log 2
  uint32_t queries[F::kMaxWidth / 16][1][4];
  float out[1][kOutputs][4];
  float row_max[2] = {-kInfinity, -kInfinity}, row_sum[2] = {0, 0};

  STCA_DEVICE FewRowsWarp(const TargetAttentionParams& p, const QueryRow* rows, char* ring, const T* query_tile)
      : p(p),
        rows(rows),
        ring(ring),
        depth(round_up(int(p.key_dim), 16)),
        width(int(p.value_dim)),
        scale(float(p.scale) * kLog2E) {
    const HalfTiles<false, false, T, 1, 2> tiles(query_tile, F::kPitch, nullptr, 0);
#pragma unroll
    for (int k = 0; k < F::kMaxWidth / 16; ++k) {
      if (16 * k < depth) tiles.load_left(queries[k], 16 * k);
    }
    clear(out);
  }

  STCA_DEVICE T* keys(int stage) const { return reinterpret_cast<T*>(ring + stage * F::kTile); }
  STCA_DEVICE T* values(int stage) const { return keys(F::kShared ? stage : F::kStages + stage); }

  // Calls f(half, column, value) for what the lane has of a fragment array: of its first row, half 0, or its second.
  template <int N, class Use>
  STCA_DEVICE static void for_each(float (&c)[1][N][4], Use f) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(i / 2, 8 * n + 2 * (int(threadIdx.x) % 4) + i % 2, c[0][n][i]);
    }
  }

  // Products of the queries with a tile of history rows.
  STCA_DEVICE void multiply_queries(float (&scores)[1][kScores][4], int stage) const {
    const HalfTiles<false, false, T, 1, kScores> tiles(nullptr, 0, keys(stage), F::kPitch);
    clear(scores);
#pragma unroll
    for (int k = 0; k < F::kMaxWidth / 16; ++k) {
      if (16 * k >= depth) continue;
#pragma unroll
      for (int n = 0; n < kScores; n += 2) {
        uint32_t right[4];
        tiles.load_right(right, 16 * k, n);
        tiles.multiply(scores, queries[k], right, n);
      }
    }
  }

  // Turns products into scores in units of log 2, -inf for history rows that a row does not see, and then into weights
  // 2^(score - largest score so far). The tile starts with history row `from`. Returns what the outputs up to now must
  // be multiplied by for that.
  STCA_DEVICE float2 weigh(float (&scores)[1][kScores][4], int from) {
    const QueryRow *upper = rows + int(threadIdx.x) % kWarp / 4, *lower = upper + 8;
    const int begin[2] = {upper->begin - from, lower->begin - from}, end[2] = {upper->end - from, lower->end - from};
    float largest[2] = {row_max[0], row_max[1]}, factor[2], shift[2];
    for_each(scores, [&](int half, int n, float& score) {
      score = begin[half] <= n && n < end[half] ? rounded_product(scale, score) : -kInfinity;
      largest[half] = score > largest[half] ? score : largest[half];
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int by = 1; by < 4; by *= 2) {
        const float other = shuffle_xor(largest[half], by);
        largest[half] = other > largest[half] ? other : largest[half];
      }
      shift[half] = largest[half] == -kInfinity ? 0.0f : largest[half];
      factor[half] = exp2f(row_max[half] - shift[half]);
      row_max[half] = largest[half];
      row_sum[half] *= factor[half];
    }
    for_each(scores, [&](int half, int, float& score) {
      score = exp2f(score - shift[half]);
      row_sum[half] += score;
    });
    return {factor[0], factor[1]};
  }

  // Adds weights times values of the tile to the outputs. Fragments of weights are the left operands as they are.
  STCA_DEVICE void add_values(const float (&weights)[1][kScores][4], int stage) {
    const HalfTiles<false, true, T, 1, kOutputs> tiles(nullptr, 0, values(stage), F::kPitch);
#pragma unroll
    for (int k = 0; k < kScores / 2; ++k) {
      uint32_t left[1][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&pair)[4] = weights[0][2 * k + i / 2];
        T narrowed[2];
        narrow(pair[i % 2 * 2], narrowed[0]);
        narrow(pair[i % 2 * 2 + 1], narrowed[1]);
        memcpy(&left[0][i], narrowed, sizeof(narrowed));
      }
#pragma unroll
      for (int n = 0; n < kOutputs; n += 2) {
        if (8 * n >= width) continue;
        uint32_t right[4];
        tiles.load_right(right, 16 * k, n);
        tiles.multiply(out, left, right, n);
      }
    }
  }

  STCA_DEVICE void use(int stage, int from) {
    float scores[1][kScores][4];
    multiply_queries(scores, stage);
    const float2 factor = weigh(scores, from);
    for_each(out, [&](int half, int, float& value) { value *= half == 0 ? factor.x : factor.y; });
    add_values(scores, stage);
  }

  // Leaves the outputs in place of the tiles, and the rows' largest scores and sums of weights.
  STCA_DEVICE void leave(float2* states) {
    const int lane = int(threadIdx.x) % kWarp;
    float* outputs = reinterpret_cast<float*>(ring);
    for_each_element(out, [&](int row, int d, float value) { outputs[row * F::kMaxWidth + d] = value; });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int by = 1; by < 4; by *= 2) row_sum[half] += shuffle_xor(row_sum[half], by);
      if (lane % 4 == 0) states[lane / 4 + 8 * half] = {row_max[half], row_sum[half]};
    }
  }
};

// The history tiles of an item that one warp takes, every kWarps-th. Rows of int8 come through bytes of a tile, and one
// stage.
template <class F>
struct WarpTiles {
  using T = typename F::Element;
  using S = typename F::Stored;
  using Bytes = Int8Tile<T, F::kMaxWidth, F::kHistoryRows, kWarp>;

  const TargetAttentionParams& p;
  const Aligned& aligned;
  FewRowsWarp<F>& own;
  Range seen;
  History<S> keys, values;

  // Asks for a tile, if there is such a one, by turns at place 0 and 1.
  STCA_DEVICE void load(int tile, int place) const {
    const int from = seen.begin + tile * F::kHistoryRows, lane = int(threadIdx.x) % kWarp;
    if (from < seen.end) {
      if constexpr (F::kScaled) {
        bytes(0).load(place, keys, from, seen.end, p.key_dim, aligned.k);
        if constexpr (!F::kShared) bytes(1).load(place, values, from, seen.end, p.value_dim, aligned.v);
      } else {
        load_history_rows<F::kMaxWidth, F::kHistoryRows, kWarp>(own.keys(place), keys, from, seen.end, p.key_dim,
                                                                aligned.k, lane);
        if constexpr (!F::kShared) {
          load_history_rows<F::kMaxWidth, F::kHistoryRows, kWarp>(own.values(place), values, from, seen.end,
                                                                  p.value_dim, aligned.v, lane);
        }
      }
    }
    commit_copies();
  }

  STCA_DEVICE void use_all() const {
    const int first = int(threadIdx.x) / kWarp;
    load(first, 0);
    int place = 0;
    for (int tile = first; seen.begin + tile * F::kHistoryRows < seen.end; tile += F::kWarps, place ^= 1) {
      if constexpr (F::kScaled) {
        wait_copies<0>();
        sync_warp();
        bytes(0).convert(place, int(p.key_dim), own.keys(0));
        if constexpr (!F::kShared) bytes(1).convert(place, int(p.value_dim), own.values(0));
      }
      load(tile + F::kWarps, place ^ 1);
      if constexpr (!F::kScaled) wait_copies<1>();
      sync_warp();
      own.use(F::kScaled ? 0 : place, seen.begin + tile * F::kHistoryRows);
      sync_warp();  // the next tile but one takes this one's place; of int8 the next one
    }
    wait_copies<0>();
    sync_warp();
  }

 private:
  STCA_DEVICE Bytes bytes(int which) const {
    return {own.ring + F::kBytesOfKeys + which * F::kBytesOfTile, int(threadIdx.x) % kWarp};
  }
};

// Adds up what the warps have left, and writes results, or partial results where several ranges share the tile.
template <class F>
STCA_DEVICE void finish_few_rows(const TargetAttentionParams& p, const Item& item, const QueryRow* rows, char* memory,
                                 const Partials& partials) {
  using T = typename F::Element;
  constexpr int kRowThreads = F::kThreads / F::kRows;
  const int row = int(threadIdx.x) / kRowThreads, first = int(threadIdx.x) % kRowThreads;
  if (item.tile * F::kRows + row >= item.query_rows) return;
  const float2* states = reinterpret_cast<const float2*>(memory + F::kStates) + row;
  float row_max = -kInfinity, row_sum = 0, weights[F::kWarps];
#pragma unroll
  for (int w = 0; w < F::kWarps; ++w) row_max = max(row_max, states[w * F::kRows].x);
  const float shift = row_max == -kInfinity ? 0.0f : row_max;
#pragma unroll
  for (int w = 0; w < F::kWarps; ++w) {
    weights[w] = exp2f(states[w * F::kRows].x - shift);
    row_sum += states[w * F::kRows].y * weights[w];
  }
  const auto output = [&](int d) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < F::kWarps; ++w) {
      sum += weights[w] * reinterpret_cast<const float*>(memory + w * F::kRing)[row * F::kMaxWidth + d];
    }
    return sum;
  };
  const int width = int(p.value_dim);
  if (item.partial < 0) {
    T* to = static_cast<T*>(p.out) + rows[row].index * width;
    const float factor = inverse(row_sum);
    for (int d = first; d < width; d += kRowThreads) narrow(output(d) * factor, to[d]);
    if (first == 0) write_max_and_sum(p, rows[row].index, row_max, row_sum);
  } else {
    const int64_t at = int64_t(item.partial) * F::kRows + row;
    for (int d = first; d < width; d += kRowThreads) partials.sums[at * width + d] = output(d);
    if (first == 0) partials.max_and_sum[2 * at] = row_max;
    if (first == 0) partials.max_and_sum[2 * at + 1] = row_sum;
  }
}

template <class F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks)
    target_attention_fwd_few_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule,
                                    const Partials partials, const Aligned aligned) {
  using T = typename F::Element;
  using S = typename F::Stored;
  char* memory = shared_memory();
  Item& item = *reinterpret_cast<Item*>(memory + F::kItem);
  QueryRow* rows = reinterpret_cast<QueryRow*>(memory + F::kInfo);
  T* queries = reinterpret_cast<T*>(memory + F::kQueries);
  const int warp = int(threadIdx.x) / kWarp;
  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen =
        seen_by_tile<F::kRows, F::kThreads>(p, item, rows, [&](int row) { return query_row(p, item, first + row); });
    load_rows<F::kMaxWidth, F::kRows, F::kThreads>(queries, item.query_rows - first, int(p.key_dim), aligned.q,
                                                   [&](int row) { return static_cast<const T*>(p.q) + rows[row].q; });
    commit_copies();
    wait_copies<0>();
    sync_block();

    FewRowsWarp<F> own(p, rows, memory + warp * F::kRing, queries);
    const WarpTiles<F> tiles{p, aligned, own, seen, keys_of<S>(p, item), values_of<S>(p, item)};
    tiles.use_all();
    own.leave(reinterpret_cast<float2*>(memory + F::kStates) + warp * F::kRows);
    sync_block();
    finish_few_rows<F>(p, item, rows, memory, partials);
  } while (item.more);
}

}  // namespace cuda
}  // namespace stca
