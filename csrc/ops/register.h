// Registers the functions of an op, which choose the device themselves, for every device that has kernels:
//
//   STCA_REGISTER(m) { m.impl("f", &f); }
#pragma once

#include <torch/library.h>

#include "common.h"

#if defined(STCA_WITH_CUDA)
#define STCA_REGISTER_CUDA(functions) \
  TORCH_LIBRARY_IMPL(stca, CUDA, m) { functions(m); }
#else
#define STCA_REGISTER_CUDA(functions)
#endif

#define STCA_REGISTER(m)                                      \
  static void register_functions(torch::Library& m);          \
  TORCH_LIBRARY_IMPL(stca, CPU, m) { register_functions(m); } \
  STCA_REGISTER_CUDA(register_functions)                      \
  static void register_functions(torch::Library& m)
