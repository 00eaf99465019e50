// The element types of every kernel, listed once.
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

// X(enumerator, element type, accumulation type)
#define STCA_FOR_EACH_DTYPE(X)  \
  X(kFloat64, double, double)   \
  X(kFloat32, float, float)     \
  X(kBFloat16, bfloat16, float) \
  X(kFloat16, float16, float)

enum class Dtype : int {
#define STCA_DTYPE_ENUMERATOR(name, type, accumulator) name,
  STCA_FOR_EACH_DTYPE(STCA_DTYPE_ENUMERATOR)
#undef STCA_DTYPE_ENUMERATOR
};

template <class T>
struct Accumulator;
#define STCA_DTYPE_ACCUMULATOR(name, element, accumulator) \
  template <>                                              \
  struct Accumulator<element> {                            \
    using type = accumulator;                              \
  };
STCA_FOR_EACH_DTYPE(STCA_DTYPE_ACCUMULATOR)
#undef STCA_DTYPE_ACCUMULATOR

// float for the 16-bit types, the type itself otherwise.
template <class T>
using accumulator_t = typename Accumulator<T>::type;

template <class T>
struct Element {
  using element = T;
};

// Calls f(Element<T>()) for the type T that `dtype` names.
template <class F>
void visit_dtype(Dtype dtype, F f) {
  switch (dtype) {
#define STCA_DTYPE_VISIT(name, element, accumulator) \
  case Dtype::name:                                  \
    return f(Element<element>());
    STCA_FOR_EACH_DTYPE(STCA_DTYPE_VISIT)
#undef STCA_DTYPE_VISIT
  }
}

constexpr const char* dtype_name(Dtype dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return kNames[int(dtype)];
}

constexpr int64_t accumulator_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float); }

}  // namespace stca
