// A tile of history rows of int8: copied to shared memory as it is, then converted, times the rows' scales, to a tile
// of the type that products take. The result has the bits of rows that hold the products, rounded to that type: to
// scale weights in place of values would save less than a conversion costs, and weights of float16 would underflow.
//
// A thread converts what it has copied itself, and may ask for the same place of the next tile at once: one tile of
// bytes is enough to copy ahead of the products. Scales, which all threads read, are copied to two places by turns.
#pragma once

#include "target_attention.cuh"

namespace stca {
namespace cuda {

template <class T, int kMaxWidth, int kRows, int kThreads>
struct Int8Tile {
  using C = Columns<int8_t, kMaxWidth>;
  static constexpr int kScales = kRows * C::kPitch;  // where they begin, behind the rows, in bytes
  static constexpr int kBytes = kScales + 2 * kRows * int(sizeof(float));
  static_assert(kRows <= kThreads);

  char* memory;  // [kBytes] shared
  int thread;    // which of the kThreads that have the tile this one is

  STCA_DEVICE int8_t* rows() const { return reinterpret_cast<int8_t*>(memory); }
  STCA_DEVICE float* scales(int tile) const { return reinterpret_cast<float*>(memory + kScales) + tile % 2 * kRows; }

  // Asks for rows of the request's history from row `first` on, as load_history_rows() does, and for their scales.
  STCA_DEVICE void load(int tile, const History<int8_t>& history, int first, int end, int64_t width,
                        bool aligned) const {
    load_history_rows<kMaxWidth, kRows, kThreads>(rows(), history, first, end, width, aligned, thread);
    if (thread >= kRows) return;
    const float* scale = history.scale + history.place(min(first + thread, end - 1)) * history.scale_stride;
    copy_word_async(scales(tile) + thread, scale, first + thread < end);
  }

  // Rows of the tile that was asked for, when it is there, to `to`; columns as load_rows() fills them.
  STCA_DEVICE void convert(int tile, int width, T* to) const {
    using Own = OwnChunks<int8_t, kMaxWidth, kRows, kThreads>;
    const Own own(thread);
    if (own.column >= round_up(width, 16) || own.row >= kRows) return;
    const int count = width - own.column;
#pragma unroll
    for (int row = own.row; row < kRows; row += Own::kStep) {
      const Chunk bytes = *reinterpret_cast<const Chunk*>(rows() + row * C::kPitch + own.column);
      const float scale = scales(tile)[row];
      T* target = to + row * Columns<T, kMaxWidth>::kPitch + own.column;
      if (count >= kVector<int8_t>) {
        convert_chunk(bytes, target, [&](int) { return scale; });
      } else {  // a scale that is not finite leaves the zeros behind the last column alone
        convert_chunk(bytes, target, [&](int column) { return column < count ? scale : 0.0f; });
      }
    }
  }

  template <class ScaleOf>
  STCA_DEVICE static void convert_chunk(const Chunk& bytes, T* to, ScaleOf scale_of) {
#pragma unroll
    for (int begin = 0; begin < kVector<int8_t>; begin += kVector<T>) {
      T elements[kVector<T>];
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) {
        const int column = begin + i;
        narrow(widen_byte(bytes.words[column / 4], column % 4) * scale_of(column), elements[i]);
      }
      Chunk chunk;
      memcpy(&chunk, elements, sizeof(chunk));
      store_shared_chunk(chunk, to + begin);
    }
  }
};

}  // namespace cuda
}  // namespace stca
