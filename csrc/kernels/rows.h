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

// The same on CUDA, for all `rows` of the result or all `segments` at once: enqueued on a cudaStream_t, every pointer
// on its device. nullptr, or the message of the CUDA error.
const char* repeat_rows_cuda(const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes, int64_t rows,
                             void* to, void* stream);
const char* copy_rows_cuda(const void* from, const int64_t* index, int64_t row_bytes, int64_t rows, void* to,
                           void* stream);
// `places`: how many there are, offsets[segments], as far as the host knows; it only chooses the kernel.
const char* segment_sum_cuda(const SegmentSumParams& params, int64_t segments, int64_t places, void* stream);

// to[i] = lasts[s] - (offsets[s + 1] - i) for offsets[s] <= i < offsets[s + 1], for i in [0, rows): the rows of
// suffixes that end before row lasts[s].
const char* suffix_rows_cuda(const int64_t* offsets, const int64_t* lasts, int64_t count, int64_t rows, int64_t* to,
                             void* stream);

}  // namespace stca
