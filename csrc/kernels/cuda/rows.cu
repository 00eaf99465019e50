// Copies and sums of whole rows on CUDA (meaning of every argument: ../rows.h).
//
// Copies: a few lanes for each row, 16 bytes each at a time. Sums: a block, or a warp where segments are short, for
// each segment and 16 bytes of columns a lane. Every sum has one owner and one order: the same bits on every run.
#include "../rows.h"

#include <type_traits>

#include "tile.cuh"

namespace stca {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChain = 32;        // rows added one after the other
constexpr int kAtOnce = 4;        // rows that a thread asks for before it adds the first of them
constexpr int kLongSegment = 64;  // rows on average, from where on all warps of a block share a segment

// The segment of place i: the last one that starts at or before it and is not empty.
struct Repeated {
  const int64_t* offsets;
  int64_t count;
  STCA_DEVICE int64_t operator()(int64_t i) const { return find(offsets, count, i); }
};

// The row of the histories that row i of their suffixes is.
struct InSuffix {
  Suffixes suffixes;
  STCA_DEVICE int64_t operator()(int64_t i) const {
    const int64_t s = find(suffixes.ends, suffixes.count, i);
    return suffixes.lasts[s] - (suffixes.ends[s + 1] - i);
  }
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
const char* launch_copy(const char* op, const void* from, Source source, int64_t row_bytes, int64_t rows, void* to,
                        void* stream) {
  const auto with_words = [&](auto word) {
    using Word = decltype(word);
    const int64_t words = row_bytes / int64_t(sizeof(Word));
    int lanes = 1;
    while (lanes < kWarp && lanes < words) lanes *= 2;
    return launch(op, &copy<Word, Source>, words == 0 ? 0 : divide_up(rows * lanes, kThreads), kThreads, 0,
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

// A segment is its places [begin, end) and the row at each of them; -1 for none.
struct Segments {
  const int64_t *order, *offsets;

  struct Segment {
    const int64_t* order;
    int64_t begin, end;
    STCA_DEVICE int64_t row(int64_t place) const { return order == nullptr ? place : order[place]; }
  };
  STCA_DEVICE Segment at(int64_t s) const { return {order, offsets[s], offsets[s + 1]}; }
};

// The segment of a row of the histories: its copies in the suffixes of its request, where these are long enough.
struct CopiesInSuffixes {
  SuffixSumParams p;

  struct Segment {
    const int64_t *order, *ends;
    int64_t begin, end, from_last;  // the row's distance from the end of its history
    STCA_DEVICE int64_t row(int64_t place) const {
      const int64_t s = order[place], copy = ends[s + 1] - from_last;
      return copy >= ends[s] ? copy : -1;
    }
  };
  STCA_DEVICE Segment at(int64_t row) const {
    const int64_t r = find(p.offsets, p.requests, row);
    return {p.order, p.ends, p.of_request[r], p.of_request[r + 1], p.offsets[r + 1] - row};
  }
};

struct SumParams {
  int64_t width;
  const void* rows;
  bool mean;
  void* sums;
};

// kSharing warps share a segment: warp w sums rows w, w + kSharing, ...; their sums are added in order of warps. Two
// blocks at a time leave a thread 128 registers: of the 64 that the compiler takes else, some spill.
template <class T, int kSharing, bool kAligned, class Source>
__global__ void __launch_bounds__(kThreads, 2)
    sum_rows(const SumParams p, const Source source, const int64_t segments, const int64_t pieces) {
  constexpr int kV = kVector<T>;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, member = warp % kSharing;
  const int64_t item = (int64_t(blockIdx.x) * kWarps + warp) / kSharing, s = item / pieces;
  const int64_t column = (item % pieces * kWarp + lane) * kV;
  const int count = int(max(int64_t(0), min(int64_t(kV), p.width - column)));
  const bool works = s < segments && count > 0;
  const auto segment = source.at(min(s, segments - 1));
  const int64_t begin = segment.begin, end = works ? segment.end : begin;
  const T* rows = static_cast<const T*>(p.rows) + column;

  Sum sums[kV];
#pragma unroll
  for (int i = 0; i < kV; ++i) sums[i] = {0, 0};
  for (int64_t first = begin + member; first < end; first += kChain * kSharing) {
    float chain[kV] = {};
    const int64_t stop = min(end, first + kChain * kSharing);
    for (int64_t place = first; place < stop; place += kAtOnce * kSharing) {
      float row[kAtOnce][kV];
      bool is_there[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {  // any row in the place of none, so that no load waits for a condition
        const int64_t each = place + j * kSharing, at = segment.row(min(each, stop - 1));
        is_there[j] = each < stop && at >= 0;
        load_vector(rows + max(int64_t(0), at) * p.width, count, kAligned, row[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int i = 0; i < kV; ++i) chain[i] += is_there[j] ? row[j][i] : 0.0f;
      }
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
  float result[kV];
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const float sum = sums[i].value();
    result[i] = p.mean && end > begin ? sum / float(end - begin) : sum;
  }
  store_vector(result, count, kAligned, static_cast<T*>(p.sums) + s * p.width + column);
}

// `places` of all segments together: many for each make a block for a segment, few a warp.
template <class Source>
const char* launch_sum(const char* op, Dtype dtype, const SumParams& p, const Source& source, int64_t segments,
                       int64_t places, void* stream) {
  return visit_cuda_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    const int64_t pieces = divide_up(p.width, kWarp * kVector<T>);
    auto enqueue = [&](auto sharing, auto aligned) {
      constexpr int kSharing = decltype(sharing)::value;
      return launch(op, &sum_rows<T, kSharing, decltype(aligned)::value, Source>,
                    divide_up(segments * pieces * kSharing, kWarps), kThreads,
                    kSharing > 1 ? kThreads * kVector<T> * int(sizeof(Sum)) : 0, static_cast<Stream>(stream), p, source,
                    segments, pieces);
    };
    auto shared_by = [&](auto sharing) {
      const bool aligned = rows_aligned(p.rows, sizeof(T), p.width, 0) && rows_aligned(p.sums, sizeof(T), p.width, 0);
      return aligned ? enqueue(sharing, std::true_type()) : enqueue(sharing, std::false_type());
    };
    return places >= kLongSegment * segments ? shared_by(std::integral_constant<int, kWarps>())
                                             : shared_by(std::integral_constant<int, 1>());
  });
}

}  // namespace

const char* repeat_rows_cuda(const char* op, const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes,
                             int64_t rows, void* to, void* stream) {
  return launch_copy(op, from, Repeated{offsets, count}, row_bytes, rows, to, stream);
}

const char* copy_suffixes_cuda(const char* op, const void* from, const Suffixes& suffixes, int64_t row_bytes,
                               int64_t rows, void* to, void* stream) {
  return launch_copy(op, from, InSuffix{suffixes}, row_bytes, rows, to, stream);
}

const char* segment_sum_cuda(const char* op, const SegmentSumParams& p, int64_t segments, int64_t places,
                             void* stream) {
  return launch_sum(op, p.dtype, {p.width, p.rows, p.mean, p.sums}, Segments{p.order, p.offsets}, segments, places,
                    stream);
}

const char* suffix_sum_cuda(const char* op, const SuffixSumParams& p, int64_t rows, int64_t suffixes, void* stream) {
  // The suffixes of a request, on average, are the places of each of its rows.
  const int64_t places = divide_up(suffixes, max(int64_t(1), p.requests)) * rows;
  return launch_sum(op, p.dtype, {p.width, p.rows, false, p.sums}, CopiesInSuffixes{p}, rows, places, stream);
}

}  // namespace stca
