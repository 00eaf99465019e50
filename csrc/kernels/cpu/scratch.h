// A thread's scratch memory, laid out piece by piece.
#pragma once

#include <cstdint>

namespace stca {
namespace STCA_ISA {

// Without memory it only counts, so that the code that lays out a workspace also tells how many bytes one takes: the
// two cannot differ. Pieces start at multiples of 64 bytes if the memory does.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class X>
  X* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (count * int64_t(sizeof(X)) + 63) / 64 * 64;
    return reinterpret_cast<X*>(piece);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

}  // namespace STCA_ISA
}  // namespace stca
