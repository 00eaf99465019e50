// Copies and sums of whole rows on CUDA (meaning of every argument: ../rows.h).
//
// A copy takes a block for each run of the result, which its threads write side by side; for each row one of them
// searches where it comes from. A sum takes a block, or where segments are short a warp, for each segment and piece of
// its columns. Every sum has one owner and one order: the same bits on every run.
#include "../rows.h"

#include <type_traits>

#include "prefix_sums.cuh"

namespace stca {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kAtOnce = 4;             // loads that a thread starts before it uses the first
constexpr int kCopied = 8 * kThreads;  // words of the result that a block copies
constexpr int kSumBlock = 32;          // rows that are added one after the other
constexpr int kLongSegment = 64;       // segments of so many rows on average are shared by all warps of a block

// The segment of place i: the last one that starts at or before it and is not empty.
struct Repeated {
  const int64_t* offsets;
  int64_t count, rows;
  int* reports;
  STCA_DEVICE int64_t operator()(int64_t i) const { return find(offsets, count, i); }
  STCA_DEVICE void check(int64_t i) const { check_offset(reports, CudaCheck::kTargetOffsets, offsets, i, count, rows); }
};

// The row of the histories that row i of their suffixes is.
struct InSuffix {
  Suffixes suffixes;
  int64_t last;                        // row of the histories
  static constexpr int64_t count = 0;  // offsets to check: select_suffixes_kernel did
  STCA_DEVICE int64_t operator()(int64_t i) const {
    const int64_t s = find(suffixes.ends, suffixes.count, i);
    return clamp(suffixes.lasts[s] - (suffixes.ends[s + 1] - i), last);
  }
  STCA_DEVICE void check(int64_t) const {}
};

template <class Word, class Source>
__global__ void __launch_bounds__(kThreads) copy_rows_kernel(const Word* __restrict__ from, const Source source,
                                                             const int64_t words, const int64_t total, Word* to) {
  int64_t* starts = reinterpret_cast<int64_t*>(shared_memory());  // word i of the block is word starts[its row] + i
  const int thread = int(threadIdx.x);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + thread; i < source.count; i += int64_t(gridDim.x) * kThreads) {
    source.check(i);
  }
  if (int64_t(blockIdx.x) * kCopied >= total) return;
  const int64_t begin = int64_t(blockIdx.x) * kCopied, first = begin / words, before = begin - first * words;
  const int count = int(min(int64_t(kCopied), total - begin));
  const auto row_of = [&](int i) {
    return words < kCopied ? (int(before) + i) / int(words) : int(before + i >= words);
  };
#pragma unroll 1
  for (int i = thread; i <= row_of(count - 1); i += kThreads) starts[i] = (source(first + i) - i) * words + before;
  sync_block();
  for (int i = thread; i < count; i += kAtOnce * kThreads) {
    Word loaded[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int at = i + j * kThreads;
      if (at < count) loaded[j] = from[starts[row_of(at)] + at];
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j * kThreads < count) to[begin + i + j * kThreads] = loaded[j];
    }
  }
}

template <class Source>
const char* launch_copy(const char* op, const void* from, Source source, int64_t row_bytes, int64_t rows, void* to,
                        void* stream) {
  const auto with_words = [&](auto word) {
    using Word = decltype(word);
    const int64_t words = row_bytes / int64_t(sizeof(Word));
    const int64_t most_rows = words == 0 ? 0 : min(int64_t(kCopied), kCopied / words + 2);  // of a block
    // Offsets are checked where there is nothing to copy too.
    const Grid grid{max(int64_t(source.count > 0), divide_up(rows * words, kCopied)), kThreads,
                    int(most_rows) * int(sizeof(int64_t))};
    return launch(op, &copy_rows_kernel<Word, Source>, grid, static_cast<Stream>(stream),
                  static_cast<const Word*>(from), source, words, rows * words, static_cast<Word*>(to));
  };
  const uintptr_t alignment =
      uintptr_t(row_bytes) | reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (alignment % 16 == 0) return with_words(Chunk());
  if (alignment % 4 == 0) return with_words(uint32_t());
  if (alignment % 2 == 0) return with_words(uint16_t());
  return with_words(uint8_t());
}

// A sum and what rounding took from it (Knuth's two-sum): a million rows are summed as exactly as kSumBlock of them.
struct Sum {
  float total, lost;

  STCA_DEVICE void add(float value) {
    const float sum = total + value, taken = sum - total;
    lost += (total - (sum - taken)) + (value - taken);
    total = sum;
  }
  // A sum of infinities loses nothing, but `lost` is NaN then.
  STCA_DEVICE float value() const { return total + (lost - lost == 0.0f ? lost : 0.0f); }
};

// A segment is places [begin, end), each with the number of a row, or with -1 for none.
struct Segments {
  const int64_t *order, *offsets;
  int64_t count, places;  // of all segments; whatever offsets say, no segment reaches further
  int* reports;           // nullptr: offsets are right

  struct Segment {
    const int64_t* order;
    int64_t begin, end;
    STCA_DEVICE int64_t row(int64_t place) const { return order == nullptr ? place : order[place]; }
  };
  STCA_DEVICE Segment at(int64_t s) const {
    if (reports != nullptr) check_offset(reports, CudaCheck::kTargetOffsets, offsets, s, count, places);
    return {order, clamp(offsets[s], places), clamp(offsets[s + 1], places)};
  }
};

// The segment of a row of the histories: its copies in the suffixes of its request, where these are long enough.
struct CopiesInSuffixes {
  SuffixSumParams p;
  int64_t copies;

  struct Segment {
    const int64_t *order, *ends;
    int64_t begin, end, from_last;  // the row's distance from the end of its history
    int64_t copies;
    STCA_DEVICE int64_t row(int64_t place) const {
      const int64_t s = order[place], copy = ends[s + 1] - from_last;
      return copy >= ends[s] && copy < copies ? copy : -1;
    }
  };
  STCA_DEVICE Segment at(int64_t row) const {
    const int64_t r = find(p.offsets, p.requests, row);
    return {p.order, p.ends, p.of_request[r], p.of_request[r + 1], p.offsets[r + 1] - row, copies};
  }
};

struct SumParams {
  int64_t width;
  const void* rows;
  bool mean;
  void* sums;
};

// A warp adds kPiece columns at a time, kVector<T> a lane: a vector of them where rows are aligned, else single columns
// beside those of the other lanes. Column i of a lane is column_of(lane, i) of the piece.
template <class T>
constexpr int kPiece = kWarp * kVector<T>;
template <class T, bool kAligned>
STCA_DEVICE int column_of(int lane, int i) {
  return kAligned ? lane * kVector<T> + i : i * kWarp + lane;
}

// Loads a lane's columns of a piece of a row. Columns from `columns` on become bits of 0, which are 0 in every type,
// and so do all where no row is there. What is read is not converted yet, so that no load waits for the one before.
template <bool kAligned, class T>
STCA_DEVICE void load_piece(const T* from, int64_t columns, bool is_there, int lane, T (&to)[kVector<T>]) {
  if constexpr (kAligned) {
    Chunk chunk{};
    const int column = column_of<T, true>(lane, 0);
    if (is_there && column < columns) chunk = *reinterpret_cast<const Chunk*>(from + column);
    memcpy(to, &chunk, sizeof(chunk));
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const int column = column_of<T, false>(lane, i);
      to[i] = is_there && column < columns ? from[column] : T{};
    }
  }
}

// A warp's share of a piece of a segment: of kSharing warps that share it, warp w sums rows w, w + kSharing, ...
template <class T, int kSharing, bool kAligned>
struct PieceOfSegment {
  static constexpr int kV = kVector<T>, kRows = kAligned ? kAtOnce : 2;  // single columns are many loads a row
  static constexpr int kPitch = kWarp + 2;                               // the columns of a lane lie in different banks
  static constexpr int kBytes = kSharing > 1 ? kWarps * kV * kPitch * int(sizeof(Sum)) : 0;

  int64_t columns;  // from the piece's first to the last of the row
  int64_t width;
  int lane, warp;

  // sums[i] = the sum over the warp's rows of column i of the lane, kSumBlock rows at a time.
  template <class Segment>
  STCA_DEVICE void add(const T* rows, const Segment& segment, Sum (&sums)[kV]) const {
    for (int64_t first = segment.begin + warp % kSharing; first < segment.end; first += kSumBlock * kSharing) {
      const int64_t stop = min(segment.end, first + kSumBlock * kSharing);
      float block_sum[kV] = {};
      for (int64_t place = first; place < stop; place += kRows * kSharing) {
        T row[kRows][kV];
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int64_t each = place + j * kSharing, at = segment.row(min(each, stop - 1));
          load_piece<kAligned>(rows + at * width, columns, each < stop && at >= 0, lane, row[j]);
        }
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
#pragma unroll
          for (int i = 0; i < kV; ++i) block_sum[i] += widen(row[j][i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kV; ++i) sums[i].add(block_sum[i]);
    }
  }

  // Writes what one warp has summed alone.
  template <class Result>
  STCA_DEVICE void write(const Sum (&sums)[kV], T* to, Result result) const {
    T results[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) result(sums[i], results[i]);
    if constexpr (kAligned) {
      Chunk chunk;
      memcpy(&chunk, results, sizeof(chunk));
      if (column_of<T, true>(lane, 0) < columns) store_chunk(chunk, to + column_of<T, true>(lane, 0));
    } else {
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        if (column_of<T, false>(lane, i) < columns) to[column_of<T, false>(lane, i)] = results[i];
      }
    }
  }

  // Adds up what all warps of the block have summed, in order of warps, and writes it: a thread for each column, so
  // that all warps add and stores lie side by side.
  template <class Result>
  STCA_DEVICE void add_up_and_write(const Sum (&sums)[kV], T* to, Result result) const {
    static_assert(kSharing == kWarps && kPiece<T> <= kThreads);
    const int thread = int(threadIdx.x);
    Sum* parts = reinterpret_cast<Sum*>(shared_memory());  // [kWarps, kV, kPitch]
#pragma unroll
    for (int i = 0; i < kV; ++i) parts[(warp * kV + i) * kPitch + lane] = sums[i];
    sync_block();
    if (thread >= kPiece<T> || thread >= columns) return;
    const int i = kAligned ? thread % kV : thread / kWarp, owner = kAligned ? thread / kV : lane;
    Sum sum = parts[i * kPitch + owner];
#pragma unroll
    for (int other = 1; other < kSharing; ++other) {
      const Sum part = parts[(other * kV + i) * kPitch + owner];
      sum.add(part.total);
      sum.lost += part.lost;
    }
    result(sum, to[thread]);
  }
};

// Two blocks at a time leave a thread 128 registers: of the 64 that the compiler takes otherwise, some spill.
template <class T, int kSharing, bool kAligned, class Source>
__global__ void __launch_bounds__(kThreads, 2)
    sum_rows_kernel(const SumParams p, const Source source, const int64_t segments, const int64_t pieces) {
  using Piece = PieceOfSegment<T, kSharing, kAligned>;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int64_t item = (int64_t(blockIdx.x) * kWarps + warp) / kSharing, s = item / pieces;
  const int64_t begin_column = (item - s * pieces) * kPiece<T>;
  if (s >= segments) return;  // no warp that shares a piece leaves: those blocks hold one piece each
  const auto segment = source.at(s);
  const Piece piece{p.width - begin_column, p.width, lane, warp};

  Sum sums[Piece::kV];
#pragma unroll
  for (int i = 0; i < Piece::kV; ++i) sums[i] = {0, 0};
  piece.add(static_cast<const T*>(p.rows) + begin_column, segment, sums);

  T* to = static_cast<T*>(p.sums) + s * p.width + begin_column;
  const int64_t count = segment.end - segment.begin;
  const auto result = [&](const Sum& sum, T& of) {
    narrow(p.mean && count > 0 ? sum.value() / float(count) : sum.value(), of);
  };
  if constexpr (kSharing == 1) {
    piece.write(sums, to, result);
  } else {
    piece.add_up_and_write(sums, to, result);
  }
}

// A segment takes a block where all segments together have many `places` for each of them, else a warp.
template <class Source>
const char* launch_sum(const char* op, Dtype dtype, const SumParams& p, const Source& source, int64_t segments,
                       int64_t places, void* stream) {
  return visit_cuda_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    const int64_t pieces = divide_up(p.width, kPiece<T>);
    auto enqueue = [&](auto sharing, auto aligned) {
      constexpr int kSharing = decltype(sharing)::value;
      constexpr bool kAligned = decltype(aligned)::value;
      const Grid grid{divide_up(segments * pieces * kSharing, kWarps), kThreads,
                      PieceOfSegment<T, kSharing, kAligned>::kBytes};
      return launch(op, &sum_rows_kernel<T, kSharing, kAligned, Source>, grid, static_cast<Stream>(stream), p, source,
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

// In one block. Whatever the integers are, suffixes lie within the histories.
__global__ void __launch_bounds__(kScanThreads) select_suffixes_kernel(const SelectParams p, int* reports) {
  for (int64_t r = threadIdx.x; r < p.requests; r += kScanThreads) {
    check_offset(reports, CudaCheck::kOffsets, p.offsets, r, p.requests, p.rows);
  }
  prefix_sums(p.ends, p.count, reinterpret_cast<int64_t*>(shared_memory()), [&](int64_t s) {
    const int64_t r = clamp(p.index[s], p.requests - 1), begin = clamp(p.offsets[r], p.rows),
                  end = clamp(p.offsets[r + 1], p.rows), length = max(int64_t(0), end - begin);
    if (r != p.index[s]) report(reports, CudaCheck::kIndex);
    p.lasts[s] = end;
    if (p.keep == nullptr) return length;
    if (p.keep[s] < 0) report(reports, CudaCheck::kKeep);
    return clamp(p.keep[s], length);
  });
  sync_block();
  if (threadIdx.x == 0 && p.total >= 0 && p.total != p.ends[p.count]) report(reports, CudaCheck::kTotal);
}

}  // namespace

const char* repeat_rows_cuda(const char* op, const void* from, const int64_t* offsets, int64_t count, int64_t row_bytes,
                             int64_t rows, void* to, int* reports, void* stream) {
  return launch_copy(op, from, Repeated{offsets, count, rows, reports}, row_bytes, rows, to, stream);
}

const char* copy_suffixes_cuda(const char* op, const void* from, int64_t from_rows, const Suffixes& suffixes,
                               int64_t row_bytes, int64_t rows, void* to, void* stream) {
  return launch_copy(op, from, InSuffix{suffixes, from_rows - 1}, row_bytes, rows, to, stream);
}

const char* segment_sum_cuda(const char* op, const SegmentSumParams& p, int64_t segments, int64_t places, int* reports,
                             void* stream) {
  return launch_sum(op, p.dtype, {p.width, p.rows, p.mean, p.sums},
                    Segments{p.order, p.offsets, segments, places, reports}, segments, places, stream);
}

const char* suffix_sum_cuda(const char* op, const SuffixSumParams& p, int64_t rows, int64_t copies, int64_t suffixes,
                            void* stream) {
  // Each row has as many places as its request has suffixes: on average so many.
  const int64_t places = divide_up(suffixes, max(int64_t(1), p.requests)) * rows;
  return launch_sum(op, p.dtype, {p.width, p.rows, false, p.sums}, CopiesInSuffixes{p, copies}, rows, places, stream);
}

const char* select_suffixes_cuda(const char* op, const SelectParams& p, int* reports, void* stream) {
  return launch(op, &select_suffixes_kernel, {1, kScanThreads, kScanBytes}, static_cast<Stream>(stream), p, reports);
}

}  // namespace stca
