// swiglu_ffn_norm on CUDA: matrix products by torch or by Hopper's own kernels, everything between them by our kernels.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/any.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "../kernels/swiglu_ffn_norm_cuda.h"
#include "cuda.h"
#include "swiglu_ffn_norm.h"

namespace stca {
namespace {

using at::Tensor;

constexpr const char* kOp = "swiglu_ffn_norm";

// So many rows go through the network together: 66 tiles of 128, which with 8, 16 or 32 tiles of columns are whole
// waves of an H100's 132 multiprocessors.
constexpr int64_t kChunkRows = 66 * 128;
static_assert(kChunkRows % kNormPartRows == 0, "no run of rows lies in two chunks");

// Whether rows of a matrix start at multiples of 16 bytes, each at its own.
bool rows_aligned(const Tensor& x) {
  return x.stride(1) == 1 && x.stride(0) > 0 && x.stride(0) * x.element_size() % 16 == 0 &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

// Chunks of rows go one after the other through the same hidden rows. u and v, and their gradients, lie side by side,
// so that each pair takes one product, and dx is rounded once. Hopper's products bring the gate or its derivative with
// them, so that u and v of the forward pass are never written, and sum weights' gradients in float32; torch's round
// those of each chunk.
class Network {
 public:
  // `dy` in the backward pass, nullptr in the forward pass.
  explicit Network(const SwigluFfnNormTensors& in, const Tensor* dy = nullptr)
      : in_(in),
        dtype_(checked_dtype(kOp, "x", in.x)),
        capacity_(std::min(kChunkRows, in.x.size(0))),
        call_(in.x),
        hopper_(ffn_products_cuda_take(dtype_, capacity_, in.x.size(1), in.w_u.size(1), call_.device()) &&
                rows_aligned(dy != nullptr ? *dy : in.x) && rows_aligned(in.w_o) && in.w_o.is_contiguous()),
        w_uv_(at::cat({in.w_u, in.w_v}, 1)),
        g_(at::empty({capacity_, in.w_u.size(1)}, in.x.options())) {
    if (dy != nullptr || !hopper_) uv_ = at::empty({capacity_, w_uv_.size(1)}, in.x.options());
    if (!in.norm_weight.has_value()) return;
    h_ = at::empty({capacity_, in.x.size(1)}, in.x.options());
    norm_weight_ = in.norm_weight->contiguous();
    if (in.norm_bias.has_value()) norm_bias_ = in.norm_bias->contiguous();
  }

  // y [N, D], and mean and rstd [N].
  void forward(double eps, const Tensor& y, const Tensor& mean, const Tensor& rstd, const SwigluFfnNormKept& kept) {
    for_each_chunk([&](int64_t begin, int64_t rows) {
      if (kept.uv.defined()) uv_ = kept.uv.narrow(0, begin, rows);
      if (kept.uv.defined() && norm()) h_ = kept.h.narrow(0, begin, rows);
      hide(in_.x.narrow(0, begin, rows));
      const Tensor y_rows = y.narrow(0, begin, rows);
      project(g_.narrow(0, 0, rows), norm() ? h_.narrow(0, 0, rows) : y_rows);
      if (norm()) {
        float *means = mean.mutable_data_ptr<float>() + begin, *rstds = rstd.mutable_data_ptr<float>() + begin;
        check(norm_cuda(norm_params(rows, eps, means, rstds), y_rows.mutable_data_ptr(), call_.stream()));
      }
    });
  }

  struct Gradients {
    Tensor x;          // [N, D]
    Tensor w_uv, w_o;  // [splits, D, 2 F] and [splits, F, D], in float32, to be added up
    Tensor norm_sums;  // [parts, 2, D]: of norm_weight and norm_bias, by runs of rows
  };

  // Rows whose dy is all 0 go through as zeros: 0 times what they hold would be NaN where that is no finite number.
  void backward(const Tensor& dy, const Tensor& mean, const Tensor& rstd, const SwigluFfnNormKept& kept,
                const Gradients& grads) {
    for_each_chunk([&](int64_t begin, int64_t rows) {
      Tensor dh = dy.narrow(0, begin, rows);
      const Tensor has_gradient = at::any(dh, 1, /*keepdim=*/true);
      auto masked = [&](const Tensor& all) {
        return at::where(has_gradient, all.narrow(0, begin, rows), 0).contiguous();
      };
      const Tensor x = masked(in_.x);
      if (kept.uv.defined()) {
        uv_ = masked(kept.uv);
        gate(rows);
      } else {
        hide(x);
      }
      Tensor uv = uv_.narrow(0, 0, rows), g = g_.narrow(0, 0, rows);
      if (norm()) {
        if (kept.uv.defined()) h_ = masked(kept.h);
        Tensor h = h_.narrow(0, 0, rows);
        if (!kept.uv.defined()) project(g, h);
        const Tensor means = masked(mean.view({-1, 1})), rstds = masked(rstd.view({-1, 1}));
        float* sums = grads.norm_sums.mutable_data_ptr<float>() + begin / kNormPartRows * 2 * h.size(1);
        check(norm_backward_cuda(norm_params(rows, 0.0, means.data_ptr<float>(), rstds.data_ptr<float>()),
                                 dh.const_data_ptr(), h.mutable_data_ptr(), sums, call_.stream()));
        dh = h;
      }
      add_weight_gradients(g, dh, grads.w_o);
      differentiate_gate(dh, uv, g);
      add_weight_gradients(x, uv, grads.w_uv);
      Tensor dx = grads.x.narrow(0, begin, rows);
      if (hopper_) {
        product(FfnProduct::kInput, uv, w_uv_, dx);
      } else {
        at::mm_out(dx, uv, w_uv_.t());
      }
    });
  }

  // Zeros for the gradient of a weight [rows, columns].
  Tensor weight_gradients(int64_t rows, int64_t columns) const {
    const int splits = hopper_ ? ffn_weight_splits(rows, columns, call_.device()) : 1;
    return at::zeros({splits, rows, columns}, in_.x.options().dtype(at::kFloat));
  }

  bool norm() const { return norm_weight_.defined(); }

 private:
  template <class F>
  void for_each_chunk(const F& f) const {
    // torch's operators below see plain tensors: what was to be converted or recorded, the caller has done.
    const at::AutoDispatchBelowADInplaceOrView plain;
    const c10::impl::ExcludeDispatchKeyGuard as_they_are(c10::autocast_dispatch_keyset);
    for (int64_t begin = 0; begin < in_.x.size(0); begin += kChunkRows) {
      f(begin, std::min(kChunkRows, in_.x.size(0) - begin));
    }
  }

  // Computes g of rows of x, and u and v where there is a place for them.
  void hide(const Tensor& x) {
    if (hopper_) return product(FfnProduct::kGate, x, w_uv_, g_.narrow(0, 0, x.size(0)), uv_);
    Tensor uv = uv_.narrow(0, 0, x.size(0));
    at::mm_out(uv, x, w_uv_);
    gate(x.size(0));
  }

  void gate(int64_t rows) {
    check(swiglu_gate_cuda(dtype_, uv_.const_data_ptr(), g_.mutable_data_ptr(), rows, g_.size(1), call_.stream()));
  }

  // h = g w_o.
  void project(const Tensor& g, Tensor h) const {
    if (hopper_) return product(FfnProduct::kDown, g, in_.w_o, h);
    at::mm_out(h, g, in_.w_o);
  }

  // du and dv take the place of u and v; g may be overwritten.
  void differentiate_gate(const Tensor& dh, const Tensor& uv, Tensor g) const {
    if (hopper_) return product(FfnProduct::kGateBackward, dh, in_.w_o, uv);
    at::mm_out(g, dh, in_.w_o.t());
    check(swiglu_gate_backward_cuda(dtype_, uv.mutable_data_ptr(), g.const_data_ptr(), g.size(0), g.size(1),
                                    call_.stream()));
  }

  // Adds left^T right to `sums`.
  void add_weight_gradients(const Tensor& left, const Tensor& right, const Tensor& sums) const {
    if (hopper_) return product(FfnProduct::kWeights, left, right, sums);
    sums[0].add_(at::mm(left.t(), right));
  }

  void product(FfnProduct kind, const Tensor& left, const Tensor& right, const Tensor& to,
               const Tensor& uv = {}) const {
    const bool weights = kind == FfnProduct::kWeights;
    const FfnProductParams params{dtype_,
                                  left.size(weights ? 1 : 0),
                                  kind == FfnProduct::kGateBackward ? to.size(1) / 2 : to.size(-1),
                                  left.size(weights ? 0 : 1),
                                  left.const_data_ptr(),
                                  left.stride(0),
                                  right.const_data_ptr(),
                                  to.mutable_data_ptr(),
                                  uv.defined() ? uv.mutable_data_ptr() : nullptr,
                                  weights ? int(to.size(0)) : 1};
    check(ffn_product_cuda(kind, params, call_.device(), call_.stream()));
  }

  NormParams norm_params(int64_t rows, double eps, float* mean, float* rstd) const {
    return {dtype_,
            rows,
            in_.x.size(1),
            eps,
            h_.const_data_ptr(),
            norm_weight_.const_data_ptr(),
            norm_bias_.defined() ? norm_bias_.const_data_ptr() : nullptr,
            mean,
            rstd};
  }

  void check(const char* error) const { call_.check(kOp, error); }

  const SwigluFfnNormTensors& in_;
  Dtype dtype_;
  int64_t capacity_;
  CudaCall call_;
  bool hopper_;                     // whether its own products take the call
  Tensor w_uv_;                     // [D, 2 F]: w_u and w_v side by side
  Tensor g_, uv_;                   // [capacity, F] and [capacity, 2 F]; in the backward pass their gradients too
  Tensor h_;                        // [capacity, D]; not defined without a norm
  Tensor norm_weight_, norm_bias_;  // [D]; not defined where not given
};

}  // namespace

void swiglu_ffn_norm_on_cuda(const SwigluFfnNormTensors& in, double eps, const Tensor& y, const Tensor& mean,
                             const Tensor& rstd, const SwigluFfnNormKept& kept) {
  Network(in).forward(eps, y, mean, rstd, kept);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> swiglu_ffn_norm_backward_on_cuda(
    const SwigluFfnNormTensors& in, const Tensor& dy, const Tensor& mean, const Tensor& rstd, bool x_grad,
    const SwigluFfnNormKept& kept) {
  const Tensor dy_rows = dy.contiguous();
  Network network(in, &dy_rows);
  const int64_t parts = network.norm() ? (in.x.size(0) + kNormPartRows - 1) / kNormPartRows : 0;
  const int64_t hidden = in.w_u.size(1);
  const Network::Gradients grads{at::empty(in.x.sizes(), in.x.options()),
                                 network.weight_gradients(in.x.size(1), 2 * hidden),
                                 network.weight_gradients(hidden, in.x.size(1)),
                                 at::empty({parts, 2, in.x.size(1)}, in.x.options().dtype(at::kFloat))};
  network.backward(dy_rows, mean.contiguous(), rstd.contiguous(), kept, grads);
  const at::ScalarType dtype = in.x.scalar_type();
  const Tensor of_norm = at::sum(grads.norm_sums, 0).to(dtype), none = at::empty({0}, in.x.options());
  const auto total = [](const Tensor& splits) { return splits.size(0) == 1 ? splits[0] : at::sum(splits, 0); };
  const Tensor w_uv = total(grads.w_uv);
  const auto half = [&](int64_t i) { return w_uv.narrow(1, i * hidden, hidden).to(dtype).contiguous(); };
  return {x_grad ? grads.x : none.clone(),  // the chunks write it whether wanted or not
          half(0),
          half(1),
          total(grads.w_o).to(dtype),
          in.norm_weight.has_value() ? of_norm[0].clone() : none,
          in.norm_bias.has_value() ? of_norm[1].clone() : none.clone()};
}

}  // namespace stca
