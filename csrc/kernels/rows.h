// Copies and sums of whole rows, on raw pointers: what the request-level gathers and their gradients are made of.
//
// Every output row is written by one call alone, and sums add in a fixed order: the same bits on every run.
#pragma once

#include <cstdint>

#include "cpu_isa.h"
#include "dtype.h"

namespace stca {

// to[i] = from[r] for offsets[r] <= i < offsets[r + 1], for rows i in [begin, end) of row_bytes each.
STCA_DECLARE_CPU_KERNEL(repeat_rows, const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes,
                        int64_t begin, int64_t end, void* to)

// to[i] = from[index[i]] for i in [begin, end).
STCA_DECLARE_CPU_KERNEL(copy_rows, const void* from, const int64_t* index, int64_t row_bytes, int64_t begin,
                        int64_t end, void* to)

struct SegmentSumParams {
  Dtype dtype;
  int64_t width;           // W
  const void* rows;        // [N, W] contiguous
  const int64_t* order;    // [offsets[S]]: which row comes at a place; nullptr: places are rows
  const int64_t* offsets;  // [S + 1]: segment s is places offsets[s] to offsets[s + 1]
  bool mean;               // divide by the number of rows; the mean of none is 0
  void* sums;              // [S, W] contiguous
};

// Columns [column_begin, column_end) of segments [begin, end), summed in the accumulation type.
STCA_DECLARE_CPU_KERNEL(segment_sum, const SegmentSumParams& params, int64_t begin, int64_t end, int64_t column_begin,
                        int64_t column_end)

// All segments, on a cudaStream_t; `offsets` is on the device too. nullptr, or the message of the CUDA error.
const char* segment_sum_cuda(const SegmentSumParams& params, int64_t segments, void* stream);

}  // namespace stca
