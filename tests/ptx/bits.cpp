// Bits: shifts, fields, counts and permutations.
#include <algorithm>
#include <bit>

#include "steps.h"

namespace ptx {
namespace {

struct Popc {
  template <class T>
  static T of(T a) {
    return T(std::popcount(unsigned_t<T>(a)));
  }
};
struct Brev {
  template <class T>
  static T of(T a) {
    T out = 0;
    for (size_t i = 0; i < 8 * sizeof(T); ++i) out = T(out << 1 | ((a >> i) & 1));
    return out;
  }
};
struct Clz {
  template <class T>
  static T of(T a) {
    return T(std::countl_zero(unsigned_t<T>(a)));
  }
};
template <class T, class Op>
void each(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) { d[l] = Op::of(a[l]); });
}

// Shifts by the width and more leave zeros, or the sign.
template <class T, bool kLeft>
void shift(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  const uint32_t* by = w.slot<uint32_t>(i.operands[2]);
  constexpr uint32_t kBits = 8 * sizeof(T);
  for_lanes(w.lanes, [&](int l) {
    const uint32_t n = std::min(by[l], kBits - 1);
    const T moved = kLeft ? T(unsigned_t<T>(a[l]) << n) : T(a[l] >> n);
    d[l] = by[l] < kBits ? moved : (!kLeft && a[l] < 0 ? T(-1) : T(0));
  });
}

template <class T>
void bit_field_insert(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T *a = w.slot<T>(i.operands[1]), *b = w.slot<T>(i.operands[2]);
  const uint32_t *at = w.slot<uint32_t>(i.operands[3]), *count = w.slot<uint32_t>(i.operands[4]);
  constexpr uint32_t kBits = 8 * sizeof(T);
  for_lanes(w.lanes, [&](int l) {
    const uint32_t first = at[l] & 255, n = std::min(count[l] & 255, kBits);
    if (first >= kBits || n == 0) {
      d[l] = b[l];
      return;
    }
    const T ones = n == kBits ? T(-1) : T((T(1) << n) - 1), field = T(ones << first);
    d[l] = T((b[l] & ~field) | ((a[l] << first) & field));
  });
}

template <class T>
void bit_field_extract(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  const uint32_t *at = w.slot<uint32_t>(i.operands[2]), *count = w.slot<uint32_t>(i.operands[3]);
  constexpr int kBits = 8 * sizeof(T);
  for_lanes(w.lanes, [&](int l) {
    const int first = int(at[l] & 255), n = int(count[l] & 255), top = std::min(first + n - 1, kBits - 1);
    const bool sign = std::is_signed_v<T> && n > 0 && ((a[l] >> top) & 1) != 0;
    unsigned_t<T> bits = 0;
    for (int k = 0; k < kBits; ++k) {
      const bool bit = k < n && first + k < kBits ? ((a[l] >> (first + k)) & 1) != 0 : sign;
      bits |= unsigned_t<T>(bit) << k;
    }
    d[l] = T(bits);
  });
}

// Any function of three bits, for each bit.
void lop3(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const uint32_t *a = w.slot<uint32_t>(i.operands[1]), *b = w.slot<uint32_t>(i.operands[2]);
  const uint32_t* c = w.slot<uint32_t>(i.operands[3]);
  for_lanes(w.lanes, [&](int l) {
    uint32_t out = 0;
    for (int k = 0; k < 8; ++k) {
      if ((i.immediate >> k & 1) == 0) continue;
      out |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    }
    d[l] = out;
  });
}

// Four bytes of the eight of {b, a}, each by a digit of c; bit 3 of a digit: the byte's sign, eight times.
void permute(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const uint32_t *a = w.slot<uint32_t>(i.operands[1]), *b = w.slot<uint32_t>(i.operands[2]);
  const uint32_t* c = w.slot<uint32_t>(i.operands[3]);
  for_lanes(w.lanes, [&](int l) {
    const uint64_t all = uint64_t(b[l]) << 32 | a[l];
    uint32_t out = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t digit = c[l] >> 4 * k & 15, byte = uint32_t(all >> 8 * (digit & 7)) & 255;
      out |= (digit & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * k;
    }
    d[l] = out;
  });
}

template <bool kLeft, bool kWraps>
void funnel_shift(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const uint32_t *a = w.slot<uint32_t>(i.operands[1]), *b = w.slot<uint32_t>(i.operands[2]);
  const uint32_t* by = w.slot<uint32_t>(i.operands[3]);
  for_lanes(w.lanes, [&](int l) {
    const uint64_t both = uint64_t(b[l]) << 32 | a[l];
    const uint32_t n = kWraps ? by[l] & 31 : std::min(by[l], 32u);
    d[l] = uint32_t(kLeft ? (both << n) >> 32 : both >> n);
  });
}

// popc, clz and brev of 32 or 64 bits; the counts are 32 bits.
template <class T, class Op>
void count(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) { d[l] = uint32_t(Op::of(a[l])); });
}

// Sums with a carry flag: d = (a * b's low or high half, or a) + c (+ carry).
template <bool kMultiplies, bool kHigh, bool kTakes, bool kSets>
void carry_sum(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const uint32_t *a = w.slot<uint32_t>(i.operands[1]), *b = w.slot<uint32_t>(i.operands[2]);
  const uint32_t* c = kMultiplies ? w.slot<uint32_t>(i.operands[3]) : b;
  uint32_t carried = 0;
  for_lanes(w.lanes, [&](int l) {
    const uint64_t product = uint64_t(a[l]) * b[l];
    const uint64_t first = !kMultiplies ? a[l] : kHigh ? product >> 32 : product & 0xffffffff;
    const uint64_t sum = first + c[l] + (kTakes ? w.carry >> l & 1 : 0);
    d[l] = uint32_t(sum);
    carried |= uint32_t(sum >> 32) << l;
  });
  if (kSets) set_predicate(w.carry, w.lanes, carried);
}

template <bool kMultiplies, bool kHigh>
Form carry_form(const Opcode& o, bool takes) {
  const std::string operands = kMultiplies ? "4444" : "444";
  const bool sets = o.has("cc");
  if (takes)
    return {sets ? &carry_sum<kMultiplies, kHigh, true, true> : &carry_sum<kMultiplies, kHigh, true, false>, operands};
  return {&carry_sum<kMultiplies, kHigh, false, true>, operands};
}

}  // namespace

Form bits_form(const Opcode& o) {
  const std::string &op = o.parts[0], &type = o.last();
  if (op == "lop3" && type == "b32") return {&lop3, "4444i"};
  if (op == "prmt" && type == "b32") return {&permute, "4444"};
  if (op == "shf") {
    if (o.has("l")) return {o.has("wrap") ? &funnel_shift<true, true> : &funnel_shift<true, false>, "4444"};
    return {o.has("wrap") ? &funnel_shift<false, true> : &funnel_shift<false, false>, "4444"};
  }
  if (type == "u32" || type == "s32") {
    if (op == "addc" || (op == "add" && o.has("cc"))) return carry_form<false, false>(o, op == "addc");
    if (op == "madc" || (op == "mad" && o.has("cc"))) {
      return o.has("hi") ? carry_form<true, true>(o, op == "madc") : carry_form<true, false>(o, op == "madc");
    }
  }
  return by_type(type, [&](auto t) -> Form {
    using T = decltype(t);
    if constexpr (std::is_integral_v<T>) {
      const std::string s(1, char('0' + sizeof(T)));
      if (op == "shl") return {&shift<T, true>, s + s + "4"};
      if (op == "shr") return {&shift<T, false>, s + s + "4"};
      if (op == "bfi") return {&bit_field_insert<T>, s + s + s + "44"};
      if (op == "bfe") return {&bit_field_extract<T>, s + s + "44"};
      if (op == "brev") return {&each<T, Brev>, s + s};
      if (op == "popc") return {&count<T, Popc>, "4" + s};
      if (op == "clz") return {&count<T, Clz>, "4" + s};
    }
    return {};
  });
}

}  // namespace ptx
