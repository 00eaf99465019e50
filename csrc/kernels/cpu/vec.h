// Vectors as wide as the instruction set of this translation unit, by the compiler's vector extension: the same
// source for SSE2, NEON, AVX2 and AVX-512. Everything lives in the instruction set's own namespace, so that the
// linker can never pick an AVX-512 copy of a helper for a CPU without it.
#pragma once

#include <cstdint>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../cpu_isa.h"

#ifndef STCA_ISA
#error "kernels/cpu is compiled once per instruction set, with STCA_ISA naming it"
#endif

namespace stca {
namespace STCA_ISA {

// Calls f(Element<T>()) for the type T that `dtype` names, one of those that this copy computes in: the others are not
// compiled, since no call in them comes here (cpu_isa_of).
template <class F>
void visit_own_dtype(Dtype dtype, F f) {
  stca::visit_dtype(dtype, [&](auto type) {
    constexpr Dtype kDtype = DtypeOf<typename decltype(type)::element>::value;
    if constexpr (cpu_isa_of(CpuIsa::STCA_ISA, kDtype) == CpuIsa::STCA_ISA) f(type);
  });
}

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

typedef float FloatVec __attribute__((vector_size(kVecBytes)));
typedef int32_t Int32Vec __attribute__((vector_size(kVecBytes)));
typedef uint32_t Uint32Vec __attribute__((vector_size(kVecBytes)));
typedef double DoubleVec __attribute__((vector_size(kVecBytes)));
typedef int64_t Int64Vec __attribute__((vector_size(kVecBytes)));
typedef uint64_t Uint64Vec __attribute__((vector_size(kVecBytes)));

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  using Vec = FloatVec;
  using Bits = Uint32Vec;
  static constexpr int kMantissaBits = 23;
  static constexpr uint32_t kOneBits = 0x3f800000;
  static constexpr float kRound = 12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kMinExponent = -126.0f;  // below, 2^x is taken as 0
  static constexpr int kExpTerms = 7;             // remainder 5e-9 on |f| <= 1/2
};

template <>
struct Lanes<double> {
  using Vec = DoubleVec;
  using Bits = Uint64Vec;
  static constexpr int kMantissaBits = 52;
  static constexpr uint64_t kOneBits = 0x3ff0000000000000;
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
constexpr A kInverseFactorial[] = {A(1),
                                   A(1),
                                   A(1.0 / 2),
                                   A(1.0 / 6),
                                   A(1.0 / 24),
                                   A(1.0 / 120),
                                   A(1.0 / 720),
                                   A(1.0 / 5040),
                                   A(1.0 / 40320),
                                   A(1.0 / 362880),
                                   A(1.0 / 3628800),
                                   A(1.0 / 39916800),
                                   A(1.0 / 479001600),
                                   A(1.0 / 6227020800)};

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

// Lane l of x where lane l ^ kHalf was.
template <class A, int kHalf>
inline vec_t<A> swap_lanes(vec_t<A> x) {
  typename Lanes<A>::Bits from;
  for (int l = 0; l < kLanes<A>; ++l) from[l] = l ^ kHalf;
  return __builtin_shuffle(x, from);
}

template <class A, int kHalf = kLanes<A> / 2>
inline A sum(vec_t<A> x) {
  x += swap_lanes<A, kHalf>(x);
  if constexpr (kHalf > 1) return sum<A, kHalf / 2>(x);
  return x[0];
}

template <class A, int kHalf = kLanes<A> / 2>
inline A max(vec_t<A> x) {
  const vec_t<A> other = swap_lanes<A, kHalf>(x);
  x = other > x ? other : x;
  if constexpr (kHalf > 1) return max<A, kHalf / 2>(x);
  return x[0];
}

// 2^x for x up to 127 (1023 in double), to about one unit in the last place; 0 below the smallest normal number, NaN
// for NaN.
template <class A>
inline vec_t<A> exp2(vec_t<A> x) {
  using L = Lanes<A>;
  using Vec = typename L::Vec;
  using Bits = typename L::Bits;
  const Vec rounded = x + L::kRound;
  const Vec f = (x - (rounded - L::kRound)) * A(0.693147180559945309417);
  Vec p = Vec{} + kInverseFactorial<A>[L::kExpTerms];
  for (int n = L::kExpTerms - 1; n >= 0; --n) p = p * f + kInverseFactorial<A>[n];
  // Of an x that is NaN or too small the sum overflows, which only unsigned numbers may, and is not used.
  const Bits power = ((Bits)rounded << L::kMantissaBits) + L::kOneBits;
  return x < L::kMinExponent ? Vec{} : p * (Vec)power;
}

template <class A>
inline A exp2(A x) {
  return exp2<A>(broadcast<A>(x))[0];
}

// 1 / (1 + e^-x); a result below 1e-38 is not resolved.
template <class A>
inline vec_t<A> sigmoid(vec_t<A> x) {
  const vec_t<A> power = x * A(-1.44269504088896340736);
  return A(1) / (A(1) + exp2<A>(power > A(126) ? broadcast<A>(A(126)) : power));
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

// One vector of elements, converted on the way. The compiler vectorises no loop over the 16-bit structs by itself.

typedef uint16_t Bits16Vec __attribute__((vector_size(kVecBytes / 2)));
typedef uint32_t Bits32Vec __attribute__((vector_size(kVecBytes)));

inline DoubleVec load_wide(const double* from) { return load(from); }
inline FloatVec load_wide(const float* from) { return load(from); }

inline Bits32Vec load_bits(const void* from) {
#if defined(__AVX512F__)
  return (Bits32Vec)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (Bits32Vec)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  Bits16Vec bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, Bits32Vec);
#endif
}

inline FloatVec load_wide(const int8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (FloatVec)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  return (FloatVec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes<float>)));
  Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Int32Vec), FloatVec);
#endif
}

inline FloatVec load_wide(const bfloat16* from) { return (FloatVec)(load_bits(from) << 16); }

inline FloatVec load_wide(const float16* from) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (FloatVec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  const Bits32Vec bits = load_bits(from), magnitude = bits & 0x7fffu;
  const Bits32Vec scaled = (Bits32Vec)((FloatVec)(magnitude << 13) * 0x1p112f);
  const Bits32Vec special = magnitude >= 0x7c00u ? Bits32Vec{} + 0x7f800000u : Bits32Vec{};
  return (FloatVec)(scaled | special | (bits & 0x8000u) << 16);
#endif
}

inline void store_narrow(double* to, DoubleVec x) { store(to, x); }
inline void store_narrow(float* to, FloatVec x) { store(to, x); }

inline void store_narrow(bfloat16* to, FloatVec x) {
  const Bits32Vec bits = (Bits32Vec)x;
  const Bits32Vec nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits16Vec halves = __builtin_convertvector(x != x ? Bits32Vec{} + 0x7fc0u : nearest_even, Bits16Vec);
  __builtin_memcpy(to, &halves, sizeof halves);
}

inline void store_narrow(float16* to, FloatVec x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) to[i] = narrow<float16>(x[i]);
#endif
}

template <class T>
inline void widen(const T* from, accumulator_t<T>* to, int64_t n) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(to + i, load_wide(from + i));
  for (; i < n; ++i) to[i] = widen(from[i]);
}

template <class T>
inline void narrow(const accumulator_t<T>* from, T* to, int64_t n) {
  constexpr int kStep = kLanes<accumulator_t<T>>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store_narrow(to + i, load(from + i));
  for (; i < n; ++i) to[i] = narrow<T>(from[i]);
}

}  // namespace STCA_ISA
}  // namespace stca
