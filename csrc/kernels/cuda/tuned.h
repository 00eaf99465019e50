// Numbers of choice.h, and which families of Hopper's kernels are on by default. Written by
// tools/tune_table.py from benchmarks/results/sm90-tuned.json and sm90.json: change those, then run it.
#pragma once

namespace stca {
namespace cuda {
namespace tuned {

// Source: chosen by hand, some by the H200 run of benchmarks/NOTES.md.
constexpr int attention_256_forward = 1;
constexpr int attention_256_backward = 1;
constexpr int attention_512_forward = 0;
constexpr int attention_512_backward = 0;
constexpr int attention_1024_forward = 0;
constexpr int attention_1024_backward = 0;
constexpr int attention_least_width = 128;
constexpr int attention_wide_rows = 32;
constexpr int projected_64_forward = 0;
constexpr int projected_64_dkv = 0;
constexpr int projected_64_dq = 0;
constexpr int projected_128_forward = 0;
constexpr int projected_128_dkv = 0;
constexpr int projected_128_dq = 0;
constexpr int projected_one_group = 64;
constexpr int few_rows = 16;
constexpr int ffn_gate = 0;
constexpr int ffn_down = 0;
constexpr int ffn_gate_backward = 0;
constexpr int ffn_input = 0;
constexpr int ffn_weights = 0;
constexpr int ffn_least_tiles = 1;
constexpr int ffn_swath = 1;

}  // namespace tuned
}  // namespace cuda
}  // namespace stca

// X(family, confirmed): whether tests and times on a GPU speak for the family.
// Source: no GPU has confirmed any.
#define STCA_FOR_EACH_SM90_FAMILY(X)   \
  X(target_attention, false)           \
  X(target_attention_projected, false) \
  X(swiglu_ffn_norm, false)
