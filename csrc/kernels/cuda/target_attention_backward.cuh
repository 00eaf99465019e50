// What the backward kernels of target_attention share: what a block holds, and weights and their gradients from scores.
#pragma once

#include "block.cuh"

namespace stca {
namespace cuda {

// What turns the scores of a query row into weights and their gradients, [T, H]: p = 2^(score in units of log 2 -
// row_max) * inverse, and delta = dout . out - dlse.
struct alignas(16) Weighing {
  float row_max, inverse, delta, unused;
};

// A query row of an item, in shared memory. The weighing of a row that sees nothing stays 0.
struct BackwardRow : QueryRow {
  int64_t dout;  // where it starts in dout, in elements
  Weighing weighing;
};

STCA_DEVICE BackwardRow backward_row(const TargetAttentionParams& p, const Item& item, int row,
                                     const Weighing* weighing) {
  BackwardRow own{query_row(p, item, row), 0, {}};
  own.dout = own.index * p.value_dim;
  if (own.begin < own.end) own.weighing = weighing[own.index];
  return own;
}

struct Weights {
  float p, ds;
};

// p and scale * ds of a query row and history row n of its request; 0 where it does not see n within the item's split.
STCA_DEVICE Weights weights_of(const BackwardRow& row, int n, float scale, float score, float dp) {
  const Weighing& of = row.weighing;
  if (n < row.begin || n >= row.end || of.inverse == 0) return {0, 0};
  const float weight = exp2f(rounded_product(scale * kLog2E, score) - of.row_max) * of.inverse;
  return {weight, weight * (dp - of.delta) * scale};
}

// A block of either kernel: a tile of query rows, with dout.
template <class F>
struct BackwardBlock : Block<F> {
  using T = typename F::Element;
  using Block<F>::p;

  const TargetAttentionBackwardParams& b;
  T *queries, *douts;          // [kRows, kPitch]
  int key_width, value_width;  // columns of the slice

  STCA_DEVICE BackwardBlock(const TargetAttentionBackwardParams& b, const Aligned& aligned)
      : Block<F>(b.forward, aligned),
        b(b),
        queries(this->template at<T>(F::kQueries)),
        douts(this->template at<T>(F::kDouts)),
        key_width(this->width_of(p.key_dim)),
        value_width(this->width_of(p.value_dim)) {}

  // Asks for query rows of q and dout from the item's row `first` on. `rows` describes them.
  STCA_DEVICE void load_queries_and_douts(int first) const {
    this->load_queries(queries, first);
    load_rows<F::kMaxWidth, F::kRows, F::kThreads>(
        douts, this->item.query_rows - first, int(p.value_dim), this->aligned.dout,
        [&](int row) { return static_cast<const T*>(b.dout) + this->rows[row].dout; });
    commit_copies();
  }

  // Calls f(i, row, n) for each element i of a tile of weights that this thread owns: query row and history row.
  template <class Each>
  STCA_DEVICE static void for_own_elements(Each f) {
    const int thread = found_anew(int(threadIdx.x));
#pragma unroll
    for (int i = 0; i < F::kElements; ++i) {
      const int at = thread + i * F::kThreads;
      f(i, at / F::kHistoryRows, at % F::kHistoryRows);
    }
  }

  // The products in shared memory that belong to the thread's elements.
  STCA_DEVICE void read_products(float (&product)[F::kElements]) const {
    for_own_elements([&](int i, int row, int n) { product[i] = this->product(row, n); });
  }
};

// What a kernel of dk and dv keeps of a chunk of history, to make dq of it without products of queries and history a
// second time: ds, and what dq is so far. Both are of fixed size for each block, whatever the history's length.
// Requests of so many query rows that a partial dq of them takes more leave dq to another kernel.
constexpr int kKeptBytes = 256 * 1024;      // of ds, for each block
constexpr int kPartialBytes = 1024 * 1024;  // of a partial dq, for each block; a range has up to two
struct Kept {
  char* ds;         // [blocks, kKeptBytes]
  float* partials;  // [2 * num_ranges, tile_rows, Dk]
};

// How a kernel of dk and dv cuts a call of which `blocks` ranges run at once: tiles of so many history and query rows,
// and `tile_rows` as many query rows as dq is made of here, at most `most_kept`.
inline Tiling kept_tiling(const TargetAttentionParams& p, int64_t blocks, int history_rows, int query_rows,
                          int64_t most_kept, int64_t partial_bytes) {
  const int64_t tiles = p.kv_heads * (p.num_rows / history_rows + p.num_requests);
  const int64_t rows = min(p.num_targets * (p.heads / p.kv_heads), most_kept);
  const int64_t most = min(rows, partial_bytes / int64_t(sizeof(float)) / p.key_dim);
  return {int(max(int64_t(1), most)), history_rows, int(max(int64_t(1), min(blocks, tiles))), false, query_rows};
}

// Rows of the partial dq of all ranges.
constexpr int64_t max_partial_rows(const Tiling& tiling) { return max_partials(tiling.num_ranges) * tiling.tile_rows; }

// Whether ds of an item is kept, and dq made of it.
STCA_DEVICE bool is_kept(const Item& item, const Tiling& tiling) { return item.query_rows <= tiling.tile_rows; }

// The row of the partial results [2 * num_ranges, tile_rows] where an item's begin. Until a whole history is done, it
// is where the range's last will be.
STCA_DEVICE int64_t first_partial_row(const Item& item, const Tiling& tiling, int range) {
  return int64_t(item.partial < 0 ? 2 * range + 1 : item.partial) * tiling.tile_rows;
}

// A chunk of an item's history rows, counted from the request's first, in shared memory: registers are scarce.
struct alignas(8) ItemChunk {
  int item_begin, item_end;
  int begin, end;
  int pitch;  // rows of a whole chunk

  STCA_DEVICE bool is_first() const { return begin == item_begin; }
  // Whether dq is complete with this chunk: the item has all of the history, and this is its last part.
  STCA_DEVICE bool completes(const Item& item) const { return item_begin == 0 && end == item.history_rows; }
};

// History rows of a chunk: whole tiles. With few query rows the copies of its keys decide, so that the second time they
// should be found in the L2 cache, of which every range has a part; with many, the partial dq, read and written for
// each chunk. ds is kept of whole tiles of query rows.
template <class T, int kHistoryRows, int kQueryRows>
STCA_DEVICE int chunk_rows(const TargetAttentionParams& p, int query_rows) {
  constexpr int kCached = 256 * 1024, kSize = int(sizeof(T));
  const int wanted = max(kCached / kSize / int(p.key_dim), 8 * query_rows);
  const int kept = kKeptBytes / kSize / round_up(max(1, query_rows), kQueryRows);
  return min(wanted, kept) / kHistoryRows * kHistoryRows;
}

// Starts with the first chunk of an item, when it has been loaded. Where nothing is kept, that is all of it.
template <class T, int kHistoryRows, int kQueryRows>
STCA_DEVICE void start_chunks(ItemChunk& chunk, const TargetAttentionParams& p, const Item& item, bool kept) {
  if (threadIdx.x == 0) {
    const int rows =
        kept ? chunk_rows<T, kHistoryRows, kQueryRows>(p, item.query_rows) : max(1, item.split_end - item.split_begin);
    chunk = {item.split_begin, item.split_end, item.split_begin, min(item.split_end, item.split_begin + rows), rows};
  }
  sync_block();
}

// Goes on to the next chunk, and returns whether there is one.
STCA_DEVICE bool next_chunk(ItemChunk& chunk) {
  if (chunk.end == chunk.item_end) return false;
  sync_block();
  if (threadIdx.x == 0) {
    chunk.begin = chunk.end;
    chunk.end = min(chunk.item_end, chunk.end + chunk.pitch);
  }
  sync_block();
  return true;
}

// Makes history rows [begin, end) of the request, and a tile of its query rows, what the block works on.
STCA_DEVICE void take_rows(Item& item, int begin, int end, int tile = 0) {
  sync_block();
  if (threadIdx.x == 0) {
    item.split_begin = begin;
    item.split_end = end;
    item.tile = tile;
  }
  sync_block();
}

// The two kernels: how each cuts a call, what shared memory a block takes, and its launch. The first makes dq too for
// requests of up to tile_rows query rows, which the second leaves out.
Tiling dkv_tiling(const TargetAttentionParams& p, const CudaDevice& device);
int dkv_shared_bytes(const TargetAttentionParams& p);
const char* launch_dkv(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                       const Weighing* weighing, const Kept& kept, Stream stream);
Tiling dq_tiling(const TargetAttentionParams& p, const CudaDevice& device, int left_out);
int dq_shared_bytes(const TargetAttentionParams& p);
const char* launch_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                      const Weighing* weighing, float* partials, Stream stream);

// Adds up the partial dq of tiles that several ranges share, in order of splits.
const char* launch_combine_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                              const float* partials, Stream stream);

// dk, dv and most of dq by one kernel, then the rest of dq by another, whose schedule and partial results take the
// memory of the first one's: make_dkv and make_dq launch them, given a tiling and its schedule. How many query rows
// each request has is known to the GPU alone; the host knows those of all.
template <class MakeDkv, class MakeDq>
const char* launch_products(const TargetAttentionBackwardParams& b, const Tiling& history, const Tiling& queries,
                            void* workspace, const float* partials, Stream stream, MakeDkv make_dkv, MakeDq make_dq) {
  const TargetAttentionParams& p = b.forward;
  Schedule schedule = schedule_at(workspace, p.num_requests, history.num_ranges);
  const char* error = launch_schedule(p, history, schedule, stream);
  if (error == nullptr) error = make_dkv(history, schedule);
  if (error == nullptr) error = launch_combine_dq(b, history, schedule, partials, stream);
  const bool all_kept = p.num_targets * (p.heads / p.kv_heads) <= history.tile_rows;
  if (error != nullptr || all_kept) return error;
  schedule = schedule_at(workspace, p.num_requests, queries.num_ranges);
  error = launch_schedule(p, queries, schedule, stream);
  if (error == nullptr) error = make_dq(queries, schedule);
  return error != nullptr ? error : launch_combine_dq(b, queries, schedule, partials, stream);
}

}  // namespace cuda
}  // namespace stca
