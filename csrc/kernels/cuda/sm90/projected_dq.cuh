// Gradient of q on Hopper with v beside k (projected.cuh): dS from the scores, which are computed again, and dP, then
// dq += dS K. Two warpgroups take the order of the forward pass, in which dq's products of one tile follow those of the
// next one's scores. One alone, which has fewer registers and waits for bytes anyway, ends a tile before the next.
#pragma once

#include "projected.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

// Stages, by warpgroups of query rows of a block.
template <int kStagesOfOne, int kStagesOfTwo>
struct DqStages {
  static constexpr int stages(int groups) { return groups == 1 ? kStagesOfOne : kStagesOfTwo; }
};
using DqsOf64 = VariantsOf<DqStages<3, 4>, DqStages<6, 8>>;
using DqsOf128 = VariantsOf<DqStages<3, 4>, DqStages<2, 6>>;

template <class T, int kWidth, int kGroups, class Variant>
using QueryTiles = ProjectedTiles<T, kWidth, kGroups, 64, Variant::stages(kGroups)>;

template <class T, int kMaxWidth, int kOwnGroups, class Variant>
struct ProjectedDq : QueryTiles<T, kMaxWidth, kOwnGroups, Variant> {
  using F = QueryTiles<T, kMaxWidth, kOwnGroups, Variant>;
  using Block = QueryBlock<ProjectedDq>;
  using Stream = StreamTiles<F::kStep>;
  using Row = BackwardRow;
  static constexpr int kBlocks = 3 - kOwnGroups;  // of a multiprocessor
  static constexpr int kInfo = F::kStageBytes;
  static constexpr int kItem = kInfo + F::kKept * int(sizeof(Row));
  static constexpr int kBarriers = kItem + int(sizeof(Item));
  static constexpr int kBytes = kBarriers + 16 * F::kStages;
  static_assert(kBlocks * (kBytes + 1024) <= kLargeSharedBytes + 1024);

  // 64 query rows, in the registers of their warpgroup.
  struct Own {
    Held q[F::kWidth / 16], dout[F::kWidth / 16], ds[F::kStep / 16];  // ds of the last tile
    float s[F::kStep / 2], dp[F::kStep / 2], dq[F::kWidth / 2];
  };

  STCA_DEVICE static Row describe(const Block& c, int row) { return backward_row(c.p, c.item, row, c.weighing); }

  STCA_DEVICE static void load(const Block& c, Own& own, int t) {
    c.load(own.q, c.p.q, c.p.key_dim, t, [](const Row& row) { return row.q; });
    c.load(own.dout, c.b.dout, c.p.value_dim, t, [](const Row& row) { return row.dout; });
#pragma unroll
    for (int i = 0; i < F::kWidth / 2; ++i) own.dq[i] = 0;
  }

  // Asks for S and dP of tile `at`.
  STCA_DEVICE static void start_scores(const Block& c, Own& own, const Stream& stream, int at) {
    c.wait_for_tile(stream, at, 0);
    take_turn<F>(c.group);
    fence_products();
    multiply_by_columns<F>(own.s, own.q, c.stages.tile(at, 0));
    multiply_by_columns<F>(own.dp, own.dout, c.stages.tile(at, 1));
    commit_products();
  }

  STCA_DEVICE static void start_dq(const Block& c, Own& own, int at) {
    pin(own.dq);
    fence_products();
    add_by_rows<F>(own.dq, own.ds, c.stages.tile(at, 0));
    commit_products();
  }

  STCA_DEVICE static void finish_dq(const Block& c, Own& own, int at) {
    wait_products<0>();
    pin(own.dq);
    c.stages.release(at);
  }

  // S and dP of the tile that starts with history row `from` become dS, in place of S.
  STCA_DEVICE static void weigh(const Block& c, Own& own, int from, int t) {
    pin(own.s);
    pin(own.dp);
    const Row* rows = c.rows + c.first_row(t);
    const float scale = float(c.p.scale);
    const Weighing of[2] = {rows[0].weighing, rows[8].weighing};
    Range sees[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) sees[r] = {rows[8 * r].begin, of[r].inverse == 0 ? 0 : rows[8 * r].end};
#pragma unroll
    for (int i = 0; i < F::kStep / 2; ++i) {
      const Weighing& own_row = of[i / 2 % 2];
      const float weight = exp2_or_zero(rounded_product(scale * kLog2E, own.s[i]) - own_row.row_max) * own_row.inverse;
      own.s[i] = weight * (own.dp[i] - own_row.delta) * scale;
    }
    if (!any_in_warp(max(sees[0].begin, sees[1].begin) > from || min(sees[0].end, sees[1].end) < from + F::kStep)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < F::kStep / 2; ++i) {
      const int n = from + i / 4 * 8 + t % 4 * 2 + i % 2, r = i / 2 % 2;
      if (n < sees[r].begin || n >= sees[r].end) own.s[i] = 0;
    }
  }

  // All tiles of an item, from `at` on.
  STCA_DEVICE static void attend(const Block& c, Own& own, const Stream& stream, int at, int t) {
    constexpr bool kOverlaps = kOwnGroups > 1;
    if (at == stream.last) return;
    start_scores(c, own, stream, at);
    pass_turn<F>(c.group);
    wait_products<0>();
    weigh(c, own, stream.first_row(at), t);
    hold(own.ds, own.s, T());
#pragma unroll 1
    for (++at; at < stream.last; ++at) {
      if constexpr (!kOverlaps) start_dq(c, own, at - 1);
      if constexpr (!kOverlaps) finish_dq(c, own, at - 1);
      start_scores(c, own, stream, at);
      if constexpr (kOverlaps) start_dq(c, own, at - 1);
      pass_turn<F>(c.group);
      wait_products<kOverlaps>();
      weigh(c, own, stream.first_row(at), t);
      if constexpr (kOverlaps) finish_dq(c, own, at - 1);
      hold(own.ds, own.s, T());
    }
    start_dq(c, own, at - 1);
    finish_dq(c, own, at - 1);
  }

  // Writes dq of the rows, or the part of the item's split.
  STCA_DEVICE static void finish(const Block& c, const Own& own, int t) {
    const int width = int(c.p.key_dim);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = c.first_row(t) + 8 * r;
      if (!c.has(row)) continue;
      if (c.item.partial < 0) {
        write_row(static_cast<T*>(c.b.dq) + c.rows[row].index * width, own.dq, r, width, 1.0f, t);
      } else {
        const int64_t partial = int64_t(c.item.partial) * F::kKept + row;
        write_row(c.partials.sums + partial * width, own.dq, r, width, 1.0f, t);
      }
    }
  }
};

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
