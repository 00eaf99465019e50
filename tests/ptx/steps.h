// What the families of steps share.
#pragma once

#include <string>
#include <type_traits>

#include "machine.h"
#include "opcodes.h"

namespace ptx {

template <class T>
using unsigned_t =
    typename std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::type_identity<T>>::type;

// Calls f(T()) for the type that the opcode names, the name of one.
template <class F>
Form by_type(const std::string& type, F f) {
  if (type == "s16") return f(int16_t());
  if (type == "u16" || type == "b16") return f(uint16_t());
  if (type == "s32") return f(int32_t());
  if (type == "u32" || type == "b32") return f(uint32_t());
  if (type == "s64") return f(int64_t());
  if (type == "u64" || type == "b64") return f(uint64_t());
  if (type == "f32") return f(float());
  if (type == "f64") return f(double());
  return {};
}

}  // namespace ptx
