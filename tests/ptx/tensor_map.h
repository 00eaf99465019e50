// What a tensor map says, and what the machine keeps of it in the driver's 128 opaque bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "machine.h"

namespace ptx {

// Tiles of 16-bit elements in 128-byte rows, swizzled; what lies outside of the tensor is 0.
struct TensorMap {
  uint64_t magic;
  uint64_t data;
  uint32_t sizes[3];
  uint32_t box[3];
  uint64_t strides[2];  // bytes

  static constexpr uint64_t kMagic = 0x70616d726f736e65;

  static const TensorMap* of(const char* raw) {
    const auto* map = reinterpret_cast<const TensorMap*>(raw);
    if (map->magic != kMagic) throw Fault("ptx: no tensor map lies where one was said to be");
    return map;
  }

  int bytes() const { return int(box[0] * box[1] * box[2] * 2); }

  // The box that starts at these coordinates, as it lies in shared memory from row `first_row` of a slab on.
  std::vector<char> read(const int* at, uint32_t first_row) const {
    std::vector<char> tile(size_t(box[0]) * box[1] * box[2] * 2, 0);
    for (uint32_t z = 0; z < box[2]; ++z) {
      for (uint32_t y = 0; y < box[1]; ++y) {
        const uint32_t row = z * box[1] + y;
        for (uint32_t x = 0; x < box[0]; x += 8) {
          const int64_t c[3] = {int64_t(at[0]) + x, int64_t(at[1]) + y, int64_t(at[2]) + z};
          if (c[1] < 0 || c[2] < 0 || c[1] >= sizes[1] || c[2] >= sizes[2]) continue;
          const int64_t whole = std::min<int64_t>(8, int64_t(sizes[0]) - c[0]);
          if (c[0] < 0 || whole <= 0) continue;
          const uint64_t from = data + uint64_t(c[0]) * 2 + uint64_t(c[1]) * strides[0] + uint64_t(c[2]) * strides[1];
          if (global_memory().find(from, size_t(2 * whole)) == nullptr) {
            throw Fault("ptx: a tensor map reads " + std::to_string(2 * whole) + " bytes " +
                        global_memory().where(from));
          }
          const uint32_t chunk = (x / 8) ^ ((first_row + row) & 7);
          std::memcpy(tile.data() + row * 128 + chunk * 16, reinterpret_cast<const void*>(from), size_t(2 * whole));
        }
      }
    }
    return tile;
  }
};

}  // namespace ptx
