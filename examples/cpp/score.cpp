// Scores a request without Python, by the package that examples/export_ranker.py or export_served.py makes of a ranker:
//
//   score LIBRARY PACKAGE REQUEST [CALLS]
//   score libstca_ops-2.13.so ranker.pt2 ranker.request.pt 20
//
// LIBRARY is the operators' (`python -c "import stca; print(stca.native.LIBRARY)"`). REQUEST is what torch.save made of
// a list of the model's arguments. Prints the logits to the last bit, one a line; to stderr, how long CALLS calls took.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
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
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  try {
    std::vector<at::Tensor> arguments;
    const c10::IValue saved = torch::jit::pickle_load(bytes);
    for (const c10::IValue& each : saved.toListRef()) arguments.push_back(each.toTensor().contiguous());
    return arguments;
  } catch (const std::exception&) {
    fail(path, "must be a list of tensors, by torch.save");
  }
}

using Package = torch::inductor::AOTIModelPackageLoader;

std::unique_ptr<Package> load_package(const char* path) {
  std::unique_ptr<Package> model;
  try {
    model = std::make_unique<Package>(path);
  } catch (const std::exception& error) {  // torch's own with its words alone, without the stack
    const auto* own = dynamic_cast<const c10::Error*>(&error);
    const std::string words = own != nullptr ? own->what_without_backtrace() : error.what();
    fail(path, "must be a package of a model for this machine: " + words);
  }
  if (model->get_metadata()["inputs"].empty())
    fail(path, "must say what its inputs are, as export_ranker.py writes it");
  return model;
}

std::string described(const at::Tensor& x) {
  std::string sizes;
  for (const int64_t size : x.sizes()) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
  return std::string(c10::getDtypeNames(x.scalar_type()).first) + "[" + sizes + "]";
}

// What a tensor must be by its word of the package, `int64[s0,9]`: a size with a name is what an earlier tensor gave
// it, or else what this one has there.
std::string expected(const std::string& word, const at::Tensor& x, std::map<std::string, std::string>& known) {
  const size_t bracket = word.find('[');
  std::istringstream names(word.substr(bracket + 1, word.size() - bracket - 2));
  std::string sizes, name;
  for (int64_t i = 0; std::getline(names, name, ','); ++i) {
    const bool fixed = std::isdigit(static_cast<unsigned char>(name[0])) != 0;
    const std::string own = i < x.dim() ? std::to_string(x.size(i)) : "*";
    sizes += (i == 0 ? "" : ",") + (fixed ? name : known.try_emplace(name, own).first->second);
  }
  return word.substr(0, bracket) + "[" + sizes + "]";
}

// The compiled model takes a size of each name from one of its arguments, and looks at no other and at no dtype.
void check(const char* path, const std::vector<at::Tensor>& arguments, const std::string& inputs) {
  std::istringstream words(inputs);
  const std::vector<std::string> each{std::istream_iterator<std::string>(words), {}};
  const size_t count = arguments.size();
  if (count != each.size()) {
    fail(path, "must have " + std::to_string(each.size()) + " tensors, got " + std::to_string(count));
  }
  std::map<std::string, std::string> known;
  for (size_t i = 0; i < count; ++i) {
    const std::string must = expected(each[i], arguments[i], known), is = described(arguments[i]);
    if (must != is) fail(path, "tensor " + std::to_string(i + 1) + " must be " + must + ", got " + is);
  }
}

int calls_of(const char* text) {
  char* end = nullptr;
  const long calls = std::strtol(text, &end, 10);
  if (*end != '\0' || calls < 1 || calls > 1'000'000)
    fail("CALLS", "must be from 1 to 1000000, got " + std::string(text));
  return static_cast<int>(calls);
}

void score(const char* library, const char* package, const char* request, int calls) {
  load_operators(library);
  const std::vector<at::Tensor> arguments = read_request(request);
  const auto model = load_package(package);
  check(request, arguments, model->get_metadata()["inputs"]);
  const c10::InferenceMode no_gradients;
  at::Tensor logits;
  std::vector<double> milliseconds;
  for (int call = 0; call < calls; ++call) {
    std::vector<at::Tensor> inputs = arguments;
    const auto begin = std::chrono::steady_clock::now();
    logits = model->run(inputs).at(0).contiguous();
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
    milliseconds.push_back(taken.count());
  }
  for (int64_t t = 0; t < logits.numel(); ++t) std::printf("%a\n", double(logits.const_data_ptr<float>()[t]));
  std::sort(milliseconds.begin(), milliseconds.end());
  std::fprintf(stderr, "%lld targets: p50 %.2f ms, p99 %.2f ms of %d calls\n", static_cast<long long>(logits.numel()),
               milliseconds[calls / 2], milliseconds[calls * 99 / 100], calls);
}

}  // namespace

int main(int count, char** words) {
  if (count < 4 || count > 5) {
    std::fprintf(stderr, "usage: score LIBRARY PACKAGE REQUEST [CALLS]\n");
    return 2;
  }
  try {
    score(words[1], words[2], words[3], count == 5 ? calls_of(words[4]) : 1);
    return 0;
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "score: %s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {  // of a package's call, torch's words with its stack behind them
    const std::string words_and_stack = error.what();
    std::fprintf(stderr, "score: %s\n",
                 words_and_stack.substr(0, words_and_stack.find("\nException raised from")).c_str());
  }
  return 1;
}
