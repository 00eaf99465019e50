// What launches of CUDA kernels ask of a device.
#pragma once

#include <cstdlib>
#include <cstring>

#include "cuda/tuned.h"

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

// Families of Hopper's own kernels.
enum class Sm90Family {
#define STCA_SM90_FAMILY(name, confirmed) name,
  STCA_FOR_EACH_SM90_FAMILY(STCA_SM90_FAMILY)
#undef STCA_SM90_FAMILY
};

constexpr unsigned kAllSm90Families = ~0u;

// A bit for each family that is on: those that a GPU has confirmed (cuda/tuned.h), but all or none where STCA_SM90 in
// the environment is 1 or 0.
inline unsigned sm90_families() {
  const char* value = std::getenv("STCA_SM90");
  if (value != nullptr && std::strcmp(value, "1") == 0) return kAllSm90Families;
  if (value != nullptr && std::strcmp(value, "0") == 0) return 0;
#define STCA_SM90_BIT(name, confirmed) | unsigned(confirmed) << int(Sm90Family::name)
  return 0u STCA_FOR_EACH_SM90_FAMILY(STCA_SM90_BIT);
#undef STCA_SM90_BIT
}

struct CudaDevice {
  int multiprocessors;
  int shared_bytes;        // of one block, at most
  int capability;          // the major number of the compute capability: 9 for Hopper
  unsigned sm90_families;  // whose kernels calls may take
  int* reports;            // [CudaCheck::kCount], which the host reads too: kernels set to 1 what they find wrong

  bool takes(Sm90Family family) const { return sm90_families >> int(family) & 1; }
};

}  // namespace stca
