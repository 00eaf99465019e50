// The kernel of the products of swiglu_ffn_norm on Hopper, and the host's side: tensor maps, launches, and which calls
// it takes (formulas: ../../swiglu_ffn_norm.h).
#include <algorithm>

#include "../choice.h"
#include "../tile.cuh"
#include "ffn_results.cuh"
#include "tensor_map.h"

namespace stca {
namespace cuda {
namespace sm90 {
namespace ffn {
namespace {

// All tiles of the block, from operands to results.
template <class F, class T>
STCA_DEVICE void run_products(const Ring<F::kCluster>& ring, const FfnProductParams& p, const Tiles& tiles, int group) {
  constexpr FfnProduct kProduct = F::kKind;
  int at = 0;  // steps so far, of all tiles
#pragma unroll 1
  for (int number = int(blockIdx.x) / 2; number < tiles.count(); number += int(gridDim.x) / 2) {
    const Tile tile = tiles.at(number, ring.rank, F::kColumns);
    float sums[128];
    multiply<F, T>(sums, ring, group, at, tile.end - tile.begin);
    at += tile.end - tile.begin;
    if constexpr (kProduct == FfnProduct::kGate) {
      write_gate<T>(sums, p, tile, group);
    } else if constexpr (kProduct == FfnProduct::kGateBackward) {
      write_gate_gradients<T>(sums, ring, p, tile, group, at);
    } else if constexpr (kProduct == FfnProduct::kWeights) {
      add_sums(sums, p, tile, group);
    } else {
      write_sums<T>(sums, p, tile, group);
    }
    at += F::kSideSteps;
  }
}

template <class F, class T>
__global__ void __launch_bounds__(kThreads, 1)
    ffn_product_sm90_kernel(const __grid_constant__ Maps maps, const FfnProductParams p, const Tiles tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const Ring<F::kCluster> ring{shared_address(shared_memory()), int(blockIdx.x) % 2};
  const int group = int(threadIdx.x) / kWarpgroup;
  if (threadIdx.x == 0) ring.init();
  sync_block();
  if constexpr (F::kCluster > 1) sync_cluster();
  if (group == kCopies) {
    give_registers<40>();
    if (threadIdx.x == kCopies * kWarpgroup) run_copies<F>(ring, maps, tiles);
    sync_warp();
  } else {
    take_registers<232>();
    run_products<F, T>(ring, p, tiles, group);
  }
  if constexpr (F::kCluster > 1) sync_cluster();  // no block leaves while the other may still send to it
#endif
}

constexpr int64_t kMostSplits = 8;

// Tiles of the two blocks of a pair.
int64_t tiles_of(int64_t rows, int64_t columns, int64_t tile_columns) {
  return divide_up(rows, 2 * kTileRows) * divide_up(columns, tile_columns);
}

// The maps of a product's operands. The left one's box has 128 of its rows, or 64 of `depth`; so has the right one's.
template <class F>
const char* make_maps(Maps& maps, CUtensorMapDataType type, const FfnProductParams& p) {
  const auto make = [&](CUtensorMap& map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box) {
    return make_tensor_map(map, type, data, rows, 1, columns, stride, 0, box);
  };
  const auto behind = [&](const void* data) { return static_cast<const char*>(data) + p.columns * 2; };  // v of u
  const char* error = make(maps.left, p.left, F::kLeftByRows ? p.depth : p.rows, F::kLeftByRows ? p.rows : p.depth,
                           p.left_stride, F::kLeftByRows ? kStep : kTileRows);
  for (int half = 0; half < 2 && error == nullptr; ++half) {
    if (F::kPairs) {
      error = make(maps.right[half], half == 0 ? p.right : behind(p.right), p.depth, p.columns, 2 * p.columns, kStep);
    } else if (F::kRightByRows) {
      error = make(maps.right[half], p.right, p.depth, p.columns, p.columns, kStep);
    } else {
      error = make(maps.right[half], p.right, p.columns, p.depth, p.depth, kTileColumns / 2);
    }
    if (F::kSideSteps > 0 && error == nullptr) {
      error = make(maps.side[half], half == 0 ? p.to : behind(p.to), p.rows, p.columns, 2 * p.columns, kTileRows);
    }
  }
  return error;
}

template <class F, class T>
const char* launch_form(const FfnProductParams& p, const CudaDevice& device, void* stream) {
  Maps maps{};
  if (const char* error = make_maps<F>(maps, MapType<T>::value, p)) return error;
  const int splits = F::kKind == FfnProduct::kWeights ? p.splits : 1;
  const Tiles tiles{int(divide_up(p.rows, 2 * kTileRows)), int(divide_up(p.columns, F::kColumns)), splits,
                    int(divide_up(p.depth, kStep)), choice::ffn_swath::value};
  const int64_t pairs =
      std::min<int64_t>(tiles_of(p.rows, p.columns, F::kColumns) * splits, device.multiprocessors / 2);
  return launch("swiglu product on Hopper", &ffn_product_sm90_kernel<F, T>,
                {2 * pairs, kThreads, kBytes, F::kCluster > 1 ? F::kCluster : 0}, static_cast<Stream>(stream), maps, p,
                tiles);
}

template <FfnProduct kProduct, class Choice>
const char* launch_as(const FfnProductParams& p, const CudaDevice& device, void* stream) {
  return visit_cuda_dtype(p.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::element;
    if constexpr (sizeof(T) == 2) {
      return visit_variant<Choice, T>(VariantsOf<Form<kProduct, 2>, Form<kProduct, 1>>(),
                                      [&](auto form) { return launch_form<decltype(form), T>(p, device, stream); });
    }
    return nullptr;  // of a type that is not taken
  });
}

}  // namespace
}  // namespace ffn
}  // namespace sm90
}  // namespace cuda

using namespace cuda::sm90::ffn;
namespace choice = cuda::choice;

// Below choice::ffn_least_tiles a matrix product with smaller tiles is faster.
bool ffn_products_cuda_take(Dtype dtype, int64_t num_rows, int64_t dim, int64_t hidden, const CudaDevice& device) {
  return device.takes(Sm90Family::swiglu_ffn_norm) && element_size(dtype) == 2 && dim % 8 == 0 && hidden % 8 == 0 &&
         std::max(dim, hidden) < 1 << 30 &&
         4 * tiles_of(num_rows, hidden, kTileColumns / 2) >= choice::ffn_least_tiles::value * device.multiprocessors;
}

int ffn_weight_splits(int64_t rows, int64_t columns, const CudaDevice& device) {
  return int(std::clamp<int64_t>(device.multiprocessors / 2 / tiles_of(rows, columns, kTileColumns), 1, kMostSplits));
}

const char* ffn_product_cuda(FfnProduct product, const FfnProductParams& p, const CudaDevice& device, void* stream) {
  switch (product) {
    case FfnProduct::kGate:
      return launch_as<FfnProduct::kGate, choice::ffn_gate>(p, device, stream);
    case FfnProduct::kDown:
      return launch_as<FfnProduct::kDown, choice::ffn_down>(p, device, stream);
    case FfnProduct::kGateBackward:
      return launch_as<FfnProduct::kGateBackward, choice::ffn_gate_backward>(p, device, stream);
    case FfnProduct::kInput:
      return launch_as<FfnProduct::kInput, choice::ffn_input>(p, device, stream);
    default:
      return launch_as<FfnProduct::kWeights, choice::ffn_weights>(p, device, stream);
  }
}

}  // namespace stca
