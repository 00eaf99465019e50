// Hopper's own instructions (sm_90a), each as one function: barriers that count bytes, copies of tiles, products of a
// warpgroup, and what blocks of a cluster send each other.
//
// Tiles in shared memory are slabs of 64 columns of 16 bits: rows of 128 bytes, whose 16-byte chunks are permuted by
// the row (chunk ^ row % 8: the 128-byte swizzle), so that a column of chunks lies in different banks. Slabs start at
// multiples of 1,024 bytes. Addresses are those of the shared window, 32 bits.
#pragma once

#include <cuda.h>

#include "../ptx.cuh"

namespace stca {
namespace cuda {
namespace sm90 {

constexpr int kWarpgroup = 128;
constexpr int kSlabRow = 128;  // bytes of a row of a slab

// Where 16-byte chunk `chunk` of row `row` lies in a slab.
STCA_DEVICE uint32_t swizzled(int row, int chunk) { return uint32_t(row * kSlabRow + ((chunk ^ (row & 7)) << 4)); }

// ---- Barriers in shared memory. Phases alternate: a wait for `parity` passes when the phase of that parity is over;
// a wait for 1 passes at once on a new barrier.

STCA_DEVICE void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
STCA_DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
STCA_DEVICE void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase wait for that many bytes of copies besides.
STCA_DEVICE void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at another block's barrier, after reads: what they read may be written over. No `.release.cluster`, for which
// a thread waits until all that it ever wrote has reached the GPU's other multiprocessors (MEMBAR.ALL.GPU).
STCA_DEVICE void arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
STCA_DEVICE void wait(uint32_t barrier, uint32_t parity) {
  for (uint32_t done = 0; done == 0;) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}
// The same, for what another block has sent.
STCA_DEVICE void wait_for_sent(uint32_t barrier, uint32_t parity) {
  for (uint32_t done = 0; done == 0;) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, "
        "p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// Makes this thread's ordinary writes to shared memory visible to copies and products.
STCA_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// All threads of one warpgroup; `name` is one of the 16 hardware barriers, 0 is sync_block's.
STCA_DEVICE void sync_warpgroup(int name) { asm volatile("bar.sync %0, %1;" ::"r"(name), "n"(kWarpgroup) : "memory"); }
// Of `threads` threads, some wait at the barrier, the others only arrive.
STCA_DEVICE void sync_threads(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
STCA_DEVICE void arrive_threads(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// ---- Clusters.

STCA_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
STCA_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another block of the cluster.
STCA_DEVICE uint32_t remote(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// 16 bytes to another block, which count towards its barrier.
STCA_DEVICE void send(uint32_t to, float a, float b, float c, float d, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(__float_as_uint(c)), "r"(__float_as_uint(d)),
               "r"(barrier)
               : "memory");
}

// ---- Copies of tiles.

// A box of a tensor map to shared memory; its bytes, zeros outside of the tensor included, count towards the barrier.
STCA_DEVICE void copy_tile(uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// The same box to the same place in each block of the cluster that has a bit in `blocks`, and so towards its barrier.
STCA_DEVICE void copy_tile_to(int blocks, uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(short(blocks))
      : "memory");
}

// ---- Registers.

// Returns x, of which the compiler then knows nothing: it does not compute what follows from x before a loop, and hold
// it meanwhile.
STCA_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <int kCount>
STCA_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
STCA_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kBefore, int kCount>
STCA_DEVICE void set_registers() {
  if constexpr (kCount > kBefore) take_registers<kCount>();
  if constexpr (kCount < kBefore) give_registers<kCount>();
}

// ---- Products of a warpgroup. Row r of an accumulator of N columns lies in warp r / 16: with g = lane / 4 and
// c = lane % 4, d[4 j + i] is at (16 warp + g + i / 2 * 8, 8 j + 2 c + i % 2).

// The first of the two rows of an accumulator that thread t of a warpgroup holds; the other is 8 further on.
STCA_DEVICE int row_of(int t) { return t / kWarp * 16 + t % kWarp / 4; }

// A slab, or one 16-wide step of it, as an operand. Contracted over its columns (`kColumns`), a step is 32 bytes along
// the rows, and groups of 8 rows follow 1,024 bytes apart. Contracted over its rows, a step is 16 rows, and the next 64
// columns follow `slab` bytes apart.
STCA_DEVICE uint64_t operand(uint32_t address, int leading, int stride) {
  // In a cluster the bits above name the block.
  const uint32_t low = (address & 0x3ffff) >> 4 | uint32_t(leading >> 4) << 16, high = uint32_t(stride >> 4) | 1u << 30;
  uint64_t both;
  asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low), "r"(high));
  return both;
}
// The operand `bytes` further on, a multiple of 16.
STCA_DEVICE constexpr uint64_t step(int bytes) { return uint64_t(bytes >> 4); }
STCA_DEVICE uint64_t by_columns(uint32_t address) { return operand(address, 16, 1024); }
STCA_DEVICE uint64_t by_rows(uint32_t address, int slab) { return operand(address, slab, 1024); }

// Before the first product of a group: registers written before are seen by it.
STCA_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
STCA_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroupsLeft>
STCA_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// The compiler may not move reads or writes of `d` across this point.
template <int N>
STCA_DEVICE void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define STCA_INOUT_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define STCA_INOUT_16(d, i) STCA_INOUT_4(d, i), STCA_INOUT_4(d, i + 4), STCA_INOUT_4(d, i + 8), STCA_INOUT_4(d, i + 12)
#define STCA_INOUT_32(d, i) STCA_INOUT_16(d, i), STCA_INOUT_16(d, i + 16)
#define STCA_INOUT_64(d, i) STCA_INOUT_32(d, i), STCA_INOUT_32(d, i + 32)
#define STCA_INOUT_128(d, i) STCA_INOUT_64(d, i), STCA_INOUT_64(d, i + 64)
#define STCA_REGISTERS_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define STCA_REGISTERS_64                                                                        \
  STCA_REGISTERS_32                                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define STCA_REGISTERS_128                                                                       \
  STCA_REGISTERS_64                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// The left operand of a product where registers hold it: a step of 16 columns, as mma's (ptx.cuh).
using Held = uint32_t[4];

// d [64, 64] = a [64, 16] b [16, 64], added to d where `add`; a is a slab.
template <class T>
STCA_DEVICE void product_64(float (&d)[32], uint64_t a, uint64_t b, bool add);
// What tensor maps call an element type.
template <class T>
struct MapType;

// product(T(), d, a, b, add): d [64, N] = a [64, 16] b [16, N], added to d where `add`, for N of 64 and 128; b is
// contracted over its columns or, where `kByRows`, over its rows.
#define STCA_HELD_PRODUCT(type, name, N, a0, a1, a2, a3, at_b, at_add, at_rows)                               \
  template <bool kByRows>                                                                                     \
  STCA_DEVICE void product(type, float (&d)[N / 2], const Held& a, uint64_t b, bool add) {                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " at_add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N      \
                 "k16.f32." name "." name " {" STCA_REGISTERS(N) "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " at_b \
                                                                 ", p, 1, 1, " at_rows ";\n}"                 \
                 : STCA_INOUT(N, d)                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(kByRows)));     \
  }
// add_product<...>(d, a, b, T()): d [64, N] += a [64, 16] b [16, N], for N of 128 and 256; a and b are slabs, each
// contracted over its columns or, where `k...ByRows`, over its rows.
#define STCA_SLAB_PRODUCT(type, name, N, at_a, at_b, left_rows, right_rows)                              \
  template <bool kLeftByRows, bool kRightByRows>                                                         \
  STCA_DEVICE void add_product(float (&d)[N / 2], uint64_t a, uint64_t b, type) {                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name                         \
                 " {" STCA_REGISTERS(N) "}, " at_a ", " at_b ", 1, 1, 1, " left_rows ", " right_rows ";" \
                 : STCA_INOUT(N, d)                                                                      \
                 : "l"(a), "l"(b), "n"(int(kLeftByRows)), "n"(int(kRightByRows)));                       \
  }
#define STCA_REGISTERS(N) STCA_REGISTERS_OF_##N
#define STCA_REGISTERS_OF_64 STCA_REGISTERS_32
#define STCA_REGISTERS_OF_128 STCA_REGISTERS_64
#define STCA_REGISTERS_OF_256 STCA_REGISTERS_128
#define STCA_INOUT(N, d) STCA_INOUT_OF_##N(d)
#define STCA_INOUT_OF_64(d) STCA_INOUT_32(d, 0)
#define STCA_INOUT_OF_128(d) STCA_INOUT_64(d, 0)
#define STCA_INOUT_OF_256(d) STCA_INOUT_128(d, 0)

#define STCA_WGMMA(type, name, map_type)                                                                               \
  template <>                                                                                                          \
  struct MapType<type> {                                                                                               \
    static constexpr CUtensorMapDataType value = map_type;                                                             \
  };                                                                                                                   \
  STCA_HELD_PRODUCT(type, name, 64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")                                   \
  STCA_HELD_PRODUCT(type, name, 128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")                                  \
  template <>                                                                                                          \
  __device__ __forceinline__ void product_64<type>(float (&d)[32], uint64_t a, uint64_t b, bool add) {                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name \
                 " {" STCA_REGISTERS_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                               \
                 : STCA_INOUT_32(d, 0)                                                                                 \
                 : "l"(a), "l"(b), "r"(int(add)));                                                                     \
  }                                                                                                                    \
  STCA_SLAB_PRODUCT(type, name, 128, "%64", "%65", "%66", "%67")                                                       \
  STCA_SLAB_PRODUCT(type, name, 256, "%128", "%129", "%130", "%131")
STCA_WGMMA(bfloat16, "bf16", CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)
STCA_WGMMA(float16, "f16", CU_TENSOR_MAP_DATA_TYPE_FLOAT16)
#undef STCA_WGMMA
#undef STCA_HELD_PRODUCT
#undef STCA_SLAB_PRODUCT

// Two values as a pair of 16 bits, the first in the lower half.
STCA_DEVICE uint32_t narrow_pair(float low, float high, bfloat16) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
STCA_DEVICE uint32_t narrow_pair(float low, float high, float16) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// Four 8 x 8 matrices to shared memory, a row each where the lanes say.
STCA_DEVICE void store_matrices(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
