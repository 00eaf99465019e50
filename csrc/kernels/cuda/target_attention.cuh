// What the forward and the backward kernels of target_attention share.
#pragma once

#include <type_traits>

#include "../target_attention_cuda.h"
#include "work.cuh"

namespace stca {
namespace cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
constexpr int kSharedBytes = 163 * 1024;       // of one block, on sm_80
constexpr int kLargeSharedBytes = 227 * 1024;  // on sm_90 and sm_100

#if defined(STCA_SIMT)
STCA_DEVICE float infinity() { return HUGE_VALF; }
#else
STCA_DEVICE float infinity() { return __int_as_float(0x7f800000); }
#endif

// Which tensors have all their rows at multiples of 16 bytes.
struct Aligned {
  bool q, k, v, dout;
};

inline Aligned aligned_tensors(const TargetAttentionParams& p, const void* dout) {
  const int64_t size = p.dtype == Dtype::kFloat32 ? 4 : 2;
  return {rows_aligned(p.q, size, p.q_target_stride, p.q_head_stride),
          rows_aligned(p.k, size, p.k_row_stride, p.k_head_stride),
          rows_aligned(p.v, size, p.v_row_stride, p.v_head_stride),
          rows_aligned(dout, size, p.heads * p.value_dim, p.value_dim)};
}

// Target and head of query row `row` of an item, in [0, m * G).
struct QueryRow {
  int64_t target, head;
};
STCA_DEVICE QueryRow query_row(const TargetAttentionParams& p, const Item& item, int row) {
  const int group = int(p.heads / p.kv_heads);
  return {item.target_begin + row / group, int64_t(item.kv_head) * group + row % group};
}

// The part of [begin, end), history rows from the request's first, that a target sees.
STCA_DEVICE void clip_to_visible(const TargetAttentionParams& p, int64_t target, int& begin, int& end) {
  if (p.visible == nullptr) return;
  begin = int(max(int64_t(begin), p.visible[2 * target]));
  end = int(min(int64_t(end), p.visible[2 * target + 1]));
}

// What splits of a history give for the query rows of a tile.
struct Partials {
  float* sums;     // [partials, rows of a tile, Dv]
  float* softmax;  // [partials, rows of a tile, 2]
};

// Adds up the partial results of requests that were split, in order of splits.
const char* launch_merge(const TargetAttentionParams& p, const Cut& cut, const Work& work, const Partials& partials,
                         Stream stream);

// softmax and lse of a query row from its largest score (in units of log 2) and its sum of weights.
STCA_DEVICE void write_softmax(const TargetAttentionParams& p, QueryRow at, float most, float weights) {
  const int64_t row = at.target * p.heads + at.head;
  static_cast<float*>(p.softmax)[2 * row] = most;
  static_cast<float*>(p.softmax)[2 * row + 1] = weights;
  static_cast<float*>(p.lse)[row] = weights == 0 ? -infinity() : kLn2 * (most + log2(weights));
}

STCA_DEVICE float inverse(float weights) { return weights == 0 ? 0.0f : 1 / weights; }

// kRows query rows of a tile of q, or of a contiguous [T, H, width] tensor, to shared memory.
template <int kCap, int kRows, int kThreads, class T>
STCA_DEVICE void load_query_rows(T* to, const TargetAttentionParams& p, const Item& item, int first, const void* tensor,
                                 int64_t target_stride, int64_t head_stride, int64_t width, bool aligned) {
  load_rows<kCap, kRows, kThreads>(to, item.query_rows - first, int(width), aligned, [&](int row) {
    const QueryRow at = query_row(p, item, first + row);
    return static_cast<const T*>(tensor) + at.target * target_stride + at.head * head_stride;
  });
}

// kRows rows of k or v from row `first` of the request's history, as far as `end`, to shared memory.
template <int kCap, int kRows, int kThreads, class T>
STCA_DEVICE void load_history_rows(T* to, const TargetAttentionParams& p, const Item& item, int first, int end,
                                   const void* tensor, int64_t row_stride, int64_t head_stride, int64_t width,
                                   bool aligned) {
  load_rows<kCap, kRows, kThreads>(to, end - first, int(width), aligned, [&](int row) {
    const int64_t n = item.row_begin + first + row;
    const int64_t at = p.history_index == nullptr ? n : p.history_index[n];
    return static_cast<const T*>(tensor) + at * row_stride + item.kv_head * head_stride;
  });
}

// What a query row sees of its item's split.
struct Range {
  int begin, end;
};

// The history rows of an item's split that any of its kRows query rows from `first` on sees, and to shared memory what
// each row sees.
template <int kRows, int kThreads>
STCA_DEVICE Range seen_by_tile(const TargetAttentionParams& p, const Item& item, int first, Range* ranges) {
  for (int row = int(threadIdx.x); row < kRows; row += kThreads) {
    Range seen{item.split_begin, item.split_end};
    if (first + row < item.query_rows) {
      clip_to_visible(p, query_row(p, item, first + row).target, seen.begin, seen.end);
    } else {
      seen.end = seen.begin;
    }
    ranges[row] = seen;
  }
  sync_block();
  if (p.visible == nullptr) return {item.split_begin, item.split_end};
  Range seen{item.split_end, item.split_begin};
  for (int row = 0; row < kRows; ++row) {
    if (ranges[row].begin >= ranges[row].end) continue;
    seen.begin = min(seen.begin, ranges[row].begin);
    seen.end = max(seen.end, ranges[row].end);
  }
  return {seen.begin, max(seen.begin, seen.end)};
}

// Adds up the slices' partial sums [kSlices, kRows, kPitch] of one element, in order.
template <int kSlices, int kRows, int kPitch>
STCA_DEVICE float sum_of_slices(const float* sums, int row, int column) {
  float total = 0;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) total += sums[(slice * kRows + row) * kPitch + column];
  return total;
}

constexpr int64_t aligned_bytes(int64_t bytes) { return divide_up(bytes, 256) * 256; }

constexpr int kMostBlocks = 8;  // of a kernel on a multiprocessor, counted

// Blocks of a kernel that run at once.
template <class Kernel>
int slots_of(const CudaDevice& device, Kernel kernel, int threads, int shared_bytes) {
  const int blocks = resident_blocks(kernel, threads, shared_bytes, device.shared_bytes);
  return device.multiprocessors * max(1, min(kMostBlocks, blocks));
}

// Calls f(Element<T>(), capacity, shared), the last two as types with a value, for the call's element type and widths.
template <class F>
auto visit_case(const TargetAttentionParams& p, F f) {
  auto with_type = [&](auto type) {
    const int64_t width = max(p.key_dim, p.value_dim);
    if (p.shared) {
      constexpr std::true_type kShared;
      if (width <= 128) return f(type, std::integral_constant<int, 128>(), kShared);
      if (width <= 256) return f(type, std::integral_constant<int, 256>(), kShared);
      if (width <= 512) return f(type, std::integral_constant<int, 512>(), kShared);
      return f(type, std::integral_constant<int, 1024>(), kShared);
    }
    constexpr std::false_type kShared;
    if (width <= 64) return f(type, std::integral_constant<int, 64>(), kShared);
    if (width <= 128) return f(type, std::integral_constant<int, 128>(), kShared);
    return f(type, std::integral_constant<int, 256>(), kShared);
  };
  return visit_cuda_dtype(p.dtype, with_type);
}

}  // namespace cuda
}  // namespace stca
