// Forward pass of target_attention on CUDA (formula and shapes: ../target_attention.h; source: docs/mathematics.md).
//
// A block holds a tile of query rows in shared memory and streams its split of the history through it: scores of a tile
// of history rows, online softmax, weights times values. Scores never leave the block. When v is k, one tile serves
// both products. Two tiles are in flight: the next is copied while this one is used.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "combine.cuh"

namespace stca {
namespace cuda {
namespace {

// Of a query row, in shared memory: registers are scarce.
struct RowState {
  float row_max, row_sum;  // the largest score in units of log 2, and the sum of 2^(score - row_max)
  float factor;            // of what was added up before the last tile
};

template <class T, int kMaxWidth, bool kShared>
struct Forward : Columns<T, kMaxWidth> {
  using Columns<T, kMaxWidth>::kSlices;
  using Columns<T, kMaxWidth>::kPitch;
  using Columns<T, kMaxWidth>::kWarpColumns;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices <= 2 ? 4 : 8 / kSlices;
  static constexpr int kRowFragments = kHalf && kMaxWidth == 1024 ? 2 : 1;  // 16-row fragments of a warp
  static constexpr int kRows = 16 * kRowFragments * kRowWarps;              // query rows of a tile
  static constexpr int kHistoryRows = kHalf && kMaxWidth < 1024 ? 32 : 16;  // history rows of a tile
  static constexpr int kStages = !kHalf && kMaxWidth == 1024 ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kMaxWidth == 64 ? 4 : kThreads == 128 ? 3 : 1;
  static constexpr int kRowThreads = kThreads / kRows;  // that share the softmax of a row
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kWeightPitch = kHistoryRows + 16 / int(sizeof(T));

  // Shared memory, in bytes from its start.
  static constexpr int kTile = kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = kRows * kPitch * int(sizeof(T));
  static constexpr int kValues = kKeys + kStages * kTile;
  static constexpr int kSums = kValues + (kShared ? 0 : kStages * kTile);
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kStates = kInfo + kRows * int(sizeof(QueryRow));
  static constexpr int kItem = kStates + kRows * int(sizeof(RowState));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= kSharedBytes);
  static_assert(kRowThreads <= kHistoryRows && kWarp % kRowThreads == 0);
};

template <class T, int kMaxWidth, bool kShared>
__global__ void __launch_bounds__(Forward<T, kMaxWidth, kShared>::kThreads, Forward<T, kMaxWidth, kShared>::kBlocks)
    target_attention_fwd_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule,
                                const Partials partials, const Aligned aligned) {
  using F = Forward<T, kMaxWidth, kShared>;
  char* memory = shared_memory();
  T* queries = reinterpret_cast<T*>(memory);
  float* sums = reinterpret_cast<float*>(memory + F::kSums);
  T* weights = reinterpret_cast<T*>(memory + F::kWeights);
  QueryRow* rows = reinterpret_cast<QueryRow*>(memory + F::kInfo);
  RowState* states = reinterpret_cast<RowState*>(memory + F::kStates);
  Item& item = *reinterpret_cast<Item*>(memory + F::kItem);
  auto stage = [&](int start, int tile) { return reinterpret_cast<T*>(memory + start + tile % F::kStages * F::kTile); };
  const int warp = int(threadIdx.x) / kWarp, slice = warp % F::kSlices,
            first_row = warp / F::kSlices * 16 * F::kRowFragments;
  const int column = slice * F::kWarpColumns;
  const int depth = max(0, min(F::kWarpColumns, round_up(int(p.key_dim), 16) - column));
  const int width = max(0, min(F::kWarpColumns, int(p.value_dim) - column));
  const int own_row = int(threadIdx.x) / F::kRowThreads, own_column = int(threadIdx.x) % F::kRowThreads;
  const float scale = float(p.scale) * kLog2E;

  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen =
        seen_by_tile<F::kRows, F::kThreads>(p, item, rows, [&](int row) { return query_row(p, item, first + row); });
    const int begin = seen.begin, end = seen.end;
    const int tiles = (end - begin + F::kHistoryRows - 1) / F::kHistoryRows;

    const History<T> keys = history_of<T>(p, item, p.k, p.k_row_stride, p.k_head_stride);
    const History<T> values = history_of<T>(p, item, p.v, p.v_row_stride, p.v_head_stride);
    auto load_tile = [&](int tile) {
      const int from = begin + tile * F::kHistoryRows;
      load_history_rows<kMaxWidth, F::kHistoryRows, F::kThreads>(stage(F::kKeys, tile), keys, from, end, p.key_dim,
                                                                 aligned.k);
      if constexpr (!kShared) {
        load_history_rows<kMaxWidth, F::kHistoryRows, F::kThreads>(stage(F::kValues, tile), values, from, end,
                                                                   p.value_dim, aligned.v);
      }
      commit_copies();
    };
    load_rows<kMaxWidth, F::kRows, F::kThreads>(queries, item.query_rows - first, int(p.key_dim), aligned.q,
                                                [&](int row) { return static_cast<const T*>(p.q) + rows[row].q; });
    commit_copies();
    if (tiles > 0) load_tile(0);

    if (own_column == 0) states[own_row] = {-infinity(), 0, 1};
    float out[F::kRowFragments][F::kWarpColumns / 8][4];
    clear(out);
    for (int tile = 0; tile < tiles; ++tile) {
      wait_copies<0>();
      sync_block();
      if (F::kStages > 1 && tile + 1 < tiles) load_tile(tile + 1);

      float scores[F::kRowFragments][F::kHistoryRows / 8][4];
      clear(scores);
      warp_product<false, false, F::kWarpColumns>(scores, queries + first_row * F::kPitch + column, F::kPitch,
                                                  stage(F::kKeys, tile) + column, F::kPitch, depth);
      for_each_element(scores, [&](int row, int n, float value) {
        sums[(slice * F::kRows + first_row + row) * F::kSumPitch + n] = value;
      });
      sync_block();

      const int from = begin + tile * F::kHistoryRows;
      const int sees_begin = rows[own_row].begin, sees_end = rows[own_row].end;
      float own[F::kHistoryRows / F::kRowThreads];
      float largest = -infinity();
#pragma unroll
      for (int i = 0; i < F::kHistoryRows / F::kRowThreads; ++i) {
        const int n = own_column + i * F::kRowThreads;
        const bool seen = sees_begin <= from + n && from + n < sees_end;
        const float score = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, own_row, n);
        own[i] = seen ? rounded_product(scale, score) : -infinity();
        largest = own[i] > largest ? own[i] : largest;
      }
      for (int by = 1; by < F::kRowThreads; by *= 2) {
        const float other = shuffle_xor(largest, by);
        largest = other > largest ? other : largest;
      }
      const float row_max = states[own_row].row_max;
      largest = row_max > largest ? row_max : largest;
      const float shift = largest == -infinity() ? 0.0f : largest;
      float added = 0;
#pragma unroll
      for (int i = 0; i < F::kHistoryRows / F::kRowThreads; ++i) {
        const float w = exp2(own[i] - shift);
        added += w;
        narrow(w, weights[own_row * F::kWeightPitch + own_column + i * F::kRowThreads]);
      }
      for (int by = 1; by < F::kRowThreads; by *= 2) added += shuffle_xor(added, by);
      sync_warp();  // all lanes of the row have read its state
      if (own_column == 0) {
        const float factor = exp2(row_max - shift);
        states[own_row] = {largest, states[own_row].row_sum * factor + added, factor};
      }
      sync_block();

      for_each_element(out, [&](int row, int, float& value) { value *= states[first_row + row].factor; });
      warp_product<false, true, F::kHistoryRows>(out, weights + first_row * F::kWeightPitch, F::kWeightPitch,
                                                 stage(kShared ? F::kKeys : F::kValues, tile) + column, F::kPitch,
                                                 F::kHistoryRows, width);
      if (F::kStages == 1 && tile + 1 < tiles) {
        sync_block();
        load_tile(tile + 1);
      }
    }
    wait_copies<0>();
    sync_block();

    if (own_column == 0) {
      RowState& own = states[own_row];
      own.factor = item.partial < 0 ? inverse(own.row_sum) : 1.0f;
      if (first + own_row < item.query_rows) {
        if (item.partial < 0) {
          write_max_and_sum(p, rows[own_row].index, own.row_max, own.row_sum);
        } else {
          float* max_and_sum = partials.max_and_sum + 2 * (item.partial * F::kRows + own_row);
          max_and_sum[0] = own.row_max;
          max_and_sum[1] = own.row_sum;
        }
      }
    }
    sync_block();
    for_each_element(out, [&](int row, int, float& value) { value *= states[first_row + row].factor; });
    const int query_rows = item.query_rows - first - first_row;
    if (item.partial < 0) {
      store_rows<T>(out, width, [&](int row) {
        return row < query_rows ? static_cast<T*>(p.out) + rows[first_row + row].index * p.value_dim + column : nullptr;
      });
    } else {
      float* to = partials.sums + (int64_t(item.partial) * F::kRows + first_row) * p.value_dim + column;
      store_rows<float>(out, width, [&](int row) { return row < query_rows ? to + row * p.value_dim : nullptr; });
    }
  } while (item.more);
}

// Adds up the partial results of a query row whose tile several ranges share, weighted, in order of splits. Each warp
// finds the weights for itself: that is less than a barrier.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    target_attention_fwd_combine_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule,
                                        const Partials partials, const Combine combine) {
  const int part = int(blockIdx.x % combine.parts), lane = int(threadIdx.x) % kWarp;
  const int64_t number = blockIdx.x / combine.parts;
  if (number >= schedule.combine_begin[tiling.num_ranges]) return;
  const SplitRow row = split_row(p, tiling, schedule, number);
  const auto state = [&](int s) { return partials.max_and_sum + 2 * row.partial(s); };
  float row_max = -infinity(), row_sum = 0;
  for (int s = lane; s < row.splits; s += kWarp) row_max = max(row_max, state(s)[0]);
  for (int by = 1; by < kWarp; by *= 2) row_max = max(row_max, shuffle_xor(row_max, by));
  const float shift = row_max == -infinity() ? 0.0f : row_max;
  for (int s = lane; s < row.splits; s += kWarp) row_sum += state(s)[1] * exp2(state(s)[0] - shift);
  for (int by = 1; by < kWarp; by *= 2) row_sum += shuffle_xor(row_sum, by);

  if (part == 0 && threadIdx.x == 0) write_max_and_sum(p, row.index, row_max, row_sum);

  T* out = static_cast<T*>(p.out) + row.index * p.value_dim;
  const float scale = inverse(row_sum);
  add_splits(
      row, partials.sums, p.value_dim, combine, part,
      [&](int64_t partial) { return exp2(partials.max_and_sum[2 * partial] - shift); },
      [&](int d, float sum) { narrow(sum * scale, out[d]); });
}

template <class T, int kMaxWidth, bool kShared>
Tiling tiling_of(const CudaDevice& device) {
  using F = Forward<T, kMaxWidth, kShared>;
  return {F::kRows, F::kHistoryRows,
          resident_blocks(device, &target_attention_fwd_kernel<T, kMaxWidth, kShared>, F::kThreads, F::kBytes), false};
}

template <class T, int kMaxWidth, bool kShared>
int64_t workspace_of(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling tiling = tiling_of<T, kMaxWidth, kShared>(device);
  const int64_t rows = max_partials(tiling.num_ranges) * tiling.tile_rows;
  return aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)) +
         rows * (p.value_dim + 2) * int64_t(sizeof(float));
}

template <class T, int kMaxWidth, bool kShared>
const char* enqueue(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  using F = Forward<T, kMaxWidth, kShared>;
  const Tiling tiling = tiling_of<T, kMaxWidth, kShared>(device);
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * F::kRows * p.value_dim};
  if (const char* error = launch_schedule(p, tiling, schedule, stream)) return error;
  const char* error =
      launch("target_attention", &target_attention_fwd_kernel<T, kMaxWidth, kShared>, tiling.num_ranges, F::kThreads,
             F::kBytes, stream, p, tiling, schedule, partials, aligned_tensors(p, nullptr));
  if (error != nullptr) return error;
  return launch_combine(p, tiling, schedule, partials, stream);
}

}  // namespace

const char* launch_combine(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           const Partials& partials, Stream stream) {
  const Combine rows = combine_of(p, tiling, p.value_dim);
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    return launch("target_attention combine", &target_attention_fwd_combine_kernel<typename decltype(type)::element>,
                  rows.grid(), kCombineThreads, kCombineBytes, stream, p, tiling, schedule, partials, rows);
  });
}

}  // namespace cuda

const char* target_attention_cuda_refusal(const TargetAttentionParams& p) {
  if (p.shared && p.key_dim > 1024) return "a width of at most 1024 when v is None";
  if (!p.shared && cuda::max(p.key_dim, p.value_dim) > 256) return "widths of at most 256 when v is given";
  return nullptr;
}

int target_attention_cuda_shared_bytes(const TargetAttentionParams& params) {
  return cuda::visit_case(params, [](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::Forward<T, decltype(width)::value, decltype(shared)::value>::kBytes;
  });
}

int64_t target_attention_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device) {
#if defined(STCA_SM90)
  if (cuda::sm90::takes(params, device)) return cuda::sm90::workspace(params, device);
#endif
  return cuda::visit_case(params, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::workspace_of<T, decltype(width)::value, decltype(shared)::value>(params, device);
  });
}

const char* target_attention_cuda(const TargetAttentionParams& params, const CudaDevice& device, void* workspace,
                                  void* stream) {
  if (params.num_targets == 0) return nullptr;
#if defined(STCA_SM90)
  if (cuda::sm90::takes(params, device)) {
    return cuda::sm90::launch_forward(params, device, workspace, static_cast<cuda::Stream>(stream));
  }
#endif
  return cuda::visit_case(params, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::enqueue<T, decltype(width)::value, decltype(shared)::value>(params, device, workspace,
                                                                             static_cast<cuda::Stream>(stream));
  });
}

}  // namespace stca
