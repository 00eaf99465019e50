// What all CUDA kernels share: the size of a warp, 16 bytes, a grid, and the element types that they take.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../dtype.h"

namespace stca {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kLargeSharedBytes = 227 * 1024;  // of a block on sm_90 and sm_100

struct alignas(16) Chunk {
  uint32_t words[4];
};

// How many blocks of a kernel run, and what each of them has.
struct Grid {
  int64_t blocks;
  int threads, shared_bytes = 0;
  int cluster = 0;  // blocks of a cluster; 0: the kernel knows of none
};

// Returns f(Element<T>()) for the type T that `dtype` names, one that CUDA kernels take.
template <class F>
auto visit_cuda_dtype(Dtype dtype, F f) {
  switch (dtype) {
#define STCA_CUDA_DTYPE_VISIT(enumerator, element, accumulator, name) \
  case Dtype::enumerator:                                             \
    return f(Element<element>());
    STCA_FOR_EACH_CUDA_DTYPE(STCA_CUDA_DTYPE_VISIT)
#undef STCA_CUDA_DTYPE_VISIT
    default:
      throw std::invalid_argument(dtype_name(dtype));
  }
}

}  // namespace cuda
}  // namespace stca
