// Who touched memory last: for each two bytes, or each single one, the last write, and the reads since. Two accesses of
// which one writes must be ordered, by a barrier or because one thread makes both.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "program.h"

namespace ptx {

class Warp;

// An access, packed: the warp's clock when it was made, the lane, the warp, the block. 0: none.
struct Stamp {
  uint64_t bits = 0;

  static Stamp of(uint64_t block, int warp, int lane, uint32_t clock, bool several = false) {
    return {block << 43 | uint64_t(several) << 42 | uint64_t(warp) << 37 | uint64_t(lane) << 32 | clock};
  }
  uint64_t block() const { return bits >> 43; }           // plus 1
  bool several() const { return (bits >> 42 & 1) != 0; }  // other lanes of the warp too
  int warp() const { return int(bits >> 37 & 31); }
  int lane() const { return int(bits >> 32 & 31); }
  uint32_t clock() const { return uint32_t(bits); }
};

// In pages, which exist where something was touched. An access lies in one page: it is aligned to its size.
class Shadow {
 public:
  // Why an access may not be made.
  struct Conflict {
    enum Kind { kNone, kUnordered, kInCopy, kUnwritten, kUnfenced } kind = kNone;
    Stamp with;  // of kUnordered: the other access
  };

  // Records the access. `is_fresh`: what nobody has written may not be read. `is_async`: it goes through the
  // asynchronous proxy, so that a fence must stand between an ordinary write before and it.
  Conflict touch(const Warp& warp, int lane, size_t offset, int bytes, bool writes, bool is_fresh,
                 bool is_async = false);
  // Bytes that a copy may write at any moment from now on, in the lane's name; and its end.
  Conflict begin_copy(const Warp& warp, int lane, size_t offset, int bytes, bool is_async);
  void end_copy(const Warp& warp, int lane, size_t offset, int bytes, bool is_async);

  Shadow() = default;
  Shadow(const Shadow&) = delete;
  ~Shadow();

 private:
  static constexpr size_t kPageBytes = 1024;

  struct Granule {
    Stamp write, read;
    int32_t readers = -1;  // where several threads read: their stamps
    int32_t copies = 0;    // that may land here now
    uint32_t time = 0;     // of the cluster, when an ordinary write came last; 0: an asynchronous one did
  };
  struct Page {
    int shift = 1;  // of bytes to granules: two bytes in each until a single one is touched
    std::vector<Granule> granules;
    std::vector<std::array<Stamp, kMaxWarps * kMaxBlocks>> readers;

    void split();
  };
  static bool is_ordered(const Stamp& before, const Warp& now, int lane);
  static bool is_fenced(const Granule& granule, const Warp& now, int lane);
  static std::vector<std::unique_ptr<Page>>& spare_pages();
  Page& page(size_t offset);
  // f(granule, page) for each granule of these bytes, until it is false.
  template <class F>
  void for_granules(size_t offset, int bytes, F f);

  std::vector<std::unique_ptr<Page>> pages_;
};

}  // namespace ptx
