// Forward pass of target_attention on Hopper with v beside k: out and the softmax of rows (projected.cuh).
//
// The products of a tile's scores are asked for before those of the last tile's weights and values, so that the softmax
// begins while the latter are made.
#pragma once

#include "projected.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Rows of a tile and stages, by warpgroups of query rows of a block.
template <int kRowsOfOne, int kStagesOfOne, int kRowsOfTwo, int kStagesOfTwo>
struct ForwardStages {
  static constexpr int rows(int groups) { return groups == 1 ? kRowsOfOne : kRowsOfTwo; }
  static constexpr int stages(int groups) { return groups == 1 ? kStagesOfOne : kStagesOfTwo; }
};
using ForwardsOf64 = VariantsOf<ForwardStages<128, 3, 128, 4>, ForwardStages<64, 6, 64, 8>>;
using ForwardsOf128 = VariantsOf<ForwardStages<64, 3, 128, 3>, ForwardStages<64, 3, 64, 6>>;

template <class T, int kWidth, int kGroups, class Variant>
using ForwardTiles = ProjectedTiles<T, kWidth, kGroups, Variant::rows(kGroups), Variant::stages(kGroups)>;

template <class T, int kMaxWidth, int kOwnGroups, class Variant>
struct ProjectedForward : ForwardTiles<T, kMaxWidth, kOwnGroups, Variant> {
  using F = ForwardTiles<T, kMaxWidth, kOwnGroups, Variant>;
  using Block = QueryBlock<ProjectedForward>;
  using Stream = StreamTiles<F::kStep>;
  using Row = QueryRow;
  static constexpr int kBlocks = 3 - kOwnGroups;  // of a multiprocessor
  static constexpr int kInfo = F::kStageBytes;
  static constexpr int kItem = kInfo + F::kKept * int(sizeof(Row));
  static constexpr int kBarriers = kItem + int(sizeof(Item));
  static constexpr int kBytes = kBarriers + 16 * F::kStages;
  static_assert(kBlocks * (kBytes + 1024) <= kLargeSharedBytes + 1024);

  // 64 query rows, in the registers of their warpgroup.
  struct Own {
    Held q[F::kWidth / 16], weights[F::kStep / 16];  // weights of the last tile
    float s[F::kStep / 2], out[F::kWidth / 2];
    RowState state{{-kInfinity, -kInfinity}, {0, 0}};
  };

  STCA_DEVICE static Row describe(const Block& c, int row) { return query_row(c.p, c.item, row); }

  STCA_DEVICE static void load(const Block& c, Own& own, int t) {
    c.load(own.q, c.p.q, c.p.key_dim, t, [](const Row& row) { return row.q; });
#pragma unroll
    for (int i = 0; i < F::kWidth / 2; ++i) own.out[i] = 0;
  }

  // Asks for the scores of tile `at`.
  STCA_DEVICE static void start_scores(const Block& c, Own& own, const Stream& stream, int at) {
    c.wait_for_tile(stream, at, 1);
    take_turn<F>(c.group);
    fence_products();
    multiply_by_columns<F>(own.s, own.q, c.stages.tile(at, 0));
    commit_products();
  }

  STCA_DEVICE static void start_values(const Block& c, Own& own, int at) {
    pin(own.out);
    fence_products();
    add_by_rows<F>(own.out, own.weights, c.stages.tile(at, 1));
    commit_products();
  }

  STCA_DEVICE static void finish_values(const Block& c, Own& own, int at) {
    wait_products<0>();
    pin(own.out);
    c.stages.release(at);
  }

  // Scores become weights. `factor`: what the output up to now is to be multiplied by.
  STCA_DEVICE static void weigh(const Block& c, Own& own, float (&factor)[2], int from, int t) {
    pin(own.s);
    weigh_scores(own.s, own.state, factor, c.rows + kRows * c.group, from, float(c.p.scale) * kLog2E, t);
  }

  // All tiles of an item, from `at` on.
  STCA_DEVICE static void attend(const Block& c, Own& own, const Stream& stream, int at, int t) {
    if (at == stream.last) return;
    float factor[2];
    start_scores(c, own, stream, at);
    pass_turn<F>(c.group);
    wait_products<0>();
    weigh(c, own, factor, stream.first_row(at), t);
    hold(own.weights, own.s, T());
#pragma unroll 1
    for (++at; at < stream.last; ++at) {
      start_scores(c, own, stream, at);
      start_values(c, own, at - 1);
      pass_turn<F>(c.group);
      wait_products<1>();
      weigh(c, own, factor, stream.first_row(at), t);
      finish_values(c, own, at - 1);
      if (any_in_warp(factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int i = 0; i < F::kWidth / 2; ++i) own.out[i] *= factor[i / 2 % 2];
      }
      hold(own.weights, own.s, T());
    }
    start_values(c, own, at - 1);
    finish_values(c, own, at - 1);
  }

  // Writes the rows' output and softmax, or what the item's split gives of them.
  STCA_DEVICE static void finish(const Block& c, const Own& own, int t) {
    const int width = int(c.p.value_dim);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = own.state.row_sum[r];
      for (int by = 1; by < 4; by *= 2) sum += shuffle_xor(sum, by);
      const int row = c.first_row(t) + 8 * r;
      if (!c.has(row)) continue;
      if (c.item.partial < 0) {
        const int64_t index = c.rows[row].index;
        if (t % 4 == 0) write_max_and_sum(c.p, index, own.state.row_max[r], sum);
        write_row(static_cast<T*>(c.p.out) + index * width, own.out, r, width, inverse(sum), t);
      } else {
        const int64_t partial = int64_t(c.item.partial) * F::kKept + row;
        write_row(c.partials.sums + partial * width, own.out, r, width, 1.0f, t);
        if (t % 4 != 0) continue;
        c.partials.max_and_sum[2 * partial] = own.state.row_max[r];
        c.partials.max_and_sum[2 * partial + 1] = sum;
      }
    }
  }
};

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
