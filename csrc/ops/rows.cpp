#include "rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

namespace stca {

int64_t row_width(const at::Tensor& tensor) {
  int64_t width = 1;
  for (int64_t d = 1; d < tensor.dim(); ++d) width *= tensor.size(d);
  return width;
}

namespace {

// Returns make(). Where its memory cannot be had, the error says what it was for.
template <class Make, class Purpose>
at::Tensor allocated(const char* op, const Make& make, const Purpose& purpose) {
  const auto message = [&](const c10::Error& error) {
    return c10::str(op, ": ", purpose(), " does not fit into memory: ", error.what_without_backtrace());
  };
  try {
    return make();
  } catch (const c10::OutOfMemoryError& error) {  // what callers catch to try less
    throw c10::OutOfMemoryError({__func__, __FILE__, uint32_t(__LINE__)}, message(error));
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, message(error));
  }
}

// An uninitialised tensor of `rows` rows like those of x.
at::Tensor rows_like(const char* op, const at::Tensor& x, int64_t rows, const char* reason) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = rows;
  return allocated(
      op, [&] { return at::empty(sizes, x.options()); },
      [&] {
        return c10::str("a result of ", at::IntArrayRef(sizes), " of ", x.scalar_type(), ", ", rows, " rows by ",
                        reason, ",");
      });
}

at::Tensor contiguous_rows(const char* op, const at::Tensor& x) {
  return allocated(
      op, [&] { return x.contiguous(); },
      [&] { return c10::str("a contiguous copy of ", x.sizes(), " of ", x.scalar_type()); });
}

// Calls run(begin, end) for ranges of rows that are worth a thread each.
template <class Run>
void for_row_ranges(int64_t rows, int64_t row_bytes, const Run& run) {
  at::parallel_for(0, row_bytes == 0 ? 0 : rows, std::max<int64_t>(1, (1 << 16) / (row_bytes + 1)), run);
}

}  // namespace

at::Tensor launch_repeat_rows(const char* op, const at::Tensor& x, const int64_t* offsets, int64_t rows,
                              const char* reason) {
  const at::Tensor result = rows_like(op, x, rows, reason), from = contiguous_rows(op, x);
  const int64_t row_bytes = row_width(x) * x.element_size(), count = x.size(0);
  void* to = result.mutable_data_ptr();
  if constexpr (kWithCuda) {
    if (runs_on_cuda(x)) {
      repeat_rows_on_cuda(op, from, offsets, result);
      return result;
    }
  }
  const auto kernel = STCA_CPU_KERNEL(cpu_isa(), repeat_rows);
  for_row_ranges(rows, row_bytes, [&](int64_t begin, int64_t end) {
    kernel(from.const_data_ptr(), offsets, count, row_bytes, begin, end, to);
  });
  return result;
}

at::Tensor launch_copy_suffixes(const char* op, const at::Tensor& x, const Suffixes& suffixes, int64_t rows,
                                const char* reason) {
  const at::Tensor result = rows_like(op, x, rows, reason), from = contiguous_rows(op, x);
  const int64_t row_bytes = row_width(x) * x.element_size();
  void* to = result.mutable_data_ptr();
  if constexpr (kWithCuda) {
    if (runs_on_cuda(x)) {
      copy_suffixes_on_cuda(op, from, suffixes, result);
      return result;
    }
  }
  const auto kernel = STCA_CPU_KERNEL(cpu_isa(), copy_suffixes);
  for_row_ranges(rows, row_bytes, [&](int64_t begin, int64_t end) {
    kernel(from.const_data_ptr(), suffixes, row_bytes, begin, end, to);
  });
  return result;
}

at::Tensor launch_segment_sum(const char* op, const at::Tensor& rows, const int64_t* order, const int64_t* offsets,
                              int64_t segments, bool mean, Dtype dtype) {
  const at::Tensor sums = rows_like(op, rows, segments, "the number of segments"),
                   contiguous = contiguous_rows(op, rows);
  const int64_t width = row_width(rows);
  const SegmentSumParams params{dtype,   width, contiguous.const_data_ptr(), order,
                                offsets, mean,  sums.mutable_data_ptr()};
  if constexpr (kWithCuda) {
    if (runs_on_cuda(rows)) {
      segment_sum_on_cuda(op, rows, params, segments);
      return sums;
    }
  }
  const auto kernel = STCA_CPU_KERNEL(cpu_isa(dtype), segment_sum);
  // One long segment still feeds all threads, by pieces of columns; whole rows stream better where segments are many.
  const int64_t threads = at::get_num_threads();
  const int64_t wanted = segments >= 4 * threads ? 1 : std::min<int64_t>(threads, (width + 255) / 256);
  const int64_t piece_columns = std::max<int64_t>(1, (width + wanted - 1) / std::max<int64_t>(1, wanted));
  const int64_t pieces = (width + piece_columns - 1) / piece_columns;
  const int64_t rows_per_sum = segments > 0 ? offsets[segments] / segments + 1 : 1;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / (rows_per_sum * piece_columns));
  at::parallel_for(0, segments * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % pieces * piece_columns;
      kernel(params, i / pieces, i / pieces + 1, column, std::min(column + piece_columns, width));
    }
  });
  return sums;
}

at::Tensor launch_suffix_sum(const char* op, const at::Tensor& rows, const Suffixes& suffixes, const at::Tensor& index,
                             const at::Tensor& offsets, int64_t num_rows, Dtype dtype) {
  const at::Tensor sums = rows_like(op, rows, num_rows, "the last of offsets"), contiguous = contiguous_rows(op, rows);
  const int64_t requests = offsets.size(0) - 1, width = row_width(rows);
  const InverseIndex places = inverse_index_of(index, requests);
  const int64_t* of_request = places.offsets.const_data_ptr<int64_t>();
  const SuffixSumParams params{dtype,
                               width,
                               contiguous.const_data_ptr(),
                               suffixes.ends,
                               requests,
                               offsets.const_data_ptr<int64_t>(),
                               places.order.const_data_ptr<int64_t>(),
                               of_request,
                               sums.mutable_data_ptr()};
  if constexpr (kWithCuda) {
    if (runs_on_cuda(rows)) {
      suffix_sum_on_cuda(op, rows, params, num_rows, suffixes.count);
      return sums;
    }
  }
  const auto kernel = STCA_CPU_KERNEL(cpu_isa(dtype), suffix_sum);
  int64_t most = 0;
  for (int64_t r = 0; r < requests; ++r) most = std::max(most, of_request[r + 1] - of_request[r]);
  const int64_t read = rows.size(0) / std::max<int64_t>(1, num_rows);
  for_row_ranges(num_rows, (1 + read) * width * rows.element_size(), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> active(most);
    kernel(params, begin, end, active.data());
  });
  return sums;
}

InverseIndex inverse_index_of(const at::Tensor& index, int64_t count) {
  if (runs_on_cuda(index)) {
    const auto [values, order] = at::sort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    return {order, at::searchsorted(values, at::arange(count + 1, index.options()))};
  }
  const int64_t* values = index.const_data_ptr<int64_t>();
  InverseIndex places{at::empty({index.size(0)}, at::kLong), at::zeros({count + 1}, at::kLong)};
  int64_t* offsets = places.offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i) ++offsets[values[i] + 1];
  for (int64_t v = 0; v < count; ++v) offsets[v + 1] += offsets[v];
  std::vector<int64_t> next(offsets, offsets + count);
  int64_t* order = places.order.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i) order[next[values[i]]++] = i;
  return places;
}

}  // namespace stca
