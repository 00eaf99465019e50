// swiglu_ffn_norm: tensors to plain structs. Formula and shapes: ../kernels/swiglu_ffn_norm.h.
#include "swiglu_ffn_norm.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../kernels/swiglu_ffn_norm.h"
#include "register.h"

namespace stca {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "swiglu_ffn_norm";
// Elements of a weight in panels. Sizes that are made of it, of bytes and tiles, are numbers of 64 bits below this one,
// which no memory reaches: expanded weights may claim any.
constexpr int64_t kMostElements = int64_t(1) << 48;

// The checked inputs and what is packed from them, kept alive while `params` points into them.
struct Inputs {
  Tensor x;
  CpuIsa isa;  // panels are as wide as its vectors
  std::vector<Tensor> packed;
  SwigluFfnNormParams params;
};

// The matrix [rows, columns], or its transpose, in panels of the accumulation type.
const void* pack(Inputs& in, const Tensor& matrix, bool transposed) {
  const int64_t rows = matrix.size(transposed ? 1 : 0), columns = matrix.size(transposed ? 0 : 1);
  const int64_t row_stride = matrix.stride(transposed ? 1 : 0), column_stride = matrix.stride(transposed ? 0 : 1);
  const int64_t bytes = accumulator_size(in.params.dtype);
  in.packed.push_back(at::empty({panels_capacity(rows, columns) * bytes}, at::kByte));
  void* to = in.packed.back().mutable_data_ptr();
  const auto kernel = STCA_CPU_KERNEL(in.isa, pack_panels);
  const int64_t panels = (columns + kWidestPanel - 1) / kWidestPanel;
  at::parallel_for(0, panels, (1 << 15) / (rows * kWidestPanel) + 1, [&](int64_t begin, int64_t end) {
    kernel(in.params.dtype, matrix.const_data_ptr(), rows, columns, row_stride, column_stride, begin * kWidestPanel,
           std::min(end * kWidestPanel, columns), to);
  });
  return to;
}

// The matrix for the network's products. Where each thread has one tile, it is read where it lies: packing it would be
// one more way through memory.
const void* weight(Inputs& in, const Tensor& matrix) {
  if (in.params.in_panels) return pack(in, matrix, false);
  in.packed.push_back(matrix.contiguous());
  return in.packed.back().const_data_ptr();
}

// The vector [D] in the accumulation type, zeros where there is none and behind it, for whole panels.
const void* widen_vector(Inputs& in, const optional<Tensor>& vector) {
  const int64_t D = in.params.dim;
  const Tensor wide = at::zeros({panels_capacity(1, D)}, in.x.options().dtype(accumulation_type(in.x)));
  if (vector.has_value()) wide.narrow(0, 0, D).copy_(*vector);
  in.packed.push_back(wide);
  return wide.const_data_ptr();
}

void check_weight(const char* name, const Tensor& weight, const Tensor& x, const char* shape,
                  at::IntArrayRef expected) {
  STCA_CHECK(weight.sizes() == expected, kOp, name, " must be ", shape, " = ", expected, ", got ", weight.sizes());
  check_same(kOp, name, weight, "x", x);
}

void check_inputs(const SwigluFfnNormTensors& in) {
  const Tensor& x = in.x;
  checked_dtype(kOp, "x", x);
  check_dims(kOp, "x", x, "[N, D]", 2);
  check_dims(kOp, "w_u", in.w_u, "[D, F]", 2);
  const int64_t D = x.size(1), F = in.w_u.size(1);
  STCA_CHECK(D > 0 && F > 0, kOp, "x [N, D] and w_u [D, F] must have D and F of at least 1, got ", x.sizes(), " and ",
             in.w_u.sizes());
  TORCH_CHECK_WITH(OutOfMemoryError,
                   std::max(D, F) < kMostElements && D + kWidestPanel < kMostElements / (F + kWidestPanel), kOp,
                   ": weights of D = ", D, " and F = ", F, " do not fit into memory");
  check_weight("w_u", in.w_u, x, "[D, F]", {D, F});
  check_weight("w_v", in.w_v, x, "[D, F]", {D, F});
  check_weight("w_o", in.w_o, x, "[F, D]", {F, D});
  STCA_CHECK(in.norm_weight.has_value() || !in.norm_bias.has_value(), kOp,
             "norm_bias must be None where norm_weight is None, got a tensor");
  if (in.norm_weight.has_value()) check_weight("norm_weight", *in.norm_weight, x, "[D]", {D});
  if (in.norm_bias.has_value()) check_weight("norm_bias", *in.norm_bias, x, "[D]", {D});
}

// `network`: with the weights of its products.
Inputs packed_inputs(const SwigluFfnNormTensors& from, double eps, bool network = true) {
  Inputs in;
  in.params = {};
  SwigluFfnNormParams& p = in.params;
  p.dtype = checked_dtype(kOp, "x", from.x);
  in.isa = cpu_isa(p.dtype);
  in.x = with_contiguous_rows(from.x);
  p.num_rows = in.x.size(0);
  p.dim = in.x.size(1);
  p.hidden = from.w_u.size(1);
  const int64_t threads = at::get_num_threads();
  p.tile_rows = swiglu_ffn_norm_tile_rows(p.dim, p.hidden, p.num_rows, threads, false);
  p.in_panels = p.num_rows > threads * p.tile_rows;
  p.eps = eps;
  p.norm = from.norm_weight.has_value();
  p.x = in.x.const_data_ptr();
  p.x_stride = in.x.stride(0);
  p.w_u = network ? weight(in, from.w_u) : nullptr;
  p.w_v = network ? weight(in, from.w_v) : nullptr;
  p.w_o = network ? weight(in, from.w_o) : nullptr;
  p.norm_weight = p.norm ? widen_vector(in, *from.norm_weight) : nullptr;
  p.norm_bias = p.norm ? widen_vector(in, from.norm_bias) : nullptr;
  return in;
}

// On the CPU h is not rounded on its way to the norm. On CUDA it is the product's result, in x's dtype.
at::ScalarType type_of_kept_h(const Tensor& x) { return runs_on_cuda(x) ? x.scalar_type() : accumulation_type(x); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> swiglu_ffn_norm(const Tensor& x, const Tensor& w_u,
                                                                   const Tensor& w_v, const Tensor& w_o,
                                                                   const optional<Tensor>& norm_weight,
                                                                   const optional<Tensor>& norm_bias, double eps,
                                                                   bool keep) {
  const SwigluFfnNormTensors tensors{x, w_u, w_v, w_o, norm_weight, norm_bias};
  check_inputs(tensors);
  const int64_t N = x.size(0), normed = norm_weight.has_value() ? N : 0;
  const auto statistics = x.options().dtype(accumulation_type(x));
  const Tensor y = at::empty(x.sizes(), x.options());
  const Tensor mean = at::empty({normed}, statistics), rstd = at::empty({normed}, statistics);
  const Tensor none = at::empty({0}, x.options());
  const Tensor uv = keep ? at::empty({N, 2 * w_u.size(1)}, x.options()) : none;
  const Tensor h =
      at::empty(keep && norm_weight.has_value() ? x.sizes() : at::IntArrayRef{0}, x.options().dtype(type_of_kept_h(x)));
  const SwigluFfnNormKept kept = keep ? SwigluFfnNormKept{uv, h} : SwigluFfnNormKept{};
  if constexpr (kWithCuda) {
    if (runs_on_cuda(x)) {
      swiglu_ffn_norm_on_cuda(tensors, eps, y, mean, rstd, kept);
      return {y, mean, rstd, uv, h};
    }
  }
  Inputs in = packed_inputs(tensors, eps);
  SwigluFfnNormParams& p = in.params;
  p.y = y.mutable_data_ptr();
  p.mean = mean.mutable_data_ptr();
  p.rstd = rstd.mutable_data_ptr();
  p.uv = keep ? uv.mutable_data_ptr() : nullptr;
  p.h = keep ? h.mutable_data_ptr() : nullptr;
  const auto kernel = STCA_CPU_KERNEL(in.isa, swiglu_ffn_norm_rows);
  const int64_t tiles = (p.num_rows + p.tile_rows - 1) / p.tile_rows;
  for_each_item(tiles, STCA_CPU_KERNEL(in.isa, swiglu_ffn_norm_scratch)(p), [&](int64_t tile, void* scratch) {
    const int64_t begin = tile * p.tile_rows;
    kernel(p, begin, std::min(begin + p.tile_rows, p.num_rows), scratch);
  });
  return {y, mean, rstd, uv, h};
}

void check_kept_rows(const char* name, const Tensor& rows, int64_t width, at::ScalarType dtype, const Tensor& x) {
  STCA_CHECK(
      rows.sizes() == at::IntArrayRef({x.size(0), width}) && rows.scalar_type() == dtype && rows.device() == x.device(),
      kOp, name, " must be as the forward pass kept it, [", x.size(0), ", ", width, "] of ", dtype, " on ", x.device(),
      ", got ", rows.sizes(), " of ", rows.scalar_type(), " on ", rows.device());
}

SwigluFfnNormKept checked_kept(const SwigluFfnNormTensors& in, const optional<Tensor>& uv, const optional<Tensor>& h) {
  STCA_CHECK(uv.has_value() == h.has_value(), kOp, "uv and h must be given together, got one of them");
  if (!uv.has_value()) return {};
  check_kept_rows("uv", *uv, 2 * in.w_u.size(1), in.x.scalar_type(), in.x);
  if (in.norm_weight.has_value()) check_kept_rows("h", *h, in.x.size(1), type_of_kept_h(in.x), in.x);
  return {uv->contiguous(), h->contiguous()};
}

// The rows of dy that are not all 0, ascending; not defined where these are all.
Tensor rows_with_gradient(const Inputs& in, const Tensor& dy) {
  const int64_t N = in.params.num_rows;
  const Tensor found = at::empty({N}, at::kBool);
  bool* has = found.mutable_data_ptr<bool>();
  const auto kernel = STCA_CPU_KERNEL(in.isa, find_gradients);
  at::parallel_for(0, N, (1 << 16) / in.params.dim + 1, [&](int64_t begin, int64_t end) {
    kernel(in.params.dtype, dy.const_data_ptr(), in.params.dim, begin, end, has);
  });
  const int64_t count = std::count(has, has + N, true);
  if (count == N) return Tensor();
  const Tensor rows = at::empty({count}, at::kLong);
  int64_t* to = rows.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < N; ++i) {
    if (has[i]) *to++ = i;
  }
  return rows;
}

// Writes dx, and returns what each thread sums of the weights' gradients, over a range of the `count` rows that have
// one.
std::vector<Tensor> run_backward(const SwigluFfnNormBackwardParams& p, CpuIsa isa, int64_t count) {
  const int64_t tiles = (count + p.forward.tile_rows - 1) / p.forward.tile_rows;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(tiles, at::get_num_threads()));
  const int64_t part_rows = (tiles + parts - 1) / parts * p.forward.tile_rows;
  const int64_t bytes = swiglu_ffn_norm_weight_grads(p.forward).size * accumulator_size(p.forward.dtype);
  std::vector<Tensor> partials;  // one by one: malloc keeps what is smaller than 32 MB for the next call
  for (int64_t part = 0; part < parts; ++part) partials.push_back(at::empty({bytes}, at::kByte));
  const auto kernel = STCA_CPU_KERNEL(isa, swiglu_ffn_norm_backward_rows);
  for_each_item(parts, STCA_CPU_KERNEL(isa, swiglu_ffn_norm_backward_scratch)(p.forward),
                [&](int64_t part, void* scratch) {
                  const int64_t begin = std::min(part * part_rows, count), end = std::min(begin + part_rows, count);
                  kernel(p, begin, end, partials[part].mutable_data_ptr(), scratch);
                });
  return partials;
}

// A weight's gradient: what the threads have summed from element `offset` on, added up in order of their ranges.
Tensor summed(const Inputs& in, const std::vector<Tensor>& partials, int64_t offset, at::IntArrayRef sizes) {
  std::vector<const void*> memory;
  for (const Tensor& partial : partials) memory.push_back(partial.const_data_ptr());
  const Tensor grad = at::empty(sizes, in.x.options());
  const auto reduce = STCA_CPU_KERNEL(in.isa, sum_partials);
  char* to = static_cast<char*>(grad.mutable_data_ptr());
  at::parallel_for(0, grad.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    reduce(in.params.dtype, memory.data(), memory.size(), offset + begin, end - begin,
           to + begin * grad.element_size());
  });
  return grad;
}

// They must be as the forward pass gave them.
void check_statistics(const char* name, const Tensor& of, const SwigluFfnNormTensors& in) {
  const int64_t rows = in.norm_weight.has_value() ? in.x.size(0) : 0;
  const at::ScalarType dtype = accumulation_type(in.x);
  STCA_CHECK(of.dim() == 1 && of.size(0) == rows && of.scalar_type() == dtype && of.device() == in.x.device(), kOp,
             name, " must be [", rows, "] of ", dtype, " on ", in.x.device(), ", got ", of.sizes(), " of ",
             of.scalar_type(), " on ", of.device());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> swiglu_ffn_norm_backward(
    const Tensor& dy, const Tensor& x, const Tensor& w_u, const Tensor& w_v, const Tensor& w_o,
    const optional<Tensor>& norm_weight, const optional<Tensor>& norm_bias, const Tensor& mean, const Tensor& rstd,
    const optional<Tensor>& y, bool x_grad, const optional<Tensor>& uv, const optional<Tensor>& h) {
  const SwigluFfnNormTensors tensors{x, w_u, w_v, w_o, norm_weight, norm_bias};
  check_inputs(tensors);
  STCA_CHECK(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(), kOp, "dy must be like y, ", x.sizes(),
             " of ", x.scalar_type(), ", got ", dy.sizes(), " of ", dy.scalar_type());
  check_same(kOp, "dy", dy, "x", x);
  check_statistics("mean", mean, tensors);
  check_statistics("rstd", rstd, tensors);
  const SwigluFfnNormKept kept = checked_kept(tensors, uv, h);
  if constexpr (kWithCuda) {
    if (runs_on_cuda(x)) return swiglu_ffn_norm_backward_on_cuda(tensors, dy, mean, rstd, x_grad, kept);
  }
  Inputs in = packed_inputs(tensors, 0.0, !kept.uv.defined());
  const Tensor dy_rows = dy.contiguous(), mean_rows = mean.contiguous(), rstd_rows = rstd.contiguous();
  if (y.has_value()) {
    check_same(kOp, "y", *y, "x", x);
    STCA_CHECK(y->sizes() == x.sizes(), kOp, "y must be like x, ", x.sizes(), ", got ", y->sizes());
  }
  const Tensor y_rows = y.has_value() ? y->contiguous() : Tensor();
  in.params.y = y.has_value() ? y_rows.data_ptr() : nullptr;
  in.params.mean = mean_rows.data_ptr();
  in.params.rstd = rstd_rows.data_ptr();
  in.params.uv = kept.uv.defined() ? kept.uv.data_ptr() : nullptr;
  in.params.h = kept.h.defined() ? kept.h.data_ptr() : nullptr;
  const Tensor rows = rows_with_gradient(in, dy_rows);
  const Tensor dx = rows.defined() && x_grad ? at::zeros(x.sizes(), x.options())
                                             : at::empty(x_grad ? x.sizes() : at::IntArrayRef{0}, x.options());
  SwigluFfnNormBackwardParams p{in.params,
                                rows.defined() ? rows.const_data_ptr<int64_t>() : nullptr,
                                x_grad ? pack(in, w_u, true) : nullptr,
                                x_grad ? pack(in, w_v, true) : nullptr,
                                pack(in, w_o, true),
                                dy_rows.const_data_ptr(),
                                x_grad ? dx.mutable_data_ptr() : nullptr};

  const int64_t count = rows.defined() ? rows.size(0) : x.size(0);
  p.forward.tile_rows = swiglu_ffn_norm_tile_rows(p.forward.dim, p.forward.hidden, count, at::get_num_threads(), true);
  const std::vector<Tensor> partials = run_backward(p, in.isa, count);
  const SwigluFfnNormWeightGrads at = swiglu_ffn_norm_weight_grads(in.params);
  auto of_norm = [&](int64_t offset, bool wanted) { return summed(in, partials, offset, {wanted ? x.size(1) : 0}); };
  return {dx,
          summed(in, partials, at.w_u, w_u.sizes()),
          summed(in, partials, at.w_v, w_v.sizes()),
          summed(in, partials, at.w_o, w_o.sizes()),
          of_norm(at.norm_weight, norm_weight.has_value()),
          of_norm(at.norm_bias, norm_bias.has_value())};
}

}  // namespace

STCA_REGISTER(m) {
  m.impl("swiglu_ffn_norm", &swiglu_ffn_norm);
  m.impl("swiglu_ffn_norm_backward", &swiglu_ffn_norm_backward);
}

}  // namespace stca
