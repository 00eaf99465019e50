#include "warp.h"

#include <algorithm>

#include "machine.h"
#include "registers.h"

namespace ptx {

Warp::Warp(Block& own_block, const Kernel& own_kernel, int own_number, int threads)
    : block(own_block), number(own_number), kernel_(own_kernel) {
  if (kernel_.spare_registers.empty()) {
    registers_.assign(size_t(kernel_.register_bytes + 7) / 8, 0xffffffffffffffffu);
    std::memcpy(slot<char>(kernel_.constants_begin), kernel_.constants.data(), kernel_.constants.size());
  } else {
    registers_ = std::move(kernel_.spare_registers.back());
    kernel_.spare_registers.pop_back();
  }
  const int first = number * kWarp, count = std::min(kWarp, threads - first);
  groups_.push_back({0, count == kWarp ? kAllLanes : (1u << count) - 1, false});
  local.assign(size_t(kernel_.local_bytes) * kWarp, '\xff');
  const Launch& l = block.launch;
  auto set = [&](Special name, auto value) {
    for (int lane = 0; lane < kWarp; ++lane) slot<int32_t>(special_slot(name))[lane] = value(lane);
  };
  auto all = [&](Special name, int value) { set(name, [=](int) { return value; }); };
  set(Special::tid_x, [&](int lane) { return (first + lane) % l.block[0]; });
  set(Special::tid_y, [&](int lane) { return (first + lane) / l.block[0] % l.block[1]; });
  set(Special::tid_z, [&](int lane) { return (first + lane) / (l.block[0] * l.block[1]); });
  set(Special::laneid, [](int lane) { return lane; });
  for (int d = 0; d < 3; ++d) {
    all(Special(int(Special::ntid_x) + d), l.block[d]);
    all(Special(int(Special::ctaid_x) + d), block.index[d]);
    all(Special(int(Special::nctaid_x) + d), l.grid[d]);
  }
  all(Special::warpid, number);
  all(Special::cluster_ctarank, block.rank);
  all(Special::cluster_nctarank, l.cluster[0] * l.cluster[1] * l.cluster[2]);
  all(Special::cluster_ctaid_x, block.index[0] % l.cluster[0]);
  all(Special::cluster_nctaid_x, l.cluster[0]);
  all(Special::clusterid_x, block.index[0] / l.cluster[0]);
  all(Special::nclusterid_x, l.grid[0] / l.cluster[0]);
}

void Warp::run(int most_instructions) {
  wait_ = nullptr;
  while (most_instructions-- > 0 && !groups_.empty() && !waits()) {
    Group& group = groups_.back();
    at_ = group.at;
    const Instruction& i = kernel_.code[size_t(at_)];
    lanes = group.lanes;
    if (i.predicate >= 0) {
      const uint32_t p = *slot<uint32_t>(i.predicate);
      lanes &= i.negated ? ~p : p;
    }
    ++group.at;
    if (!unready.empty() && lanes != 0) check_registers(i);
    if (lanes != 0) i.step(*this, i);
    if (groups_.size() > 1) sort_groups();
  }
}

// Nothing but a product may touch the registers of a product that has not been waited for.
void Warp::check_registers(const Instruction& i) {
  if (i.is_wgmma) return;
  for_lanes(i.registers, [&](int operand) {
    if (unready.contains(i.operands[operand])) fail("a register of a product that has not been waited for");
  });
}

// The group that is least far runs first, for then the others find it where paths join. Whoever waits for more lanes
// runs last.
void Warp::sort_groups() {
  std::sort(groups_.begin(), groups_.end(),
            [](const Group& a, const Group& b) { return a.at != b.at ? a.at > b.at : a.waits < b.waits; });
  for (size_t g = groups_.size() - 1; g > 0; --g) {
    if (groups_[g].at != groups_[g - 1].at) continue;
    groups_[g - 1].lanes |= groups_[g].lanes;
    groups_[g - 1].waits = false;  // there are more of them now
    groups_.erase(groups_.begin() + long(g));
  }
  std::stable_partition(groups_.begin(), groups_.end(), [](const Group& each) { return each.waits; });
  if (groups_.empty() || !groups_.back().waits) return;
  at_ = groups_.back().at;
  std::string other = groups_.size() > 1
                          ? ", others wait at " + kernel_.module->place(kernel_.code[size_t(groups_[0].at)].location)
                          : "";
  fail("not all threads of the warp come to this instruction" + other);
}

uint32_t Warp::live_lanes() const {
  uint32_t live = 0;
  for (const Group& group : groups_) live |= group.lanes;
  return live;
}

void Warp::branch(int target) {
  Group& group = groups_.back();
  if (lanes == group.lanes) {
    group.at = target;
  } else {
    group.lanes &= ~lanes;
    groups_.push_back({target, lanes, false});
  }
}

void Warp::end_lanes() {
  if (!products.empty()) fail("ends before its products are waited for");
  for (const Copy& copy : copies) {
    if ((lanes >> copy.lane & 1) != 0) fail("ends before its asynchronous copies have landed", copy.lane);
  }
  groups_.back().lanes &= ~lanes;
  if (groups_.back().lanes == 0) groups_.pop_back();
}

bool Warp::gather(uint32_t wanted) {
  Group& group = groups_.back();
  if ((wanted & ~lanes) == 0) return true;
  if (lanes != group.lanes) fail("lanes whose predicate is false must take part too");
  if ((wanted & ~live_lanes()) != 0) fail("waits for threads of the warp that have ended");
  group.at = at_;
  group.waits = true;
  if (groups_.size() == 1) sort_groups();
  return false;
}

bool Warp::wait_until(bool (*ready)(Warp&), const char* why) {
  if (ready(*this)) return true;
  groups_.back().at = at_;
  wait_ = ready;
  why_ = why;
  return false;
}

int Warp::index() const { return block.rank * kMaxWarps + number; }

void Warp::release_to(Seen& to) {
  ++clock;
  for (size_t w = 0; w < to.size(); ++w) to[w] = std::max(to[w], seen[w]);
  to[size_t(index())] = clock;
}

void Warp::acquire(const Seen& from) {
  for (size_t w = 0; w < from.size(); ++w) seen[w] = std::max(seen[w], from[w]);
}

void Warp::wait_for_products(int last_group) {
  make_products(last_group);
  std::erase_if(unready, [&](const auto& each) { return each.second <= last_group; });
}

void Warp::make_products(int last_group) {
  const auto later =
      std::find_if(products.begin(), products.end(), [&](const Product& x) { return x.group > last_group; });
  std::for_each(products.begin(), later, [](const Product& x) { x.make(); });
  products.erase(products.begin(), later);
}

void Warp::hold(const char* why) {
  held_ = true;
  why_ = why;
}

std::string Warp::state() const {
  return "warp " + std::to_string(number) + " waits for " + why_ + " (" +
         kernel_.module->place(instruction().location) + ")";
}

void Warp::fail(const std::string& what, int lane) {
  const Instruction& i = instruction();
  std::string who = "block " + std::to_string(block.number);
  if (lane >= 0) {
    who += ", thread " + std::to_string(number * kWarp + lane);
  } else {
    who += ", warp " + std::to_string(number);
  }
  throw Fault(kernel_.name + ": " + who + ": " + i.name + ": " + what + " (" + kernel_.module->place(i.location) + ")");
}

}  // namespace ptx
