// cp.async: copies to shared memory that land at some moment between their instruction and the wait for them.
#include <algorithm>

#include "machine.h"
#include "opcodes.h"

namespace ptx {
namespace {

// What the copy brings, now.
void land(Warp& w, Copy& copy) {
  if (copy.landed) return;
  char* to = w.block.shared_bytes_at(w, copy.lane, copy.to, copy.bytes);
  if (copy.read > 0) std::memcpy(to, reinterpret_cast<const char*>(copy.from), size_t(copy.read));
  std::memset(to + copy.read, 0, size_t(copy.bytes - copy.read));
  copy.landed = true;
}

// [shared], [global], bytes (, bytes to read: zeros for the rest)
void copy(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const int bytes = int(i.immediate);
    const int read = i.operands[6] < 0 ? bytes : std::min(bytes, int(w.slot<uint32_t>(i.operands[6])[lane]));
    const uint32_t to = uint32_t(w.address(i.operands, lane));
    const uint64_t from = w.address(i.operands + 3, lane);
    const size_t offset = size_t(w.block.shared_bytes_at(w, lane, to, bytes) - w.block.shared.data());
    if (from % uint64_t(bytes) != 0) w.fail("misaligned address for " + std::to_string(bytes) + " bytes", lane);
    if (read > 0) {  // byte by byte: `read` need not be a power of two
      for (int b = 0; b < read; b += 2)
        w.block.touch(w, lane, {Space::global, from + uint64_t(b), 2 - (b + 1 == read), false});
    }
    fail_at(w, lane, w.block.shadow.begin_copy(w, lane, offset, bytes, false), "shared");
    w.copies.push_back({lane, to, from, bytes, read, w.copy_groups[size_t(lane)], false});
    if (w.block.random() % 2 == 0) land(w, w.copies.back());
  });
}

void commit(Warp& w, const Instruction&) {
  for_lanes(w.lanes, [&](int lane) { ++w.copy_groups[size_t(lane)]; });
}

// For all but the last `immediate` groups of each lane; for all copies, committed or not, where it is -1.
void wait(Warp& w, const Instruction& i) {
  std::erase_if(w.copies, [&](Copy& each) {
    const bool mine = (w.lanes >> each.lane & 1) != 0;
    if (!mine || (i.immediate >= 0 && each.group >= w.copy_groups[size_t(each.lane)] - i.immediate)) return false;
    land(w, each);
    char* at = w.block.shared_bytes_at(w, each.lane, each.to, each.bytes);
    w.block.shadow.end_copy(w, each.lane, size_t(at - w.block.shared.data()), each.bytes, false);
    return true;
  });
}

}  // namespace

Form copy_form(const Opcode& o) {
  if (o.parts[0] != "cp" || !o.has("async") || o.has("bulk")) return {};
  if (o.has("commit_group")) return {&commit, ""};
  if (o.has("wait_group")) return {&wait, "i"};
  if (o.has("wait_all")) return {&wait, "", -1};
  if (o.has("shared") && o.has("global")) return {&copy, "aai4"};
  return {};
}

}  // namespace ptx
