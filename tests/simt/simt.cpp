// The scheduler, the barriers and the memory checks of simt.h. Compiled without instrumentation.
#include "simt.h"

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <vector>

namespace simt {
namespace {

constexpr size_t kStackBytes = 1 << 20;
constexpr int kGranule = 2;  // bytes of shared memory whose accesses are told apart: no smaller ones happen

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  std::unique_ptr<char[]> stack;
  jmp_buf context;
  bool started = false;
  State state = State::kReady;
  const char* waits_for = "";
  uint64_t syncs = 0;  // __syncwarp done
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> open;
};

struct Warp {
  char slots[kWarp * kMostBytes], results[2][kWarp * kMostBytes];
  const char* instruction = nullptr;
  int arrived = 0;
  uint64_t generation = 0;
};

// Who touched a granule of shared memory last. Two accesses are ordered if a barrier of the block, or a
// __syncwarp of their common warp, lies between them.
struct Touch {
  int thread = -1;
  uint64_t barriers = 0, syncs = 0;
};
struct Shadow {
  Touch write, read, other_read;  // the last readers of two warps
};

struct Block {
  const Launch* launch;
  void (*kernel)(const void*);
  const void* call;
  int index, running;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> memory;
  char* shared;
  std::vector<Shadow> shadow;
  uint64_t barriers = 0;
  std::string error;
  jmp_buf scheduler;
};

Block* block = nullptr;
unsigned seed = 0;

std::mutex memory_mutex;
std::map<uintptr_t, uintptr_t> memory;  // begin -> end
std::pair<uintptr_t, uintptr_t> last_hit{0, 0};

[[noreturn]] void fail_with(const std::string& what) { fail(what.c_str()); }

Thread& current() { return block->threads[block->running]; }

void to_scheduler() {
  if (_setjmp(current().context) == 0) _longjmp(block->scheduler, 1);
}

void wait(State state, const char* waits_for) {
  current().state = state;
  current().waits_for = waits_for;
  to_scheduler();
}

void fiber() {
  block->kernel(block->call);
  current().state = State::kDone;
  if (!current().open.empty() || !current().committed.empty()) fail("ends with copies that it did not wait for");
  _longjmp(block->scheduler, 1);
}

void resume(int thread) {
  block->running = thread;
  Thread& t = block->threads[thread];
  if (_setjmp(block->scheduler) != 0) return;
  if (t.started) _longjmp(t.context, 1);
  t.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = t.stack.get();
  start.uc_stack.ss_size = kStackBytes;
  start.uc_link = nullptr;
  makecontext(&start, fiber, 0);
  setcontext(&start);
}

bool open_barrier() {
  int done = 0;
  for (const Thread& t : block->threads) {
    if (t.state == State::kAtWarp) return false;
    done += t.state == State::kDone;
  }
  if (done > 0) return false;
  ++block->barriers;
  for (Thread& t : block->threads) t.state = State::kReady;
  return true;
}

void run_block(const std::vector<int>& order) {
  const int count = int(block->threads.size());
  while (true) {
    bool ran = false;
    for (int thread : order) {
      while (block->threads[thread].state == State::kReady) {
        ran = true;
        resume(thread);
        if (!block->error.empty()) throw std::runtime_error(block->error);
      }
    }
    const auto done = std::count_if(block->threads.begin(), block->threads.end(),
                                    [](const Thread& t) { return t.state == State::kDone; });
    if (done == count) return;
    if (ran) continue;
    if (open_barrier()) continue;
    std::string where;
    for (int t = 0; t < count && where.size() < 200; ++t) {
      const Thread& thread = block->threads[t];
      if (thread.state != State::kDone) where += " thread " + std::to_string(t) + " at " + thread.waits_for + ";";
    }
    throw std::runtime_error(std::string(block->launch->name) + ": block " + std::to_string(block->index) + ": " +
                             std::to_string(done) + " of " + std::to_string(count) +
                             " threads have ended, and the others wait for ever:" + where);
  }
}

bool ordered(const Touch& before, int thread) {
  if (before.thread < 0 || before.thread == thread || before.barriers != block->barriers) return true;
  return before.thread / kWarp == thread / kWarp && before.syncs < block->threads[thread].syncs;
}

void check_shared(uintptr_t offset, size_t bytes, bool writes) {
  const int thread = block->running;
  const Touch now{thread, block->barriers, current().syncs};
  for (size_t g = offset / kGranule; g <= (offset + bytes - 1) / kGranule; ++g) {
    Shadow& s = block->shadow[g];
    const Touch* other = !ordered(s.write, thread)                  ? &s.write
                         : writes && !ordered(s.read, thread)       ? &s.read
                         : writes && !ordered(s.other_read, thread) ? &s.other_read
                                                                    : nullptr;
    if (other != nullptr) {
      fail_with((writes ? "writes" : "reads") + std::string(" byte ") + std::to_string(g * kGranule) +
                " of shared memory with no barrier since thread " + std::to_string(other->thread) + " did (race)");
    }
    if (writes) {
      s.write = now;
    } else {
      if (s.read.thread >= 0 && s.read.thread / kWarp != thread / kWarp) s.other_read = s.read;
      s.read = now;
    }
  }
}

bool in_program(uintptr_t address) {
  return dl_iterate_phdr(
             [](dl_phdr_info* info, size_t, void* wanted) {
               const uintptr_t a = *static_cast<uintptr_t*>(wanted);
               for (int i = 0; i < info->dlpi_phnum; ++i) {
                 const auto& header = info->dlpi_phdr[i];
                 const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
                 if (header.p_type == PT_LOAD && begin <= a && a < begin + header.p_memsz) return 1;
               }
               return 0;
             },
             &address) != 0;
}

void check_access(const void* pointer, size_t bytes, bool writes) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer), end = begin + bytes;
  const auto stack = reinterpret_cast<uintptr_t>(current().stack.get());
  if (stack <= begin && end <= stack + kStackBytes) return;
  const auto shared = reinterpret_cast<uintptr_t>(block->shared);
  if (shared <= begin && end <= shared + block->launch->shared_bytes)
    return check_shared(begin - shared, bytes, writes);
  if (last_hit.first <= begin && end <= last_hit.second) return;
  {
    const std::lock_guard<std::mutex> lock(memory_mutex);
    auto after = memory.upper_bound(begin);
    if (after != memory.begin() && end <= std::prev(after)->second) {
      last_hit = *std::prev(after);
      return;
    }
  }
  if (in_program(begin)) return;
  fail_with(std::string(writes ? "writes " : "reads ") + std::to_string(bytes) +
            " bytes outside of every tensor and of its " + std::to_string(block->launch->shared_bytes) +
            " bytes of shared memory");
}

void check(const void* pointer, size_t bytes, bool writes) {
  if (block != nullptr && block->running >= 0) check_access(pointer, bytes, writes);
}

}  // namespace

Index thread_index() { return {block->running}; }
Index block_index() { return {block->index}; }
Index block_size() { return {block->launch->block}; }
Index grid_size() { return {block->launch->grid}; }
char* shared_memory() { return block->shared; }

void fail(const char* what) {
  block->error = std::string(block->launch->name) + ": block " + std::to_string(block->index) + ", thread " +
                 std::to_string(block->running) + ": " + what;
  _longjmp(block->scheduler, 1);
}

void exchange(const char* instruction, const void* mine, int bytes, void* all) {
  Warp& warp = block->warps[block->running / kWarp];
  if (warp.arrived > 0 && std::strcmp(warp.instruction, instruction) != 0) {
    fail_with(std::string("is at ") + instruction + " while its warp is at " + warp.instruction);
  }
  warp.instruction = instruction;
  std::memcpy(warp.slots + block->running % kWarp * bytes, mine, bytes);
  // Nobody is two exchanges ahead of another lane, so two sets of results are enough.
  const char* results = warp.results[warp.generation % 2];
  if (++warp.arrived == kWarp) {
    std::memcpy(warp.results[warp.generation % 2], warp.slots, sizeof(warp.slots));
    warp.arrived = 0;
    ++warp.generation;
    const int first = block->running / kWarp * kWarp;
    for (int lane = 0; lane < kWarp; ++lane) block->threads[first + lane].state = State::kReady;
  } else {
    wait(State::kAtWarp, instruction);
  }
  std::memcpy(all, results, size_t(kWarp) * bytes);
}

void sync_warp() {
  char none = 0, all[kWarp];
  exchange("__syncwarp", &none, 1, all);
  ++current().syncs;
}

void sync_block() { wait(State::kAtBarrier, "__syncthreads"); }

void copy_async(void* shared, const void* global, int bytes) {
  const auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  if (to % 16 != 0 || (bytes > 0 && from % 16 != 0)) fail("cp.async of an address that is no multiple of 16");
  if (bytes < 0 || bytes > 16) fail_with("cp.async of " + std::to_string(bytes) + " bytes");
  current().open.push_back({shared, global, bytes});
}

void commit_copies() {
  current().committed.push_back(std::move(current().open));
  current().open.clear();
}

void wait_copies(int groups_left) {
  auto& groups = current().committed;
  while (int(groups.size()) > groups_left) {
    for (const Copy& copy : groups.front()) {
      if (copy.bytes > 0) check(copy.from, copy.bytes, false);
      check(copy.to, 16, true);
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, 16 - copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

void run(const Launch& launch, void (*kernel)(const void* call), const void* call) {
  if (launch.block % kWarp != 0) throw std::runtime_error(std::string(launch.name) + ": blocks must be whole warps");
  std::vector<int> order(launch.block);
  for (int t = 0; t < launch.block; ++t) order[t] = t;
  if (seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  Block b;
  b.launch = &launch;
  b.kernel = kernel;
  b.call = call;
  b.threads.resize(launch.block);
  for (Thread& t : b.threads) t.stack.reset(new char[kStackBytes]);
  b.memory.reset(new char[launch.shared_bytes + 128]);
  b.shared = b.memory.get() + 128 - reinterpret_cast<uintptr_t>(b.memory.get()) % 128;
  struct Scope {
    ~Scope() { block = nullptr; }
  } scope;
  for (b.index = 0; b.index < launch.grid; ++b.index) {
    block = &b;
    b.running = -1;
    b.barriers = 0;
    b.warps.assign(launch.block / kWarp, Warp());
    b.shadow.assign(launch.shared_bytes / kGranule + 1, Shadow());
    std::memset(b.shared, 0xff, launch.shared_bytes);  // NaN in every format
    for (Thread& t : b.threads) {
      t.started = false;
      t.state = State::kReady;
      t.syncs = 0;
    }
    run_block(order);
    block = nullptr;
  }
}

void set_seed(unsigned value) { seed = value; }

void add_memory(const void* begin, size_t bytes) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  memory[reinterpret_cast<uintptr_t>(begin)] = reinterpret_cast<uintptr_t>(begin) + bytes;
}

void remove_memory(const void* begin) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  memory.erase(reinterpret_cast<uintptr_t>(begin));
  last_hit = {0, 0};
}

}  // namespace simt

// What the compiler calls before every access of an instrumented file.
extern "C" {
#define SIMT_ACCESS(size)                                                    \
  void __asan_load##size##_noabort(void* p) { simt::check(p, size, false); } \
  void __asan_store##size##_noabort(void* p) { simt::check(p, size, true); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
#undef SIMT_ACCESS
void __asan_loadN_noabort(void* p, size_t bytes) { simt::check(p, bytes, false); }
void __asan_storeN_noabort(void* p, size_t bytes) { simt::check(p, bytes, true); }
void __asan_handle_no_return() {}
}
