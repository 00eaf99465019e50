// Sums of rows by segments on CUDA (../rows.h): a warp for each segment, lanes side by side over the columns, rows in
// order of places. Every sum has one owner: the same bits on every run.
#include "../rows.h"

#include "tile.cuh"

namespace stca {
namespace {

using namespace cuda;

constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) segment_sum(const SegmentSumParams p, const int64_t segments) {
  const int64_t s = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (s >= segments) return;
  const int64_t begin = p.offsets[s], end = p.offsets[s + 1];
  const T* rows = static_cast<const T*>(p.rows);
  for (int64_t d = int(threadIdx.x) % kWarp; d < p.width; d += kWarp) {
    float sum = 0;
    for (int64_t place = begin; place < end; ++place) {
      sum += widen(rows[(p.order == nullptr ? place : p.order[place]) * p.width + d]);
    }
    if (p.mean && end > begin) sum /= float(end - begin);
    narrow(sum, static_cast<T*>(p.sums)[s * p.width + d]);
  }
}

}  // namespace

const char* segment_sum_cuda(const SegmentSumParams& params, int64_t segments, void* stream) {
  auto enqueue = [&](auto type) {
    return launch("segment_sum", &segment_sum<typename decltype(type)::element>, divide_up(segments, kWarps),
                  kWarps * kWarp, 0, static_cast<Stream>(stream), params, segments);
  };
  if (params.dtype == Dtype::kFloat32) return enqueue(Element<float>());
  if (params.dtype == Dtype::kBFloat16) return enqueue(Element<bfloat16>());
  return enqueue(Element<float16>());
}

}  // namespace stca
