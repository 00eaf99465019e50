#include "common.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

namespace stca {

namespace {

// torch's number for an element type of the kernels.
template <class T>
constexpr at::ScalarType kScalarType = c10::CppTypeToScalarType<T>::value;
template <>
constexpr at::ScalarType kScalarType<bfloat16> = at::kBFloat16;
template <>
constexpr at::ScalarType kScalarType<float16> = at::kHalf;

// Joins two names or more as "float32, bfloat16 or float16".
std::string one_of(std::initializer_list<const char*> names) {
  std::string text;
  for (const char* const* name = names.begin(); name != names.end(); ++name) {
    text += name == names.begin() ? "" : name + 1 == names.end() ? " or " : ", ";
    text += *name;
  }
  return text;
}

}  // namespace

Dtype checked_dtype(const char* op, const char* name, const at::Tensor& tensor) {
#define STCA_DTYPE_FIND(enumerator, element, accumulator, name) \
  if (tensor.scalar_type() == kScalarType<element>) return Dtype::enumerator;
#define STCA_DTYPE_NAME(enumerator, element, accumulator, name) name,
  if (runs_on_cuda(tensor)) {
    STCA_FOR_EACH_CUDA_DTYPE(STCA_DTYPE_FIND)
    STCA_CHECK(false, op, name, " must be ", one_of({STCA_FOR_EACH_CUDA_DTYPE(STCA_DTYPE_NAME)}), " on CUDA, got ",
               tensor.scalar_type());
  }
  STCA_FOR_EACH_DTYPE(STCA_DTYPE_FIND)
  STCA_CHECK(false, op, name, " must be ", one_of({STCA_FOR_EACH_DTYPE(STCA_DTYPE_NAME)}), ", got ",
             tensor.scalar_type());
#undef STCA_DTYPE_FIND
#undef STCA_DTYPE_NAME
}

void check_dims(const char* op, const char* name, const at::Tensor& tensor, const char* shape, int64_t dims) {
  STCA_CHECK(tensor.dim() == dims, op, name, " must be ", shape, ", got ", tensor.sizes());
}

void check_same(const char* op, const char* name, const at::Tensor& tensor, const char* model_name,
                const at::Tensor& model) {
  STCA_CHECK(tensor.scalar_type() == model.scalar_type(), op, name, " must have the dtype of ", model_name, ", ",
             model.scalar_type(), ", got ", tensor.scalar_type());
  STCA_CHECK(tensor.device() == model.device(), op, name, " must be on the device of ", model_name, ", ",
             model.device(), ", got ", tensor.device());
}

std::optional<at::Tensor> values_to_check(const at::Tensor& integers) {
  if (!runs_on_cuda(integers)) return integers;
  const char* debug = std::getenv("STCA_DEBUG");
  if (debug == nullptr || std::strcmp(debug, "1") != 0) return std::nullopt;
  return integers.to(at::kCPU);
}

at::Tensor checked_integers(const char* op, const char* name, const at::Tensor& tensor, const char* rows_name,
                            const at::Tensor& rows) {
  STCA_CHECK(tensor.scalar_type() == at::kInt || tensor.scalar_type() == at::kLong, op, name,
             " must be int32 or int64, got ", tensor.scalar_type());
  STCA_CHECK(tensor.device() == rows.device(), op, name, " must be on the device of ", rows_name, ", ", rows.device(),
             ", got ", tensor.device());
  return (tensor.scalar_type() == at::kLong ? tensor : tensor.to(at::kLong)).contiguous();
}

at::Tensor checked_offsets(const char* op, const char* name, const at::Tensor& offsets, std::optional<int64_t> total,
                           const char* rows_name, const at::Tensor& rows) {
  STCA_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1, op, name, " must be [R + 1], got ", offsets.sizes());
  const at::Tensor checked = checked_integers(op, name, offsets, rows_name, rows);
  const std::optional<at::Tensor> values = values_to_check(checked);
  if (!values.has_value()) {  // kernels have no request then for which they could report this
    STCA_CHECK(offsets.size(0) > 1 || total.value_or(0) == 0, op, name, " must end at the number of rows of ",
               rows_name, ", ", *total, ", got no requests");
    return checked;
  }
  const int64_t* at = values->const_data_ptr<int64_t>();
  const int64_t last = checked.size(0) - 1;
  STCA_CHECK(at[0] == 0, op, name, " must start at 0, got ", at[0]);
  for (int64_t i = 0; i < last; ++i) {
    STCA_CHECK(at[i] <= at[i + 1], op, name, " must not decrease, got ", at[i], " then ", at[i + 1], " at index ",
               i + 1);
  }
  STCA_CHECK(!total.has_value() || at[last] == *total, op, name, " must end at the number of rows of ", rows_name, ", ",
             *total, ", got ", at[last]);
  return checked;
}

at::ScalarType accumulation_type(const at::Tensor& tensor) {
#define STCA_DTYPE_ACCUMULATOR(enumerator, element, accumulator, name) \
  if (tensor.scalar_type() == kScalarType<element>) return kScalarType<accumulator>;
  STCA_FOR_EACH_DTYPE(STCA_DTYPE_ACCUMULATOR)
#undef STCA_DTYPE_ACCUMULATOR
  return at::kFloat;
}

at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace stca
