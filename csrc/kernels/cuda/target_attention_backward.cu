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

template <class T, int kMaxWidth, bool kShared>
struct BackwardRows : Columns<T, kMaxWidth> {
  using Columns<T, kMaxWidth>::kSlices;
  using Columns<T, kMaxWidth>::kPitch;
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
  static constexpr int kWeightPitch = kHistoryRows + 16 / int(sizeof(T));

  static constexpr int kQueryTile = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 0;
  static constexpr int kValues = kShared ? 0 : kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kQueries = kValues + kHistoryRows * kPitch * int(sizeof(T));
  static constexpr int kDouts = kQueries + kQueryTile;
  static constexpr int kSums = kDouts + kQueryTile;
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kDs = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kInfo = kDs + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(Row));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kMaxWidth < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kHistoryRows % kThreads == 0);
};

template <class T, int kMaxWidth, bool kShared>
__global__ void __launch_bounds__(BackwardRows<T, kMaxWidth, kShared>::kThreads,
                                  BackwardRows<T, kMaxWidth, kShared>::kBlocks)
    target_attention_bwd_dkv_kernel(const TargetAttentionBackwardParams b, const Tiling tiling, const Schedule schedule,
                                    const Weighing* weighing, const Aligned aligned) {
  using F = BackwardRows<T, kMaxWidth, kShared>;
  const TargetAttentionParams& p = b.forward;
  char* memory = shared_memory();
  T* keys = reinterpret_cast<T*>(memory + F::kKeys);
  T* values = reinterpret_cast<T*>(memory + F::kValues);
  T* queries = reinterpret_cast<T*>(memory + F::kQueries);
  T* douts = reinterpret_cast<T*>(memory + F::kDouts);
  float* sums = reinterpret_cast<float*>(memory + F::kSums);
  T* weights = reinterpret_cast<T*>(memory + F::kWeights);
  T* ds = reinterpret_cast<T*>(memory + F::kDs);
  Row* rows = reinterpret_cast<Row*>(memory + F::kInfo);
  Item& item = *reinterpret_cast<Item*>(memory + F::kItem);
  const int warp = int(threadIdx.x) / kWarp, slice = warp % F::kSlices,
            first_row = warp / F::kSlices * 16 * F::kRowFragments;
  const int column = slice * F::kWarpColumns;
  const int key_width = max(0, min(F::kWarpColumns, int(p.key_dim) - column));
  const int value_width = max(0, min(F::kWarpColumns, int(p.value_dim) - column));

  if (!start_range(&item, schedule, int(blockIdx.x))) return;
  do {
    load_item(&item, p, tiling, schedule, int(blockIdx.x));
    load_history_rows<kMaxWidth, F::kHistoryRows, F::kThreads>(
        keys, history_of<T>(p, item, p.k, p.k_row_stride, p.k_head_stride), item.split_begin, item.split_end, p.key_dim,
        aligned.k);
    if constexpr (!kShared) {
      load_history_rows<kMaxWidth, F::kHistoryRows, F::kThreads>(
          values, history_of<T>(p, item, p.v, p.v_row_stride, p.v_head_stride), item.split_begin, item.split_end,
          p.value_dim, aligned.v);
    }
    commit_copies();

    float dk[F::kRowFragments][F::kWarpColumns / 8][4];
    float dv[kShared ? 1 : F::kRowFragments][kShared ? 2 : F::kWarpColumns / 8][4];  // unused where v is k
    clear(dk);
    clear(dv);
    for (int first = 0; first < item.query_rows; first += F::kRows) {
      sync_block();  // all threads are done with the tile before
      const Range seen = seen_by_tile<F::kRows, F::kThreads>(
          p, item, rows, [&](int row) { return backward_row(p, item, first + row, weighing); });
      if (seen.begin == seen.end) continue;
      load_rows<kMaxWidth, F::kRows, F::kThreads>(queries, item.query_rows - first, int(p.key_dim), aligned.q,
                                                  [&](int row) { return static_cast<const T*>(p.q) + rows[row].q; });
      load_rows<kMaxWidth, F::kRows, F::kThreads>(
          douts, item.query_rows - first, int(p.value_dim), aligned.dout,
          [&](int row) { return static_cast<const T*>(b.dout) + rows[row].dout; });
      commit_copies();
      wait_copies<0>();
      sync_block();

      // Slices' sums of a product [kRows, kHistoryRows] to shared memory.
      auto contract = [&](const T* left, const T* right, int width) {
        float c[F::kRows / 16][2 * F::kRowFragments][4];
        clear(c);
        warp_product<false, false, F::kWarpColumns>(c, left + column, F::kPitch, right + first_row * F::kPitch + column,
                                                    F::kPitch, round_up(width, 16));
        for_each_element(c, [&](int row, int n, float value) {
          sums[(slice * F::kRows + row) * F::kSumPitch + first_row + n] = value;
        });
      };
      float score[F::kElements];
      contract(queries, keys, key_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads;
        score[i] = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, at / F::kHistoryRows, at % F::kHistoryRows);
      }
      sync_block();
      contract(douts, values, value_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads, row = at / F::kHistoryRows, n = at % F::kHistoryRows;
        const float dp = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, row, n);
        const Weights w = weights_of(rows[row], item.split_begin + n, float(p.scale), score[i], dp);
        narrow(w.p, weights[row * F::kWeightPitch + n]);
        narrow(w.ds, ds[row * F::kWeightPitch + n]);
      }
      sync_block();
      warp_product<true, true, F::kRows>(dk, ds + first_row, F::kWeightPitch, queries + column, F::kPitch, F::kRows,
                                         key_width);
      if constexpr (kShared) {
        warp_product<true, true, F::kRows>(dk, weights + first_row, F::kWeightPitch, douts + column, F::kPitch,
                                           F::kRows, value_width);
      } else {
        warp_product<true, true, F::kRows>(dv, weights + first_row, F::kWeightPitch, douts + column, F::kPitch,
                                           F::kRows, value_width);
      }
    }
    wait_copies<0>();

    auto write = [&](auto& c, auto* to, int64_t dim, int width) {
      const int history_rows = item.split_end - item.split_begin - first_row;
      const int64_t first = item.row_begin + item.split_begin + first_row;
      to += (first * p.kv_heads + item.kv_head) * dim + column;
      store_rows<std::remove_reference_t<decltype(*to)>>(
          c, width, [&](int row) { return row < history_rows ? to + row * p.kv_heads * dim : nullptr; });
    };
    auto write_as_asked = [&](auto& c, void* to, int64_t dim, int width) {
      if (b.wide) {
        write(c, static_cast<float*>(to), dim, width);
      } else {
        write(c, static_cast<T*>(to), dim, width);
      }
    };
    write_as_asked(dk, b.dk, p.key_dim, key_width);
    if constexpr (!kShared) write_as_asked(dv, b.dv, p.value_dim, value_width);
  } while (item.more);
}

template <class T, int kMaxWidth, bool kShared>
const char* enqueue(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace, Stream stream) {
  using F = BackwardRows<T, kMaxWidth, kShared>;
  const TargetAttentionParams& p = b.forward;
  const int num_ranges =
      resident_blocks(device, &target_attention_bwd_dkv_kernel<T, kMaxWidth, kShared>, F::kThreads, F::kBytes);
  const Tiling tiling{F::kHistoryRows, F::kRows, num_ranges, true};
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  if (const char* error = launch_schedule(p, tiling, schedule, stream)) return error;
  return launch("target_attention backward of history", &target_attention_bwd_dkv_kernel<T, kMaxWidth, kShared>,
                tiling.num_ranges, F::kThreads, F::kBytes, stream, b, tiling, schedule,
                weighing_at(workspace, p, device), aligned_tensors(p, b.dout));
}

}  // namespace

int backward_shared_bytes_of_history(const TargetAttentionParams& params) {
  return visit_case(params, [](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return BackwardRows<T, decltype(width)::value, decltype(shared)::value>::kBytes;
  });
}

const char* launch_backward_of_history(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                       void* workspace, Stream stream) {
  return visit_case(params.forward, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return enqueue<T, decltype(width)::value, decltype(shared)::value>(params, device, workspace, stream);
  });
}

}  // namespace cuda
}  // namespace stca
