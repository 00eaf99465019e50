// Which instruction set the CPU kernels use. Every file of kernels/cpu is compiled once per set, into a
// namespace of that name; a call goes through the copy that `cpu_isa(dtype)` names, or `cpu_isa()` where rows are
// only copied.
#pragma once

#include "dtype.h"

// X(name, whether this CPU can run it, whether its copy computes in `dtype`, further arguments): the sets that this
// build holds, least first. `baseline` runs on any CPU of the architecture; avx512bf16 is avx512 with products of
// bfloat16, so all other dtypes are left to the copy before it. Their compiler flags are in CMakeLists.txt.
#define STCA_HAS __builtin_cpu_supports
#if defined(__x86_64__)
#define STCA_FOR_EACH_CPU_ISA(X, ...)           \
  X(baseline, true, true, __VA_ARGS__)          \
  X(avx2, STCA_HAS_AVX2, true, __VA_ARGS__)     \
  X(avx512, STCA_HAS_AVX512, true, __VA_ARGS__) \
  X(avx512bf16, STCA_HAS_AVX512BF16, dtype == Dtype::kBFloat16, __VA_ARGS__)
#define STCA_HAS_AVX2 (STCA_HAS("avx2") && STCA_HAS("fma"))
#define STCA_HAS_AVX512 \
  (STCA_HAS_AVX2 && STCA_HAS("avx512f") && STCA_HAS("avx512bw") && STCA_HAS("avx512dq") && STCA_HAS("avx512vl"))
#define STCA_HAS_AVX512BF16 (STCA_HAS_AVX512 && STCA_HAS("avx512bf16"))
#else
#define STCA_FOR_EACH_CPU_ISA(X, ...) X(baseline, true, true, __VA_ARGS__)
#endif

namespace stca {

enum class CpuIsa : int {
#define STCA_CPU_ISA_ENUMERATOR(name, ...) name,
  STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_ENUMERATOR)
#undef STCA_CPU_ISA_ENUMERATOR
};

// The set in use: the best that this CPU has, unless STCA_CPU_ISA in the environment or set_cpu_isa() said less.
CpuIsa cpu_isa();

// The set whose copy computes in `dtype` where `isa` is in use.
constexpr CpuIsa cpu_isa_of(CpuIsa isa, [[maybe_unused]] Dtype dtype) {
  CpuIsa best = CpuIsa::baseline;
#define STCA_CPU_ISA_COMPUTES(name, supported, computes, ...) \
  if (CpuIsa::name <= isa && (computes)) best = CpuIsa::name;
  STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_COMPUTES)
#undef STCA_CPU_ISA_COMPUTES
  return best;
}

// The same of the set in use.
inline CpuIsa cpu_isa(Dtype dtype) { return cpu_isa_of(cpu_isa(), dtype); }

const char* cpu_isa_name(CpuIsa isa);

// False, and nothing changes, where this build or this CPU has no set of that name.
bool set_cpu_isa(const char* name);

// Whether this CPU can run the copy compiled for `isa`.
bool cpu_supports(CpuIsa isa);

}  // namespace stca

// Declares `result name(arguments)` in the namespace of every instruction set.
#define STCA_DECLARE_CPU_KERNEL(result, name, ...) \
  STCA_FOR_EACH_CPU_ISA(STCA_DECLARE_CPU_KERNEL_IN, result, name, __VA_ARGS__)
#define STCA_DECLARE_CPU_KERNEL_IN(isa, supported, computes, result, name, ...) \
  namespace isa {                                                               \
  result name(__VA_ARGS__);                                                     \
  }

// The copy of `name` for the set `isa`, which is cpu_isa(dtype) where the kernel computes in a dtype, as a function
// pointer. Kernels of one call that agree on a layout must be of one set: another thread may choose a new one at any
// time.
#define STCA_CPU_KERNEL(isa, name)                                                                               \
  [](::stca::CpuIsa chosen) {                                                                                    \
    constexpr decltype(&::stca::baseline::name) kCopies[] = {STCA_FOR_EACH_CPU_ISA(STCA_CPU_KERNEL_COPY, name)}; \
    return kCopies[int(chosen)];                                                                                 \
  }(isa)
#define STCA_CPU_KERNEL_COPY(isa, supported, computes, name) &::stca::isa::name,
