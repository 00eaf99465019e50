// Sizes of swiglu_ffn_norm's buffers. Compiled once, for any CPU.
#include "swiglu_ffn_norm.h"

#include <algorithm>

namespace stca {
namespace {

constexpr int64_t kTileRows = 96;        // of 256 columns and 512 hidden ones: two second-level caches of 1 MB
constexpr int64_t kLargeTileRows = 192;  // where a weight does not fit there, and each tile reads it again
constexpr int64_t kLeastTileRows = 16;   // of a tile that is there only to give a thread work
constexpr int64_t kLeastShare = 2;       // such a tile has half of the rows, where threads sum gradients of weights
constexpr int64_t kLargeWeight = 1024 * 256;  // elements

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_panels(int64_t columns) { return divide_up(columns, kWidestPanel) * kWidestPanel; }

}  // namespace

int64_t panels_capacity(int64_t rows, int64_t columns) { return rows * whole_panels(columns); }

int64_t swiglu_ffn_norm_tile_rows(int64_t dim, int64_t hidden, int64_t rows, int64_t threads, bool backward) {
  const int64_t most = dim * hidden > kLargeWeight ? kLargeTileRows : kTileRows;
  const int64_t needed = divide_up(rows, most), even = divide_up(needed, threads) * threads;
  const int64_t least = backward ? most / kLeastShare : kLeastTileRows;
  const int64_t tiles = std::min(even, std::max(needed, rows / least));
  return std::max<int64_t>(1, divide_up(rows, std::max<int64_t>(1, tiles)));
}

SwigluFfnNormWeightGrads swiglu_ffn_norm_weight_grads(const SwigluFfnNormParams& p) {
  SwigluFfnNormWeightGrads at;
  at.w_u = 0;
  at.w_v = at.w_u + p.dim * p.hidden;
  at.w_o = at.w_v + p.dim * p.hidden;
  at.norm_weight = at.w_o + p.hidden * p.dim;
  at.norm_bias = at.norm_weight + whole_panels(p.dim);
  at.size = at.norm_bias + whole_panels(p.dim);
  return at;
}

}  // namespace stca
