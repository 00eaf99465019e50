// Branches, ends and barriers.
#include "machine.h"
#include "opcodes.h"

namespace ptx {
namespace {

void branch(Warp& w, const Instruction& i) { w.branch(i.target); }

void end(Warp& w, const Instruction&) { w.end_lanes(); }

void nothing(Warp&, const Instruction&) {}

void trap(Warp& w, const Instruction&) { w.fail("the kernel gives up"); }

// Of a whole warp, as `.aligned` says. barrier, count of threads (0: all).
template <bool kWaits>
void barrier(Warp& w, const Instruction& i) {
  if (!w.gather(w.live_lanes())) return;
  const uint32_t number = w.slot<uint32_t>(i.operands[0])[0];
  const uint32_t threads = i.operands[1] < 0 ? 0 : w.slot<uint32_t>(i.operands[1])[0];
  w.block.arrive(w, int(number), int(threads), kWaits);
}

void warp_barrier(Warp& w, const Instruction& i) {
  const uint32_t wanted = w.slot<uint32_t>(i.operands[0])[std::countr_zero(w.lanes)];
  if (!w.gather(wanted)) return;
  if (wanted == w.live_lanes()) w.synced = ++w.clock;
}

}  // namespace

Form control_form(const Opcode& o) {
  const std::string& op = o.parts[0];
  if (op == "bra") return {&branch, "l"};
  if (op == "ret" || op == "exit") return {&end, ""};
  if (op == "trap") return {&trap, ""};
  if (op == "bar" && o.has("warp")) return {&warp_barrier, "4"};
  if ((op == "bar" || op == "barrier") && o.has("sync")) return {&barrier<true>, "44"};
  if ((op == "bar" || op == "barrier") && o.has("arrive") && !o.has("cluster")) return {&barrier<false>, "44"};
  if (op == "membar" || op == "nanosleep" || op == "prefetch" || op == "griddepcontrol") {
    return {&nothing, op == "nanosleep" ? "4" : op == "prefetch" ? "a" : ""};
  }
  return {};
}

Form form_of(const Opcode& opcode, const std::vector<int>& sizes) {
  for (const Form& form :
       {wgmma_form(opcode, sizes), async_form(opcode), bits_form(opcode), arithmetic_form(opcode, sizes),
        comparison_form(opcode, sizes), conversion_form(opcode, sizes), memory_form(opcode, sizes),
        control_form(opcode), warp_form(opcode, sizes), copy_form(opcode)}) {
    if (form.step != nullptr) return form;
  }
  throw Fault("ptx: an opcode that the machine does not know: " + opcode.text);
}

bool Opcode::has(std::string_view part) const {
  for (const std::string& each : parts) {
    if (each == part) return true;
  }
  return false;
}

const std::string& Opcode::last(int from_end) const {
  static const std::string none;
  return parts.size() > size_t(from_end) ? parts[parts.size() - 1 - size_t(from_end)] : none;
}

}  // namespace ptx
