// ld and st: each active lane's bytes, checked before they move.
#include <cstring>
#include <type_traits>

#include "machine.h"
#include "opcodes.h"

namespace ptx {
namespace {

Space space_of(const Opcode& opcode) {
  if (opcode.has("global") || opcode.has("const")) return Space::global;
  if (opcode.has("shared") || opcode.has("shared::cta") || opcode.has("shared::cluster")) return Space::shared;
  if (opcode.has("local")) return Space::local;
  if (opcode.has("param")) return Space::parameter;
  return Space::generic;
}

// R: what a register holds, of which M is in memory; the sign of M fills R.
template <class M, class R, int kCount, Space kSpace>
void load(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const uint64_t address = w.address(i.operands + kCount, lane);
    const char* from = w.block.touch(w, lane, {kSpace, address, int(sizeof(M)) * kCount, false});
    for (int c = 0; c < kCount; ++c) {
      if (i.operands[c] < 0) continue;
      M value;
      std::memcpy(&value, from + c * int(sizeof(M)), sizeof(M));
      w.slot<R>(i.operands[c])[lane] = R(value);
    }
  });
}

template <class M, class R, int kCount, Space kSpace>
void store(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const uint64_t address = w.address(i.operands, lane);
    M values[kCount];
    for (int c = 0; c < kCount; ++c) values[c] = M(w.slot<R>(i.operands[3 + c])[lane]);
    std::memcpy(w.block.touch(w, lane, {kSpace, address, int(sizeof values), true, values}), values, sizeof values);
  });
}

// What may be written by many at once, wherever it is.
void store_volatile(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const Access access{Space::generic, w.address(i.operands, lane), 4, true, nullptr, false, true};
    std::memcpy(w.block.touch(w, lane, access), &w.slot<uint32_t>(i.operands[3])[lane], 4);
  });
}

template <class M, class R, int kCount>
Step by_space(Space space, bool loads) {
  switch (space) {
    case Space::global:
      return loads ? &load<M, R, kCount, Space::global> : &store<M, R, kCount, Space::global>;
    case Space::shared:
      return loads ? &load<M, R, kCount, Space::shared> : &store<M, R, kCount, Space::shared>;
    case Space::local:
      return loads ? &load<M, R, kCount, Space::local> : &store<M, R, kCount, Space::local>;
    case Space::parameter:
      return loads ? &load<M, R, kCount, Space::parameter> : nullptr;
    default:
      return loads ? &load<M, R, kCount, Space::generic> : &store<M, R, kCount, Space::generic>;
  }
}

template <class M, class R>
Form by_count(const Opcode& opcode, bool loads) {
  const int count = opcode.has("v4") ? 4 : opcode.has("v2") ? 2 : 1;
  const Space space = space_of(opcode);
  const std::string values(size_t(count), char('0' + sizeof(R)));
  const Step step = count == 4   ? by_space<M, R, 4>(space, loads)
                    : count == 2 ? by_space<M, R, 2>(space, loads)
                                 : by_space<M, R, 1>(space, loads);
  return {step, loads ? values + "a" : "a" + values};
}

// A register may be wider than what is in memory; one of 8 bits does not exist.
template <class M>
Form by_register(const Opcode& opcode, bool loads, int bytes) {
  using Signed = std::make_signed_t<M>;
  constexpr bool kSigned = std::is_signed_v<M>;
  if constexpr (sizeof(M) <= 2) {
    if (bytes == 2 || bytes == 0) return by_count<M, std::conditional_t<kSigned, int16_t, uint16_t>>(opcode, loads);
  }
  if constexpr (sizeof(M) <= 4) {
    if (bytes == 4 || bytes == 0) return by_count<M, std::conditional_t<kSigned, int32_t, uint32_t>>(opcode, loads);
  }
  static_assert(sizeof(Signed) == sizeof(M));
  return by_count<M, std::conditional_t<kSigned, int64_t, uint64_t>>(opcode, loads);
}

}  // namespace

Form memory_form(const Opcode& o, const std::vector<int>& sizes) {
  const bool loads = o.parts[0] == "ld";
  if (!loads && o.parts[0] != "st") return {};
  if (o.has("async")) return {};
  const int bytes = sizes[loads ? 0 : 1];
  const std::string& type = o.last();
  if (o.has("volatile")) return o.text == "st.volatile.global.u32" ? Form{&store_volatile, "a4"} : Form{};
  if (type == "u8" || type == "b8") return by_register<uint8_t>(o, loads, bytes);
  if (type == "s8") return by_register<int8_t>(o, loads, bytes);
  if (type == "u16" || type == "b16") return by_register<uint16_t>(o, loads, bytes);
  if (type == "s16") return by_register<int16_t>(o, loads, bytes);
  if (type == "u32" || type == "b32" || type == "f32") return by_register<uint32_t>(o, loads, bytes);
  if (type == "s32") return by_register<int32_t>(o, loads, bytes);
  if (type == "u64" || type == "b64" || type == "f64" || type == "s64") return by_register<uint64_t>(o, loads, bytes);
  return {};
}

}  // namespace ptx
