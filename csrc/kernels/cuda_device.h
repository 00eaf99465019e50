// What launches of CUDA kernels ask of a device.
#pragma once

#include <cstdlib>
#include <cstring>

namespace stca {

struct CudaDevice {
  int multiprocessors;
  int shared_bytes;   // of one block, at most
  int capability;     // the major number of the compute capability: 9 for Hopper
  bool sm90_kernels;  // calls may take Hopper's own kernels
};

// Whether Hopper's own kernels are asked for. Without STCA_SM90=1 in the environment the common kernels run there too,
// until the tests on a GPU have confirmed those.
inline bool sm90_kernels_asked_for() {
  const char* value = std::getenv("STCA_SM90");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace stca
