// cvt and cvta: from one type to another, and from one address space to another.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "numbers.h"
#include "opcodes.h"
#include "warp.h"

namespace ptx {
namespace {

struct Half {
  static float load(uint16_t x) { return from_float16(x); }
  static uint16_t store(float x) { return to_float16(x); }
};
struct Brain {
  static float load(uint16_t x) { return from_bfloat16(x); }
  static uint16_t store(float x) { return to_bfloat16(x); }
};

enum class Rounding { nearest, down, up, zero };

double rounded(double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::down:
      return std::floor(x);
    case Rounding::up:
      return std::ceil(x);
    case Rounding::zero:
      return std::trunc(x);
    default:
      return std::nearbyint(x);
  }
}

template <class D>
D saturated(double x) {  // a NaN becomes 0
  if (x != x) return 0;
  if (x <= double(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  if (x >= double(std::numeric_limits<D>::max())) return std::numeric_limits<D>::max();
  return D(x);
}

// What a register of kBytes bytes holds of a T.
template <class T, int kBytes>
using register_t =
    std::conditional_t<std::is_floating_point_v<T>, T,
                       std::conditional_t<kBytes == 2, uint16_t, std::conditional_t<kBytes == 4, uint32_t, uint64_t>>>;

// From S in a register of kFrom bytes to D in one of kTo bytes.
template <class D, class S, int kTo, int kFrom>
void convert(Warp& w, const Instruction& i) {
  const bool saturates = (i.immediate & 4) != 0, integral = (i.immediate & 8) != 0;
  const Rounding rounding = Rounding(i.immediate & 3);
  auto run = [&](auto* to, const auto* from) {
    using Register = std::remove_reference_t<decltype(*to)>;
    for_lanes(w.lanes, [&](int l) {
      const S value = S(from[l]);
      D result;
      if constexpr (std::is_integral_v<D> && std::is_floating_point_v<S>) {
        result = saturated<D>(rounded(double(value), rounding));
      } else if constexpr (std::is_integral_v<D>) {
        result = D(value);
        if (saturates) {
          const __int128 wide = value;
          result = D(std::clamp<__int128>(wide, std::numeric_limits<D>::min(), std::numeric_limits<D>::max()));
        }
      } else {
        result = D(value);
        if (integral) result = D(rounded(double(value), rounding));
        if (saturates) result = result != result ? D(0) : std::clamp(result, D(0), D(1));
      }
      to[l] = Register(result);
    });
  };
  using Target = register_t<D, kTo>;
  const register_t<S, kFrom>* from = w.slot<register_t<S, kFrom>>(i.operands[1]);
  if constexpr (std::is_signed_v<D> && std::is_integral_v<D>) {  // the sign fills a wider register
    run(reinterpret_cast<std::make_signed_t<Target>*>(w.slot<Target>(i.operands[0])), from);
  } else {
    run(w.slot<Target>(i.operands[0]), from);
  }
}

template <class F>
void narrow(Warp& w, const Instruction& i) {
  uint16_t* d = w.slot<uint16_t>(i.operands[0]);
  const float* a = w.slot<float>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) { d[l] = F::store(a[l]); });
}
template <class F>
void narrow_two(Warp& w, const Instruction& i) {  // {high a, low b}
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const float *a = w.slot<float>(i.operands[1]), *b = w.slot<float>(i.operands[2]);
  for_lanes(w.lanes, [&](int l) { d[l] = uint32_t(F::store(a[l])) << 16 | F::store(b[l]); });
}
template <class F>
void widen(Warp& w, const Instruction& i) {
  float* d = w.slot<float>(i.operands[0]);
  const uint16_t* a = w.slot<uint16_t>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) { d[l] = F::load(a[l]); });
}

template <class F>
Step visit(const std::string& type, F f) {
  if (type == "s8") return f(int8_t());
  if (type == "u8") return f(uint8_t());
  if (type == "s16") return f(int16_t());
  if (type == "u16") return f(uint16_t());
  if (type == "s32") return f(int32_t());
  if (type == "u32") return f(uint32_t());
  if (type == "s64") return f(int64_t());
  if (type == "u64") return f(uint64_t());
  if (type == "f32") return f(float());
  if (type == "f64") return f(double());
  return nullptr;
}

template <class D, class S>
Step by_registers(int to, int from) {
  auto with_from = [&](auto constant) -> Step {
    constexpr int kTo = decltype(constant)::value;
    if constexpr (kTo < std::min<int>(sizeof(D), 8)) {
      return nullptr;
    } else {
      if constexpr (sizeof(S) <= 2) {
        if (from == 2) return &convert<D, S, kTo, 2>;
      }
      if constexpr (sizeof(S) <= 4) {
        if (from == 4) return &convert<D, S, kTo, 4>;
      }
      return from == 8 ? &convert<D, S, kTo, 8> : nullptr;
    }
  };
  if (to == 2) return with_from(std::integral_constant<int, 2>());
  if (to == 4) return with_from(std::integral_constant<int, 4>());
  return with_from(std::integral_constant<int, 8>());
}

// Adds a window to an address, or takes it away.
template <class T, bool kTo>
void change_space(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) { d[l] = kTo ? T(a[l] - T(i.immediate)) : T(a[l] + T(i.immediate)); });
}

int64_t conversion_immediate(const Opcode& opcode) {
  if (opcode.parts[0] == "cvta") {
    const bool shared = opcode.has("shared") || opcode.has("shared::cta") || opcode.has("shared::cluster");
    return int64_t(shared                ? kSharedWindow
                   : opcode.has("local") ? kLocalWindow
                   : opcode.has("param") ? kParameterWindow
                                         : 0);
  }
  const bool integral = opcode.has("rni") || opcode.has("rmi") || opcode.has("rpi") || opcode.has("rzi");
  const Rounding rounding = opcode.has("rmi")   ? Rounding::down
                            : opcode.has("rpi") ? Rounding::up
                            : opcode.has("rzi") ? Rounding::zero
                                                : Rounding::nearest;
  return int64_t(rounding) | (opcode.has("sat") ? 4 : 0) | (integral ? 8 : 0);
}

}  // namespace

Form conversion_form(const Opcode& o, const std::vector<int>& sizes) {
  if (o.parts[0] == "cvta") {
    if (o.has("to")) return {&change_space<uint64_t, true>, "88", conversion_immediate(o)};
    return {&change_space<uint64_t, false>, "88", conversion_immediate(o)};
  }
  if (o.parts[0] != "cvt") return {};
  const std::string &from = o.last(), &to = o.last(1);
  if (to == "f16x2" && from == "f32") return {&narrow_two<Half>, "444"};
  if (to == "bf16x2" && from == "f32") return {&narrow_two<Brain>, "444"};
  if (to == "f16" && from == "f32") return {&narrow<Half>, "24"};
  if (to == "bf16" && from == "f32") return {&narrow<Brain>, "24"};
  if (to == "f32" && from == "f16") return {&widen<Half>, "42"};
  if (to == "f32" && from == "bf16") return {&widen<Brain>, "42"};
  if (sizes.size() != 2) return {};
  const int to_bytes = sizes[0], from_bytes = sizes[1];
  const Step step = visit(to, [&](auto d) {
    return visit(from, [&](auto s) { return by_registers<decltype(d), decltype(s)>(to_bytes, from_bytes); });
  });
  return {step, "rr", conversion_immediate(o)};
}

}  // namespace ptx
