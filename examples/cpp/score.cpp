// Scores a request without Python, by the package that examples/export_ranker.py makes of a trained ranker:
//
//   score LIBRARY PACKAGE REQUEST [CALLS]
//   score libstca_ops-2.13.so ranker.pt2 ranker.request.txt 20
//
// LIBRARY is the operators' (`python -c "import stca; print(stca.native.LIBRARY)"`). REQUEST has a line of integers for
// each argument of the model. Prints the logits to the last bit, one a line; to stderr, how long CALLS calls took.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// Loading registers the operators with torch's dispatcher. The library stays for the life of the process.
void load_operators(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  const auto isa = reinterpret_cast<const char* (*)()>(dlsym(library, "stca_cpu_isa"));
  if (isa == nullptr) throw std::runtime_error(std::string(path) + " is not stca's library of operators");
  std::fprintf(stderr, "%s, %d threads\n", isa(), at::get_num_threads());
}

[[noreturn]] void fail(const char* path, const std::string& what) {
  throw std::runtime_error(std::string(path) + ": " + what);
}

std::vector<at::Tensor> read_request(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  std::vector<at::Tensor> arguments;
  for (std::string line; std::getline(file, line);) {
    std::istringstream numbers(line);
    std::vector<int64_t> values;
    for (std::string word; numbers >> word;) {
      int64_t value;
      const char* end = word.data() + word.size();
      const auto [parsed, error] = std::from_chars(word.data(), end, value);
      if (error != std::errc() || parsed != end) fail(path, "must hold integers, got " + word);
      values.push_back(value);
    }
    arguments.push_back(at::tensor(values, at::kLong));
  }
  // The compiled model takes T from one of its arguments, and looks at no other.
  if (arguments.size() != 7) fail(path, "must have 7 lines, got " + std::to_string(arguments.size()));
  for (const auto& [one, other] : {std::pair(0, 1), std::pair(2, 3), std::pair(2, 4), std::pair(5, 6)}) {
    if (arguments[one].numel() == arguments[other].numel()) continue;
    fail(path, "lines " + std::to_string(one + 1) + " and " + std::to_string(other + 1) + " must be equally long");
  }
  return arguments;
}

void score(const char* library, const char* package, const char* request, int calls) {
  load_operators(library);
  const std::vector<at::Tensor> arguments = read_request(request);
  torch::inductor::AOTIModelPackageLoader model(package);
  const c10::InferenceMode no_gradients;
  at::Tensor logits;
  std::vector<double> milliseconds;
  for (int call = 0; call < calls; ++call) {
    std::vector<at::Tensor> inputs = arguments;
    const auto begin = std::chrono::steady_clock::now();
    logits = model.run(inputs).at(0).contiguous();
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
    milliseconds.push_back(taken.count());
  }
  for (int64_t t = 0; t < logits.numel(); ++t) std::printf("%a\n", double(logits.const_data_ptr<float>()[t]));
  std::sort(milliseconds.begin(), milliseconds.end());
  std::fprintf(stderr, "%lld targets, %lld events: median %.2f ms of %d calls\n",
               static_cast<long long>(logits.numel()), static_cast<long long>(arguments.at(2).numel()),
               milliseconds[calls / 2], calls);
}

}  // namespace

int main(int count, char** words) {
  if (count < 4 || count > 5) {
    std::fprintf(stderr, "usage: score LIBRARY PACKAGE REQUEST [CALLS]\n");
    return 2;
  }
  try {
    score(words[1], words[2], words[3], count == 5 ? std::max(1, std::atoi(words[4])) : 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "score: %s\n", error.what());
    return 1;
  }
  return 0;
}
