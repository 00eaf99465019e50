// From an opcode's name to the function that runs it.
#pragma once

#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// An opcode split at its dots: "ld.global.nc.v4.u32" is {"ld", "global", "nc", "v4", "u32"}.
struct Opcode {
  std::string text;
  std::vector<std::string> parts;

  bool has(std::string_view part) const;
  const std::string& last(int from_end = 0) const;  // part, counted from the end
};

// What the parser must know to place an instruction's operands: one letter for each, braces opened.
//   2 4 8  a value of that many bytes, register or immediate       p  predicate
//   r      a register of any size, whose bytes are in `sizes`      a  address: slot, bytes of the register, offset
//   l      a label                                                 _  is left out
//   i      a number that becomes Instruction::immediate
struct Form {
  Step step = nullptr;
  std::string operands;
  int64_t immediate = 0;
};

// `sizes`: bytes of each operand that is a register, 0 of others. Throws Fault for an opcode that the machine does not
// know. Families are in the files of the same name.
Form form_of(const Opcode& opcode, const std::vector<int>& sizes);

// {nullptr, ""} where the opcode is of another family.
Form arithmetic_form(const Opcode& opcode, const std::vector<int>& sizes);
Form bits_form(const Opcode& opcode);
Form comparison_form(const Opcode& opcode, const std::vector<int>& sizes);
Form conversion_form(const Opcode& opcode, const std::vector<int>& sizes);
Form memory_form(const Opcode& opcode, const std::vector<int>& sizes);
Form control_form(const Opcode& opcode);
Form warp_form(const Opcode& opcode, const std::vector<int>& sizes);
Form copy_form(const Opcode& opcode);
Form async_form(const Opcode& opcode);
Form wgmma_form(const Opcode& opcode, const std::vector<int>& sizes);

}  // namespace ptx
