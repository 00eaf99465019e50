// jagged_select: the histories of chosen requests, each cut to its last rows, in one copy.
#include <algorithm>
#include <tuple>

#include "register.h"
#include "rows.h"

namespace stca {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "jagged_select";

// The checked arguments, and the suffixes of histories that they choose, which have `rows` rows together.
struct Selection {
  Tensor offsets, index, lasts, ends;  // [R + 1], [S], [S], [S + 1]
  int64_t rows;

  Suffixes suffixes() const { return {lasts.size(0), ends.const_data_ptr<int64_t>(), lasts.const_data_ptr<int64_t>()}; }
};

Tensor checked_list(const char* name, const Tensor& tensor, const char* shape, int64_t size, const Tensor& values) {
  STCA_CHECK(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), kOp, name, " must be ", shape, ", got ",
             tensor.sizes());
  return checked_integers(kOp, name, tensor, "values", values);
}

// Checks values on the CPU, and writes the ends of the histories chosen, `lasts` [S], and of their suffixes among the
// rows selected, `ends` [S + 1].
void find_suffixes(const Tensor& offsets, const Tensor& index, const Tensor& keep, int64_t* lasts, int64_t* ends) {
  const int64_t *begins = offsets.const_data_ptr<int64_t>(), *request = index.const_data_ptr<int64_t>();
  const int64_t* kept = keep.defined() ? keep.const_data_ptr<int64_t>() : nullptr;
  const int64_t requests = offsets.size(0) - 1, count = index.size(0);
  ends[0] = 0;
  for (int64_t s = 0; s < count; ++s) {
    STCA_CHECK(0 <= request[s] && request[s] < requests, kOp, "index[", s, "] must be a request in [0, ", requests,
               "), got ", request[s]);
    STCA_CHECK(kept == nullptr || kept[s] >= 0, kOp, "keep[", s, "] must be a number of rows, at least 0, got ",
               kept[s]);
    lasts[s] = begins[request[s] + 1];
    const int64_t length = lasts[s] - begins[request[s]];
    STCA_CHECK(!__builtin_add_overflow(ends[s], kept == nullptr ? length : std::min(length, kept[s]), &ends[s + 1]),
               kOp, "index must select fewer than 2^63 rows, got more with index[", s, "] = ", request[s]);
  }
}

// Finds the suffixes by one kernel. Without a total the last of `ends` is read, which waits for the GPU.
void select_on_cuda(Selection& of, int64_t rows, const Tensor& keep, optional<int64_t> total, const Tensor& like) {
  const int64_t count = of.index.size(0);
  of.lasts = at::empty({count}, of.index.options());
  of.ends = at::empty({count + 1}, of.index.options());
  select_suffixes_on_cuda(
      kOp,
      {of.offsets.size(0) - 1, rows, of.offsets.const_data_ptr<int64_t>(), count, of.index.const_data_ptr<int64_t>(),
       keep.defined() ? keep.const_data_ptr<int64_t>() : nullptr, total.value_or(-1),
       of.lasts.mutable_data_ptr<int64_t>(), of.ends.mutable_data_ptr<int64_t>()},
      like);
  of.rows = total.has_value() ? *total : of.ends[count].item<int64_t>();
}

Selection select(const at::IntArrayRef values, const Tensor& like, const Tensor& offsets, const Tensor& index,
                 const optional<Tensor>& keep, optional<int64_t> total) {
  STCA_CHECK(values.size() >= 1, kOp, "values must be [N, ...], got ", values);
  STCA_CHECK(total.value_or(0) >= 0, kOp, "total must be at least 0, got ", *total);
  Selection of;
  of.offsets = checked_offsets(kOp, "offsets", offsets, values[0], "values", like);
  of.index = checked_list("index", index, "[S]", -1, like);
  const int64_t count = of.index.size(0);
  const Tensor kept = keep.has_value() ? checked_list("keep", *keep, "[S] like index", count, like) : Tensor();
  optional<int64_t> known;  // where values may be looked at, which is always so on the CPU
  if (const optional<Tensor> chosen = values_to_check(of.index); chosen.has_value()) {
    of.lasts = at::empty({count}, at::kLong);
    of.ends = at::empty({count + 1}, at::kLong);
    int64_t* ends = of.ends.mutable_data_ptr<int64_t>();
    find_suffixes(of.offsets.cpu(), *chosen, kept.defined() ? kept.cpu() : kept, of.lasts.mutable_data_ptr<int64_t>(),
                  ends);
    known = ends[count];
  }
  of.rows = known.has_value() ? *known : count == 0 ? 0 : total.value_or(0);
  STCA_CHECK(total.value_or(of.rows) == of.rows, kOp, "total must be the number of rows selected, ", of.rows, ", got ",
             *total);

  STCA_CHECK(of.offsets.size(0) > 1 || count == 0, kOp, "index must be empty without requests, got ", count);
  STCA_CHECK(values[0] > 0 || total.value_or(0) == 0, kOp, "total must be 0 where values has no rows, got ", *total);
  if constexpr (kWithCuda) {
    if (runs_on_cuda(like)) select_on_cuda(of, values[0], kept, total, like);
  }
  return of;
}

std::tuple<Tensor, Tensor> jagged_select(const Tensor& values, const Tensor& offsets, const Tensor& index,
                                         const optional<Tensor>& keep, optional<int64_t> total) {
  const Selection of = select(values.sizes(), values, offsets, index, keep, total);
  const char* reason = total.has_value() ? "total" : "what index and keep select";
  return {launch_copy_suffixes(kOp, values, of.suffixes(), of.rows, reason), of.ends.to(offsets.scalar_type())};
}

Tensor jagged_select_backward(const Tensor& grad, const Tensor& offsets, const Tensor& index,
                              const optional<Tensor>& keep, int64_t num_rows) {
  const Dtype dtype = checked_dtype(kOp, "grad", grad);
  STCA_CHECK(grad.dim() >= 1, kOp, "grad must be [total, ...], got ", grad.sizes());
  STCA_CHECK(num_rows >= 0, kOp, "num_rows must be at least 0, got ", num_rows);
  const Selection of = select({num_rows}, grad, offsets, index, keep, grad.size(0));
  return launch_suffix_sum(kOp, grad, of.suffixes(), of.index, of.offsets, num_rows, dtype);
}

}  // namespace

STCA_REGISTER(m) {
  m.impl("jagged_select", &jagged_select);
  m.impl("jagged_select_backward", &jagged_select_backward);
}

}  // namespace stca
