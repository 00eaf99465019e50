// Launchers of the row copies and sums, shared by the ops that are made of them.
#pragma once

#include "../kernels/rows.h"
#include "common.h"

namespace stca {

// Product of all dimensions but the first, and the tensor's rows as one contiguous block.
int64_t row_width(const at::Tensor& tensor);

// to[i] = x[r] for offsets[r] <= i < offsets[r + 1], for i in [0, rows).
at::Tensor launch_repeat_rows(const at::Tensor& x, const int64_t* offsets, int64_t rows);

// x[index], of an index that is known to be right.
at::Tensor launch_copy_rows(const at::Tensor& x, const at::Tensor& index);

// sums [S, ...] of rows [N, ...] by segments (see SegmentSumParams).
at::Tensor launch_segment_sum(const at::Tensor& rows, const int64_t* order, const int64_t* offsets, int64_t segments,
                              bool mean, Dtype dtype);

// For each value v in [0, count): the places i with index[i] == v, in order. `order` is [index size], `offsets` is
// [count + 1].
struct Places {
  at::Tensor order, offsets;
};
Places places_of(const at::Tensor& index, int64_t count);

}  // namespace stca
