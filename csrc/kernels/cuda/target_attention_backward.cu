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

template <class T, int kCap, bool kShared>
struct BackwardRows : Columns<T, kCap> {
  using Columns<T, kCap>::kSlices;
  using Columns<T, kCap>::kPitch;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices == 1 || (kHalf && kSlices == 2) ? 4 : kSlices == 8 ? 1 : 2;
  static constexpr int kM = kHalf && kCap == 1024 ? 2 : 1;                      // 16-row fragments of a warp
  static constexpr int kColumns = 16 * kM * kRowWarps;                          // history rows of a tile
  static constexpr int kRows = kHalf && (kCap < 256 || kCap == 512) ? 32 : 16;  // query rows of a tile
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  static constexpr int kElements = kRows * kColumns / kThreads;  // scores of a tile that a thread turns into p and ds
  static constexpr int kSumPitch = kColumns + 4;
  static constexpr int kWeightPitch = kColumns + 16 / int(sizeof(T));

  static constexpr int kQueryTile = kRows * kPitch * int(sizeof(T));
  static constexpr int kKeys = 0;
  static constexpr int kValues = kShared ? 0 : kColumns * kPitch * int(sizeof(T));
  static constexpr int kQueries = kValues + kColumns * kPitch * int(sizeof(T));
  static constexpr int kDouts = kQueries + kQueryTile;
  static constexpr int kSums = kDouts + kQueryTile;
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kDs = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kInfo = kDs + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kItem = kInfo + kRows * int(sizeof(Row));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= (kHalf || kCap < 1024 ? kSharedBytes : kLargeSharedBytes));
  static_assert(kRows * kColumns % kThreads == 0);
};

template <class T, int kCap, bool kShared>
__global__ void __launch_bounds__(BackwardRows<T, kCap, kShared>::kThreads, 1)
    differentiate_rows(const TargetAttentionBackwardParams b, const Cut cut, const Work work, const Weighing* weighing,
                       const Aligned aligned) {
  using F = BackwardRows<T, kCap, kShared>;
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
  const int warp = int(threadIdx.x) / kWarp, slice = warp % F::kSlices, first_row = warp / F::kSlices * 16 * F::kM;
  const int column = slice * F::kWarpColumns;
  const int key_width = max(0, min(F::kWarpColumns, int(p.key_dim) - column));
  const int value_width = max(0, min(F::kWarpColumns, int(p.value_dim) - column));

  if (!start_range(&item, work, int(blockIdx.x))) return;
  do {
    load_item(&item, p, cut, work, int(blockIdx.x));
    load_history_rows<kCap, F::kColumns, F::kThreads>(keys, p, item, item.split_begin, item.split_end, p.k,
                                                      p.k_row_stride, p.k_head_stride, p.key_dim, aligned.k);
    if constexpr (!kShared) {
      load_history_rows<kCap, F::kColumns, F::kThreads>(values, p, item, item.split_begin, item.split_end, p.v,
                                                        p.v_row_stride, p.v_head_stride, p.value_dim, aligned.v);
    }
    commit_copies();

    float dk[F::kM][F::kWarpColumns / 8][4];
    float dv[kShared ? 1 : F::kM][kShared ? 2 : F::kWarpColumns / 8][4];  // unused where v is k
    clear(dk);
    clear(dv);
    for (int first = 0; first < item.query_rows; first += F::kRows) {
      load_query_rows<kCap, F::kRows, F::kThreads>(queries, p, item, first, p.q, p.q_target_stride, p.q_head_stride,
                                                   p.key_dim, aligned.q);
      load_query_rows<kCap, F::kRows, F::kThreads>(douts, p, item, first, b.dout, p.heads * p.value_dim, p.value_dim,
                                                   p.value_dim, aligned.dout);
      commit_copies();
      load_rows_info<F::kRows, F::kThreads>(rows, p, item, first, weighing, int(threadIdx.x));
      wait_copies<0>();
      sync_block();

      // Slices' sums of a product [kRows, kColumns] to shared memory.
      auto contract = [&](const T* left, const T* right, int width) {
        float c[F::kRows / 16][2 * F::kM][4];
        clear(c);
        warp_product<false, false>(c, left + column, F::kPitch, right + first_row * F::kPitch + column, F::kPitch,
                                   round_up(width, 16));
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
        score[i] = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, at / F::kColumns, at % F::kColumns);
      }
      sync_block();
      contract(douts, values, value_width);
      sync_block();
#pragma unroll
      for (int i = 0; i < F::kElements; ++i) {
        const int at = int(threadIdx.x) + i * F::kThreads, row = at / F::kColumns, n = at % F::kColumns;
        const float dp = sum_of_slices<F::kSlices, F::kRows, F::kSumPitch>(sums, row, n);
        const Weights w = weights_of(rows[row], item.split_begin + n, item.split_end, float(p.scale), score[i], dp);
        narrow(w.p, weights[row * F::kWeightPitch + n]);
        narrow(w.ds, ds[row * F::kWeightPitch + n]);
      }
      sync_block();
      warp_product<true, true>(dk, ds + first_row, F::kWeightPitch, queries + column, F::kPitch, F::kRows, key_width);
      if constexpr (kShared) {
        warp_product<true, true>(dk, weights + first_row, F::kWeightPitch, douts + column, F::kPitch, F::kRows,
                                 value_width);
      } else {
        warp_product<true, true>(dv, weights + first_row, F::kWeightPitch, douts + column, F::kPitch, F::kRows,
                                 value_width);
      }
      sync_block();
    }
    wait_copies<0>();

    auto write = [&](auto& c, void* to, int64_t dim, int width) {
      for_each_element(c, [&](int row, int d, float value) {
        const int n = item.split_begin + first_row + row;
        if (n >= item.split_end || d >= width) return;
        const int64_t at = ((item.row_begin + n) * p.kv_heads + item.kv_head) * dim + column + d;
        if (b.wide) {
          static_cast<float*>(to)[at] = value;
        } else {
          narrow(value, static_cast<T*>(to)[at]);
        }
      });
    };
    write(dk, b.dk, p.key_dim, key_width);
    if constexpr (!kShared) write(dv, b.dv, p.value_dim, value_width);
  } while (item.more);
}

template <class T, int kCap, bool kShared>
const char* enqueue(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace, Stream stream) {
  using F = BackwardRows<T, kCap, kShared>;
  const TargetAttentionParams& p = b.forward;
  const int slots = slots_of(device, &differentiate_rows<T, kCap, kShared>, F::kThreads, F::kBytes);
  const Cut cut{F::kColumns, F::kRows, slots, true};
  const Work work = work_at(workspace, p.num_requests, cut.slots);
  if (const char* error = launch_work(p, cut, work, stream)) return error;
  return launch("target_attention backward of history", &differentiate_rows<T, kCap, kShared>, cut.slots, F::kThreads,
                F::kBytes, stream, b, cut, work, weighing_at(workspace, p, device), aligned_tensors(p, b.dout));
}

}  // namespace

const char* launch_backward_of_history(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                       void* workspace, Stream stream) {
  return visit_case(params.forward, [&](auto type, auto width, auto shared) {
    using T = typename decltype(type)::element;
    return enqueue<T, decltype(width)::value, decltype(shared)::value>(params, device, workspace, stream);
  });
}

}  // namespace cuda
}  // namespace stca
