// Copies and sums of whole rows on CUDA (meaning of every argument: ../rows.h).
//
// Copies: a few lanes for each row, 16 bytes each at a time. Sums: a block, or a warp where segments are short, for
// each segment and 16 bytes of columns a lane. Every sum has one owner and one order: the same bits on every run.
#include "../rows.h"

#include "tile.cuh"

namespace stca {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChain = 32;        // rows added one after the other
constexpr int kLongSegment = 64;  // rows on average, from where on all warps of a block share a segment

// The segment of place i: the last one that starts at or before it and is not empty.
struct Repeated {
  const int64_t* offsets;
  int64_t count;
  STCA_DEVICE int64_t operator()(int64_t i) const { return find(offsets, count, i); }
};

struct Indexed {
  const int64_t* index;
  STCA_DEVICE int64_t operator()(int64_t i) const { return index[i]; }
};

template <class Word, class Source>
__global__ void __launch_bounds__(kThreads)
    copy(const Word* __restrict__ from, const Source source, const int64_t words, const int lanes, const int64_t rows,
         Word* __restrict__ to) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + int64_t(threadIdx.x), i = thread / lanes;
  if (i >= rows) return;
  const Word* row = from + source(i) * words;
#pragma unroll 4
  for (int64_t w = thread % lanes; w < words; w += lanes) to[i * words + w] = row[w];
}

template <class Source>
const char* launch_copy(const void* from, Source source, int64_t row_bytes, int64_t rows, void* to, void* stream) {
  const auto with_words = [&](auto word) {
    using Word = decltype(word);
    const int64_t words = row_bytes / int64_t(sizeof(Word));
    int lanes = 1;
    while (lanes < kWarp && lanes < words) lanes *= 2;
    return launch("rows copy", &copy<Word, Source>, words == 0 ? 0 : divide_up(rows * lanes, kThreads), kThreads, 0,
                  static_cast<Stream>(stream), static_cast<const Word*>(from), source, words, lanes, rows,
                  static_cast<Word*>(to));
  };
  const uintptr_t alignment =
      uintptr_t(row_bytes) | reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (alignment % 16 == 0) return with_words(Chunk());
  if (alignment % 4 == 0) return with_words(uint32_t());
  if (alignment % 2 == 0) return with_words(uint16_t());
  return with_words(uint8_t());
}

__global__ void __launch_bounds__(kThreads)
    suffix_rows(const int64_t* offsets, const int64_t* lasts, const int64_t count, const int64_t rows, int64_t* to) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + int64_t(threadIdx.x);
  if (i >= rows) return;
  const int64_t s = find(offsets, count, i);
  to[i] = lasts[s] - (offsets[s + 1] - i);
}

// A sum and what rounding took from it (Knuth's two-sum): a million rows are summed as exactly as kChain.
struct Sum {
  float total, lost;

  STCA_DEVICE void add(float value) {
    const float sum = total + value, taken = sum - total;
    lost += (total - (sum - taken)) + (value - taken);
    total = sum;
  }
  // Of infinities nothing is lost, but `lost` is not a number then.
  STCA_DEVICE float value() const { return total + (lost - lost == 0.0f ? lost : 0.0f); }
};

// kSharing warps share a segment: warp w sums rows w, w + kSharing, ...; their sums are added in order of warps.
template <class T, int kSharing>
__global__ void __launch_bounds__(kThreads)
    segment_sum(const SegmentSumParams p, const int64_t segments, const int64_t pieces, const bool aligned) {
  constexpr int kV = kVector<T>;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, member = warp % kSharing;
  const int64_t item = (int64_t(blockIdx.x) * kWarps + warp) / kSharing, s = item / pieces;
  const int64_t column = (item % pieces * kWarp + lane) * kV;
  const int count = int(max(int64_t(0), min(int64_t(kV), p.width - column)));
  const bool works = s < segments && count > 0;
  const int64_t begin = works ? p.offsets[s] : 0, end = works ? p.offsets[s + 1] : 0;
  const T* rows = static_cast<const T*>(p.rows) + column;

  Sum sums[kV];
#pragma unroll
  for (int i = 0; i < kV; ++i) sums[i] = {0, 0};
  for (int64_t first = begin + member; first < end; first += kChain * kSharing) {
    float chain[kV] = {};
#pragma unroll 4
    for (int64_t place = first; place < min(end, first + kChain * kSharing); place += kSharing) {
      float row[kV];
      load_vector(rows + (p.order == nullptr ? place : p.order[place]) * p.width, count, aligned, row);
#pragma unroll
      for (int i = 0; i < kV; ++i) chain[i] += row[i];
    }
#pragma unroll
    for (int i = 0; i < kV; ++i) sums[i].add(chain[i]);
  }
  if constexpr (kSharing > 1) {
    Sum* shared = reinterpret_cast<Sum*>(shared_memory());  // [kWarps, kWarp, kV]
#pragma unroll
    for (int i = 0; i < kV; ++i) shared[(warp * kWarp + lane) * kV + i] = sums[i];
    sync_block();
    if (member > 0) return;
    for (int other = 1; other < kSharing; ++other) {
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        const Sum part = shared[((warp + other) * kWarp + lane) * kV + i];
        sums[i].add(part.total);
        sums[i].lost += part.lost;
      }
    }
  }
  if (!works) return;
  T* to = static_cast<T*>(p.sums) + s * p.width + column;
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const float sum = sums[i].value();
    if (i < count) narrow(p.mean && end > begin ? sum / float(end - begin) : sum, to[i]);
  }
}

template <class T, int kSharing>
const char* launch_segment_sum(const SegmentSumParams& p, int64_t segments, Stream stream) {
  const int64_t pieces = divide_up(p.width, kWarp * kVector<T>);
  const bool aligned = rows_aligned(p.rows, sizeof(T), p.width, 0);
  return launch("segment_sum", &segment_sum<T, kSharing>, divide_up(segments * pieces * kSharing, kWarps), kThreads,
                kSharing > 1 ? kThreads * kVector<T> * int(sizeof(Sum)) : 0, stream, p, segments, pieces, aligned);
}

}  // namespace

const char* repeat_rows_cuda(const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes, int64_t rows,
                             void* to, void* stream) {
  return launch_copy(from, Repeated{offsets, count}, row_bytes, rows, to, stream);
}

const char* copy_rows_cuda(const void* from, const int64_t* index, int64_t row_bytes, int64_t rows, void* to,
                           void* stream) {
  return launch_copy(from, Indexed{index}, row_bytes, rows, to, stream);
}

const char* suffix_rows_cuda(const int64_t* offsets, const int64_t* lasts, int64_t count, int64_t rows, int64_t* to,
                             void* stream) {
  return launch("suffix_rows", &suffix_rows, divide_up(rows, kThreads), kThreads, 0, static_cast<Stream>(stream),
                offsets, lasts, count, rows, to);
}

const char* segment_sum_cuda(const SegmentSumParams& params, int64_t segments, int64_t places, void* stream) {
  auto enqueue = [&](auto type) {
    using T = typename decltype(type)::element;
    return places >= kLongSegment * segments
               ? launch_segment_sum<T, kWarps>(params, segments, static_cast<Stream>(stream))
               : launch_segment_sum<T, 1>(params, segments, static_cast<Stream>(stream));
  };
  if (params.dtype == Dtype::kFloat32) return enqueue(Element<float>());
  if (params.dtype == Dtype::kBFloat16) return enqueue(Element<bfloat16>());
  return enqueue(Element<float16>());
}

}  // namespace stca
