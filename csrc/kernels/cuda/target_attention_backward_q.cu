// Gradient of q of target_attention on CUDA, and the order of the backward kernels.
//
// As in the forward pass a block holds a tile of query rows, with dout, and streams its split of the history through:
// scores and dp, from them ds, then dq += ds k in registers. Splits write partial sums, added up in order.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "combine.cuh"
#include "target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace {

template <class T, int kMaxWidth, bool kShared>
struct BackwardQueries : Columns<T, kMaxWidth> {
  using Columns<T, kMaxWidth>::kSlices;
  using Columns<T, kMaxWidth>::kPitch;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices == 1 || (kHalf && kSlices == 2)   ? 4
                                   : kSlices == 2 || (kHalf && kSlices == 4) ? 2
                                                                             : 1;
  static constexpr int kRows = 16 * kRowWarps;                             // query rows of a tile
  static constexpr int kHistoryRows = kHalf && kMaxWidth < 512 ? 32 : 16;  // history rows of a tile
  static constexpr int kStages = !kHalf && kMaxWidth == 1024 ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kHalf && kMaxWidth == 64 ? 3 : kHalf && (kMaxWidth == 128 || kMaxWidth == 512) ? 2 : 1;
  static constexpr int kElements = kRows * kHistoryRows / kThreads;  // scores of a tile that a thread turns into ds
  static constexpr int kSumPitch = kHistoryRows + 4;
  static constexpr int kDsPitch = kHistoryRows + 16 / int(sizeof(T));

  static constexpr int kTile = kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kDouts = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 2 * kDouts;
  static constexpr int kValues = kKeys + (kShared ? 0 : kStages * kTile);
  static constexpr int kSums = kValues + kStages * kTile;
  static constexpr int kDs = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kDs + kRows * kDsPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(Row));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kMaxWidth < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kHistoryRows % kThreads == 0);
};

template <class T, int kMaxWidth, bool kShared>
__global__ void __launch_bounds__(BackwardQueries<T, kMaxWidth, kShared>::kThreads,
                                  BackwardQueries<T, kMaxWidth, kShared>::kBlocks)
    target_attention_bwd_dq_kernel(const TargetAttentionBackwardParams b, const Tiling tiling, const Schedule schedule,
                                   const Weighing* weighing, float* partials, const Aligned aligned) {
  using F = BackwardQueries<T, kMaxWidth, kShared>;
  const TargetAttentionParams& p = b.forward;
  char* memory = shared_memory();
  T* queries = reinterpret_cast<T*>(memory);
  T* douts = reinterpret_cast<T*>(memory + F::kDouts);
  float* sums = reinterpret_cast<float*>(memory + F::kSums);
  T* ds = reinterpret_cast<T*>(memory + F::kDs);
  Row* rows = reinterpret_cast<Row*>(memory + F::kInfo);
  Item& item = *reinterpret_cast<Item*>(memory + F::kItem);
  auto stage = [&](int start, int tile) { return reinterpret_cast<T*>(memory + start + tile % F::kStages * F::kTile); };
  const int warp = int(threadIdx.x) / kWarp, slice = warp % F::kSlices, first_row = warp / F::kSlices * 16;
  const int column = slice * F::kWarpColumns;
  const int key_width = max(0, min(F::kWarpColumns, int(p.key_dim) - column));
  const int value_width = max(0, min(F::kWarpColumns, int(p.value_dim) - column));

  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen = seen_by_tile<F::kRows, F::kThreads>(
        p, item, rows, [&](int row) { return backward_row(p, item, first + row, weighing); });
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
    load_rows<kMaxWidth, F::kRows, F::kThreads>(
        douts, item.query_rows - first, int(p.value_dim), aligned.dout,
        [&](int row) { return static_cast<const T*>(b.dout) + rows[row].dout; });
    commit_copies();
    if (tiles > 0) load_tile(0);

    float dq[1][F::kWarpColumns / 8][4];
    clear(dq);
    for (int tile = 0; tile < tiles; ++tile) {
      wait_copies<0>();
      sync_block();
      if (F::kStages > 1 && tile + 1 < tiles) load_tile(tile + 1);

      auto contract = [&](const T* left, const T* right, int width) {
        float c[1][F::kHistoryRows / 8][4];
        clear(c);
        warp_product<false, false, F::kWarpColumns>(c, left + first_row * F::kPitch + column, F::kPitch, right + column,
                                                    F::kPitch, round_up(width, 16));
        for_each_element(c, [&](int row, int n, float value) {
          sums[(slice * F::kRows + first_row + row) * F::kSumPitch + n] = value;
        });
      };
      float score[F::kElements];
      contract(queries, stage(F::kKeys, tile), key_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads;
        score[i] = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, at / F::kHistoryRows, at % F::kHistoryRows);
      }
      sync_block();
      contract(douts, stage(F::kValues, tile), value_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads, row = at / F::kHistoryRows, n = at % F::kHistoryRows;
        const float dp = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, row, n);
        const int history_row = begin + tile * F::kHistoryRows + n;
        narrow(weights_of(rows[row], history_row, float(p.scale), score[i], dp).ds, ds[row * F::kDsPitch + n]);
      }
      sync_block();
      warp_product<false, true, F::kHistoryRows>(dq, ds + first_row * F::kDsPitch, F::kDsPitch,
                                                 stage(F::kKeys, tile) + column, F::kPitch, F::kHistoryRows, key_width);
      if (F::kStages == 1 && tile + 1 < tiles) {
        sync_block();
        load_tile(tile + 1);
      }
    }
    wait_copies<0>();

    const int query_rows = item.query_rows - first - first_row;
    if (item.partial < 0) {
      store_rows<T>(dq, key_width, [&](int row) {
        return row < query_rows ? static_cast<T*>(b.dq) + rows[first_row + row].index * p.key_dim + column : nullptr;
      });
    } else {
      float* to = partials + (int64_t(item.partial) * F::kRows + first_row) * p.key_dim + column;
      store_rows<float>(dq, key_width, [&](int row) { return row < query_rows ? to + row * p.key_dim : nullptr; });
    }
  } while (item.more);
}

constexpr int kWarps = 4;

// One warp for each (target, head).
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    target_attention_bwd_preprocess_kernel(const TargetAttentionBackwardParams b, Weighing* weighing) {
  const TargetAttentionParams& p = b.forward;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t at = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (at >= p.num_targets * p.heads) return;
  float sum = 0;
  for (int64_t d = lane; d < p.value_dim; d += kWarp) {
    const int64_t i = at * p.value_dim + d;
    sum += widen(static_cast<const T*>(b.dout)[i]) * widen(static_cast<const T*>(p.out)[i]);
  }
  for (int by = 1; by < kWarp; by *= 2) sum += shuffle_xor(sum, by);
  if (lane != 0) return;
  const float* max_and_sum = static_cast<const float*>(p.max_and_sum) + 2 * at;
  const float dlse = b.dlse == nullptr ? 0.0f : static_cast<const float*>(b.dlse)[at];
  weighing[at] = {max_and_sum[0], inverse(max_and_sum[1]), sum - dlse, 0};
}

// Adds up the partial dq of a query row whose tile several ranges share, in order of splits.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    target_attention_bwd_dq_combine_kernel(const TargetAttentionBackwardParams b, const Tiling tiling,
                                           const Schedule schedule, const float* partials, const Combine combine) {
  const TargetAttentionParams& p = b.forward;
  const int64_t number = blockIdx.x / combine.parts;
  if (number >= schedule.combine_begin[tiling.num_ranges]) return;
  const SplitRow row = split_row(p, tiling, schedule, number);
  T* dq = static_cast<T*>(b.dq) + row.index * p.key_dim;
  add_splits(
      row, partials, p.key_dim, combine, int(blockIdx.x % combine.parts), [](int64_t) { return 1.0f; },
      [&](int d, float sum) { narrow(sum, dq[d]); });
}

template <class T, int kMaxWidth, bool kShared>
Tiling tiling_of(const CudaDevice& device) {
  using F = BackwardQueries<T, kMaxWidth, kShared>;
  const int num_ranges =
      resident_blocks(device, &target_attention_bwd_dq_kernel<T, kMaxWidth, kShared>, F::kThreads, F::kBytes);
  return {F::kRows, F::kHistoryRows, num_ranges, false};
}

template <class T, int kMaxWidth, bool kShared>
const char* enqueue(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace, Stream stream) {
  using F = BackwardQueries<T, kMaxWidth, kShared>;
  const TargetAttentionParams& p = b.forward;
  const Tiling tiling = tiling_of<T, kMaxWidth, kShared>(device);
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  Weighing* weighing = weighing_at(workspace, p, device);
  float* partials = reinterpret_cast<float*>(reinterpret_cast<char*>(weighing) + weighing_bytes(p));
  const int64_t blocks = divide_up(p.num_targets * p.heads, kWarps);
  const char* error = launch("target_attention weighing", &target_attention_bwd_preprocess_kernel<T>, blocks,
                             kWarps * kWarp, 0, stream, b, weighing);
#if defined(STCA_SM90)
  if (error == nullptr && sm90::takes_backward(b, device)) {
    return sm90::launch_backward(b, device, workspace, weighing, partials, stream);
  }
#endif
  if (error == nullptr) error = launch_backward_of_history(b, device, workspace, stream);
  if (error == nullptr)
    error = launch_schedule(p, tiling, schedule, stream);  // in the place of the one before, which is done
  if (error == nullptr) {
    error = launch("target_attention backward of q", &target_attention_bwd_dq_kernel<T, kMaxWidth, kShared>,
                   tiling.num_ranges, F::kThreads, F::kBytes, stream, b, tiling, schedule, weighing, partials,
                   aligned_tensors(p, b.dout));
  }
  if (error != nullptr) return error;
  return launch_combine_dq(b, tiling, schedule, partials, stream);
}

template <class T, int kMaxWidth, bool kShared>
int64_t workspace_of(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling tiling = tiling_of<T, kMaxWidth, kShared>(device);
  int64_t rows = max_partials(tiling.num_ranges) * tiling.tile_rows;
#if defined(STCA_SM90)
  if (sm90::takes(p, device)) rows = max(rows, sm90::partial_rows(device));
#endif
  return max_schedule_bytes(p, device) + weighing_bytes(p) + rows * p.key_dim * int64_t(sizeof(float));
}

}  // namespace

const char* launch_combine_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                              const float* partials, Stream stream) {
  const Combine rows = combine_of(b.forward, tiling, b.forward.key_dim);
  return visit_cuda_dtype(b.forward.dtype, [&](auto type) {
    return launch("target_attention combine of dq",
                  &target_attention_bwd_dq_combine_kernel<typename decltype(type)::element>, rows.grid(),
                  kCombineThreads, kCombineBytes, stream, b, tiling, schedule, partials, rows);
  });
}

}  // namespace cuda

int target_attention_backward_cuda_shared_bytes(const TargetAttentionParams& params) {
  const int queries = cuda::visit_case(params, [](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::BackwardQueries<T, decltype(width)::value, decltype(shared)::value>::kBytes;
  });
  return cuda::max(queries, cuda::backward_shared_bytes_of_history(params));
}

int64_t target_attention_backward_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device) {
  return cuda::visit_case(params, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::workspace_of<T, decltype(width)::value, decltype(shared)::value>(params, device);
  });
}

const char* target_attention_backward_cuda(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                           void* workspace, void* stream) {
  return cuda::visit_case(params.forward, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return cuda::enqueue<T, decltype(width)::value, decltype(shared)::value>(params, device, workspace,
                                                                             static_cast<cuda::Stream>(stream));
  });
}

}  // namespace stca
