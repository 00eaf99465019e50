// What has no tensor, as C functions: for stca/native.py through ctypes, and for programs without Python.
#include <string>

#include "kernels/cpu_isa.h"
#include "kernels/cuda_device.h"

#define STCA_API extern "C" __attribute__((visibility("default")))

namespace {

// Names of instruction sets, separated by spaces: all, or those that this CPU has.
std::string isas(bool all) {
  std::string names;
#define STCA_APPEND_ISA(name, ...) \
  if (all || stca::cpu_supports(stca::CpuIsa::name)) names += names.empty() ? #name : " " #name;
  STCA_FOR_EACH_CPU_ISA(STCA_APPEND_ISA)
#undef STCA_APPEND_ISA
  return names;
}

}  // namespace

// One fact on a line, its name before the first space.
STCA_API const char* stca_build_info() {
  static const std::string text = "stca " STCA_VERSION "\ntorch " STCA_TORCH_VERSION "\ncompiler " STCA_COMPILER
                                  "\ncpu_isas " +
                                  isas(true) + "\ncpu_isas_supported " + isas(false) + "\ncuda_archs " STCA_CUDA_ARCHS;
  return text.c_str();
}

// Families of Hopper's own kernels that calls take where they are built, separated by spaces.
STCA_API const char* stca_sm90_kernels() {
  static thread_local std::string names;
  names.clear();
#define STCA_APPEND_FAMILY(name, confirmed)                       \
  if (stca::sm90_families() >> int(stca::Sm90Family::name) & 1) { \
    names += names.empty() ? #name : " " #name;                   \
  }
  STCA_FOR_EACH_SM90_FAMILY(STCA_APPEND_FAMILY)
#undef STCA_APPEND_FAMILY
  return names.c_str();
}

// The instruction set that the CPU kernels use.
STCA_API const char* stca_cpu_isa() { return stca::cpu_isa_name(stca::cpu_isa()); }

// False, and nothing changes, where this build or this CPU has no instruction set of that name.
STCA_API bool stca_set_cpu_isa(const char* name) { return stca::set_cpu_isa(name); }
