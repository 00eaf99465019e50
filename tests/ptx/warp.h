// 32 threads that execute one instruction together, as far as they are at the same one.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

class Block;

// A cp.async that a lane has not waited for yet.
struct Copy {
  int lane;
  uint32_t to;
  uint64_t from;
  int bytes, read;
  int group;
  bool landed;
};

// A product of a warpgroup that has been asked for, and its group.
struct Product {
  int group;
  std::function<void()> make;
};

// Lanes that are at the same instruction. A group that `waits` is at an instruction that more lanes must reach.
struct Group {
  int at;
  uint32_t lanes;
  bool waits;
};

class Warp {
 public:
  Warp(Block& block, const Kernel& kernel, int number, int threads);
  ~Warp() { kernel_.spare_registers.push_back(std::move(registers_)); }
  Warp(const Warp&) = delete;
  Warp& operator=(const Warp&) = delete;

  // Runs until the warp ends, waits for other warps, or has taken so many instructions.
  void run(int most_instructions);

  bool ended() const { return groups_.empty(); }
  bool waits() const { return wait_ != nullptr || held_; }

  template <class T>
  T* slot(int32_t offset) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(registers_.data()) + offset);
  }

  // An address operand: three places, slot, bytes of the register, offset.
  uint64_t address(const int32_t* operand, int lane) {
    const uint64_t base = operand[1] == 4 ? slot<uint32_t>(operand[0])[lane] : slot<uint64_t>(operand[0])[lane];
    return base + uint64_t(int64_t(operand[2]));
  }

  // For steps: the lanes that the instruction is for, which is not empty.
  uint32_t lanes = 0;
  Block& block;
  const int number;

  uint32_t live_lanes() const;
  void branch(int target);  // takes `lanes` there
  void end_lanes();         // `lanes` have come to their end

  // Goes on behind the instruction only when all of `wanted` have come to it: false, and nothing happens, until then.
  bool gather(uint32_t wanted);
  // True where `ready(warp)` is. Else the instruction is run again, and the warp gives way to others until it is.
  bool wait_until(bool (*ready)(Warp&), const char* why);
  // Holds the warp at the instruction behind this one until release().
  void hold(const char* why);
  void release() { held_ = false; }
  bool is_ready() { return !held_ && (wait_ == nullptr || wait_(*this)); }
  std::tuple<Block*, uint32_t, uint32_t> waits_at;  // an mbarrier's block and address, and the parity waited for

  // What the warp is doing, for messages.
  const Instruction& instruction() const { return kernel_.code[size_t(at_)]; }
  std::string state() const;
  [[noreturn]] void fail(const std::string& what, int lane = -1);

  // Order of memory accesses: `clock` counts the warp's releases; what happened before `synced` is ordered among its
  // lanes; seen[w]: how much of warp w's past, of all warps of the cluster, is ordered before what comes now.
  using Seen = std::array<uint32_t, kMaxWarps * kMaxBlocks>;
  uint32_t clock = 1, synced = 1;
  Seen seen{};
  int index() const;  // among the warps of the cluster
  void release_to(Seen& to);
  void acquire(const Seen& from);

  uint32_t carry = 0;             // of each lane: add.cc and what goes on from it
  std::vector<Product> products;  // of wgmma, not made yet
  int product_group = 0;          // that the next one belongs to
  int products_issued = 0;
  std::unordered_map<int32_t, int> unready;  // registers of products that are not waited for, and their groups
  void make_products(int last_group);
  void wait_for_products(int last_group);
  int cluster_phase = 0;                 // of the cluster's barrier, waited for
  std::array<uint32_t, kWarp> fences{};  // of the asynchronous proxy: the cluster's time of each lane's last one
  std::vector<Copy> copies;
  std::array<int, kWarp> copy_groups{};
  std::vector<char> local;  // [lanes, local_bytes]
  const Kernel& kernel() const { return kernel_; }

 private:
  void sort_groups();
  void check_registers(const Instruction& i);

  const Kernel& kernel_;
  std::vector<uint64_t> registers_;
  std::vector<Group> groups_;  // the one that runs, and is least far, is the last
  int at_ = 0;                 // the instruction that runs
  bool (*wait_)(Warp&) = nullptr;
  bool held_ = false;
  const char* why_ = "";
};

// f(lane) for each lane that the instruction is for.
template <class F>
inline void for_lanes(uint32_t lanes, F f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kWarp; ++lane) f(lane);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
  }
}

inline void set_predicate(uint32_t& predicate, uint32_t lanes, uint32_t value) {
  predicate = (predicate & ~lanes) | (value & lanes);
}

}  // namespace ptx
