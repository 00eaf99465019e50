// What launches of CUDA kernels ask of a device.
#pragma once

#include <cstdlib>
#include <cstring>

namespace stca {

// What integers on a GPU must be. The host does not look at them, since that would wait for the GPU: kernels see to it
// that no row outside of the tensors is touched whatever they are, and report what is wrong with them.
#define STCA_FOR_EACH_CUDA_CHECK(X)                                                                  \
  X(kTargetOffsets, "target_offsets must start at 0, not decrease and end at the number of targets") \
  X(kHistoryOffsets, "history_offsets must start at 0, not decrease and end at the number of rows")  \
  X(kVisible, "visible must be ranges within the history of each target's request")                  \
  X(kHistoryIndex, "history_index must be rows of k")                                                \
  X(kOffsets, "offsets must start at 0, not decrease and end at the number of rows of values")       \
  X(kIndex, "index must be requests")                                                                \
  X(kKeep, "keep must be numbers of rows, at least 0")                                               \
  X(kTotal, "total must be the number of rows selected")

enum class CudaCheck {
#define STCA_CUDA_CHECK_NAME(name, expectation) name,
  STCA_FOR_EACH_CUDA_CHECK(STCA_CUDA_CHECK_NAME)
#undef STCA_CUDA_CHECK_NAME
      kCount
};

struct CudaDevice {
  int multiprocessors;
  int shared_bytes;   // of one block, at most
  int capability;     // the major number of the compute capability: 9 for Hopper
  bool sm90_kernels;  // calls may take Hopper's own kernels
  int* reports;       // [CudaCheck::kCount], which the host reads too: kernels set to 1 what they find wrong
};

// Whether Hopper's own kernels are asked for. Without STCA_SM90=1 in the environment the common kernels run there too,
// until the tests on a GPU have confirmed those.
inline bool sm90_kernels_asked_for() {
  const char* value = std::getenv("STCA_SM90");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace stca
