// Hopper's asynchronous half: barriers in shared memory that count arrivals and bytes, copies of tiles of a tensor map,
// stores to another block of the cluster, and the cluster's own barrier.
#include <algorithm>

#include "machine.h"
#include "opcodes.h"
#include "tensor_map.h"

namespace ptx {
namespace {

// ---- mbarrier

MBarrier& barrier_at(Warp& w, int lane, uint64_t address) {
  Block& of = w.block.owner(uint32_t(address));
  if (of.has_ended()) w.fail("a barrier of a block that has ended", lane);
  const auto found = of.mbarriers.find(uint32_t(address) & kSharedOffsetMask);
  if (found == of.mbarriers.end()) w.fail("no barrier was made here", lane);
  return found->second;
}

// [address], arrivals
void init(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const uint32_t address = uint32_t(w.address(i.operands, lane));
    const int count = int(w.slot<uint32_t>(i.operands[3])[lane]);
    w.block.touch(w, lane, {Space::shared, address, 8, true});
    w.block.owner(address).mbarriers[address & kSharedOffsetMask] = {count, count, 0, 0, {}, false};
  });
}

// (state,) [address] (, bytes)
template <bool kExpects>
void arrive(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    MBarrier& barrier = barrier_at(w, lane, w.address(i.operands + 1, lane));
    if (kExpects) barrier.bytes += int64_t(w.slot<uint32_t>(i.operands[4])[lane]);
    w.release_to(barrier.seen);
    if (--barrier.pending < 0) w.fail("more arrivals than the barrier's phase has", lane);
    barrier.advance();
  });
}

bool parity_passed(Warp& w) {
  const auto& [block, address, parity] = w.waits_at;
  return (block->mbarriers.at(address).phase & 1) != parity;
}

// p, [address], parity (, time): waits until the phase of that parity is over, and then is true.
void try_wait(Warp& w, const Instruction& i) {
  const int lane = std::countr_zero(w.lanes);
  const uint32_t address = uint32_t(w.address(i.operands + 1, lane));
  const uint32_t parity = w.slot<uint32_t>(i.operands[4])[lane];
  for_lanes(w.lanes, [&](int l) {
    if (w.address(i.operands + 1, l) != address || w.slot<uint32_t>(i.operands[4])[l] != parity) {
      w.fail("lanes that wait for different phases", l);
    }
  });
  MBarrier& barrier = barrier_at(w, lane, address);
  w.waits_at = {&w.block.owner(address), address & kSharedOffsetMask, parity & 1};
  if (!w.wait_until(&parity_passed, "a phase of an mbarrier")) return;
  w.acquire(barrier.seen);
  barrier.unused = false;
  set_predicate(*w.slot<uint32_t>(i.operands[0]), w.lanes, kAllLanes);
}

// ---- what lands later

// The same place in the shared memory of block `rank`.
uint32_t in_block(uint32_t address, uint32_t rank) {
  return (address & kSharedOffsetMask) | (rank + 1) << kSharedBlockShift;
}

// [to], {values}, [barrier]: to another block's shared memory.
void store_async(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const uint32_t to = uint32_t(w.address(i.operands, lane)), barrier = uint32_t(w.address(i.operands + 7, lane));
    std::vector<char> bytes(16);
    for (int c = 0; c < 4; ++c) std::memcpy(bytes.data() + 4 * c, &w.slot<uint32_t>(i.operands[3 + c])[lane], 4);
    barrier_at(w, lane, barrier);
    w.block.cluster.send({&w, lane, to, barrier, 16, false, [bytes] { return bytes; }});
  });
}

// [to], [map, {x, y, z}], [barrier] (, blocks of the cluster, a bit each, that get it at the same places)
template <bool kToSeveral>
void copy_tile(Warp& w, const Instruction& i) {
  for_lanes(w.lanes, [&](int lane) {
    const uint32_t to = uint32_t(w.address(i.operands, lane));
    const char* raw = w.block.touch(w, lane, {Space::generic, w.address(i.operands + 3, lane), 64, false});
    const TensorMap& map = *TensorMap::of(raw);
    int at[3];
    for (int d = 0; d < 3; ++d) at[d] = int(w.slot<uint32_t>(i.operands[6 + d])[lane]);
    const uint32_t barrier = uint32_t(w.address(i.operands + 9, lane));
    // The swizzle follows from the address: of a single row, that need only be where a row of a slab is.
    const uint32_t unit = map.box[1] * map.box[2] == 1 ? 128 : 1024;
    if (to % unit != 0) {
      w.fail("a swizzled tile that does not start at a multiple of " + std::to_string(unit) + " bytes", lane);
    }
    auto read = [map, x = at[0], y = at[1], z = at[2], first_row = to / 128] {
      const int place[3] = {x, y, z};
      return map.read(place, first_row);
    };
    const auto send = [&](uint32_t place, uint32_t its_barrier) {
      barrier_at(w, lane, its_barrier);
      w.block.cluster.send({&w, lane, place, its_barrier, map.bytes(), true, read});
    };
    if (!kToSeveral) return send(to, barrier);
    const uint32_t blocks = w.slot<uint16_t>(i.operands[12])[lane];
    if (blocks >> w.block.cluster.blocks.size() != 0) w.fail("a copy to a block that the cluster has not", lane);
    for (uint32_t rank = 0; rank < w.block.cluster.blocks.size(); ++rank) {
      if ((blocks >> rank & 1) != 0) send(in_block(to, rank), in_block(barrier, rank));
    }
  });
}

// ---- clusters

// d = the same place in the shared memory of block `rank`.
void map_address(Warp& w, const Instruction& i) {
  uint32_t* d = w.slot<uint32_t>(i.operands[0]);
  const uint32_t *a = w.slot<uint32_t>(i.operands[1]), *rank = w.slot<uint32_t>(i.operands[2]);
  for_lanes(w.lanes, [&](int l) { d[l] = in_block(a[l], rank[l]); });
}

void cluster_arrive(Warp& w, const Instruction&) {
  if (w.gather(w.live_lanes())) w.block.cluster.arrive(w);
}

bool cluster_passed(Warp& w) { return w.block.cluster.phase >= w.cluster_phase; }

void cluster_wait(Warp& w, const Instruction&) {
  if (!w.gather(w.live_lanes()) || !w.wait_until(&cluster_passed, "the cluster's barrier")) return;
  w.acquire(w.block.cluster.seen);
}

void nothing(Warp&, const Instruction&) {}

void fence_proxy(Warp& w, const Instruction&) {
  for_lanes(w.lanes, [&](int lane) { w.fences[size_t(lane)] = w.block.cluster.time; });
  ++w.block.cluster.time;
}

void set_registers(Warp& w, const Instruction&) { w.gather(w.live_lanes()); }

}  // namespace

Form async_form(const Opcode& o) {
  const std::string& op = o.parts[0];
  if (op == "mbarrier" && o.has("init")) return {&init, "a4"};
  if (op == "mbarrier" && o.has("arrive")) {
    return o.has("expect_tx") ? Form{&arrive<true>, "8a4"} : Form{&arrive<false>, "8a"};
  }
  if (op == "mbarrier" && o.has("try_wait") && o.has("parity")) return {&try_wait, "pa44"};
  if (op == "st" && o.has("async") && o.has("v4")) return {&store_async, "a4444a"};
  if (op == "cp" && o.has("bulk") && o.has("tensor") && o.has("3d")) {
    return o.has("multicast::cluster") ? Form{&copy_tile<true>, "aa444a2"} : Form{&copy_tile<false>, "aa444a"};
  }
  if (op == "mapa" && o.last() == "u32") return {&map_address, "444"};
  if (op == "barrier" && o.has("cluster")) return {o.has("arrive") ? &cluster_arrive : &cluster_wait, ""};
  if (op == "fence" && o.has("proxy")) return {&fence_proxy, ""};
  if (op == "fence") return {&nothing, ""};
  if (op == "setmaxnreg") return {&set_registers, "4"};
  return {};
}

}  // namespace ptx
