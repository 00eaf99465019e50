// Gradient of q of target_attention on CUDA, and the order of the backward kernels.
//
// As in the forward pass a block holds a tile of query rows, with dout, and streams its split of the history through:
// scores and dp, from them ds, then dq += ds k in registers. Splits write partial sums, added up in order.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "merge.cuh"
#include "target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace {

template <class T, int kCap, bool kShared>
struct BackwardQueries : Columns<T, kCap> {
  using Columns<T, kCap>::kSlices;
  using Columns<T, kCap>::kPitch;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices == 1 || (kHalf && kSlices == 2)   ? 4
                                   : kSlices == 2 || (kHalf && kSlices == 4) ? 2
                                                                             : 1;
  static constexpr int kRows = 16 * kRowWarps;                    // query rows of a tile
  static constexpr int kColumns = kHalf && kCap < 512 ? 32 : 16;  // history rows of a tile
  static constexpr int kStages = !kHalf && kCap == 1024 ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kHalf && kCap == 64 ? 3 : kHalf && (kCap == 128 || kCap == 512) ? 2 : 1;
  static constexpr int kElements = kRows * kColumns / kThreads;  // scores of a tile that a thread turns into ds
  static constexpr int kSumPitch = kColumns + 4;
  static constexpr int kDsPitch = kColumns + 16 / int(sizeof(T));

  static constexpr int kTile = kColumns * kPitch * int(sizeof(T));
  static constexpr int kDouts = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 2 * kDouts;
  static constexpr int kValues = kKeys + (kShared ? 0 : kStages * kTile);
  static constexpr int kSums = kValues + kStages * kTile;
  static constexpr int kDs = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kDs + kRows * kDsPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(Row));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kCap < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kColumns % kThreads == 0);
};

template <class T, int kCap, bool kShared>
__global__ void __launch_bounds__(BackwardQueries<T, kCap, kShared>::kThreads,
                                  BackwardQueries<T, kCap, kShared>::kBlocks)
    differentiate_queries(const TargetAttentionBackwardParams b, const Cut cut, const Work work,
                          const Weighing* weighing, float* partials, const Aligned aligned) {
  using F = BackwardQueries<T, kCap, kShared>;
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

  if (!start_range(&item, work, int(blockIdx.x))) return;
  do {
    load_item(&item, p, cut, work, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen = seen_by_tile<F::kRows, F::kThreads>(
        p, item, rows, [&](int row) { return backward_row(p, item, first + row, weighing); });
    const int begin = seen.begin, end = seen.end;
    const int tiles = (end - begin + F::kColumns - 1) / F::kColumns;

    const History<T> keys = history_of<T>(p, item, p.k, p.k_row_stride, p.k_head_stride);
    const History<T> values = history_of<T>(p, item, p.v, p.v_row_stride, p.v_head_stride);
    auto load_tile = [&](int tile) {
      const int from = begin + tile * F::kColumns;
      load_history_rows<kCap, F::kColumns, F::kThreads>(stage(F::kKeys, tile), keys, from, end, p.key_dim, aligned.k);
      if constexpr (!kShared) {
        load_history_rows<kCap, F::kColumns, F::kThreads>(stage(F::kValues, tile), values, from, end, p.value_dim,
                                                          aligned.v);
      }
      commit_copies();
    };
    load_rows<kCap, F::kRows, F::kThreads>(queries, item.query_rows - first, int(p.key_dim), aligned.q,
                                           [&](int row) { return static_cast<const T*>(p.q) + rows[row].q; });
    load_rows<kCap, F::kRows, F::kThreads>(douts, item.query_rows - first, int(p.value_dim), aligned.dout,
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
        float c[1][F::kColumns / 8][4];
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
        score[i] = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, at / F::kColumns, at % F::kColumns);
      }
      sync_block();
      contract(douts, stage(F::kValues, tile), value_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads, row = at / F::kColumns, n = at % F::kColumns;
        const float dp = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, row, n);
        const int history_row = begin + tile * F::kColumns + n;
        narrow(weights_of(rows[row], history_row, float(p.scale), score[i], dp).ds, ds[row * F::kDsPitch + n]);
      }
      sync_block();
      warp_product<false, true, F::kColumns>(dq, ds + first_row * F::kDsPitch, F::kDsPitch,
                                             stage(F::kKeys, tile) + column, F::kPitch, F::kColumns, key_width);
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
__global__ void __launch_bounds__(kWarps* kWarp) weigh(const TargetAttentionBackwardParams b, Weighing* weighing) {
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
  const float* softmax = static_cast<const float*>(p.softmax) + 2 * at;
  const float dlse = b.dlse == nullptr ? 0.0f : static_cast<const float*>(b.dlse)[at];
  weighing[at] = {softmax[0], inverse(softmax[1]), sum - dlse, 0};
}

// Adds up the partial dq of a query row whose tile several ranges share, in order of splits.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge(const TargetAttentionBackwardParams b, const Cut cut,
                                                       const Work work, const float* partials, const Merge merge) {
  const TargetAttentionParams& p = b.forward;
  const int64_t number = blockIdx.x / merge.parts;
  if (number >= work.merge_begin[cut.slots]) return;
  const SplitRow row = split_row(p, cut, work, number);
  T* dq = static_cast<T*>(b.dq) + row.index * p.key_dim;
  add_splits(
      row, partials, p.key_dim, merge, int(blockIdx.x % merge.parts), [](int64_t) { return 1.0f; },
      [&](int d, float sum) { narrow(sum, dq[d]); });
}

template <class T, int kCap, bool kShared>
Cut cut_of(const CudaDevice& device) {
  using F = BackwardQueries<T, kCap, kShared>;
  const int slots = slots_of(device, &differentiate_queries<T, kCap, kShared>, F::kThreads, F::kBytes);
  return {F::kRows, F::kColumns, slots, false};
}

template <class T, int kCap, bool kShared>
const char* enqueue(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace, Stream stream) {
  using F = BackwardQueries<T, kCap, kShared>;
  const TargetAttentionParams& p = b.forward;
  const Cut cut = cut_of<T, kCap, kShared>(device);
  const Work work = work_at(workspace, p.num_requests, cut.slots);
  Weighing* weighing = weighing_at(workspace, p, device);
  float* partials = reinterpret_cast<float*>(reinterpret_cast<char*>(weighing) + weighing_bytes(p));
  const int64_t blocks = divide_up(p.num_targets * p.heads, kWarps);
  const char* error = launch("target_attention weighing", &weigh<T>, blocks, kWarps * kWarp, 0, stream, b, weighing);
#if defined(STCA_SM90)
  if (error == nullptr && sm90::takes_backward(b, device)) {
    return sm90::launch_backward(b, device, workspace, weighing, partials, stream);
  }
#endif
  if (error == nullptr) error = launch_backward_of_history(b, device, workspace, stream);
  if (error == nullptr) error = launch_work(p, cut, work, stream);  // in the place of the one before, which is done
  if (error == nullptr) {
    error = launch("target_attention backward of q", &differentiate_queries<T, kCap, kShared>, cut.slots, F::kThreads,
                   F::kBytes, stream, b, cut, work, weighing, partials, aligned_tensors(p, b.dout));
  }
  if (error != nullptr) return error;
  return launch_merge_of_q(b, cut, work, partials, stream);
}

template <class T, int kCap, bool kShared>
int64_t workspace_of(const TargetAttentionParams& p, const CudaDevice& device) {
  const Cut cut = cut_of<T, kCap, kShared>(device);
  int64_t rows = most_partials(cut.slots) * cut.tile_rows;
#if defined(STCA_SM90)
  if (sm90::takes(p, device)) rows = max(rows, sm90::partial_rows(device));
#endif
  return most_work_bytes(p, device) + weighing_bytes(p) + rows * p.key_dim * int64_t(sizeof(float));
}

}  // namespace

const char* launch_merge_of_q(const TargetAttentionBackwardParams& b, const Cut& cut, const Work& work,
                              const float* partials, Stream stream) {
  const Merge rows = merge_of(b.forward, cut, b.forward.key_dim);
  return visit_cuda_dtype(b.forward.dtype, [&](auto type) {
    return launch("target_attention merge of dq", &merge<typename decltype(type)::element>, rows.grid(), kMergeThreads,
                  kMergeBytes, stream, b, cut, work, partials, rows);
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
