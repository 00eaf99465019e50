// A module of PTX: its variables, its kernels, and the lines of its source.
#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "cursor.h"
#include "machine.h"

namespace ptx {
namespace {

// A variable outside of kernels. Shared memory that is declared `extern` is what a launch asks for: it starts where the
// others end. Global and constant ones are memory of the module.
void module_variable(Cursor& in, bool is_shared, Module& module, Variables& variables, int& shared_bytes) {
  int align = 1, element = 1, count = 1;
  std::string_view word;
  while ((word = in.name()).starts_with('.')) {
    if (word == ".align") {
      align = int(in.number());
    } else if (word != ".shared") {
      element = bytes_of_type(word.substr(1));
    }
  }
  const std::string name(word);
  if (in.take('[')) {
    count = in.peek() == ']' ? 0 : int(in.number());
    in.expect(']');
  }
  if (is_shared) {
    shared_bytes = (shared_bytes + align - 1) / align * align;
    variables[name] = shared_bytes;
    shared_bytes += element * count;
  } else {
    std::vector<char>& memory = module.variables.emplace_back(size_t(element * count), '\0');
    variables[name] = int64_t(reinterpret_cast<uint64_t>(memory.data()));
    global_memory().add(memory.data(), memory.size());
    if (in.take('=')) {
      in.take('{');
      for (int i = 0; i < count && in.peek() != '}'; ++i, in.take(',')) {  // zeros fill what is not listed
        const int64_t value = in.number();
        std::memcpy(memory.data() + i * element, &value, size_t(element));
      }
      in.take('}');
    }
  }
  in.expect(';');
}

// The name in the source, without the types of its arguments and the namespaces around it.
std::string readable(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), &std::free);
  if (status != 0) return mangled;
  std::string name = text.get();
  if (name.starts_with("void ")) name.erase(0, 5);
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {  // the arguments are the last parentheses
    depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
    if (depth == 0) {
      name.erase(i);
      break;
    }
  }
  const size_t templates = name.find('<'), scope = name.rfind("::", templates);
  return scope == name.npos ? name : name.substr(scope + 2);
}

}  // namespace

Module* parse(std::string_view text) {
  auto module = std::make_unique<Module>();
  Cursor in(text);
  Variables variables;
  int shared_bytes = 0;
  while (!in.at_end()) {
    const std::string_view word = in.name();
    if (word == ".version" || word == ".address_size") {
      in.until("\n");
    } else if (word == ".target") {
      module->target = in.name();
      in.until("\n");
    } else if (word == ".file") {
      const size_t number = size_t(in.number());
      in.expect('"');
      if (module->files.size() <= number) module->files.resize(number + 1);
      module->files[number] = in.until("\"");
      if (in.peek() == ',') in.until("\n");
    } else if (word == ".section") {
      in.until("{");
      in.until("}");
    } else if (word == ".visible" || word == ".weak" || word == ".extern") {
    } else if (word == ".shared" || word == ".global" || word == ".const") {
      module_variable(in, word == ".shared", *module, variables, shared_bytes);
    } else if (word == ".entry") {
      const std::string name(in.name());
      Kernel& kernel = module->kernels[name];
      kernel.name = readable(name);
      kernel.module = module.get();
      parse_kernel(in, *module, kernel, variables, shared_bytes);
    } else {
      in.fail("a directive that the machine does not know: " + std::string(word));
    }
  }
  return module.release();
}

Module::~Module() {
  for (const auto& each : variables) global_memory().remove(each.data());
}

std::string Module::place(int location) const {
  std::string text;
  for (; location >= 0; location = locations[size_t(location)].inlined_at) {
    const Location& own = locations[size_t(location)];
    const std::string& file = files[size_t(own.file)];
    text += (text.empty() ? "" : ", inlined at ") + file.substr(file.rfind('/') + 1) + ":" + std::to_string(own.line);
  }
  return text.empty() ? "no source line" : text;
}

}  // namespace ptx
