// Which instruction set the CPU kernels use. Every file of kernels/cpu is compiled once per set, into a
// namespace of that name; a call goes through the copy that `cpu_isa()` names.
#pragma once

// X(name): the sets that this build holds, least first. `baseline` runs on any CPU of the architecture; avx512bf16 is
// avx512 with products of bfloat16.
#if defined(__x86_64__)
#define STCA_FOR_EACH_CPU_ISA(X) X(baseline) X(avx2) X(avx512) X(avx512bf16)
#else
#define STCA_FOR_EACH_CPU_ISA(X) X(baseline)
#endif

namespace stca {

enum class CpuIsa : int {
#define STCA_CPU_ISA_ENUMERATOR(name) name,
  STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_ENUMERATOR)
#undef STCA_CPU_ISA_ENUMERATOR
};

// The set in use: the best that this CPU has, unless set_cpu_isa() said less.
CpuIsa cpu_isa();

const char* cpu_isa_name(CpuIsa isa);

// False, and nothing changes, where this build or this CPU has no set of that name.
bool set_cpu_isa(const char* name);

// Whether this CPU can run the copy compiled for `isa`.
bool cpu_supports(CpuIsa isa);

}  // namespace stca

// Declares `void name(arguments)` in the namespace of every instruction set.
#define STCA_DECLARE_CPU_KERNEL(name, ...)                \
  STCA_DECLARE_CPU_KERNEL_IN(baseline, name, __VA_ARGS__) \
  STCA_DECLARE_CPU_KERNEL_X86(name, __VA_ARGS__)
#define STCA_DECLARE_CPU_KERNEL_IN(isa, name, ...) \
  namespace isa {                                  \
  void name(__VA_ARGS__);                          \
  }
#if defined(__x86_64__)
#define STCA_DECLARE_CPU_KERNEL_X86(name, ...)          \
  STCA_DECLARE_CPU_KERNEL_IN(avx2, name, __VA_ARGS__)   \
  STCA_DECLARE_CPU_KERNEL_IN(avx512, name, __VA_ARGS__) \
  STCA_DECLARE_CPU_KERNEL_IN(avx512bf16, name, __VA_ARGS__)
#else
#define STCA_DECLARE_CPU_KERNEL_X86(name, ...)
#endif

// The copy of `name` for the set `isa`, as a function pointer. Kernels of one call that agree on a layout must be of
// one set: another thread may choose a new one at any time.
#if defined(__x86_64__)
#define STCA_CPU_KERNEL(isa, name)                                 \
  ((isa) == ::stca::CpuIsa::avx512bf16 ? &::stca::avx512bf16::name \
   : (isa) == ::stca::CpuIsa::avx512   ? &::stca::avx512::name     \
   : (isa) == ::stca::CpuIsa::avx2     ? &::stca::avx2::name       \
                                       : &::stca::baseline::name)
#else
#define STCA_CPU_KERNEL(isa, name) ((void)(isa), &::stca::baseline::name)
#endif
// For the set in use.
#define STCA_SELECT_CPU_KERNEL(name) STCA_CPU_KERNEL(::stca::cpu_isa(), name)
