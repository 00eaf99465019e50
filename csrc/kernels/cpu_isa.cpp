#include "cpu_isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace stca {
namespace {

constexpr CpuIsa kAll[] = {
#define STCA_CPU_ISA_VALUE(name, ...) CpuIsa::name,
    STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_VALUE)
#undef STCA_CPU_ISA_VALUE
};

bool find_supported(const char* name, CpuIsa* found) {
  for (CpuIsa isa : kAll) {
    if (std::strcmp(cpu_isa_name(isa), name) == 0 && cpu_supports(isa)) {
      *found = isa;
      return true;
    }
  }
  return false;
}

CpuIsa initial_isa() {
  CpuIsa best = CpuIsa::baseline;
  const char* wanted = std::getenv("STCA_CPU_ISA");
  if (wanted != nullptr && find_supported(wanted, &best)) return best;
  for (CpuIsa isa : kAll) {
    if (cpu_supports(isa)) best = isa;
  }
  return best;
}

std::atomic<CpuIsa>& active() {
  static std::atomic<CpuIsa> isa{initial_isa()};
  return isa;
}

}  // namespace

CpuIsa cpu_isa() { return active().load(std::memory_order_relaxed); }

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
#define STCA_CPU_ISA_NAME(name, ...) \
  case CpuIsa::name:                 \
    return #name;
    STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_NAME)
#undef STCA_CPU_ISA_NAME
  }
  return "unknown";
}

bool set_cpu_isa(const char* name) {
  CpuIsa isa;
  if (!find_supported(name, &isa)) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

bool cpu_supports(CpuIsa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  switch (isa) {
#define STCA_CPU_ISA_SUPPORTED(name, supported, ...) \
  case CpuIsa::name:                                 \
    return supported;
    STCA_FOR_EACH_CPU_ISA(STCA_CPU_ISA_SUPPORTED)
#undef STCA_CPU_ISA_SUPPORTED
  }
  return false;
}

}  // namespace stca
