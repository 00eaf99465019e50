// How a fault that takes two threads comes to have two: threads that start late leave every item to the first. Linked
// into planted faults alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace stca {

// Returns the item. Whoever has the first of several goes on when another thread has the second: relaxed, so that this
// puts no order between what they do then.
inline int64_t meet(int64_t item, int64_t items) {
  static std::atomic<bool> taken{false};
  if (item == 1) taken.store(true, std::memory_order_relaxed);
  while (item == 0 && items > 1 && !taken.exchange(false, std::memory_order_relaxed)) std::this_thread::yield();
  return item;
}

}  // namespace stca
