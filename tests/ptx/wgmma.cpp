// Products of a warpgroup. Each of its four warps makes 16 of the 64 rows; operands lie in shared memory where a
// descriptor says, or the left one in registers.
#include <memory>

#include "machine.h"
#include "numbers.h"
#include "opcodes.h"

namespace ptx {
namespace {

// A matrix operand in slabs of 128-byte rows, swizzled.
struct Operand {
  uint32_t start, leading, stride;
  bool by_rows;  // contracted over rows ("MN-major")

  static Operand of(uint64_t bits, bool by_rows) {
    return {uint32_t(bits & 0x3fff) << 4, uint32_t(bits >> 16 & 0x3fff) << 4, uint32_t(bits >> 32 & 0x3fff) << 4,
            by_rows};
  }
  // Where element (line, k) lies: line is a row of the left matrix, or a column of the right one.
  uint32_t at(int line, int k) const {
    const uint32_t address = by_rows ? start + uint32_t(line / 64) * leading + uint32_t(k / 8) * stride +
                                           uint32_t(k % 8) * 128 + uint32_t(line % 64) * 2
                                     : start + uint32_t(line / 8) * stride + uint32_t(line % 8) * 128 + uint32_t(k) * 2;
    return address ^ (address >> 7 & 7) << 4;
  }
};

float value_of(uint16_t bits, bool brain) { return brain ? from_bfloat16(bits) : from_float16(bits); }

// Reads lines [first, first + count) of an operand, in the warp's name.
std::vector<float> read(Warp& w, const Operand& operand, int first, int count, bool brain) {
  std::vector<float> values(size_t(count) * 16);
  for (int line = 0; line < count; ++line) {
    for (int k = 0; k < 16; ++k) {
      const uint32_t address = operand.at(first + line, k);
      const char* from = w.block.touch(w, (line * 16 + k) % kWarp, {Space::shared, address, 2, false, nullptr, true});
      uint16_t bits;
      std::memcpy(&bits, from, 2);
      values[size_t(line) * 16 + size_t(k)] = value_of(bits, brain);
    }
  }
  return values;
}

template <int N, bool kRegisters, bool kBrain>
void multiply(Warp& w, const Instruction& i) {
  if (!w.gather(kAllLanes)) return;
  constexpr int kSums = N / 2;
  const int32_t* after = i.operands + kSums;
  const uint64_t b_bits = w.slot<uint64_t>(after[kRegisters ? 4 : 1])[0];
  const int32_t* rest = after + (kRegisters ? 5 : 2);  // scale d, scale a, scale b, (transposed a,) transposed b
  const bool add = (*w.slot<uint32_t>(rest[0]) & 1) != 0;
  const bool a_by_rows = !kRegisters && w.slot<uint32_t>(rest[3])[0] != 0;
  const bool b_by_rows = w.slot<uint32_t>(rest[kRegisters ? 3 : 4])[0] != 0;
  std::vector<float> left(256);
  if (kRegisters) {
    for (int l = 0; l < kWarp; ++l) {
      for (int r = 0; r < 4; ++r) {
        const uint32_t pair = w.slot<uint32_t>(after[r])[l];
        float* to = &left[size_t((l / 4 + r % 2 * 8) * 16 + l % 4 * 2 + r / 2 * 8)];
        to[0] = value_of(uint16_t(pair), kBrain);
        to[1] = value_of(uint16_t(pair >> 16), kBrain);
      }
    }
  }
  const uint64_t a_bits = kRegisters ? 0 : w.slot<uint64_t>(after[0])[0];
  const int32_t* sums = i.operands;
  for (int s = 0; s < kSums; ++s) w.unready[sums[s]] = w.product_group;
  for (int r = 0; kRegisters && r < 4; ++r) w.unready[after[r]] = w.product_group;
  ++w.products_issued;
  w.products.push_back({w.product_group, [=, &w]() mutable {
                          if (!kRegisters)
                            left = read(w, Operand::of(a_bits, a_by_rows), w.number % 4 * 16, 16, kBrain);
                          const std::vector<float> right = read(w, Operand::of(b_bits, b_by_rows), 0, N, kBrain);
                          for (int l = 0; l < kWarp; ++l) {
                            for (int s = 0; s < kSums; ++s) {
                              const int row = l / 4 + s % 4 / 2 * 8, column = s / 4 * 8 + l % 4 * 2 + s % 2;
                              float& sum = w.slot<float>(sums[s])[l];
                              float total = add ? sum : 0;
                              for (int k = 0; k < 16; ++k)
                                total += left[size_t(row * 16 + k)] * right[size_t(column * 16 + k)];
                              sum = total;
                            }
                          }
                        }});
  if (w.block.random() % 2 == 0) w.make_products(w.product_group);
}

void commit(Warp& w, const Instruction&) {
  if (w.gather(kAllLanes)) ++w.product_group;
}

// i: groups that may be left
void wait(Warp& w, const Instruction& i) {
  if (w.gather(kAllLanes)) w.wait_for_products(w.product_group - 1 - int(i.immediate));
}

void together(Warp& w, const Instruction&) { w.gather(kAllLanes); }

// Four matrices of 8 rows of 16 bytes to shared memory; lane l has the address of row l % 8 of matrix l / 8.
void store_matrices(Warp& w, const Instruction& i) {
  if (!w.gather(kAllLanes)) return;
  for (int m = 0; m < 4; ++m) {
    const uint32_t* a = w.slot<uint32_t>(i.operands[3 + m]);
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * m + row;
      std::memcpy(w.block.touch(w, lane, {Space::shared, w.address(i.operands, lane), 16, true}), a + 4 * row, 16);
    }
  }
}

// The left operand is a register more where registers hold it, and has no order of its own then.
template <int N>
Form of_width(const Opcode& o, const std::vector<int>& sizes) {
  const bool brain = o.last() == "bf16";
  if (!brain && o.last() != "f16") return {};
  const std::string sums(N / 2, '4');
  if (sizes.size() == N / 2 + 4 + 1 + 4) {
    return {brain ? &multiply<N, true, true> : &multiply<N, true, false>, sums + "44448p444"};
  }
  return {brain ? &multiply<N, false, true> : &multiply<N, false, false>, sums + "88p4444"};
}

}  // namespace

Form wgmma_form(const Opcode& o, const std::vector<int>& sizes) {
  if (o.parts[0] == "stmatrix" && o.has("m8n8") && o.has("x4") && !o.has("trans")) return {&store_matrices, "a4444"};
  if (o.parts[0] != "wgmma") return {};
  if (o.has("fence")) return {&together, ""};
  if (o.has("commit_group")) return {&commit, ""};
  if (o.has("wait_group")) return {&wait, "i"};
  if (o.has("m64n256k16")) return of_width<256>(o, sizes);
  if (o.has("m64n128k16")) return of_width<128>(o, sizes);
  if (o.has("m64n64k16")) return of_width<64>(o, sizes);
  return {};
}

}  // namespace ptx
