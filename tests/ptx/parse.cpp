// From the text of a kernel to instructions that can run.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "cursor.h"
#include "opcodes.h"
#include "registers.h"

namespace ptx {
namespace {

struct Register {
  int slot, bytes;  // 0 bytes: a predicate
};

// What an operand says, before its bytes are known.
struct Operand {
  enum Kind { kRegister, kNumber, kAddress, kName, kNothing } kind;
  Register reg{};
  uint64_t bits = 0;      // of a number
  bool floating = false;  // the bits are those of a float of `reg.bytes` bytes
  std::string name;       // of a label
  int64_t offset = 0;     // of an address
};

// Bytes of a register in a warp: a mask, or 32 lanes.
int slot_bytes(int bytes) { return bytes == 0 ? 8 : kWarp * bytes; }

const char* interned(const std::string& name) {
  static std::set<std::string> names;
  return names.insert(name).first->c_str();
}

class KernelParser {
  static constexpr int32_t kConstant = -(1 << 30);

 public:
  KernelParser(Cursor& in, Module& module, Kernel& kernel, const Variables& globals, int shared_bytes)
      : in_(in), module_(module), kernel_(kernel), variables_(globals) {
    kernel_.static_shared_bytes = shared_bytes;
    next_slot_ = special_slot(Special::count);
    scopes_.emplace_back();
    for (int i = 0; i < int(Special::count); ++i) {
      scopes_[0][std::string(kSpecialNames[i])] = {special_slot(Special(i)), 4};
    }
  }

  void parse() {
    if (in_.take('(')) parameters();
    while (!in_.take('{')) directive();
    int depth = 1;
    while (depth > 0) {
      if (in_.take('{')) {
        ++depth;
        scopes_.emplace_back();
      } else if (in_.take('}')) {
        --depth;
        scopes_.pop_back();
      } else if (in_.peek() == '.') {
        directive();
      } else {
        label_or_instruction();
      }
    }
    finish();
  }

 private:
  void parameters() {
    while (!in_.take(')')) {
      int align = 1, bytes = 0;
      std::string_view word;
      while ((word = in_.name()).starts_with('.')) {
        if (word == ".align") {
          align = int(in_.number());
        } else if (word != ".param" && word != ".ptr" && word != ".global") {
          bytes = bytes_of_type(word.substr(1));
          if (bytes > align) align = bytes;
        }
      }
      if (in_.take('[')) {
        bytes = int(in_.number());
        in_.expect(']');
      }
      Parameter parameter{(kernel_.parameter_bytes + align - 1) / align * align, bytes};
      kernel_.parameter_bytes = parameter.offset + bytes;
      kernel_.parameters.emplace(word, parameter);
      kernel_.parameter_list.push_back(parameter);
      in_.take(',');
    }
  }

  void directive() {
    const std::string_view word = in_.name();
    if (word == ".reg") {
      registers();
    } else if (word == ".loc") {
      location();
    } else if (word == ".maxntid" || word == ".reqntid") {
      kernel_.max_threads = 1;
      do kernel_.max_threads *= int(in_.number());
      while (in_.take(','));
    } else if (word == ".reqnctapercluster") {
      int i = 0;
      do kernel_.cluster[i++] = int(in_.number());
      while (in_.take(','));
    } else if (word == ".minnctapersm" || word == ".maxnreg" || word == ".maxclusterrank") {
      in_.number();
    } else if (word == ".explicitcluster" || word == ".blocksareclusters") {
    } else if (word == ".local" || word == ".shared") {
      variable(word == ".local" ? Space::local : Space::shared);
    } else if (word == ".pragma") {
      in_.until(";");
    } else {
      in_.fail("a directive that the machine does not know: " + std::string(word));
    }
  }

  void variable(Space space) {
    int align = 1;
    std::string_view word;
    int bytes = 0;
    while ((word = in_.name()).starts_with('.')) {
      if (word == ".align") {
        align = int(in_.number());
      } else {
        bytes = bytes_of_type(word.substr(1));
      }
    }
    if (in_.take('[')) {
      bytes *= int(in_.number());
      in_.expect(']');
    }
    in_.expect(';');
    int& end = space == Space::local ? kernel_.local_bytes : kernel_.static_shared_bytes;
    end = (end + align - 1) / align * align;
    variables_[std::string(word)] = end;
    end += bytes;
  }

  void registers() {
    const int bytes = bytes_of_type(in_.name().substr(1));
    do {
      const std::string name(in_.name());
      if (in_.take('<')) {
        const int64_t count = in_.number();
        in_.expect('>');
        for (int64_t i = 0; i < count; ++i) scopes_.back()[name + std::to_string(i)] = new_register(bytes);
        kernel_.num_registers += int(count) * bytes / 4;
      } else {
        scopes_.back()[name] = new_register(bytes);
      }
    } while (in_.take(','));
    in_.expect(';');
  }

  Register new_register(int bytes) {
    const Register own{next_slot_, bytes};
    next_slot_ += slot_bytes(bytes);
    return own;
  }

  // A .loc names the place that it was inlined at, and that place's own .loc came before.
  void location() {
    std::array<int64_t, 3> place{};
    auto read = [&] {
      for (int64_t& each : place) each = in_.number();
      return Location{int(place[0]), int(place[1]), -1};
    };
    Location own = read();
    const auto own_place = place;
    while (in_.take(',')) {
      const std::string_view word = in_.name();
      if (word == "function_name") {
        in_.name();
        if (in_.take('+')) in_.number();
      } else if (word == "inlined_at") {
        const Location outer = read();
        const auto known = places_.find(place);
        if (known == places_.end()) module_.locations.push_back(outer);
        own.inlined_at = known == places_.end() ? int(module_.locations.size()) - 1 : known->second;
      }
    }
    module_.locations.push_back(own);
    location_ = int(module_.locations.size()) - 1;
    places_[own_place] = location_;
  }

  void label_or_instruction() {
    Instruction instruction{};
    instruction.predicate = -1;
    instruction.location = location_;
    if (in_.take('@')) {
      instruction.negated = in_.take('!');
      instruction.predicate = find(in_.name()).slot;
    }
    std::string word(in_.name());
    if (word.empty()) in_.fail("expected an instruction");
    while (in_.take("::")) word += "::" + std::string(in_.name());
    if (in_.take(':')) {
      labels_[word] = int(kernel_.code.size());
      return;
    }
    Opcode opcode{word, {}};
    for (size_t begin = 0; begin <= word.size();) {
      const size_t end = std::min(word.find('.', begin), word.size());
      opcode.parts.push_back(word.substr(begin, end - begin));
      begin = end + 1;
    }
    std::vector<Operand> operands;
    while (!in_.take(';')) operand(operands);
    place(opcode, operands, instruction);
  }

  void operand(std::vector<Operand>& to) {
    in_.take(',') || in_.take('|');
    if (in_.take('{')) {
      while (!in_.take('}')) operand(to);
    } else if (in_.take('[')) {
      Operand address = value();
      address.kind = address.kind == Operand::kNumber ? Operand::kNumber : Operand::kAddress;
      if (in_.take('+')) address.offset += in_.number();
      std::vector<Operand> coordinates;  // of a tensor map
      if (in_.take(',')) operand(coordinates);
      in_.expect(']');
      if (address.kind == Operand::kNumber) {
        address.bits += uint64_t(address.offset);
        address.offset = 0;
      }
      to.push_back(address);
      to.insert(to.end(), coordinates.begin(), coordinates.end());
    } else {
      to.push_back(value());
    }
  }

  // A register, a number, the address of a variable, or a label.
  Operand value() {
    Operand own{};
    const char first = in_.peek();
    if (first == '-' || std::isdigit(static_cast<unsigned char>(first))) {
      own.kind = Operand::kNumber;
      const bool negative = in_.take('-');
      const std::string_view digits = in_.name();
      own.floating = digits.size() > 1 && (digits[1] == 'f' || digits[1] == 'd');
      if (own.floating) {
        own.reg.bytes = digits[1] == 'f' ? 4 : 8;
        std::from_chars(digits.data() + 2, digits.data() + digits.size(), own.bits, 16);
      } else {
        Cursor number(digits);
        own.bits = uint64_t(number.number());
        if (negative) own.bits = -own.bits;
      }
      return own;
    }
    const std::string word(in_.name());
    if (word.empty()) in_.fail("expected an operand");
    if (word == "_") {
      own.kind = Operand::kNothing;
    } else if (const Register* reg = lookup(word)) {
      own.kind = Operand::kRegister;
      own.reg = *reg;
    } else if (const auto parameter = kernel_.parameters.find(word); parameter != kernel_.parameters.end()) {
      own.kind = Operand::kNumber;
      own.bits = uint64_t(parameter->second.offset);
    } else if (const auto variable = variables_.find(word); variable != variables_.end()) {
      own.kind = Operand::kNumber;
      own.bits = uint64_t(variable->second);
    } else {
      own.kind = Operand::kName;
      own.name = word;
    }
    return own;
  }

  const Register* lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return &found->second;
    }
    return nullptr;
  }
  Register find(std::string_view name) {
    const Register* found = lookup(std::string(name));
    if (found == nullptr) in_.fail("no such register: " + std::string(name));
    return *found;
  }

  // The slot of a number: until all registers are known, kConstant plus its place among the constants.
  int constant(uint64_t bits, int bytes) {
    const auto [found, is_new] = constants_.try_emplace({bits, bytes}, int(kernel_.constants.size()));
    if (is_new) {
      for (int lane = 0; lane < (bytes == 0 ? 1 : kWarp); ++lane) {
        const uint64_t value = bytes == 0 ? (bits != 0 ? kAllLanes : 0) : bits;
        const char* raw = reinterpret_cast<const char*>(&value);
        kernel_.constants.insert(kernel_.constants.end(), raw, raw + (bytes == 0 ? 4 : bytes));
      }
    }
    return kConstant + found->second;
  }

  void place(const Opcode& opcode, const std::vector<Operand>& operands, Instruction& instruction) {
    std::vector<int> sizes;
    for (const Operand& each : operands) sizes.push_back(each.kind == Operand::kRegister ? each.reg.bytes : 0);
    const Form form = form_of(opcode, sizes);
    if (form.operands.size() < operands.size()) in_.fail(opcode.text + ": too many operands");
    instruction.immediate = form.immediate;
    instruction.is_wgmma = opcode.parts[0] == "wgmma";
    instruction.registers = 0;
    std::vector<int32_t> slots;
    size_t next = 0;
    for (const char kind : form.operands) {
      if (kind == '_' || next == operands.size()) {
        slots.push_back(-1);
        continue;
      }
      const Operand& own = operands[next++];
      if (own.kind == Operand::kRegister && slots.size() < 32) instruction.registers |= 1u << slots.size();
      if (kind == 'l') {
        targets_.emplace_back(kernel_.code.size(), own.name);
      } else if (kind == 'i') {
        instruction.immediate = int64_t(own.bits);
      } else if (own.kind == Operand::kNothing) {
        slots.push_back(-1);
      } else if (kind == 'a') {
        if (own.kind == Operand::kName) in_.fail(opcode.text + ": no such name: " + own.name);
        slots.push_back(own.kind == Operand::kNumber ? constant(own.bits, 8) : own.reg.slot);
        slots.push_back(own.kind == Operand::kNumber ? 8 : own.reg.bytes);
        slots.push_back(int32_t(own.offset));
      } else {
        slots.push_back(slot_of(opcode, own, kind));
      }
    }
    instruction.step = form.step;
    instruction.name = interned(opcode.text);
    kernel_.operands.push_back(std::move(slots));
    kernel_.code.push_back(instruction);
  }

  int slot_of(const Opcode& opcode, const Operand& own, char kind) {
    const int bytes = kind == 'p' ? 0 : kind == 'r' ? own.reg.bytes : kind - '0';
    if (own.kind == Operand::kRegister) {
      if (own.reg.bytes != bytes) in_.fail(opcode.text + ": an operand of another size");
      return own.reg.slot;
    }
    if (own.kind != Operand::kNumber || kind == 'r') in_.fail(opcode.text + ": cannot take " + own.name);
    return constant(bytes == 0 || bytes == 8 ? own.bits : own.bits & ((uint64_t(1) << 8 * bytes) - 1), bytes);
  }

  void finish() {
    kernel_.constants_begin = next_slot_;
    kernel_.register_bytes = next_slot_ + int(kernel_.constants.size());
    for (size_t i = 0; i < kernel_.code.size(); ++i) {
      for (int32_t& slot : kernel_.operands[i]) {
        if (slot < kConstant / 2) slot += kernel_.constants_begin - kConstant;
      }
      kernel_.code[i].operands = kernel_.operands[i].data();
    }
    for (const auto& [at, label] : targets_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("ptx: " + kernel_.name + ": no such label: " + label);
      kernel_.code[at].target = found->second;
    }
  }

  Cursor& in_;
  Module& module_;
  Kernel& kernel_;
  Variables variables_;
  std::vector<std::map<std::string, Register, std::less<>>> scopes_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> targets_;
  std::map<std::pair<uint64_t, int>, int> constants_;
  std::map<std::array<int64_t, 3>, int> places_;
  int next_slot_, location_ = -1;
};

}  // namespace

void parse_kernel(Cursor& in, Module& module, Kernel& kernel, const Variables& variables, int shared_bytes) {
  KernelParser(in, module, kernel, variables, shared_bytes).parse();
}

}  // namespace ptx
