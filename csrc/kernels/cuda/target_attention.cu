// Forward pass of target_attention on CUDA (formula and shapes: ../target_attention.h; source: mission.md section 1).
//
// A block holds a tile of query rows in shared memory and streams its split of the history through it: scores of a tile
// of history rows, online softmax, weights times values. Scores never leave the block. When v is k, one tile serves
// both products. Two tiles are in flight: the next is copied while this one is used.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "merge.cuh"

namespace stca {
namespace cuda {
namespace {

// Of a query row, in shared memory: registers are scarce.
struct Softmax {
  float most, weight;  // the largest score in units of log 2, and the sum of 2^(score - most)
  float factor;        // of what was added up before the last tile
};

template <class T, int kCap, bool kShared>
struct Forward : Columns<T, kCap> {
  using Columns<T, kCap>::kSlices;
  using Columns<T, kCap>::kPitch;
  using Columns<T, kCap>::kWarpColumns;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRowWarps = kSlices <= 2 ? 4 : 8 / kSlices;
  static constexpr int kM = kHalf && kCap == 1024 ? 2 : 1;         // 16-row fragments of a warp
  static constexpr int kRows = 16 * kM * kRowWarps;                // query rows of a tile
  static constexpr int kColumns = kHalf && kCap < 1024 ? 32 : 16;  // history rows of a tile
  static constexpr int kStages = !kHalf && kCap == 1024 ? 1 : 2;
  static constexpr int kThreads = kWarp * kRowWarps * kSlices;
  // Blocks of a multiprocessor that the registers must suffice for, where shared memory does.
  static constexpr int kBlocks = kCap == 64 ? 4 : kThreads == 128 ? 3 : 1;
  static constexpr int kRowThreads = kThreads / kRows;  // that share the softmax of a row
  static constexpr int kSumPitch = kColumns + 4;
  static constexpr int kWeightPitch = kColumns + 16 / int(sizeof(T));

  // Shared memory, in bytes from its start.
  static constexpr int kTile = kColumns * kPitch * int(sizeof(T));
  static constexpr int kKeys = kRows * kPitch * int(sizeof(T));
  static constexpr int kValues = kKeys + kStages * kTile;
  static constexpr int kSums = kValues + (kShared ? 0 : kStages * kTile);
  static constexpr int kWeights = kSums + kSlices * kRows * kSumPitch * 4;
  static constexpr int kInfo = kWeights + kRows * kWeightPitch * int(sizeof(T));
  static constexpr int kStates = kInfo + kRows * int(sizeof(QueryRow));
  static constexpr int kItem = kStates + kRows * int(sizeof(Softmax));
  static constexpr int kBytes = kItem + int(sizeof(Item));
  static_assert(kBytes <= kSharedBytes);
  static_assert(kRowThreads <= kColumns && kWarp % kRowThreads == 0);
};

template <class T, int kCap, bool kShared>
__global__ void __launch_bounds__(Forward<T, kCap, kShared>::kThreads, Forward<T, kCap, kShared>::kBlocks)
    attend(const TargetAttentionParams p, const Cut cut, const Work work, const Partials partials,
           const Aligned aligned) {
  using F = Forward<T, kCap, kShared>;
  char* memory = shared_memory();
  T* queries = reinterpret_cast<T*>(memory);
  float* sums = reinterpret_cast<float*>(memory + F::kSums);
  T* weights = reinterpret_cast<T*>(memory + F::kWeights);
  QueryRow* rows = reinterpret_cast<QueryRow*>(memory + F::kInfo);
  Softmax* states = reinterpret_cast<Softmax*>(memory + F::kStates);
  Item& item = *reinterpret_cast<Item*>(memory + F::kItem);
  auto stage = [&](int start, int tile) { return reinterpret_cast<T*>(memory + start + tile % F::kStages * F::kTile); };
  const int warp = int(threadIdx.x) / kWarp, slice = warp % F::kSlices, first_row = warp / F::kSlices * 16 * F::kM;
  const int column = slice * F::kWarpColumns;
  const int depth = max(0, min(F::kWarpColumns, round_up(int(p.key_dim), 16) - column));
  const int width = max(0, min(F::kWarpColumns, int(p.value_dim) - column));
  const int own_row = int(threadIdx.x) / F::kRowThreads, own_column = int(threadIdx.x) % F::kRowThreads;
  const float scale = float(p.scale) * kLog2E;

  if (!start_range(&item, work, int(blockIdx.x))) return;
  do {
    load_item(&item, p, cut, work, int(blockIdx.x));
    const int first = item.tile * F::kRows;
    const Range seen =
        seen_by_tile<F::kRows, F::kThreads>(p, item, rows, [&](int row) { return query_row(p, item, first + row); });
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
    commit_copies();
    if (tiles > 0) load_tile(0);

    if (own_column == 0) states[own_row] = {-infinity(), 0, 1};
    float out[F::kM][F::kWarpColumns / 8][4];
    clear(out);
    for (int tile = 0; tile < tiles; ++tile) {
      wait_copies<0>();
      sync_block();
      if (F::kStages > 1 && tile + 1 < tiles) load_tile(tile + 1);

      float scores[F::kM][F::kColumns / 8][4];
      clear(scores);
      warp_product<false, false, F::kWarpColumns>(scores, queries + first_row * F::kPitch + column, F::kPitch,
                                                  stage(F::kKeys, tile) + column, F::kPitch, depth);
      for_each_element(scores, [&](int row, int n, float value) {
        sums[(slice * F::kRows + first_row + row) * F::kSumPitch + n] = value;
      });
      sync_block();

      const int from = begin + tile * F::kColumns;
      const int sees_begin = rows[own_row].begin, sees_end = rows[own_row].end;
      float own[F::kColumns / F::kRowThreads];
      float largest = -infinity();
#pragma unroll
      for (int i = 0; i < F::kColumns / F::kRowThreads; ++i) {
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
      const float most = states[own_row].most;
      largest = most > largest ? most : largest;
      const float shift = largest == -infinity() ? 0.0f : largest;
      float added = 0;
#pragma unroll
      for (int i = 0; i < F::kColumns / F::kRowThreads; ++i) {
        const float w = exp2(own[i] - shift);
        added += w;
        narrow(w, weights[own_row * F::kWeightPitch + own_column + i * F::kRowThreads]);
      }
      for (int by = 1; by < F::kRowThreads; by *= 2) added += shuffle_xor(added, by);
      sync_warp();  // all lanes of the row have read its state
      if (own_column == 0) {
        const float factor = exp2(most - shift);
        states[own_row] = {largest, states[own_row].weight * factor + added, factor};
      }
      sync_block();

      for_each_element(out, [&](int row, int, float& value) { value *= states[first_row + row].factor; });
      warp_product<false, true, F::kColumns>(out, weights + first_row * F::kWeightPitch, F::kWeightPitch,
                                             stage(kShared ? F::kKeys : F::kValues, tile) + column, F::kPitch,
                                             F::kColumns, width);
      if (F::kStages == 1 && tile + 1 < tiles) {
        sync_block();
        load_tile(tile + 1);
      }
    }
    wait_copies<0>();
    sync_block();

    if (own_column == 0) {
      Softmax& own = states[own_row];
      own.factor = item.partial < 0 ? inverse(own.weight) : 1.0f;
      if (first + own_row < item.query_rows) {
        if (item.partial < 0) {
          write_softmax(p, rows[own_row].index, own.most, own.weight);
        } else {
          float* softmax = partials.softmax + 2 * (item.partial * F::kRows + own_row);
          softmax[0] = own.most;
          softmax[1] = own.weight;
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
__global__ void __launch_bounds__(kMergeThreads)
    merge(const TargetAttentionParams p, const Cut cut, const Work work, const Partials partials, const Merge merge) {
  const int part = int(blockIdx.x % merge.parts), lane = int(threadIdx.x) % kWarp;
  const int64_t number = blockIdx.x / merge.parts;
  if (number >= work.merge_begin[cut.slots]) return;
  const SplitRow row = split_row(p, cut, work, number);
  const auto softmax = [&](int s) { return partials.softmax + 2 * row.partial(s); };
  float most = -infinity(), weight = 0;
  for (int s = lane; s < row.splits; s += kWarp) most = max(most, softmax(s)[0]);
  for (int by = 1; by < kWarp; by *= 2) most = max(most, shuffle_xor(most, by));
  const float shift = most == -infinity() ? 0.0f : most;
  for (int s = lane; s < row.splits; s += kWarp) weight += softmax(s)[1] * exp2(softmax(s)[0] - shift);
  for (int by = 1; by < kWarp; by *= 2) weight += shuffle_xor(weight, by);

  if (part == 0 && threadIdx.x == 0) write_softmax(p, row.index, most, weight);

  T* out = static_cast<T*>(p.out) + row.index * p.value_dim;
  const float scale = inverse(weight);
  add_splits(
      row, partials.sums, p.value_dim, merge, part,
      [&](int64_t partial) { return exp2(partials.softmax[2 * partial] - shift); },
      [&](int d, float sum) { narrow(sum * scale, out[d]); });
}

template <class T, int kCap, bool kShared>
Cut cut_of(const CudaDevice& device) {
  using F = Forward<T, kCap, kShared>;
  return {F::kRows, F::kColumns, slots_of(device, &attend<T, kCap, kShared>, F::kThreads, F::kBytes), false};
}

template <class T, int kCap, bool kShared>
int64_t workspace_of(const TargetAttentionParams& p, const CudaDevice& device) {
  const Cut cut = cut_of<T, kCap, kShared>(device);
  const int64_t rows = most_partials(cut.slots) * cut.tile_rows;
  return aligned_bytes(work_bytes(p.num_requests, cut.slots)) + rows * (p.value_dim + 2) * int64_t(sizeof(float));
}

template <class T, int kCap, bool kShared>
const char* enqueue(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  using F = Forward<T, kCap, kShared>;
  const Cut cut = cut_of<T, kCap, kShared>(device);
  const Work work = work_at(workspace, p.num_requests, cut.slots);
  float* sums =
      reinterpret_cast<float*>(static_cast<char*>(workspace) + aligned_bytes(work_bytes(p.num_requests, cut.slots)));
  const Partials partials{sums, sums + most_partials(cut.slots) * F::kRows * p.value_dim};
  if (const char* error = launch_work(p, cut, work, stream)) return error;
  const char* error = launch("target_attention", &attend<T, kCap, kShared>, cut.slots, F::kThreads, F::kBytes, stream,
                             p, cut, work, partials, aligned_tensors(p, nullptr));
  if (error != nullptr) return error;
  return launch_merge(p, cut, work, partials, stream);
}

}  // namespace

const char* launch_merge(const TargetAttentionParams& p, const Cut& cut, const Work& work, const Partials& partials,
                         Stream stream) {
  const Merge rows = merge_of(p, cut, p.value_dim);
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    return launch("target_attention merge", &merge<typename decltype(type)::element>, rows.grid(), kMergeThreads,
                  kMergeBytes, stream, p, cut, work, partials, rows);
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
