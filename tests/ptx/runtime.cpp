// In place of the CUDA runtime: what nvcc's host code calls to register kernels, and what launchers call to start them.
// A launch has run when the call returns, and what it did wrong is the text of the error that it returns.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "runtime.h"
#include "tensor_map.h"

namespace ptx {
namespace {

struct Registered {
  std::string name;
  const void* image;  // the fat binary
  Module* module = nullptr;
};

std::map<const void*, Registered>& kernels() {
  static std::map<const void*, Registered> all;
  return all;
}

// A fat binary: a header, then entries, of which the machine takes those that are PTX.
struct FatHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct FatEntry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t compressed_bytes, options_offset;
  uint16_t minor, major;
  uint32_t arch;
};
constexpr uint32_t kFatMagic = 0xba55ed50;
constexpr uint16_t kFatPtx = 1;

// The module of the newest architecture that the device can run.
Module* module_of(const void* image, int capability) {
  static std::map<std::pair<const void*, uint32_t>, Module*> known;
  const char* at = static_cast<const char*>(image);
  FatHeader header;
  std::memcpy(&header, at, sizeof header);
  if (header.magic != kFatMagic) throw Fault("ptx: not a fat binary");
  const char* text = nullptr;
  uint32_t arch = 0;
  uint64_t bytes = 0;
  for (uint64_t offset = header.header_bytes; offset < header.header_bytes + header.bytes;) {
    FatEntry entry;
    std::memcpy(&entry, at + offset, sizeof entry);
    if (entry.kind == kFatPtx && entry.arch <= uint32_t(capability) && entry.arch >= arch) {
      if (entry.compressed_bytes != 0) throw Fault("ptx: compressed PTX (nvcc needs --no-compress)");
      text = at + offset + entry.header_bytes;
      arch = entry.arch;
      bytes = entry.bytes;
    }
    offset += entry.header_bytes + entry.bytes;
  }
  if (text == nullptr) throw Fault("ptx: no PTX for a device of capability " + std::to_string(capability));
  Module*& module = known[{image, arch}];
  if (module == nullptr) module = parse(std::string_view(text, strnlen(text, bytes)));
  return module;
}

const Kernel& kernel_of(const void* function) {
  const auto found = kernels().find(function);
  if (found == kernels().end()) throw Fault("ptx: a kernel that is not registered");
  Module* module = module_of(found->second.image, device().capability);
  return module->kernels.at(found->second.name);
}

// What the last launch did wrong: what cudaGetErrorString says of its error.
std::string last_fault;
int refusals = 0;  // that are left

void launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, dim3 cluster) {
  const Kernel& kernel = kernel_of(function);
  Launch own{&kernel,
             {int(grid.x), int(grid.y), int(grid.z)},
             {int(block.x), int(block.y), int(block.z)},
             {int(cluster.x), int(cluster.y), int(cluster.z)},
             int(shared_bytes),
             arguments,
             device().is_rough};
  if (own.cluster[0] == 1 && own.cluster[1] == 1) std::copy_n(kernel.cluster, 3, own.cluster);
  const int threads = own.block[0] * own.block[1] * own.block[2];
  if (threads > kernel.max_threads)
    throw Fault(kernel.name + ": " + std::to_string(threads) + " threads, of at most " +
                std::to_string(kernel.max_threads));
  if (int(shared_bytes) + kernel.static_shared_bytes > device().shared_bytes) {
    throw Fault(kernel.name + ": " + std::to_string(shared_bytes) + " bytes of shared memory, of " +
                std::to_string(device().shared_bytes));
  }
  device().launched += kernel.name + "\n";
  run(own, device());
}

cudaError_t try_launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                       dim3 cluster) {
  try {
    launch(function, grid, block, arguments, shared_bytes, cluster);
    return cudaSuccess;
  } catch (const std::exception& fault) {
    last_fault = fault.what();
    return cudaErrorLaunchFailure;
  }
}

}  // namespace

Device& device() {
  static Device own;
  return own;
}

}  // namespace ptx

extern "C" {

struct FatWrapper {
  int magic, version;
  const void* image;
  void* name;
};

void** __cudaRegisterFatBinary(void* wrapper) { return reinterpret_cast<void**>(wrapper); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** handle, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  ptx::kernels()[function] = {name, reinterpret_cast<FatWrapper*>(handle)->image};
}

struct Call {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
static Call call;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  call = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = call.grid;
  *block = call.block;
  *shared_bytes = call.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t) {
  return ptx::try_launch(kernel, grid, block, arguments, shared_bytes, dim3(1, 1, 1));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& each = config->attrs[i];
    if (each.id == cudaLaunchAttributeClusterDimension)
      cluster = dim3(each.val.clusterDim.x, each.val.clusterDim.y, each.val.clusterDim.z);
  }
  return ptx::try_launch(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, cluster);
}

// The kernels that were launched since ptx_start, a line each.
const char* ptx_launched() { return ptx::device().launched.c_str(); }

void ptx_add_memory(const void* begin, size_t bytes) { ptx::global_memory().add(begin, bytes); }
void ptx_remove_memory(const void* begin) { ptx::global_memory().remove(begin); }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  if (ptx::refusals > 0) return --ptx::refusals, cudaErrorMemoryAllocation;
  return value <= ptx::device().shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                 ? "no error"
         : error == cudaErrorLaunchFailure    ? ptx::last_fault.c_str()
         : error == cudaErrorMemoryAllocation ? "out of memory"
                                              : "invalid argument";
}
// The one function of the driver that is asked for: what encodes tensor maps.
static CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType, cuuint32_t dimensions, void* data,
                                  const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                  const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ptx::TensorMap own{ptx::TensorMap::kMagic, reinterpret_cast<uint64_t>(data), {}, {}, {}};
  if (dimensions != 3 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || own.data % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  for (int d = 0; d < 3; ++d) {
    if (sizes[d] == 0 || sizes[d] > uint64_t(1) << 32 || box[d] == 0 || box[d] > 256 || steps[d] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    own.sizes[d] = uint32_t(sizes[d]);
    own.box[d] = box[d];
  }
  for (int d = 0; d < 2; ++d) {
    if (strides[d] == 0 || strides[d] % 16 != 0 || strides[d] >= uint64_t(1) << 40) return CUDA_ERROR_INVALID_VALUE;
    own.strides[d] = strides[d];
  }
  static_assert(sizeof own <= sizeof *map);
  std::memcpy(map, &own, sizeof own);
  return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(&encode_tensor_map);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// By shared memory: what registers allow is known to ptxas alone.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t shared_bytes) {
  *blocks = shared_bytes == 0 ? 4 : std::clamp(int(size_t(ptx::device().shared_bytes) / shared_bytes), 1, 4);
  return cudaSuccess;
}

// Has the next so many requests for shared memory refused, as by a GPU whose memory is full.
void ptx_refuse(int requests) { ptx::refusals = requests; }

// Runs one kernel of a module that is given as text. `error` gets what went wrong; the result is whether something did.
int ptx_run(const char* text, const char* name, const int* grid, int threads, int shared_bytes, void** arguments,
            char* error, int error_bytes) {
  error[0] = 0;
  try {
    const std::unique_ptr<ptx::Module> module(ptx::parse(text));
    const ptx::Launch launch{
        &module->kernels.at(name), {grid[0], grid[1], grid[2]}, {threads, 1, 1}, {1, 1, 1}, shared_bytes, arguments,
        ptx::device().is_rough};
    ptx::run(launch, ptx::device());
  } catch (const std::exception& fault) {
    std::strncpy(error, fault.what(), size_t(error_bytes) - 1);
    error[error_bytes - 1] = 0;
    return 1;
  }
  return 0;
}

}  // extern "C"
