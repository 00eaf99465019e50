// What the forward and the backward pass share: views of history tiles, packed query rows, and the runs of targets
// that see the same rows of a tile.
#pragma once

#include "../target_attention.h"
#include "matmul.h"

namespace stca {
namespace STCA_ISA {

// The plan, which knows no instruction set, sizes scratch memory for panels of at most 32 columns.
static_assert(kPanel<float> <= 32);

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLn2 = 0.693147180559945309417;

// Takes consecutive pieces of a thread's scratch memory; the plan sizes it by the same sums.
template <class A>
struct Scratch {
  A* next;
  A* take(int64_t count) {
    A* piece = next;
    next += (count + 15) / 16 * 16;  // 64-byte steps
    return piece;
  }
};

// History rows [begin, end) in the accumulation type: row n of head j is at data + (n - begin) * row_stride +
// j * head_stride. Points into the tensor itself where rows are in order and need no conversion.
template <class A>
struct Tile {
  const A* data;
  int64_t begin, row_stride, head_stride;
  const A* at(int64_t row, int64_t head) const { return data + (row - begin) * row_stride + head * head_stride; }
};

template <class T>
bool copies_tiles(const TargetAttentionParams& p) {
  return p.history_index != nullptr || sizeof(T) != sizeof(accumulator_t<T>);
}

template <class T>
Tile<accumulator_t<T>> load_tile(const TargetAttentionParams& p, const void* tensor, int64_t row_stride,
                                 int64_t head_stride, int64_t width, int64_t begin, int64_t end,
                                 accumulator_t<T>* buffer) {
  const T* rows = static_cast<const T*>(tensor);
  if constexpr (sizeof(T) == sizeof(accumulator_t<T>)) {
    if (!copies_tiles<T>(p)) return {rows + begin * row_stride, begin, row_stride, head_stride};
  }
  accumulator_t<T>* to = buffer;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = rows + (p.history_index == nullptr ? n : p.history_index[n]) * row_stride;
    for (int64_t j = 0; j < p.kv_heads; ++j, to += width) widen<T>(row + j * head_stride, to, width);
  }
  return {buffer, begin, p.kv_heads * width, width};
}

// Rows (target, head) of a [T, H, width] tensor whose heads share history head j, stacked: out [targets * G, width] in
// the accumulation type.
template <class T>
void stack_rows(const TargetAttentionParams& p, const void* tensor, int64_t target_stride, int64_t head_stride,
                int64_t width, int64_t target_begin, int64_t target_end, int64_t j, accumulator_t<T>* out) {
  const int64_t group = p.heads / p.kv_heads;
  const T* rows = static_cast<const T*>(tensor) + j * group * head_stride;
  for (int64_t t = target_begin; t < target_end; ++t) {
    for (int64_t g = 0; g < group; ++g, out += width) widen<T>(rows + t * target_stride + g * head_stride, out, width);
  }
}

// Row of (target, head) where rows are grouped by history head: [Hk, targets * G]; targets counted from the first.
inline int64_t grouped_row(const TargetAttentionParams& p, int64_t targets, int64_t target, int64_t head) {
  const int64_t group = p.heads / p.kv_heads;
  return (head / group) * targets * group + target * group + head % group;
}

struct RowRange {
  int64_t begin, end;
};

// The part of rows [begin, end) that target t of the request whose history starts at `first` sees.
inline RowRange visible_rows(const TargetAttentionParams& p, int64_t t, int64_t first, int64_t begin, int64_t end) {
  if (p.visible == nullptr) return {begin, end};
  return {max(begin, first + p.visible[2 * t]), min(end, first + p.visible[2 * t + 1])};
}

// Calls f(targets [a, b), rows [begin, end)) for each run of targets that see exactly the same rows of the tile. A
// row that a target does not see never meets that target's arithmetic: no mask, and a NaN there stays there.
template <class F>
void for_each_run(const TargetAttentionParams& p, const TargetAttentionItem& item, int64_t target_begin,
                  int64_t target_end, RowRange tile, F f) {
  const int64_t first = p.history_offsets[item.request];
  for (int64_t a = target_begin; a < target_end;) {
    const RowRange rows = visible_rows(p, a, first, tile.begin, tile.end);
    int64_t b = p.visible == nullptr ? target_end : a + 1;
    for (; b < target_end; ++b) {
      const RowRange next = visible_rows(p, b, first, tile.begin, tile.end);
      if (next.begin != rows.begin || next.end != rows.end) break;
    }
    if (rows.begin < rows.end) f(a, b, rows);
    a = b;
  }
}

// Rows of the item that any of its targets sees.
inline RowRange seen_rows(const TargetAttentionParams& p, const TargetAttentionItem& item, int64_t target_begin,
                          int64_t target_end, RowRange rows) {
  if (p.visible == nullptr) return target_begin < target_end ? rows : RowRange{rows.end, rows.end};
  RowRange seen{rows.end, rows.begin};
  const int64_t first = p.history_offsets[item.request];
  for (int64_t t = target_begin; t < target_end; ++t) {
    const RowRange own = visible_rows(p, t, first, rows.begin, rows.end);
    if (own.begin >= own.end) continue;
    seen.begin = min(seen.begin, own.begin);
    seen.end = max(seen.end, own.end);
  }
  return seen;
}

}  // namespace STCA_ISA
}  // namespace stca
