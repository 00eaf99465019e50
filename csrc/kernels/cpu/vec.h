// Vectors as wide as the instruction set of this translation unit, by the compiler's vector extension: the same
// source for SSE2, NEON, AVX2 and AVX-512. Everything lives in the instruction set's own namespace, so that the
// linker can never pick an AVX-512 copy of a helper for a CPU without it.
#pragma once

#include <cstdint>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../dtype.h"

#ifndef STCA_ISA
#error "kernels/cpu is compiled once per instruction set, with STCA_ISA naming it"
#endif

namespace stca {
namespace STCA_ISA {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

typedef float FloatVec __attribute__((vector_size(kVecBytes)));
typedef int32_t Int32Vec __attribute__((vector_size(kVecBytes)));
typedef double DoubleVec __attribute__((vector_size(kVecBytes)));
typedef int64_t Int64Vec __attribute__((vector_size(kVecBytes)));

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  using Vec = FloatVec;
  using Bits = Int32Vec;
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kOneBits = 0x3f800000;
  static constexpr float kRound = 12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kMinExponent = -126.0f;  // below, 2^x is taken as 0
  static constexpr int kExpTerms = 7;             // remainder 5e-9 on |f| <= 1/2
};

template <>
struct Lanes<double> {
  using Vec = DoubleVec;
  using Bits = Int64Vec;
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kOneBits = 0x3ff0000000000000;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kMinExponent = -1022.0;
  static constexpr int kExpTerms = 13;  // remainder 4e-18 on |f| <= 1/2
};

template <class A>
using vec_t = typename Lanes<A>::Vec;

template <class A>
constexpr int kLanes = kVecBytes / int(sizeof(A));

template <class A>
constexpr A kInfinity = A(__builtin_huge_val());

template <class A>
inline vec_t<A> load(const A* from) {
  vec_t<A> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

template <class A>
inline void store(A* to, vec_t<A> x) {
  __builtin_memcpy(to, &x, sizeof x);
}

template <class A>
inline vec_t<A> broadcast(A x) {
  return x - vec_t<A>{};
}

// The first `count` lanes from memory, the others `fill`.
template <class A>
inline vec_t<A> load_first(const A* from, int64_t count, A fill) {
  vec_t<A> x = broadcast<A>(fill);
  __builtin_memcpy(&x, from, count * sizeof(A));
  return x;
}

template <class A>
inline void store_first(A* to, vec_t<A> x, int64_t count) {
  __builtin_memcpy(to, &x, count * sizeof(A));
}

template <class A>
inline A sum(vec_t<A> x) {
  A total = 0;
  for (int i = 0; i < kLanes<A>; ++i) total += x[i];
  return total;
}

template <class A>
inline A max(vec_t<A> x) {
  A most = x[0];
  for (int i = 1; i < kLanes<A>; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// 2^x to about one unit in the last place; 0 below the smallest normal number, NaN for NaN.
template <class A>
inline vec_t<A> exp2(vec_t<A> x) {
  using L = Lanes<A>;
  using Vec = typename L::Vec;
  using Bits = typename L::Bits;
  const Vec rounded = x + L::kRound;
  const Vec f = (x - (rounded - L::kRound)) * A(0.693147180559945309417);
  Vec p = Vec{} + A(1);
  for (int n = L::kExpTerms; n >= 1; --n) p = p * f * A(1.0 / n) + A(1);
  const Bits power = ((Bits)rounded << L::kMantissaBits) + L::kOneBits;
  return x < L::kMinExponent ? Vec{} : p * (Vec)power;
}

template <class A>
inline A exp2(A x) {
  return exp2<A>(broadcast<A>(x))[0];
}

// Conversions of n contiguous elements between storage and accumulation type.

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
inline float widen(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Re-bias the exponent by a multiplication, which also normalises subnormal numbers; infinity and NaN keep theirs.
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(scaled | special | uint32_t(x.bits & 0x8000u) << 16);
#endif
}

template <class T>
T narrow(accumulator_t<T> x);
template <>
inline double narrow<double>(double x) {
  return x;
}
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bfloat16 narrow<bfloat16>(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? 0x7fc0u : nearest_even)};
}
template <>
inline float16 narrow<float16>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 puts the last kept bit at the unit of the float's mantissa
    return {uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

template <class T>
inline void widen(const T* from, accumulator_t<T>* to, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (sizeof(T) == 2 && !__is_same(T, bfloat16)) {
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
    }
  }
#endif
  for (; i < n; ++i) to[i] = widen(from[i]);
}

template <class T>
inline void narrow(const accumulator_t<T>* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<T>(from[i]);
}

}  // namespace STCA_ISA
}  // namespace stca
