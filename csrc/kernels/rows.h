// Copies and sums of whole rows, on raw pointers: what the request-level gathers and their gradients are made of.
//
// Every output row is written by one call alone, and sums add in a fixed order: the same bits on every run.
#pragma once

#include <cstdint>

#include "cpu_isa.h"
#include "dtype.h"

namespace stca {

// to[i] = from[r] for offsets[r] <= i < offsets[r + 1], for rows i in [begin, end) of row_bytes each.
STCA_DECLARE_CPU_KERNEL(void, repeat_rows, const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes,
                        int64_t begin, int64_t end, void* to)

// Suffixes of histories, one after the other: rows [ends[s], ends[s + 1]) are those before row lasts[s].
struct Suffixes {
  int64_t count;         // S
  const int64_t* ends;   // [S + 1], from 0
  const int64_t* lasts;  // [S]
};

// to[i] = from[lasts[s] - (ends[s + 1] - i)] for ends[s] <= i < ends[s + 1], for rows i in [begin, end).
STCA_DECLARE_CPU_KERNEL(void, copy_suffixes, const void* from, const Suffixes& suffixes, int64_t row_bytes,
                        int64_t begin, int64_t end, void* to)

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
STCA_DECLARE_CPU_KERNEL(void, segment_sum, const SegmentSumParams& params, int64_t begin, int64_t end,
                        int64_t column_begin, int64_t column_end)

// The reverse of copy_suffixes: each row of the histories is the sum of its copies, in order of suffixes.
struct SuffixSumParams {
  Dtype dtype;
  int64_t width;              // W
  const void* rows;           // [ends[S], W] contiguous
  const int64_t* ends;        // [S + 1]
  int64_t requests;           // R
  const int64_t* offsets;     // [R + 1]: request r has rows offsets[r] to offsets[r + 1]
  const int64_t* order;       // [S]: suffixes by request, those of request r
  const int64_t* of_request;  // [R + 1]: at places of_request[r] to of_request[r + 1]
  void* sums;                 // [N, W] contiguous
};

// Rows [begin, end) of the result. `active` has room for the suffixes of any one request.
STCA_DECLARE_CPU_KERNEL(void, suffix_sum, const SuffixSumParams& params, int64_t begin, int64_t end, int64_t* active)

// The same on CUDA, for all `rows` of the result or all `segments` at once, enqueued on a cudaStream_t; every pointer
// is on its device. Each returns nullptr, or the message of the CUDA error. `op` is the operator that calls. `reports`:
// see CudaDevice; nullptr where the integers are known to be right.
const char* repeat_rows_cuda(const char* op, const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes,
                             int64_t rows, void* to, int* reports, void* stream);
// `from_rows`: of the histories, one at least unless `rows` is 0.
const char* copy_suffixes_cuda(const char* op, const void* from, int64_t from_rows, const Suffixes& suffixes,
                               int64_t row_bytes, int64_t rows, void* to, void* stream);
// `places`: how many there are, which offsets[segments] is, unless offsets are not what they should be.
const char* segment_sum_cuda(const char* op, const SegmentSumParams& params, int64_t segments, int64_t places,
                             int* reports, void* stream);
// `copies`: rows that there are to add up.
const char* suffix_sum_cuda(const char* op, const SuffixSumParams& params, int64_t rows, int64_t copies,
                            int64_t suffixes, void* stream);

// Finds the suffixes that jagged_select chooses: of request index[s] the last keep[s] rows, or all where there are
// fewer or keep is nullptr. Writes lasts [S] and ends [S + 1]. They should be `total` rows; negative: not known.
struct SelectParams {
  int64_t requests, rows;       // R, N
  const int64_t* offsets;       // [R + 1]
  int64_t count;                // S
  const int64_t *index, *keep;  // [S]
  int64_t total;
  int64_t *lasts, *ends;
};
const char* select_suffixes_cuda(const char* op, const SelectParams& params, int* reports, void* stream);

}  // namespace stca
