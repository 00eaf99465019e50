// A PTX module as the machine runs it: decoded once, so that an instruction is a function and the places of its
// operands.
//
// A warp's registers are one block of memory. A register is a slot there: 32 lanes of 2, 4 or 8 bytes, or one mask of
// 32 bits for a predicate. Immediate operands are slots too, whose lanes are all equal: no instruction asks what kind
// of operand it has.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;  // of a block
constexpr int kMaxBlocks = 2;  // of a cluster

enum class Space : uint8_t { generic, global, shared, local, parameter };

class Warp;
struct Instruction;
using Step = void (*)(Warp&, const Instruction&);

struct Instruction {
  Step step;
  const int32_t* operands;  // slots, as byte offsets in the warp's registers; -1: left out
  int64_t immediate;        // what else the step takes
  int32_t target;           // the instruction that a branch goes to
  int32_t predicate;        // slot, or -1: for all lanes
  bool negated;             // lanes whose predicate is false take part
  bool is_wgmma;            // or what belongs to it
  uint32_t registers;       // which of the first 32 operands are registers
  int32_t location;         // in Module::locations
  const char* name;         // the opcode as written
};

// A line of the source, and the line that it was inlined at.
struct Location {
  int file, line, inlined_at;  // inlined_at: another location, -1: none
};

struct Parameter {
  int offset, bytes;
};

struct Kernel {
  std::string name;  // as in the source, without its arguments
  std::vector<Instruction> code;
  std::vector<std::vector<int32_t>> operands;  // what the instructions point to
  std::map<std::string, Parameter, std::less<>> parameters;
  std::vector<Parameter> parameter_list;
  int parameter_bytes = 0;
  int register_bytes = 0;       // of a warp, constants included
  int constants_begin = 0;      // where constants lie among them
  std::vector<char> constants;  // their lanes
  int static_shared_bytes = 0;
  int local_bytes = 0;  // of a thread
  int max_threads = 1024;
  int num_registers = 0;       // 32-bit registers that PTX names; ptxas needs far fewer
  int cluster[3] = {1, 1, 1};  // blocks of a cluster, where the kernel asks for it
  const struct Module* module = nullptr;
  // Registers of warps that have ended, for those to come: their constants are there already.
  mutable std::vector<std::vector<uint64_t>> spare_registers;
};

struct Module {
  std::string target;  // "sm_80"
  std::map<std::string, Kernel> kernels;
  std::vector<std::string> files;
  std::vector<Location> locations;
  std::vector<std::vector<char>> variables;  // of the module, in global memory

  Module() = default;
  Module(const Module&) = delete;
  ~Module();

  // "tile.cuh:95, inlined at target_attention.cu:121"
  std::string place(int location) const;
};

// What a launch or a module does that it may not: the text says what and where.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where the machine maps what has no address of the host, for generic addresses. The bits of a shared address from 24
// on say which block of the cluster, counted from 1; 0 is the thread's own.
constexpr uint64_t kSharedWindow = uint64_t(1) << 60;
constexpr uint64_t kLocalWindow = uint64_t(1) << 61;
constexpr uint64_t kParameterWindow = uint64_t(1) << 62;
constexpr int kSharedBlockShift = 24;
constexpr uint32_t kSharedOffsetMask = (1u << kSharedBlockShift) - 1;

// Reads a module. Kernels have addresses for life.
// Throws Fault: an opcode or a directive that the machine does not know, by name and line.
Module* parse(std::string_view text);

}  // namespace ptx
