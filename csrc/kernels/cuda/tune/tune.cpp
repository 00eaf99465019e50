// What tools/gpu_tune.py calls through ctypes: choices by name, and kernels on raw pointers, in a build with STCA_TUNE.
#include <cstring>
#include <string>

#include "../../swiglu_ffn_norm_cuda.h"
#include "../../target_attention_cuda.h"
#include "../choice.h"

#define STCA_TUNE_API extern "C" __attribute__((visibility("default")))

// A line for each choice: its name, its value and among how many variants it chooses, or 0.
STCA_TUNE_API const char* stca_choices() {
  static std::string text;
  text.clear();
  const auto add = [&](const char* name, int value, int variants) {
    text += std::string(name) + " " + std::to_string(value) + " " + std::to_string(variants) + "\n";
  };
#define STCA_ADD(name, variants) add(#name, stca::cuda::choice::name::value, variants);
  STCA_FOR_EACH_CHOICE(STCA_ADD)
#undef STCA_ADD
  return text.c_str();
}

// False, and nothing changes, where there is no such choice or variant.
STCA_TUNE_API bool stca_choose(const char* name, int value) {
  const auto set = [&](const char* own, int& to, int variants) {
    if (std::strcmp(name, own) != 0 || value < 0 || (variants > 0 && value >= variants)) return false;
    to = value;
    return true;
  };
#define STCA_SET(own, variants) || set(#own, stca::cuda::choice::own::value, variants)
  return false STCA_FOR_EACH_CHOICE(STCA_SET);
#undef STCA_SET
}

// Bytes of the structs that the functions below are given, which the caller must have written down alike.
STCA_TUNE_API void stca_tune_sizes(int64_t (&bytes)[3]) {
  bytes[0] = sizeof(stca::TargetAttentionBackwardParams);
  bytes[1] = sizeof(stca::CudaDevice);
  bytes[2] = sizeof(stca::FfnProductParams);
}

STCA_TUNE_API int64_t stca_tune_workspace(const stca::TargetAttentionBackwardParams* b, const stca::CudaDevice* device,
                                          bool backward) {
  return backward ? target_attention_backward_cuda_workspace(b->forward, *device)
                  : target_attention_cuda_workspace(b->forward, *device);
}

STCA_TUNE_API const char* stca_tune_attention(const stca::TargetAttentionBackwardParams* b,
                                              const stca::CudaDevice* device, void* workspace, void* stream,
                                              bool backward) {
  return backward ? target_attention_backward_cuda(*b, *device, workspace, stream)
                  : target_attention_cuda(b->forward, *device, workspace, stream);
}

STCA_TUNE_API const char* stca_tune_product(int product, const stca::FfnProductParams* p,
                                            const stca::CudaDevice* device, void* stream) {
  return ffn_product_cuda(stca::FfnProduct(product), *p, *device, stream);
}
