// 16-bit floating formats, and rounding to them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float from_bfloat16(uint16_t x) { return from_bits(uint32_t(x) << 16); }
inline uint16_t to_bfloat16(float x) {  // to nearest, ties to even
  const uint32_t bits = to_bits(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_float16(uint16_t x) {
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(fraction + 1024), exponent - 25);
  return (x & 0x8000) != 0 ? -magnitude : magnitude;
}
inline uint16_t to_float16(float x) {  // to nearest, ties to even
  const uint16_t sign = uint16_t(to_bits(x) >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  if (x != x) return 0x7fff;
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude < std::ldexp(1.0f, -14)) return uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24))));
  const uint32_t bits = to_bits(magnitude);
  return uint16_t(sign | ((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13));
}

}  // namespace ptx
