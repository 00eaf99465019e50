#include "tensor_map.h"

#include <cuda_runtime.h>

namespace stca {
namespace cuda {
namespace sm90 {

const char* make_tensor_map(CUtensorMap& map, CUtensorMapDataType type, const void* data, int64_t rows, int64_t heads,
                            int64_t width, int64_t row_stride, int64_t head_stride, int box_rows, int box_heads) {
  // The driver's function, asked of the runtime: nothing links against the driver.
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess)
      cudaGetLastError();  // forgets the error, or the next check of another kernel would report it
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (encode == nullptr) return "this driver makes no tensor maps";
  if (heads == 1) head_stride = row_stride;  // never used, but read
  const cuuint64_t sizes[3] = {cuuint64_t(width), cuuint64_t(heads), cuuint64_t(rows)};
  const cuuint64_t strides[2] = {cuuint64_t(2 * head_stride), cuuint64_t(2 * row_stride)};
  const cuuint32_t box[3] = {64, cuuint32_t(box_heads), cuuint32_t(box_rows)}, steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, type, 3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "a tensor map was refused";
}

const char* make_row_maps(RowMaps& maps, CUtensorMapDataType type, const void* data, int64_t rows, int64_t heads,
                          int64_t width, int64_t row_stride, int64_t head_stride, int box_rows) {
  const auto make = [&](CUtensorMap& map, int own_rows) {
    return make_tensor_map(map, type, data, rows, heads, width, row_stride, head_stride, own_rows);
  };
  const char* error = make(maps.tile, box_rows);
  return error != nullptr ? error : make(maps.row, 1);
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
