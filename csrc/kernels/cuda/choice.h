// What measurements decide: which of a kernel's variants runs, and where one kernel takes over from another. tuned.h
// has the numbers. An ordinary build compiles the variants that these name and no others; one with STCA_TUNE compiles
// all, and choices are variables that tools/gpu_tune.py sets and times.
#pragma once

#include <tuple>
#include <type_traits>

#include "../dtype.h"
#include "tuned.h"

namespace stca {
namespace cuda {

// Names, and among how many variants each chooses; 0: a number. `few_rows`: query rows of a request and history head,
// on average, up to which there is a kernel of its own; `projected_one_group`: up to which a block of Hopper's kernels
// has one warpgroup of them; `attention_least_width`: wider rows than that, where v is k, are Hopper's;
// `attention_wide_rows`: and so are gradients of rows of more than 512 from so many query rows of a request on;
// `ffn_least_tiles`: quarters of a pair of tiles for each multiprocessor that Hopper's products take; `ffn_swath`: rows
// of tiles of a product that are made together.
#define STCA_FOR_EACH_CHOICE(X) \
  X(attention_256_forward, 3)   \
  X(attention_256_backward, 3)  \
  X(attention_512_forward, 2)   \
  X(attention_512_backward, 2)  \
  X(attention_1024_forward, 2)  \
  X(attention_1024_backward, 2) \
  X(attention_least_width, 0)   \
  X(attention_wide_rows, 0)     \
  X(projected_64_forward, 2)    \
  X(projected_64_dkv, 2)        \
  X(projected_64_dq, 2)         \
  X(projected_128_forward, 2)   \
  X(projected_128_dkv, 2)       \
  X(projected_128_dq, 2)        \
  X(projected_one_group, 0)     \
  X(few_rows, 0)                \
  X(ffn_gate, 2)                \
  X(ffn_down, 2)                \
  X(ffn_gate_backward, 2)       \
  X(ffn_input, 2)               \
  X(ffn_weights, 2)             \
  X(ffn_least_tiles, 0)         \
  X(ffn_swath, 0)

namespace choice {
#if defined(STCA_TUNE)
#define STCA_CHOICE_VALUE static inline int
#else
#define STCA_CHOICE_VALUE static constexpr int
#endif
#define STCA_CHOICE(name, variants)                                    \
  struct name {                                                        \
    static constexpr int kVariants = variants, kDefault = tuned::name; \
    STCA_CHOICE_VALUE value = kDefault;                                \
  };
STCA_FOR_EACH_CHOICE(STCA_CHOICE)
#undef STCA_CHOICE
#undef STCA_CHOICE_VALUE
}  // namespace choice

template <class... Variants>
struct VariantsOf {};

// Returns f(Variant()) for the variant that a choice names. Variants beside the ordinary build's are of bfloat16 alone.
template <class Choice, class T, class F, class... Variants>
auto visit_variant(VariantsOf<Variants...>, F f) {
  static_assert(Choice::kVariants == sizeof...(Variants) && Choice::kDefault < Choice::kVariants);
  using Default = std::tuple_element_t<Choice::kDefault, std::tuple<Variants...>>;
#if defined(STCA_TUNE)
  if constexpr (std::is_same_v<T, bfloat16>) {
    decltype(f(Default())) result{};
    int number = 0;
    ((Choice::value == number++ ? void(result = f(Variants())) : void()), ...);
    return result;
  } else {
    return f(Default());
  }
#else
  return f(Default());
#endif
}

}  // namespace cuda
}  // namespace stca
