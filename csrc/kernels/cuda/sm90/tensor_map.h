// Tensor maps, by which the copy engine of sm_90 finds tiles in a tensor.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace stca {
namespace cuda {
namespace sm90 {

// The map of a tensor [rows, heads, width] of elements of 16 bits, strides in elements, in boxes of 64 columns by
// `box_rows` rows of `box_heads` heads, rows of 128 bytes swizzled. nullptr, or what went wrong.
const char* make_tensor_map(CUtensorMap& map, CUtensorMapDataType type, const void* data, int64_t rows, int64_t heads,
                            int64_t width, int64_t row_stride, int64_t head_stride, int box_rows, int box_heads = 1);

// How the copy engine finds a tensor's tiles, and its rows one by one.
struct RowMaps {
  CUtensorMap tile, row;
};

// Both maps: of boxes of `box_rows` rows of a head, and of one.
const char* make_row_maps(RowMaps& maps, CUtensorMapDataType type, const void* data, int64_t rows, int64_t heads,
                          int64_t width, int64_t row_stride, int64_t head_stride, int box_rows);

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
