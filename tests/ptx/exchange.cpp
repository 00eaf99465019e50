// What the lanes of a warp do together: shuffles, votes, and products of matrices.
#include "machine.h"
#include "numbers.h"
#include "opcodes.h"

namespace ptx {
namespace {

enum class Shuffle { up, down, bfly, idx };

// d|p = a of lane b; c: the clamp, and the mask of the part of a warp that stays among itself.
template <Shuffle kMode>
void shuffle(Warp& w, const Instruction& i) {
  const int first = std::countr_zero(w.lanes);
  const uint32_t members = w.slot<uint32_t>(i.operands[5])[first];
  if (!w.gather(members)) return;
  const uint32_t *a = w.slot<uint32_t>(i.operands[2]), *b = w.slot<uint32_t>(i.operands[3]);
  const uint32_t* c = w.slot<uint32_t>(i.operands[4]);
  uint32_t result[kWarp], inside = 0;
  for_lanes(w.lanes, [&](int l) {
    const int by = int(b[l] & 31), clamp = int(c[l] & 31), part = int(c[l] >> 8 & 31);
    const int low = l & part, high = low | (clamp & ~part);
    int from = l;
    bool is_inside = false;
    switch (kMode) {
      case Shuffle::up:
        from = l - by;
        is_inside = from >= high;
        break;
      case Shuffle::down:
        from = l + by;
        is_inside = from <= high;
        break;
      case Shuffle::bfly:
        from = l ^ by;
        is_inside = from <= high;
        break;
      case Shuffle::idx:
        from = low | (by & ~part);
        is_inside = from <= high;
        break;
    }
    if (!is_inside) from = l;
    if ((w.lanes >> from & 1) == 0) w.fail("reads a lane that takes no part", l);
    result[l] = a[from];
    inside |= uint32_t(is_inside) << l;
  });
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  for_lanes(w.lanes, [&](int l) { d[l] = result[l]; });
  if (i.operands[1] >= 0) set_predicate(*w.slot<uint32_t>(i.operands[1]), w.lanes, inside);
}

enum class Vote { all, any, uni, ballot };

template <Vote kMode>
void vote(Warp& w, const Instruction& i) {
  const uint32_t members = w.slot<uint32_t>(i.operands[2])[std::countr_zero(w.lanes)];
  if (!w.gather(members)) return;
  const uint32_t yes = *w.slot<uint32_t>(i.operands[1]) & w.lanes;
  if (kMode == Vote::ballot) {
    for_lanes(w.lanes, [&](int l) { w.slot<uint32_t>(i.operands[0])[l] = yes; });
    return;
  }
  const bool answer = kMode == Vote::all ? yes == w.lanes : kMode == Vote::any ? yes != 0 : yes == 0 || yes == w.lanes;
  set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, answer ? kAllLanes : 0);
}

// Four matrices of 8 rows of 16 bytes; lane l has the address of row l % 8 of matrix l / 8. A lane gets, of each, two
// neighbours of a row, or of a column where transposed.
template <int kCount, bool kTransposed>
void load_matrices(Warp& w, const Instruction& i) {
  if (!w.gather(kAllLanes)) return;
  uint16_t elements[4][8][8];
  for (int m = 0; m < kCount; ++m) {
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * m + row;
      const Access access{Space::shared, w.address(i.operands + kCount, lane), 16, false};
      std::memcpy(elements[m][row], w.block.touch(w, lane, access), 16);
    }
  }
  for (int m = 0; m < kCount; ++m) {
    uint32_t* d = w.slot<uint32_t>(i.operands[m]);
    for (int l = 0; l < kWarp; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      const uint16_t low = kTransposed ? elements[m][column][row] : elements[m][row][column];
      const uint16_t high = kTransposed ? elements[m][column + 1][row] : elements[m][row][column + 1];
      d[l] = uint32_t(high) << 16 | low;
    }
  }
}

// c + a . b of 8 products, as tensor cores add: all terms are cut to the last place of the largest, plus two bits, and
// so is the sum.
float cut_sum(float c, const float* a, const float* b) {
  double terms[9] = {double(c)};
  for (int k = 0; k < 8; ++k) terms[k + 1] = double(a[k]) * double(b[8 * k]);
  double largest = 0, sum = 0;
  for (const double term : terms) largest = std::fmax(largest, std::fabs(term));
  if (largest == 0 || !std::isfinite(largest)) {
    for (const double term : terms) sum += term;
    return float(sum);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 25);
  for (const double term : terms) sum += std::trunc(term / unit);
  sum *= unit;
  const float near = float(sum);
  return std::fabs(double(near)) > std::fabs(sum) ? std::nextafter(near, 0.0f) : near;
}

// d [16, 8] = a [16, 16] b [16, 8] + c, of 16-bit elements. Lane l = 4 g + q holds rows g and g + 8, and of a columns
// 2 q, 2 q + 1 and these plus 8.
template <float (*kFrom)(uint16_t)>
void multiply(Warp& w, const Instruction& i) {
  if (!w.gather(kAllLanes)) return;
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const int g = l / 4, q = l % 4;
    for (int r = 0; r < 4; ++r) {
      const uint32_t pair = w.slot<uint32_t>(i.operands[4 + r])[l];
      const int row = g + r % 2 * 8, column = 2 * q + r / 2 * 8;
      a[row][column] = kFrom(uint16_t(pair));
      a[row][column + 1] = kFrom(uint16_t(pair >> 16));
    }
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = w.slot<uint32_t>(i.operands[8 + r])[l];
      b[2 * q + 8 * r][g] = kFrom(uint16_t(pair));
      b[2 * q + 8 * r + 1][g] = kFrom(uint16_t(pair >> 16));
    }
    for (int r = 0; r < 4; ++r) c[g + r / 2 * 8][2 * q + r % 2] = w.slot<float>(i.operands[10 + r])[l];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16 && !w.block.launch.is_rough; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
    for (int k = 0; k < 16 && w.block.launch.is_rough; k += 8) {
      for (int n = 0; n < 8; ++n) c[m][n] = cut_sum(c[m][n], &a[m][k], &b[k][n]);
    }
  }
  for (int l = 0; l < kWarp; ++l) {
    for (int r = 0; r < 4; ++r) w.slot<float>(i.operands[r])[l] = c[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
  }
}

float bfloat16_value(uint16_t x) { return from_bfloat16(x); }
float float16_value(uint16_t x) {
  static const auto table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) values[bits] = from_float16(uint16_t(bits));
    return values;
  }();
  return table[x];
}

// One lane of those that take part, always the same.
void elect(Warp& w, const Instruction& i) {
  const uint32_t members = w.slot<uint32_t>(i.operands[2])[std::countr_zero(w.lanes)];
  if (!w.gather(members)) return;
  const int leader = std::countr_zero(members);
  if (i.operands[0] >= 0) for_lanes(w.lanes, [&](int l) { w.slot<uint32_t>(i.operands[0])[l] = uint32_t(leader); });
  set_predicate(*w.slot<uint32_t>(i.operands[1]), w.lanes, 1u << leader);
}

}  // namespace

Form warp_form(const Opcode& o, const std::vector<int>& sizes) {
  const std::string& op = o.parts[0];
  if (op == "shfl" && o.has("sync")) {
    const std::string operands = sizes.size() == 6 ? "4p4444" : "4_4444";
    if (o.has("up")) return {&shuffle<Shuffle::up>, operands};
    if (o.has("down")) return {&shuffle<Shuffle::down>, operands};
    if (o.has("bfly")) return {&shuffle<Shuffle::bfly>, operands};
    if (o.has("idx")) return {&shuffle<Shuffle::idx>, operands};
  }
  if (op == "vote" && o.has("sync")) {
    if (o.has("ballot")) return {&vote<Vote::ballot>, "4p4"};
    if (o.has("all")) return {&vote<Vote::all>, "pp4"};
    if (o.has("any")) return {&vote<Vote::any>, "pp4"};
    if (o.has("uni")) return {&vote<Vote::uni>, "pp4"};
  }
  if (op == "elect") return {&elect, "4p4"};
  if (op == "ldmatrix" && o.has("m8n8") && o.has("b16")) {
    const bool transposed = o.has("trans");
    if (o.has("x4")) return {transposed ? &load_matrices<4, true> : &load_matrices<4, false>, "4444a"};
    if (o.has("x2")) return {transposed ? &load_matrices<2, true> : &load_matrices<2, false>, "44a"};
    if (o.has("x1")) return {transposed ? &load_matrices<1, true> : &load_matrices<1, false>, "4a"};
  }
  if (op == "mma" && o.has("m16n8k16") && o.last() == "f32" && o.last(3) == "f32") {
    if (o.last(1) == "bf16" && o.last(2) == "bf16") return {&multiply<bfloat16_value>, "44444444444444"};
    if (o.last(1) == "f16" && o.last(2) == "f16") return {&multiply<float16_value>, "44444444444444"};
  }
  return {};
}

}  // namespace ptx
