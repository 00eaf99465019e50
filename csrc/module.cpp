// The Python module stca._C: what has no tensor. Importing it also registers the operators of library.cpp.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#include "kernels/cpu_isa.h"
#include "kernels/cuda_device.h"

namespace py = pybind11;

namespace {

py::list supported_isas() {
  py::list names;
#define STCA_APPEND_ISA(name, ...) \
  if (stca::cpu_supports(stca::CpuIsa::name)) names.append(#name);
  STCA_FOR_EACH_CPU_ISA(STCA_APPEND_ISA)
#undef STCA_APPEND_ISA
  return names;
}

py::list compiled_isas() {
  py::list names;
#define STCA_APPEND_ISA(name, ...) names.append(#name);
  STCA_FOR_EACH_CPU_ISA(STCA_APPEND_ISA)
#undef STCA_APPEND_ISA
  return names;
}

// "80-real 90a-real 100" as 80, 90a, 100.
py::list cuda_archs() {
  py::list names;
#if defined(STCA_WITH_CUDA)
  for (const py::handle arch : py::str(STCA_CUDA_ARCHS).attr("split")()) {
    names.append(arch.attr("removesuffix")("-real"));
  }
#endif
  return names;
}

// Whether Hopper's own kernels are there, which the architecture 90a is compiled for, and whether calls take them.
const char* sm90_kernels() {
  if (!cuda_archs().contains("90a")) return "not built";
  return stca::sm90_kernels_asked_for() ? "on" : "off";
}

std::string active_isa() { return stca::cpu_isa_name(stca::cpu_isa()); }

void set_isa(const std::string& who, const std::string& name) {
  if (stca::set_cpu_isa(name.c_str())) return;
  const std::string choices = py::str(py::str(", ").attr("join")(supported_isas()));
  throw py::value_error(who + " must be one of " + choices + ", got " + name);
}

void set_active_isa(const std::string& name) { set_isa("set_cpu_isa: name", name); }

py::dict build_info() {
  py::dict info;
  info["stca"] = STCA_VERSION;
  info["torch"] = STCA_TORCH_VERSION;
  info["compiler"] = STCA_COMPILER;
  info["cpu_isas"] = compiled_isas();
  info["cpu_isas_supported"] = supported_isas();
  info["cpu_isa"] = active_isa();
  info["cuda_archs"] = cuda_archs();
  info["sm90_kernels"] = sm90_kernels();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  if (const char* wanted = std::getenv("STCA_CPU_ISA")) set_isa("stca: STCA_CPU_ISA in the environment", wanted);
  m.doc() = "What stca's native part says about itself; its operators are in torch.ops.stca.";
  m.def("build_info", &build_info,
        "Versions it was built with, instruction sets, the active one, CUDA archs, Hopper's kernels.");
  m.def("cpu_isa", &active_isa, "Name of the instruction set that the CPU kernels use.");
  m.def("set_cpu_isa", &set_active_isa, py::arg("name"), "Uses the kernels of that instruction set from now on.");
}
