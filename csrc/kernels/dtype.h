// The element types of every kernel: those of CUDA, and all, which are the CPU's. A type that is not in a device's list
// is refused there by name (ops/common.cpp), and no kernel takes it (visit_dtype here, visit_cuda_dtype in
// cuda/common.cuh).
#pragma once

#include <cstdint>

namespace stca {

// Storage only: arithmetic happens in the accumulation type.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// X(enumerator, element type, accumulation type, name)
#define STCA_FOR_EACH_CUDA_DTYPE(X)         \
  X(kFloat32, float, float, "float32")      \
  X(kBFloat16, bfloat16, float, "bfloat16") \
  X(kFloat16, float16, float, "float16")
#define STCA_FOR_EACH_DTYPE(X)           \
  X(kFloat64, double, double, "float64") \
  STCA_FOR_EACH_CUDA_DTYPE(X)

enum class Dtype : int {
#define STCA_DTYPE_ENUMERATOR(enumerator, element, accumulator, name) enumerator,
  STCA_FOR_EACH_DTYPE(STCA_DTYPE_ENUMERATOR)
#undef STCA_DTYPE_ENUMERATOR
};

template <class T>
struct DtypeOf;
#define STCA_DTYPE_OF(enumerator, element, accumulator, name) \
  template <>                                                 \
  struct DtypeOf<element> {                                   \
    static constexpr Dtype value = Dtype::enumerator;         \
    using accumulator_type = accumulator;                     \
  };
STCA_FOR_EACH_DTYPE(STCA_DTYPE_OF)
#undef STCA_DTYPE_OF

// float for the 16-bit types, the type itself otherwise.
template <class T>
using accumulator_t = typename DtypeOf<T>::accumulator_type;

template <class T>
struct Element {
  using element = T;
};

// Calls f(Element<T>()) for the type T that `dtype` names.
template <class F>
void visit_dtype(Dtype dtype, F f) {
  switch (dtype) {
#define STCA_DTYPE_VISIT(enumerator, element, accumulator, name) \
  case Dtype::enumerator:                                        \
    return f(Element<element>());
    STCA_FOR_EACH_DTYPE(STCA_DTYPE_VISIT)
#undef STCA_DTYPE_VISIT
  }
}

constexpr const char* dtype_name(Dtype dtype) {
#define STCA_DTYPE_NAME(enumerator, element, accumulator, name) name,
  constexpr const char* kNames[] = {STCA_FOR_EACH_DTYPE(STCA_DTYPE_NAME)};
#undef STCA_DTYPE_NAME
  return kNames[int(dtype)];
}

// Bytes of an element.
constexpr int64_t element_size(Dtype dtype) {
#define STCA_DTYPE_SIZE(enumerator, element, accumulator, name) sizeof(element),
  constexpr int64_t kSizes[] = {STCA_FOR_EACH_DTYPE(STCA_DTYPE_SIZE)};
#undef STCA_DTYPE_SIZE
  return kSizes[int(dtype)];
}

// The element type that sums of a type's products are made in.
constexpr Dtype accumulator_dtype(Dtype dtype) {
#define STCA_DTYPE_ACCUMULATOR(enumerator, element, accumulator, name) DtypeOf<accumulator>::value,
  constexpr Dtype kAccumulators[] = {STCA_FOR_EACH_DTYPE(STCA_DTYPE_ACCUMULATOR)};
#undef STCA_DTYPE_ACCUMULATOR
  return kAccumulators[int(dtype)];
}

constexpr int64_t accumulator_size(Dtype dtype) { return element_size(accumulator_dtype(dtype)); }

}  // namespace stca
