// What the forward and the backward kernels of target_attention share.
#pragma once

#include <limits>
#include <type_traits>

#include "../target_attention_cuda.h"
#include "choice.h"
#include "schedule.cuh"

namespace stca {
namespace cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSharedBytes = 163 * 1024;  // of one block, on sm_80

// Which tensors have all their rows at multiples of 16 bytes.
struct Aligned {
  bool q, k, v, dout;
};

// Whether rows of the history are int8: those of k and of v, which differ on the CPU alone.
inline bool has_scales(const TargetAttentionParams& p) { return p.k_scale.data != nullptr; }

inline Aligned aligned_tensors(const TargetAttentionParams& p, const void* dout) {
  const int64_t size = element_size(p.dtype), row_size = has_scales(p) ? 1 : size;
  return {rows_aligned(p.q, size, p.q_target_stride, p.q_head_stride),
          rows_aligned(p.k, row_size, p.k_row_stride, p.k_head_stride),
          rows_aligned(p.v, row_size, p.v_row_stride, p.v_head_stride),
          rows_aligned(dout, size, p.heads * p.value_dim, p.value_dim)};
}

// What a block knows of a query row of its item, in shared memory, so that it is found once and not at every use.
struct QueryRow {
  int64_t index;   // target * H + head, its row of contiguous [T, H, ...] tensors
  int64_t q;       // where it starts in q, in elements
  int begin, end;  // what it sees of the item's split, history rows from the request's first
};

// Describes query row `row` in [0, m * G); one past the last sees nothing.
STCA_DEVICE QueryRow query_row(const TargetAttentionParams& p, const Item& item, int row) {
  if (row >= item.query_rows) return {0, 0, item.split_begin, item.split_begin};
  const int group = int(p.heads / p.kv_heads);
  const int64_t target = item.target_begin + row / group, head = int64_t(item.kv_head) * group + row % group;
  QueryRow own{target * p.heads + head, target * p.q_target_stride + head * p.q_head_stride, item.split_begin,
               item.split_end};
  if (p.visible != nullptr) {
    const int64_t begin = p.visible[2 * target], end = p.visible[2 * target + 1];
    if (begin < 0 || begin > end || end > item.history_rows) report(p.reports, CudaCheck::kVisible);
    own.begin = int(max(int64_t(item.split_begin), min(int64_t(item.split_end), begin)));
    own.end = int(max(int64_t(item.split_begin), min(int64_t(item.split_end), end)));
  }
  return own;
}

// Whether a request has few query rows of a history head, on average: how many each one has is known to the GPU alone.
inline bool has_few_rows(const TargetAttentionParams& p) {
  return element_size(p.dtype) == 2 && max(p.key_dim, p.value_dim) <= 128 &&
         p.num_targets * (p.heads / p.kv_heads) <= choice::few_rows::value * p.num_requests;
}

// What splits of a history give for the query rows of a tile.
struct Partials {
  float* sums;         // [partials, rows of a tile, Dv]
  float* max_and_sum;  // [partials, rows of a tile, 2]
};

// Adds up the partial results of tiles that several ranges share, in order of splits.
const char* launch_combine(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           const Partials& partials, Stream stream);

// Writes max_and_sum and lse of query row target * H + head: its largest score in units of log 2, the sum of its
// weights, and what follows from both.
STCA_DEVICE void write_max_and_sum(const TargetAttentionParams& p, int64_t row, float row_max, float row_sum) {
  static_cast<float*>(p.max_and_sum)[2 * row] = row_max;
  static_cast<float*>(p.max_and_sum)[2 * row + 1] = row_sum;
  static_cast<float*>(p.lse)[row] = row_sum == 0 ? -kInfinity : kLn2 * (row_max + log2f(row_sum));
}

STCA_DEVICE float inverse(float row_sum) { return row_sum == 0 ? 0.0f : 1 / row_sum; }

struct Range {
  int begin, end;
};

// Describes kRows query rows of an item in shared memory, row i by row_of(i), and returns what any of them sees.
template <int kRows, int kThreads, class Row, class RowOf>
STCA_DEVICE Range seen_by_tile(const TargetAttentionParams& p, const Item& item, Row* rows, RowOf row_of) {
  for (int row = int(threadIdx.x); row < kRows; row += kThreads) rows[row] = row_of(row);
  sync_block();
  if (p.visible == nullptr) return {item.split_begin, item.split_end};
  Range seen{item.split_end, item.split_begin};
  for (int row = 0; row < kRows; ++row) {
    if (rows[row].begin >= rows[row].end) continue;
    seen.begin = min(seen.begin, rows[row].begin);
    seen.end = max(seen.end, rows[row].end);
  }
  return {seen.begin, max(seen.begin, seen.end)};
}

// Rows of k or v of an item's request and history head.
template <class T>
struct History {
  const T* rows;         // the request's first, or where there is an index the tensor's
  int64_t stride;        // from a row to the next
  const int64_t* index;  // of the request's rows; nullptr: none
  int64_t last;          // of the tensor's rows
  const float* scale;    // of the same row as `rows`, where T is int8
  int64_t scale_stride;

  // How many rows from `rows` on the request's row `row` lies.
  STCA_DEVICE int64_t place(int row) const { return index == nullptr ? row : clamp(index[row], last); }
};

template <class T>
STCA_DEVICE History<T> history_of(const TargetAttentionParams& p, const Item& item, const void* tensor,
                                  int64_t row_stride, int64_t head_stride, const RowScales& scales) {
  const T* head = static_cast<const T*>(tensor) + item.kv_head * head_stride;
  const float* scale = scales.data + item.kv_head * scales.head_stride;
  const int64_t last = p.pool_rows - 1;
  if (p.history_index != nullptr) {
    return {head, row_stride, p.history_index + item.row_begin, last, scale, scales.row_stride};
  }
  scale += item.row_begin * scales.row_stride;
  return {head + item.row_begin * row_stride, row_stride, nullptr, last, scale, scales.row_stride};
}

template <class T>
STCA_DEVICE History<T> keys_of(const TargetAttentionParams& p, const Item& item) {
  return history_of<T>(p, item, p.k, p.k_row_stride, p.k_head_stride, p.k_scale);
}
template <class T>
STCA_DEVICE History<T> values_of(const TargetAttentionParams& p, const Item& item) {
  return history_of<T>(p, item, p.v, p.v_row_stride, p.v_head_stride, p.v_scale);
}

// Copies kRows rows of the request's history from row `first` on to shared memory, as far as row `end`, which lies
// behind `first`.
template <int kMaxWidth, int kRows, int kThreads, class T>
STCA_DEVICE void load_history_rows(T* to, const History<T>& history, int first, int end, int64_t width, bool aligned,
                                   int thread = int(threadIdx.x)) {
  if (history.index == nullptr) {
    constexpr int kChunks = Columns<T, kMaxWidth>::kChunks;
    const int64_t step = kThreads / kChunks * history.stride;
    const T* next = history.rows + (first + thread / kChunks) * history.stride;
    load_rows<kMaxWidth, kRows, kThreads>(
        to, end - first, int(width), aligned,
        [&](int) {
          const T* row = next;
          next += step;
          return row;
        },
        thread);
  } else {
    load_rows<kMaxWidth, kRows, kThreads>(
        to, end - first, int(width), aligned,
        [&](int row) {
          return history.rows + clamp(history.index[min(first + row, end - 1)], history.last) * history.stride;
        },
        thread);
  }
}

constexpr int64_t aligned_bytes(int64_t bytes) { return divide_up(bytes, 256) * 256; }

constexpr int kMaxBlocks = 8;  // of a kernel on a multiprocessor; more are not counted on

// How many blocks of a kernel run at once.
template <class Kernel>
int resident_blocks(const CudaDevice& device, Kernel kernel, int threads, int shared_bytes) {
  const int blocks = blocks_per_multiprocessor(kernel, threads, shared_bytes, device.shared_bytes);
  return device.multiprocessors * max(1, min(kMaxBlocks, blocks));
}

template <class L>
struct LayoutOf {
  using type = L;
};

// Returns f(LayoutOf<Layout<T, kMaxWidth, kShared>>()) for the call's element type and widths.
template <template <class T, int kMaxWidth, bool kShared> class Layout, class F>
auto visit_layout(const TargetAttentionParams& p, F f) {
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    const int64_t width = max(p.key_dim, p.value_dim);
    if (p.shared) {
      if (width <= 128) return f(LayoutOf<Layout<T, 128, true>>());
      if (width <= 256) return f(LayoutOf<Layout<T, 256, true>>());
      if (width <= 512) return f(LayoutOf<Layout<T, 512, true>>());
      return f(LayoutOf<Layout<T, 1024, true>>());
    }
    if (width <= 64) return f(LayoutOf<Layout<T, 64, false>>());
    if (width <= 128) return f(LayoutOf<Layout<T, 128, false>>());
    return f(LayoutOf<Layout<T, 256, false>>());
  });
}

}  // namespace cuda
}  // namespace stca
