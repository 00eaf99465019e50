// What the forward and the backward pass share: views of history tiles, packed query rows, and the runs of targets
// that see the same rows of a tile.
#pragma once

#include "../target_attention.h"
#include "dots.h"
#include "scratch.h"

namespace stca {
namespace STCA_ISA {

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLn2 = 0.693147180559945309417;

struct RowRange {
  int64_t begin, end;
};

// History rows [begin, end): row n of head j is at data + (n - begin) * row_stride + j * head_stride, or, with an
// index, at data + index[n - begin] * row_stride + j * head_stride. With scales, [rows, Hk], data is int8.
template <class S>
struct Tile {
  const void* data;
  int64_t begin, row_stride, head_stride;
  const int64_t* index = nullptr;
  int64_t end = 0;      // with an index: of the rows that it has
  S* buffer = nullptr;  // with an index: room for a block of rows that do not follow one another
  RowScales scale{};
  int64_t number(int64_t row) const { return index == nullptr ? row - begin : index[row - begin]; }
  template <class X = S>
  const X* at(int64_t row, int64_t head) const {
    return static_cast<const X*>(data) + number(row) * row_stride + head * head_stride;
  }
};

// Whether rows index[0] to index[count - 1] follow one another.
inline bool in_a_row(const int64_t* index, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 1; i < count; ++i) wrong |= index[i] - index[0] - i;
  return wrong == 0;
}

// Whether a tile is a copy of rows and not a view of the tensor: where rows are converted, are not made of whole
// operands, or are out of order.
template <class T>
bool copies_rows(const TargetAttentionParams& p) {
  auto whole = [](int64_t elements) { return elements % kTerms<tile_t<T>> == 0; };
  return sizeof(T) != sizeof(tile_t<T>) || p.k_scale.data != nullptr || p.v_scale.data != nullptr ||
         !whole(p.k_row_stride) || !whole(p.k_head_stride) || !whole(p.key_dim) || !whole(p.v_row_stride) ||
         !whole(p.v_head_stride) || !whole(p.value_dim);
}
template <class T>
bool copies_tiles(const TargetAttentionParams& p) {
  return p.history_index != nullptr || copies_rows<T>(p);
}

inline const float* scale_of(RowScales scale, int64_t row, int64_t head) {
  return scale.data + row * scale.row_stride + head * scale.head_stride;
}

// Where history row n lies in k and v.
inline int64_t place_of(const TargetAttentionParams& p, int64_t n) {
  return p.history_index == nullptr ? n : p.history_index[n];
}

// Rows of int8 as they are multiplied. While one is converted, the one kPrefetchRows after it is fetched, which is in
// the next tile often, so that memory works during this tile's products too.
template <class S>
void load_scaled_rows(const TargetAttentionParams& p, const int8_t* rows, RowScales scale, int64_t row_stride,
                      int64_t head_stride, int64_t width, int64_t begin, int64_t end, S* to) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = place_of(p, n), ahead = place_of(p, min(n + kPrefetchRows, p.num_rows - 1));
    for (int64_t j = 0; j < p.kv_heads; ++j, to += whole_operands<S>(width)) {
      const int8_t* next = rows + ahead * row_stride + j * head_stride;
      for (int64_t k = 0; k < width; k += 64) __builtin_prefetch(next + k, 0, 2);
      load_scaled_row(rows + row * row_stride + j * head_stride, *scale_of(scale, row, j), width, to);
    }
  }
}

template <class T>
Tile<tile_t<T>> load_tile(const TargetAttentionParams& p, const void* tensor, RowScales scale, int64_t row_stride,
                          int64_t head_stride, int64_t width, int64_t begin, int64_t end, tile_t<T>* buffer) {
  const T* rows = static_cast<const T*>(tensor);
  if constexpr (sizeof(T) == sizeof(tile_t<T>)) {
    if (!copies_tiles<T>(p)) return {rows + begin * row_stride, begin, row_stride, head_stride};
  }
  const int64_t padded_width = whole_operands<tile_t<T>>(width);
  const Tile<tile_t<T>> copy{buffer, begin, p.kv_heads * padded_width, padded_width};
  if (scale.data != nullptr) {
    const int8_t* scaled = static_cast<const int8_t*>(tensor);
    load_scaled_rows(p, scaled, scale, row_stride, head_stride, width, begin, end, buffer);
    return copy;
  }
  tile_t<T>* to = buffer;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = rows + place_of(p, n) * row_stride;
    for (int64_t j = 0; j < p.kv_heads; ++j, to += padded_width) load_row<T>(row + j * head_stride, width, to);
  }
  return copy;
}

// Rows of one head, `stride` elements apart; while one is read, the one `prefetch_rows` of them ahead is fetched.
template <class S>
struct Part {
  const S* data;
  int64_t stride, prefetch_rows;
};

// Rows [row, row + count) of a tile: where they lie if they follow one another there, else copied.
template <class S>
Part<S> load_part(const Tile<S>& tile, int64_t row, int64_t count, int64_t head, int64_t width, int64_t prefetch_rows) {
  if (tile.index == nullptr) return {tile.at(row, head), tile.row_stride, prefetch_rows};
  const int64_t* index = tile.index + row - tile.begin;
  if (in_a_row(index, count)) {
    return {tile.at(row, head), tile.row_stride, row + count < tile.end ? index[count] - index[0] : 0};
  }
  for (int64_t n = 0; n < count; ++n) {
    __builtin_memcpy(tile.buffer + n * width, tile.at(row + n, head), width * sizeof(S));
  }
  return {tile.buffer, width, 0};
}

// The same of rows of int8: copied with their scales.
struct ScaledPart {
  ScaledRows rows;
  int64_t prefetch_rows;
};
template <class S>
ScaledPart load_scaled_part(const Tile<S>& tile, int64_t row, int64_t count, int64_t head, int64_t width) {
  const int64_t* index = tile.index == nullptr ? nullptr : tile.index + row - tile.begin;
  if (index == nullptr || in_a_row(index, count)) {
    const int64_t next = index == nullptr ? kPrefetchRows : row + count < tile.end ? index[count] - index[0] : 0;
    return {{tile.template at<int8_t>(row, head), tile.row_stride, scale_of(tile.scale, tile.number(row), head),
             tile.scale.row_stride},
            next};
  }
  float* scales = reinterpret_cast<float*>(tile.buffer);
  int8_t* rows = reinterpret_cast<int8_t*>(scales + count);
  for (int64_t n = 0; n < count; ++n) {
    scales[n] = *scale_of(tile.scale, index[n], head);
    __builtin_memcpy(rows + n * width, tile.template at<int8_t>(row + n, head), width);
  }
  return {{rows, width, scales, 1}, 0};
}

// A tile's rows of k and v, one view twice where v is k.
template <class S>
struct Tiles {
  Tile<S> k, v;
};

// Where rows of a tile are copied to; nullptr where they are read where they lie, and for v where v is k.
template <class S>
struct TileBuffers {
  S *k, *v;
};

template <class T>
TileBuffers<tile_t<T>> tile_buffers(const TargetAttentionParams& p, int64_t rows, Scratch& scratch) {
  using S = tile_t<T>;
  TileBuffers<S> buffers{};
  if (!copies_tiles<T>(p)) return buffers;
  buffers.k = scratch.take<S>(rows * p.kv_heads * whole_operands<S>(p.key_dim));
  if (!p.shared) buffers.v = scratch.take<S>(rows * p.kv_heads * whole_operands<S>(p.value_dim));
  return buffers;
}

template <class T>
Tiles<tile_t<T>> load_tiles(const TargetAttentionParams& p, RowRange rows, const TileBuffers<tile_t<T>>& buffers) {
  const int64_t begin = rows.begin, end = rows.end;
  const auto k = load_tile<T>(p, p.k, p.k_scale, p.k_row_stride, p.k_head_stride, p.key_dim, begin, end, buffers.k);
  if (p.shared) return {k, k};
  return {k, load_tile<T>(p, p.v, p.v_scale, p.v_row_stride, p.v_head_stride, p.value_dim, begin, end, buffers.v)};
}

// Whether rows of int8 are converted in registers, for each product anew: `count` query rows are so few that to write a
// tile and to read it again would take longer. Narrower rows than 16 are converted; a tile's buffer
// holds rows of int8 and their scales from a width of 2 on.
template <class T>
constexpr bool kReadsInt8 = sizeof(tile_t<T>) == sizeof(float);
template <class T>
bool reads_as_int8(const TargetAttentionParams& p, int64_t count) {
  using S = tile_t<T>;
  const bool scaled = p.k_scale.data != nullptr && (p.shared || p.v_scale.data != nullptr);
  const bool wide = min(p.key_dim, p.value_dim) >= 16;
  return kReadsInt8<T> && scaled && wide && prefer_dot_products<operand_t<S>>(count, operands<S>(p.key_dim));
}

// The tiles of a pass with few query rows: an index is followed where rows lie, since to copy them would cost about as
// much as the products. load_part() gives their rows, or, where they are read as int8, load_scaled_part().
template <class T>
Tiles<tile_t<T>> follow_tiles(const TargetAttentionParams& p, RowRange rows, const TileBuffers<tile_t<T>>& buffers,
                              int64_t count) {
  using S = tile_t<T>;
  if (!reads_as_int8<T>(p, count) && (p.history_index == nullptr || copies_rows<T>(p)))
    return load_tiles<T>(p, rows, buffers);
  // Without an index rows are numbered from the tensor's first one on.
  const int64_t* index = p.history_index == nullptr ? nullptr : p.history_index + rows.begin;
  const int64_t begin = index == nullptr ? 0 : rows.begin;
  const Tile<S> k{p.k, begin, p.k_row_stride, p.k_head_stride, index, p.num_rows, buffers.k, p.k_scale};
  if (p.shared) return {k, k};
  return {k, {p.v, begin, p.v_row_stride, p.v_head_stride, index, p.num_rows, buffers.v, p.v_scale}};
}

// Rows (target, head) of a [T, H, width] tensor whose heads share history head j, stacked: out [targets * G, width in
// whole operands].
template <class T>
void stack_rows(const TargetAttentionParams& p, const void* tensor, int64_t target_stride, int64_t head_stride,
                int64_t width, int64_t target_begin, int64_t target_end, int64_t j, tile_t<T>* out) {
  const int64_t group = p.heads / p.kv_heads, padded_width = whole_operands<tile_t<T>>(width);
  const T* rows = static_cast<const T*>(tensor) + j * group * head_stride;
  for (int64_t t = target_begin; t < target_end; ++t) {
    for (int64_t g = 0; g < group; ++g, out += padded_width) {
      load_row<T>(rows + t * target_stride + g * head_stride, width, out);
    }
  }
}

// Scores are in units of log 2, so that the exponential is 2^x. Query rows take the factor before the product, which
// rounds less than scaling every score; rows of bfloat16 pairs would round more, so score_unit() scales their scores.
template <class S>
void scale_queries(const TargetAttentionParams& p, const S* rows, int64_t count, S* to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kTerms<S> == 1) {
      to[i] = rows[i] * S(p.scale * kLog2E);
    } else {
      to[i] = rows[i];
    }
  }
}

template <class S>
product_t<operand_t<S>> score_unit(const TargetAttentionParams& p) {
  return product_t<operand_t<S>>(kTerms<S> == 1 ? 1.0 : p.scale * kLog2E);
}

// Row of (target, head) where rows are grouped by history head: [Hk, targets * G]; targets counted from the first.
inline int64_t grouped_row(const TargetAttentionParams& p, int64_t targets, int64_t target, int64_t head) {
  const int64_t group = p.heads / p.kv_heads;
  return (head / group) * targets * group + target * group + head % group;
}

// The kept scores of history head j from history row `row` and target `target` on. Rows lie kept_stride() apart.
template <class A>
A* kept_scores(const TargetAttentionParams& p, int64_t request, int64_t row, int64_t target, int64_t j) {
  const int64_t first = p.target_offsets[request], group = p.heads / p.kv_heads;
  const int64_t targets = p.target_offsets[request + 1] - first;
  return static_cast<A*>(p.scores) + p.heads * p.pair_offsets[request] +
         ((row - p.history_offsets[request]) * p.kv_heads + j) * targets * group + (target - first) * group;
}
inline int64_t kept_stride(const TargetAttentionParams& p, int64_t request) {
  return p.heads * (p.target_offsets[request + 1] - p.target_offsets[request]);
}

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
