#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace ptx {

void GlobalMemory::add(const void* begin, size_t bytes) {
  const uint64_t at = reinterpret_cast<uint64_t>(begin);
  allocations_[at] = {at, at + bytes, nullptr};
  last_ = nullptr;
}

void GlobalMemory::remove(const void* begin) {
  allocations_.erase(reinterpret_cast<uint64_t>(begin));
  last_ = nullptr;
}

GlobalMemory::Allocation* GlobalMemory::find(uint64_t address, size_t bytes) {
  if (last_ == nullptr || address < last_->begin || address >= last_->end) {
    auto next = allocations_.upper_bound(address);
    if (next == allocations_.begin()) return nullptr;
    last_ = &std::prev(next)->second;
  }
  return address >= last_->begin && address + bytes <= last_->end ? last_ : nullptr;
}

std::string GlobalMemory::where(uint64_t address) const {
  auto next = allocations_.upper_bound(address);
  std::string text;
  if (next != allocations_.begin()) {
    const Allocation& before = std::prev(next)->second;
    const auto bytes = std::to_string(before.end - before.begin);
    if (address < before.end) return "at byte " + std::to_string(address - before.begin) + " of " + bytes;
    if (address - before.end < 4096) return std::to_string(address - before.end) + " bytes behind " + bytes + " bytes";
  }
  if (next != allocations_.end() && next->second.begin - address < 4096) {
    return std::to_string(next->second.begin - address) + " bytes before " +
           std::to_string(next->second.end - next->second.begin) + " bytes";
  }
  return "in no tensor";
}

void GlobalMemory::forget_accesses() {
  for (auto& each : allocations_) each.second.shadow.reset();
}

GlobalMemory& global_memory() {
  static GlobalMemory memory;
  return memory;
}

Block::Block(Cluster& own_cluster, const Launch& own_launch, int own_index[3], int own_rank,
             std::mt19937_64& own_random)
    : cluster(own_cluster),
      launch(own_launch),
      index{own_index[0], own_index[1], own_index[2]},
      rank(own_rank),
      random(own_random),
      number((int64_t(own_index[2]) * own_launch.grid[1] + own_index[1]) * own_launch.grid[0] + own_index[0]) {
  const Kernel& kernel = *launch.kernel;
  shared.assign(size_t(kernel.static_shared_bytes + launch.shared_bytes), '\xff');
  parameters.assign(size_t(kernel.parameter_bytes), '\xff');
  for (size_t i = 0; i < kernel.parameter_list.size(); ++i) {
    const Parameter& each = kernel.parameter_list[i];
    std::memcpy(parameters.data() + each.offset, launch.arguments[i], size_t(each.bytes));
  }
  const int threads = launch.block[0] * launch.block[1] * launch.block[2];
  for (int w = 0; w * kWarp < threads; ++w) warps.push_back(std::make_unique<Warp>(*this, kernel, w, threads));
}

void fail_at(Warp& warp, int lane, const Shadow::Conflict& conflict, const char* space) {
  using Conflict = Shadow::Conflict;
  if (conflict.kind == Conflict::kNone) return;
  const std::string memory = std::string(space) + " memory that ";
  if (conflict.kind == Conflict::kInCopy) warp.fail(memory + "an asynchronous copy may still write", lane);
  if (conflict.kind == Conflict::kUnwritten) warp.fail(memory + "nobody has written", lane);
  const Stamp& with = conflict.with;
  if (conflict.kind == Conflict::kUnfenced) {
    warp.fail(memory + "thread " + std::to_string(with.warp() * kWarp + with.lane()) +
                  " has written, with no fence before the asynchronous proxy",
              lane);
  }
  std::string who = "thread " + std::to_string(with.warp() * kWarp + with.lane());
  if (with.block() != uint64_t(warp.block.number) + 1) who += " of block " + std::to_string(with.block() - 1);
  warp.fail(memory + who + " touches too, with no order between the two", lane);
}

Block& Block::owner(uint32_t address) {
  const uint32_t block = address >> kSharedBlockShift;
  if (block > cluster.blocks.size()) throw Fault("ptx: a shared address of a block that the cluster does not have");
  return block == 0 ? *this : *cluster.blocks[block - 1];
}

bool Block::has_ended() const {
  return std::all_of(warps.begin(), warps.end(), [](const auto& each) { return each->ended(); });
}

char* Block::shared_bytes_at(Warp& warp, int lane, uint32_t address, int bytes) {
  Block& of = owner(address);
  const uint32_t offset = address & kSharedOffsetMask;
  if (offset + uint64_t(bytes) > of.shared.size()) {
    warp.fail(
        "byte " + std::to_string(offset) + " of shared memory, of which there are " + std::to_string(of.shared.size()),
        lane);
  }
  if (address % uint32_t(bytes) != 0) warp.fail("misaligned address of shared memory: " + std::to_string(offset), lane);
  return of.shared.data() + offset;
}

char* Block::touch(Warp& warp, int lane, const Access& a) {
  const uint64_t address = a.address;
  Space space = a.space;
  uint64_t local = address;
  if (space == Space::generic) {
    space = address >= kParameterWindow ? Space::parameter
            : address >= kLocalWindow   ? Space::local
            : address >= kSharedWindow  ? Space::shared
                                        : Space::global;
    local = address & (kSharedWindow - 1);
  }
  if (space == Space::parameter || space == Space::local) {
    const bool parameter = space == Space::parameter;
    const size_t size = parameter ? parameters.size() : size_t(warp.kernel().local_bytes);
    if (local + uint64_t(a.bytes) > size) warp.fail("outside of the kernel's own memory", lane);
    return parameter ? parameters.data() + local : warp.local.data() + size_t(lane) * size + local;
  }
  Shadow* of = nullptr;
  size_t offset = 0;
  char* memory = nullptr;
  if (space == Space::shared) {
    memory = shared_bytes_at(warp, lane, uint32_t(local), a.bytes);
    of = &owner(uint32_t(local)).shadow;
    offset = uint32_t(local) & kSharedOffsetMask;
  } else {
    GlobalMemory::Allocation* found = global_memory().find(address, size_t(a.bytes));
    if (found == nullptr) warp.fail(std::to_string(a.bytes) + " bytes " + global_memory().where(address), lane);
    if (address % uint64_t(a.bytes) != 0)
      warp.fail("misaligned address for " + std::to_string(a.bytes) + " bytes", lane);
    if (a.is_volatile) return reinterpret_cast<char*>(address);
    if (found->shadow == nullptr) found->shadow = std::make_unique<Shadow>();
    of = found->shadow.get();
    offset = address - found->begin;
    memory = reinterpret_cast<char*>(address);
  }
  const bool is_shared = space == Space::shared;
  const Shadow::Conflict conflict = of->touch(warp, lane, offset, a.bytes, a.writes, is_shared, a.is_async);
  // Threads of a block may write one value to one place: whichever comes last, it is there.
  const Stamp& with = conflict.with;
  const bool same_block = with.block() == uint64_t(warp.block.number) + 1;
  if (conflict.kind == Shadow::Conflict::kUnordered && same_block && a.value != nullptr &&
      std::memcmp(memory, a.value, size_t(a.bytes)) == 0) {
    return memory;
  }
  fail_at(warp, lane, conflict, is_shared ? "shared" : "global");
  return memory;
}

void Block::arrive(Warp& warp, int barrier, int threads, bool waits) {
  Barrier& own = barriers_[barrier];
  // Without a count all threads of the block must come, one by one; with a count warps come whole.
  own.arrived += threads == 0 ? std::popcount(warp.lanes) : kWarp;
  if (threads == 0) threads = launch.block[0] * launch.block[1] * launch.block[2];
  warp.release_to(own.seen);
  warp.synced = warp.clock;
  if (waits) {
    own.waiting.push_back(&warp);
    warp.hold("a barrier");
  }
  if (own.arrived < threads) return;
  for (Warp* each : own.waiting) {
    each->acquire(own.seen);
    each->release();
  }
  own = {};
}

Cluster::Cluster(const Launch& launch, int first[3], std::mt19937_64& random) {
  int rank = 0;
  for (int z = 0; z < launch.cluster[2]; ++z) {
    for (int y = 0; y < launch.cluster[1]; ++y) {
      for (int x = 0; x < launch.cluster[0]; ++x) {
        int index[3] = {first[0] + x, first[1] + y, first[2] + z};
        blocks.push_back(std::make_unique<Block>(*this, launch, index, rank++, random));
      }
    }
  }
}

void Cluster::send(Landing landing) {
  Warp& warp = *landing.sender;
  Block& block = warp.block.owner(landing.to);
  for (int at = 0; at < landing.size; at += 16) {
    const size_t offset = (landing.to & kSharedOffsetMask) + uint32_t(at);
    warp.block.shared_bytes_at(warp, landing.lane, landing.to + uint32_t(at), 16);
    fail_at(warp, landing.lane, block.shadow.begin_copy(warp, landing.lane, offset, 16, landing.is_async), "shared");
  }
  landings_.push_back(std::move(landing));
}

void Cluster::land(size_t number) {
  const Landing landing = std::move(landings_[number]);
  landings_.erase(landings_.begin() + long(number));
  Warp& warp = *landing.sender;
  Block& block = warp.block.owner(landing.to);
  const std::vector<char> bytes = landing.bytes();
  const size_t offset = landing.to & kSharedOffsetMask;
  std::memcpy(block.shared.data() + offset, bytes.data(), bytes.size());
  for (int at = 0; at < landing.size; at += 16)
    block.shadow.end_copy(warp, landing.lane, offset + size_t(at), 16, landing.is_async);
  MBarrier& barrier = warp.block.owner(landing.barrier).mbarriers.at(landing.barrier & kSharedOffsetMask);
  warp.release_to(barrier.seen);
  barrier.bytes -= landing.size;
  barrier.unused = true;
  barrier.advance();
}

void Cluster::arrive(Warp& warp) {
  warp.release_to(arriving_);
  warp.synced = warp.clock;
  warp.cluster_phase = phase + 1;
  arrived_ += std::popcount(warp.lanes);
  if (arrived_ < threads_) return;
  seen = arriving_;
  arrived_ = 0;
  ++phase;
}

void Cluster::run() {
  std::vector<Warp*> warps;
  for (const auto& block : blocks) {
    for (const auto& warp : block->warps) warps.push_back(warp.get());
  }
  const Launch& launch = blocks[0]->launch;
  threads_ = int(blocks.size()) * launch.block[0] * launch.block[1] * launch.block[2];
  std::mt19937_64& random = blocks[0]->random;
  while (!warps.empty()) {
    std::vector<Warp*> ready;
    for (Warp* each : warps) {
      if (each->is_ready()) ready.push_back(each);
    }
    if (!landings_.empty() && (ready.empty() || random() % 4 == 0)) {
      land(random() % landings_.size());
      continue;
    }
    if (ready.empty()) {
      std::string text = warps[0]->kernel().name + ": block " + std::to_string(warps[0]->block.number) + " hangs:";
      for (const Warp* each : warps) text += " " + each->state() + ";";
      throw Fault(text.substr(0, 2000));
    }
    ready[random() % ready.size()]->run(int(8 << random() % 8));
    std::erase_if(warps, [](const Warp* each) { return each->ended(); });
  }
  for (const auto& block : blocks) check_end(*block);
}

// What is still on its way when a block ends comes into the memory of another one.
void Cluster::check_end(const Block& block) const {
  const auto fail = [&](const char* what) {
    throw Fault(block.launch.kernel->name + ": block " + std::to_string(block.number) + " " + what);
  };
  if (!landings_.empty()) fail("ends before its copies have landed");
  for (const auto& [at, barrier] : block.mbarriers) {
    if (barrier.unused) fail("ends, and nobody has waited for what has come to its memory");
  }
  for (size_t w = 0; w < block.warps.size(); ++w) {
    if (block.warps[w]->products_issued != block.warps[w / 4 * 4]->products_issued) {
      fail("ends, and not all four warps of a warpgroup have come to its products");
    }
  }
}

void run(const Launch& launch, const Device& device) {
  std::mt19937_64 random(device.seed);
  global_memory().forget_accesses();
  int first[3];
  for (first[2] = 0; first[2] < launch.grid[2]; first[2] += launch.cluster[2]) {
    for (first[1] = 0; first[1] < launch.grid[1]; first[1] += launch.cluster[1]) {
      for (first[0] = 0; first[0] < launch.grid[0]; first[0] += launch.cluster[0]) {
        Cluster(launch, first, random).run();
      }
    }
  }
}

}  // namespace ptx
