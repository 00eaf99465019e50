// Arithmetic, comparison, selection and moves: lane by lane, without memory.
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>

#include "steps.h"

namespace ptx {
namespace {

// What two's complement makes of it, without the host's undefined overflow.
template <class T, class F>
T wrap(T a, T b, F f) {
  using U = unsigned_t<T>;
  if constexpr (sizeof(T) == 2) {
    return T(f(uint32_t(U(a)), uint32_t(U(b))));
  } else {
    return T(f(U(a), U(b)));
  }
}

struct Add {
  template <class T>
  static T of(T a, T b) {
    return wrap(a, b, [](auto x, auto y) { return x + y; });
  }
};
struct Sub {
  template <class T>
  static T of(T a, T b) {
    return wrap(a, b, [](auto x, auto y) { return x - y; });
  }
};
struct Mul {
  template <class T>
  static T of(T a, T b) {
    return wrap(a, b, [](auto x, auto y) { return x * y; });
  }
};
struct Div {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>)
      return a / b;
    else if (b == 0)
      return T(-1);  // as the hardware does
    else if (std::is_signed_v<T> && b == T(-1))
      return Sub::of(T(0), a);
    else
      return T(a / b);
  }
};
struct Rem {
  template <class T>
  static T of(T a, T b) {
    return b == 0 ? a : Sub::of(a, Mul::of(Div::of(a, b), b));
  }
};
struct Min {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>)
      return std::fmin(a, b);
    else
      return std::min(a, b);
  }
};
struct Max {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>)
      return std::fmax(a, b);
    else
      return std::max(a, b);
  }
};
struct MulHigh {
  template <class T>
  static T of(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
  }
};
struct And {
  template <class T>
  static T of(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return a ^ b;
  }
};
struct Neg {
  template <class T>
  static T of(T a) {
    if constexpr (std::is_floating_point_v<T>)
      return -a;
    else
      return Sub::of(T(0), a);
  }
};
struct Abs {
  template <class T>
  static T of(T a) {
    if constexpr (std::is_floating_point_v<T>)
      return std::fabs(a);
    else
      return a < 0 ? Neg::of(a) : a;
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    return T(~a);
  }
};
struct Rcp {
  template <class T>
  static T of(T a) {
    return 1 / a;
  }
};
struct Sqrt {
  template <class T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  static T of(T a) {
    return T(1 / std::sqrt(double(a)));
  }
};
struct Exp2 {
  template <class T>
  static T of(T a) {
    return T(std::exp2(double(a)));
  }
};
struct Log2 {
  template <class T>
  static T of(T a) {
    return T(std::log2(double(a)));
  }
};
struct Tanh {
  template <class T>
  static T of(T a) {
    return T(std::tanh(double(a)));
  }
};
struct Same {
  template <class T>
  static T of(T a) {
    return a;
  }
};
struct Fma {
  template <class T>
  static T of(T a, T b, T c) {
    if constexpr (std::is_floating_point_v<T>)
      return std::fma(a, b, c);
    else
      return Add::of(Mul::of(a, b), c);
  }
};
struct FmaDown {  // rounds towards minus infinity
  template <class T>
  static T of(T a, T b, T c) {
    const int before = std::fegetround();
    std::fesetround(FE_DOWNWARD);
    const volatile T result = std::fma(a, b, c);
    std::fesetround(before);
    return result;
  }
};
struct MadHigh {
  template <class T>
  static T of(T a, T b, T c) {
    return Add::of(MulHigh::of(a, b), c);
  }
};

template <class T>
T flush(T value) {  // .ftz
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(T(0), value) : value;
}

template <class T, class Op, bool kFlush>
void unary(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T* a = w.slot<T>(i.operands[1]);
  for_lanes(w.lanes, [&](int l) {
    if constexpr (kFlush)
      d[l] = flush(Op::of(flush(a[l])));
    else
      d[l] = Op::of(a[l]);
  });
}

template <class T, class Op, bool kFlush>
void binary(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T *a = w.slot<T>(i.operands[1]), *b = w.slot<T>(i.operands[2]);
  for_lanes(w.lanes, [&](int l) {
    if constexpr (kFlush)
      d[l] = flush(Op::of(flush(a[l]), flush(b[l])));
    else
      d[l] = Op::of(a[l], b[l]);
  });
}

template <class T, class Op, bool kFlush>
void ternary(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T *a = w.slot<T>(i.operands[1]), *b = w.slot<T>(i.operands[2]), *c = w.slot<T>(i.operands[3]);
  for_lanes(w.lanes, [&](int l) {
    if constexpr (kFlush)
      d[l] = flush(Op::of(flush(a[l]), flush(b[l]), flush(c[l])));
    else
      d[l] = Op::of(a[l], b[l], c[l]);
  });
}

// An approximation. Where the device is rough it is off by up to 2 units in the last place: its own bits say how.
template <class Op>
void approximate(Warp& w, const Instruction& i) {
  float* d = w.slot<float>(i.operands[0]);
  const float* a = w.slot<float>(i.operands[1]);
  const bool flushes = i.immediate != 0, is_rough = w.block.launch.is_rough;
  for_lanes(w.lanes, [&](int l) {
    float result = Op::of(flushes ? flush(a[l]) : a[l]);
    if (is_rough && std::isnormal(result)) {
      constexpr int kSteps[] = {-2, -1, 0, 0, 0, 0, 1, 2};
      const int steps = kSteps[std::bit_cast<uint32_t>(result) * 2654435761u >> 29];
      for (int n = 0; n < std::abs(steps); ++n) result = std::nextafter(result, steps < 0 ? 0.0f : 2 * result);
    }
    d[l] = flushes ? flush(result) : result;
  });
}

// `count` sources of one type, and a destination of the same.
template <class Op, int kCount, bool kIntegers, bool kFloats>
Form simple(const Opcode& opcode) {
  return by_type(opcode.last(), [&](auto t) -> Form {
    using T = decltype(t);
    if constexpr (std::is_floating_point_v<T> ? kFloats : kIntegers) {
      const bool flushes = std::is_floating_point_v<T> && opcode.has("ftz");
      auto pick = [&](auto with_flush) -> Step {
        constexpr bool kFlush = decltype(with_flush)::value && std::is_floating_point_v<T>;
        if constexpr (kCount == 1)
          return &unary<T, Op, kFlush>;
        else if constexpr (kCount == 2)
          return &binary<T, Op, kFlush>;
        else
          return &ternary<T, Op, kFlush>;
      };
      return {flushes ? pick(std::true_type()) : pick(std::false_type()),
              std::string(kCount + 1, char('0' + sizeof(T)))};
    } else {
      return {};
    }
  });
}

// d = a * b (+ c) of twice the width.
template <class T, class W, bool kAdds>
void wide(Warp& w, const Instruction& i) {
  W* d = w.slot<W>(i.operands[0]);
  const T *a = w.slot<T>(i.operands[1]), *b = w.slot<T>(i.operands[2]);
  const W* c = kAdds ? w.slot<W>(i.operands[3]) : nullptr;
  for_lanes(w.lanes, [&](int l) {
    const W product = Mul::of(W(a[l]), W(b[l]));
    if constexpr (kAdds)
      d[l] = Add::of(product, c[l]);
    else
      d[l] = product;
  });
}

template <bool kAdds>
Form wide_form(const std::string& type) {
  const std::string c16 = kAdds ? "4224" : "422", c32 = kAdds ? "8448" : "844";
  if (type == "s16") return {&wide<int16_t, int32_t, kAdds>, c16};
  if (type == "u16") return {&wide<uint16_t, uint32_t, kAdds>, c16};
  if (type == "s32") return {&wide<int32_t, int64_t, kAdds>, c32};
  if (type == "u32") return {&wide<uint32_t, uint64_t, kAdds>, c32};
  return {};
}

template <class T>
void select(Warp& w, const Instruction& i) {
  T* d = w.slot<T>(i.operands[0]);
  const T *a = w.slot<T>(i.operands[1]), *b = w.slot<T>(i.operands[2]);
  const uint32_t p = *w.slot<uint32_t>(i.operands[3]);
  for_lanes(w.lanes, [&](int l) { d[l] = (p >> l & 1) != 0 ? a[l] : b[l]; });
}

template <class Op>
void predicates(Warp& w, const Instruction& i) {
  const uint32_t a = *w.slot<uint32_t>(i.operands[1]), b = *w.slot<uint32_t>(i.operands[2]);
  set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, Op::of(a, b));
}
void invert_predicate(Warp& w, const Instruction& i) {
  set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, ~*w.slot<uint32_t>(i.operands[1]));
}
void move_predicate(Warp& w, const Instruction& i) {
  set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, *w.slot<uint32_t>(i.operands[1]));
}

// mov.b64 d, {a, b} and mov.b64 {a, b}, d, and the same of 32 bits.
template <class Wide, class Half>
void pack(Warp& w, const Instruction& i) {
  Wide* d = w.slot<Wide>(i.operands[0]);
  const Half *a = w.slot<Half>(i.operands[1]), *b = w.slot<Half>(i.operands[2]);
  for_lanes(w.lanes, [&](int l) { d[l] = Wide(Wide(b[l]) << 8 * sizeof(Half) | a[l]); });
}
template <class Wide, class Half>
void unpack(Warp& w, const Instruction& i) {
  const Wide* d = w.slot<Wide>(i.operands[2]);
  for (int half = 0; half < 2; ++half) {
    if (i.operands[half] < 0) continue;
    Half* to = w.slot<Half>(i.operands[half]);
    for_lanes(w.lanes, [&](int l) { to[l] = Half(d[l] >> 8 * sizeof(Half) * half); });
  }
}

Form move_form(const Opcode& opcode, const std::vector<int>& sizes) {
  if (opcode.last() == "pred") return {&move_predicate, "pp"};
  if (sizes.size() == 2) return simple<Same, 1, true, true>(opcode);
  const bool unpacks = sizes[2] == (opcode.last() == "b64" ? 8 : 4);
  if (opcode.last() == "b64") {
    return unpacks ? Form{&unpack<uint64_t, uint32_t>, "448"} : Form{&pack<uint64_t, uint32_t>, "844"};
  }
  return unpacks ? Form{&unpack<uint32_t, uint16_t>, "224"} : Form{&pack<uint32_t, uint16_t>, "422"};
}

}  // namespace

Form arithmetic_form(const Opcode& o, const std::vector<int>& sizes) {
  const std::string& op = o.parts[0];
  const std::string& type = o.last();
  if (op == "mov") return move_form(o, sizes);
  if (op == "add") return simple<Add, 2, true, true>(o);
  if (op == "sub") return simple<Sub, 2, true, true>(o);
  if (op == "mul" && o.has("wide")) return wide_form<false>(type);
  if (op == "mul" && o.has("hi")) return simple<MulHigh, 2, true, false>(o);
  if (op == "mul") return simple<Mul, 2, true, true>(o);
  if (op == "mad" && o.has("wide")) return wide_form<true>(type);
  if (op == "mad" && o.has("hi")) return simple<MadHigh, 3, true, false>(o);
  if (op == "fma" && o.has("rm")) return simple<FmaDown, 3, false, true>(o);
  if (op == "mad" || (op == "fma" && o.has("rn"))) return simple<Fma, 3, true, true>(o);
  if (op == "div") return simple<Div, 2, true, true>(o);
  if (op == "rem") return simple<Rem, 2, true, false>(o);
  if (op == "min") return simple<Min, 2, true, true>(o);
  if (op == "max") return simple<Max, 2, true, true>(o);
  if (op == "neg") return simple<Neg, 1, true, true>(o);
  if (op == "abs") return simple<Abs, 1, true, true>(o);
  if (op == "not" && type == "pred") return {&invert_predicate, "pp"};
  if (op == "not") return simple<Not, 1, true, false>(o);
  if (op == "and" && type == "pred") return {&predicates<And>, "ppp"};
  if (op == "and") return simple<And, 2, true, false>(o);
  if (op == "or" && type == "pred") return {&predicates<Or>, "ppp"};
  if (op == "or") return simple<Or, 2, true, false>(o);
  if (op == "xor" && type == "pred") return {&predicates<Xor>, "ppp"};
  if (op == "xor") return simple<Xor, 2, true, false>(o);
  if (op == "rcp") return simple<Rcp, 1, false, true>(o);
  if (op == "sqrt") return simple<Sqrt, 1, false, true>(o);
  if (op == "rsqrt") return simple<Rsqrt, 1, false, true>(o);
  if (op == "ex2" && type == "f32") return {&approximate<Exp2>, "44", o.has("ftz")};
  if (op == "lg2" && type == "f32") return {&approximate<Log2>, "44", o.has("ftz")};
  if (op == "tanh") return simple<Tanh, 1, false, true>(o);
  if (op != "selp") return {};
  return by_type(type, [&](auto t) -> Form {
    using T = decltype(t);
    const std::string s(1, char('0' + sizeof(T)));
    return {&select<T>, s + s + s + "p"};
  });
}

}  // namespace ptx
