// setp: comparisons, each lane's answer a bit of a predicate.
#include <cmath>
#include <type_traits>

#include "opcodes.h"
#include "warp.h"

namespace ptx {
namespace {

enum class Test { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
constexpr std::string_view kTests[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                       "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
enum class Join { none, with_and, with_or, with_xor };

template <Test kTest, class T>
bool holds(T a, T b) {
  const bool unordered = std::is_floating_point_v<T> && (a != a || b != b);
  switch (kTest) {
    case Test::eq:
      return a == b;
    case Test::ne:
      return !unordered && a != b;
    case Test::lt:
      return a < b;
    case Test::le:
      return a <= b;
    case Test::gt:
      return a > b;
    case Test::ge:
      return a >= b;
    case Test::equ:
      return unordered || a == b;
    case Test::neu:
      return a != b;
    case Test::ltu:
      return unordered || a < b;
    case Test::leu:
      return unordered || a <= b;
    case Test::gtu:
      return unordered || a > b;
    case Test::geu:
      return unordered || a >= b;
    case Test::num:
      return !unordered;
    case Test::nan:
      return unordered;
  }
  return false;
}

// p = test(a, b) joined with c, q = the opposite of the test joined with c.
template <Test kTest, class T, Join kJoin>
void compare(Warp& w, const Instruction& i) {
  const T *a = w.slot<T>(i.operands[2]), *b = w.slot<T>(i.operands[3]);
  uint32_t found = 0;
  for_lanes(w.lanes, [&](int l) { found |= uint32_t(holds<kTest>(a[l], b[l])) << l; });
  const uint32_t c = kJoin == Join::none ? 0 : *w.slot<uint32_t>(i.operands[4]);
  auto join = [&](uint32_t x) {
    return kJoin == Join::none ? x : kJoin == Join::with_and ? x & c : kJoin == Join::with_or ? x | c : x ^ c;
  };
  if (i.operands[0] >= 0) set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, join(found));
  if (i.operands[1] >= 0) set_predicate(*w.slot<uint32_t>(i.operands[1]), w.lanes, join(~found));
}

template <class T, Join kJoin, int kFirst = 0>
Step step_of(std::string_view test) {
  if constexpr (kFirst < int(sizeof(kTests) / sizeof(kTests[0]))) {
    if (test == kTests[kFirst]) return &compare<Test(kFirst), T, kJoin>;
    return step_of<T, kJoin, kFirst + 1>(test);
  }
  return nullptr;
}

template <class T>
Form of_type(const Opcode& opcode, bool two) {
  std::string test = opcode.parts[1];
  // Of unsigned integers: lower, lower or same, higher, higher or same.
  if (test == "lo") test = "lt";
  if (test == "ls") test = "le";
  if (test == "hi") test = "gt";
  if (test == "hs") test = "ge";
  const std::string size(1, char('0' + sizeof(T)));
  const std::string operands = std::string(two ? "pp" : "p_") + size + size;
  if (opcode.has("and")) return {step_of<T, Join::with_and>(test), operands + "p"};
  if (opcode.has("or")) return {step_of<T, Join::with_or>(test), operands + "p"};
  if (opcode.has("xor")) return {step_of<T, Join::with_xor>(test), operands + "p"};
  return {step_of<T, Join::none>(test), operands};
}

}  // namespace

Form comparison_form(const Opcode& opcode, const std::vector<int>& sizes) {
  if (opcode.parts[0] != "setp") return {};
  const bool joined = opcode.has("and") || opcode.has("or") || opcode.has("xor");
  const bool two = sizes.size() == (joined ? 5 : 4);
  const std::string& type = opcode.last();
  if (type == "s16") return of_type<int16_t>(opcode, two);
  if (type == "u16" || type == "b16") return of_type<uint16_t>(opcode, two);
  if (type == "s32") return of_type<int32_t>(opcode, two);
  if (type == "u32" || type == "b32") return of_type<uint32_t>(opcode, two);
  if (type == "s64") return of_type<int64_t>(opcode, two);
  if (type == "u64" || type == "b64") return of_type<uint64_t>(opcode, two);
  if (type == "f32") return of_type<float>(opcode, two);
  if (type == "f64") return of_type<double>(opcode, two);
  return {};
}

}  // namespace ptx
