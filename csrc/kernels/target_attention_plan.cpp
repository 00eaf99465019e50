// Cuts a target_attention call into items of similar cost for a number of threads. Compiled once, for any CPU.
#include <algorithm>

#include "target_attention.h"

namespace stca {
namespace {

constexpr int64_t kBlockRows = 256;              // query rows that share a history head: fills a matrix product
constexpr int64_t kBlockElements = 256 * 1024;   // of a block's running sums: 1 MB in float, about a second-level cache
constexpr int64_t kTileElements = 128 * 1024;    // of a tile of k or v
constexpr int64_t kFewTileElements = 32 * 1024;  // where less than 32 query rows share a history head
constexpr int64_t kTileRowsMin = 32, kTileRowsMax = 256;
constexpr int64_t kItemsPerThread = 4;  // so that the last item to finish is short
constexpr int64_t kSplitRowsMin = 512;  // a shorter piece of history is not worth combining; half, of several blocks
constexpr int64_t kIdleRowsMin = 128;   // but one of this length is, where threads would otherwise have no work
constexpr int64_t kGradientElements = 512 * 1024;  // of history rows at once, for each thread: 2 MB in float
constexpr int64_t kRowsAtOnceMin = 256;            // but so many of wide rows, since each range meets all targets
constexpr int64_t kRowsAtOnceMax = 16 * 1024;      // and so many of narrow ones, of which lists are made

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [begin, end) of request r's history that any of its targets [target_begin, target_end) sees.
std::pair<int64_t, int64_t> seen_rows(const TargetAttentionParams& p, int64_t r, int64_t target_begin,
                                      int64_t target_end) {
  const int64_t first = p.history_offsets[r], last = p.history_offsets[r + 1];
  if (p.visible == nullptr) return {first, last};
  int64_t begin = last, end = first;
  for (int64_t t = target_begin; t < target_end; ++t) {
    if (p.visible[2 * t] >= p.visible[2 * t + 1]) continue;
    begin = std::min(begin, first + p.visible[2 * t]);
    end = std::max(end, first + p.visible[2 * t + 1]);
  }
  return {std::min(begin, end), end};
}

// The first request with rows from `row_begin` on, or with none between such rows: it belongs to the range of rows that
// starts there, and not to the one before.
int64_t first_request(const TargetAttentionParams& p, int64_t row_begin) {
  const int64_t* end = p.history_offsets + p.num_requests + 1;
  const int64_t r = std::lower_bound(p.history_offsets, end, row_begin) - p.history_offsets;
  return r > 0 && p.history_offsets[r] > row_begin ? r - 1 : r;
}

// Replaces whole items by pieces of their rows until no piece costs much more than a thread's fair share.
void split_items(TargetAttentionPlan& plan, std::vector<TargetAttentionItem> whole, int threads, int64_t rows_min) {
  auto cost = [](const TargetAttentionItem& item) {
    return (item.row_end - item.row_begin) * (item.target_end - item.target_begin);
  };
  int64_t total = 0;
  for (const auto& item : whole) total += cost(item);
  const int64_t for_all = whole.empty() ? 0 : divide_up(threads, int64_t(whole.size()));
  const int64_t share = threads > 1 ? std::max<int64_t>(1, total / (threads * kItemsPerThread)) : total;
  for (auto& item : whole) {
    const int64_t rows = item.row_end - item.row_begin;
    const int64_t by_cost = share > 0 ? divide_up(cost(item), share) : 1;
    const int64_t by_rows = std::max(rows / rows_min, std::min(for_all, rows / kIdleRowsMin));
    const int64_t pieces = threads > 1 ? std::max<int64_t>(1, std::min(by_cost, by_rows)) : 1;
    if (pieces == 1) {
      plan.items.push_back(item);
      continue;
    }
    // Pieces are whole tiles; where there is at most one for each thread they are of equal size instead.
    const int64_t unit = pieces > threads ? plan.tiling.tile_rows : kTileRowsMin;
    const int64_t piece_rows = divide_up(divide_up(rows, pieces), unit) * unit;
    TargetAttentionCombine combine{item.target_begin, item.target_end, plan.partial_count, plan.partial_count};
    item.combine = int64_t(plan.combines.size());
    for (int64_t begin = item.row_begin; begin < item.row_end; begin += piece_rows) {
      TargetAttentionItem piece = item;
      piece.row_begin = begin;
      piece.row_end = std::min(begin + piece_rows, item.row_end);
      piece.partial = combine.partial_end++;
      plan.items.push_back(piece);
    }
    plan.partial_count = combine.partial_end;
    plan.combines.push_back(combine);
  }
  // The sort is stable, so that no piece of a history is taken before an earlier one: partial results add up in order.
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [&](const auto& a, const auto& b) { return cost(a) > cost(b); });
}

int64_t max_targets(const std::vector<TargetAttentionItem>& items) {
  int64_t most = 0;
  for (const auto& item : items) most = std::max(most, item.target_end - item.target_begin);
  return most;
}

int64_t block_targets(const TargetAttentionParams& p) {
  const int64_t by_rows = kBlockRows / (p.heads / p.kv_heads);
  const int64_t by_elements = kBlockElements / std::max<int64_t>(1, p.heads * std::max(p.key_dim, p.value_dim));
  return std::max<int64_t>(1, std::min(by_rows, by_elements));
}

// Rows of a tile where at most `stacked` query rows share a history head.
int64_t tile_rows(const TargetAttentionParams& p, int64_t stacked) {
  const int64_t elements = stacked < 32 ? kFewTileElements : kTileElements;
  const int64_t widest = std::max<int64_t>(1, p.kv_heads * std::max(p.key_dim, p.value_dim));
  return std::clamp(elements / widest / 16 * 16, kTileRowsMin, kTileRowsMax);
}

}  // namespace

int64_t target_attention_block_targets(const TargetAttentionTiling& tiling, int64_t targets) {
  return divide_up(targets, std::max<int64_t>(1, divide_up(targets, tiling.block_targets)));
}

int64_t target_attention_partial_size(const TargetAttentionParams& p, int64_t targets) {
  return divide_up(targets * p.heads * (p.value_dim + 2), 16) * 16;  // whole cache lines
}

TargetAttentionPlan plan_target_attention(const TargetAttentionParams& p, int threads) {
  TargetAttentionPlan plan{{block_targets(p), 0}, {}, {}, 0, 0, 0};
  std::vector<TargetAttentionItem> whole;
  for (int64_t r = 0; r < p.num_requests; ++r) {
    const int64_t first = p.target_offsets[r], last = p.target_offsets[r + 1];
    if (first == last) continue;
    const int64_t block_targets = target_attention_block_targets(plan.tiling, last - first);
    for (int64_t begin = first; begin < last; begin += block_targets) {
      const int64_t end = std::min(begin + block_targets, last);
      const auto rows = seen_rows(p, r, begin, end);
      whole.push_back({r, begin, end, rows.first, rows.second, -1, -1});
    }
  }
  const int64_t targets = max_targets(whole);
  plan.tiling.tile_rows = tile_rows(p, targets * (p.heads / p.kv_heads));
  split_items(plan, std::move(whole), threads, kSplitRowsMin);
  plan.max_targets = targets;
  plan.partial_size = target_attention_partial_size(p, targets);
  return plan;
}

TargetAttentionPlan plan_target_attention_backward(const TargetAttentionParams& p, int threads, int64_t row_begin,
                                                   int64_t row_end) {
  TargetAttentionPlan plan{{block_targets(p), 0}, {}, {}, 0, 0, 0};
  std::vector<TargetAttentionItem> whole;
  for (int64_t r = first_request(p, row_begin); r < p.num_requests; ++r) {
    const int64_t first = p.history_offsets[r], last = p.history_offsets[r + 1];
    if (first >= row_end && row_end < p.num_rows) break;
    if (first == last && p.target_offsets[r] == p.target_offsets[r + 1]) continue;
    whole.push_back(
        {r, p.target_offsets[r], p.target_offsets[r + 1], std::max(first, row_begin), std::min(last, row_end), -1, -1});
  }
  const int64_t targets = max_targets(whole);
  // Where there are several blocks of query rows, each is packed again for every tile: tiles are as large as they may
  // be.
  const bool several = targets > plan.tiling.block_targets;
  plan.tiling.tile_rows = several ? kTileRowsMax : tile_rows(p, targets * (p.heads / p.kv_heads));
  split_items(plan, std::move(whole), threads, several ? kSplitRowsMin / 2 : kSplitRowsMin);
  plan.max_targets = targets;
  return plan;
}

int64_t target_attention_rows_at_once(const TargetAttentionParams& p, int threads) {
  const int64_t elements = p.kv_heads * (p.key_dim + (p.shared ? 0 : p.value_dim));
  return threads * std::clamp(kGradientElements / elements, kRowsAtOnceMin, kRowsAtOnceMax);
}

}  // namespace stca
