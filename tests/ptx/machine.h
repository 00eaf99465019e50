// A device: its memory, and the launch of a grid. Blocks run one cluster after the other; the warps of a cluster take
// turns, in an order that a seed chooses.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "program.h"
#include "shadow.h"
#include "warp.h"

namespace ptx {

struct Device {
  int multiprocessors = 3;
  int shared_bytes = 227 * 1024;  // of a block, at most
  int capability = 80;            // 10 times major plus minor
  uint64_t seed = 1;
  // Rounds as freely as the hardware may: tensor cores cut low bits, approximations err by 2 units in the last place.
  bool is_rough = false;
  std::string launched;  // names of kernels, a line each
};

// Memory that kernels may touch, besides their own: what was allocated, to the byte.
class GlobalMemory {
 public:
  struct Allocation {
    uint64_t begin, end;
    std::unique_ptr<Shadow> shadow;  // of a launch that touches it
  };
  void add(const void* begin, size_t bytes);
  void remove(const void* begin);
  // The allocation that holds all of [address, address + bytes), or nullptr.
  Allocation* find(uint64_t address, size_t bytes);
  // "4 bytes behind the end of 256 bytes": where an address lies that is in none.
  std::string where(uint64_t address) const;
  void forget_accesses();

 private:
  std::map<uint64_t, Allocation> allocations_;
  Allocation* last_ = nullptr;
};

struct Launch {
  const Kernel* kernel;
  int grid[3], block[3], cluster[3];
  int shared_bytes;  // dynamic
  const void* const* arguments;
  bool is_rough;
};

// What a lane of a warp touches.
struct Access {
  Space space;
  uint64_t address;
  int bytes;
  bool writes;
  const void* value = nullptr;  // what is written, where it is known already
  bool is_async = false;        // through the asynchronous proxy
  bool is_volatile = false;     // others may touch it at the same time
};

// Ends the launch where there is a conflict, and says which. `space`: "shared" or "global".
void fail_at(Warp& warp, int lane, const Shadow::Conflict& conflict, const char* space);

class Cluster;

// A barrier in shared memory. A phase is over when all arrivals and all bytes that it waits for are there.
struct MBarrier {
  int count, pending;  // arrivals of a phase, and those that are missing
  int64_t bytes;       // announced by arrivals, less those that have landed
  int64_t phase;
  Warp::Seen seen;
  bool unused = false;  // bytes have landed, and nobody has waited for a phase since

  void advance() {
    if (pending > 0 || bytes != 0) return;
    ++phase;
    pending = count;
  }
};

// What comes to shared memory at some moment, and counts towards an mbarrier then.
struct Landing {
  Warp* sender;
  int lane;
  uint32_t to, barrier;
  int size;
  bool is_async;  // through the asynchronous proxy
  std::function<std::vector<char>()> bytes;
};

class Block {
 public:
  Block(Cluster& cluster, const Launch& launch, int index[3], int rank, std::mt19937_64& random);

  // Where an access of a lane may be made; throws Fault, naming what is wrong with it.
  char* touch(Warp& warp, int lane, const Access& access);
  // The same for bytes of shared memory that are written or read in the lane's name at another time.
  char* shared_bytes_at(Warp& warp, int lane, uint32_t address, int bytes);

  // The warp has come to barrier `number` of `threads` threads (0: of all). True when all are there.
  void arrive(Warp& warp, int number, int threads, bool waits);

  // The block of the cluster that a shared address names.
  Block& owner(uint32_t address);
  bool has_ended() const;  // all of its warps have

  std::map<uint32_t, MBarrier> mbarriers;  // by their offsets in shared memory
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<char> shared;
  Shadow shadow;
  std::string parameters;  // as the kernel lays them out
  Cluster& cluster;
  const Launch& launch;
  int index[3];
  const int rank;  // in the cluster
  std::mt19937_64& random;
  int64_t number;  // of the grid

 private:
  struct Barrier {
    int arrived = 0;
    std::vector<Warp*> waiting;
    Warp::Seen seen{};
  };
  std::map<int, Barrier> barriers_;
};

class Cluster {
 public:
  Cluster(const Launch& launch, int first[3], std::mt19937_64& random);
  void run();
  void send(Landing landing);
  void arrive(Warp& warp);  // at the cluster's barrier

  std::vector<std::unique_ptr<Block>> blocks;
  int phase = 0;      // of the cluster's barrier
  uint32_t time = 1;  // counts fences of the proxy
  Warp::Seen seen{};

 private:
  void land(size_t number);
  void check_end(const Block& block) const;

  std::vector<Landing> landings_;
  int arrived_ = 0, threads_ = 0;
  Warp::Seen arriving_{};
};

// Runs a grid. Throws Fault.
void run(const Launch& launch, const Device& device);

GlobalMemory& global_memory();

}  // namespace ptx
