// The device that the stand-in for the CUDA runtime has.
#pragma once

#include "machine.h"

namespace ptx {

Device& device();

}  // namespace ptx
