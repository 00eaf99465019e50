// swiglu_ffn_norm on CUDA: matrix products by torch, everything between them by our kernels.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/any.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
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

// Chunks of rows go one after the other through the same hidden rows. The matrix products are torch's: u and v, and
// their gradients, lie side by side, so that each pair takes one product, and dx is rounded once.
class Network {
 public:
  explicit Network(const SwigluFfnNormTensors& in)
      : in_(in),
        dtype_(checked_dtype(kOp, "x", in.x)),
        capacity_(std::min(kChunkRows, in.x.size(0))),
        call_(in.x),
        w_uv_(at::cat({in.w_u, in.w_v}, 1)),
        uv_(at::empty({capacity_, w_uv_.size(1)}, in.x.options())),
        g_(at::empty({capacity_, in.w_u.size(1)}, in.x.options())) {
    if (!in.norm_weight.has_value()) return;
    h_ = at::empty({capacity_, in.x.size(1)}, in.x.options());
    norm_weight_ = in.norm_weight->contiguous();
    if (in.norm_bias.has_value()) norm_bias_ = in.norm_bias->contiguous();
  }

  // y [N, D], and mean and rstd [N].
  void forward(double eps, const Tensor& y, const Tensor& mean, const Tensor& rstd) {
    for_each_chunk([&](int64_t begin, int64_t rows) {
      hide(in_.x.narrow(0, begin, rows));
      const Tensor y_rows = y.narrow(0, begin, rows);
      Tensor h = norm() ? h_.narrow(0, 0, rows) : y_rows;
      at::mm_out(h, g_.narrow(0, 0, rows), in_.w_o);
      if (norm()) {
        float *means = mean.mutable_data_ptr<float>() + begin, *rstds = rstd.mutable_data_ptr<float>() + begin;
        check(norm_cuda(norm_params(rows, eps, means, rstds), y_rows.mutable_data_ptr(), call_.stream()));
      }
    });
  }

  struct Gradients {
    Tensor x;          // [N, D]
    Tensor w_uv, w_o;  // [D, 2 F] and [F, D], in float32
    Tensor norm_sums;  // [parts, 2, D]: of norm_weight and norm_bias, by runs of rows
  };

  // Rows whose dy is all 0 go through as zeros: 0 times what they hold would be NaN where that is no finite number.
  void backward(const Tensor& dy, const Tensor& mean, const Tensor& rstd, const Gradients& grads) {
    for_each_chunk([&](int64_t begin, int64_t rows) {
      Tensor dh = dy.narrow(0, begin, rows);
      const Tensor has_gradient = at::any(dh, 1, /*keepdim=*/true);
      auto masked = [&](const Tensor& all) { return at::where(has_gradient, all.narrow(0, begin, rows), 0); };
      const Tensor x = masked(in_.x);
      hide(x);
      Tensor uv = uv_.narrow(0, 0, rows), g = g_.narrow(0, 0, rows);
      if (norm()) {
        Tensor h = h_.narrow(0, 0, rows);
        at::mm_out(h, g, in_.w_o);
        const Tensor means = masked(mean.view({-1, 1})), rstds = masked(rstd.view({-1, 1}));
        float* sums = grads.norm_sums.mutable_data_ptr<float>() + begin / kNormPartRows * 2 * h.size(1);
        check(norm_backward_cuda(norm_params(rows, 0.0, means.data_ptr<float>(), rstds.data_ptr<float>()),
                                 dh.const_data_ptr(), h.mutable_data_ptr(), sums, call_.stream()));
        dh = h;
      }
      grads.w_o.add_(at::mm(g.t(), dh));
      at::mm_out(g, dh, in_.w_o.t());
      check(swiglu_gate_backward_cuda(dtype_, uv.mutable_data_ptr(), g.const_data_ptr(), rows, g.size(1),
                                      call_.stream()));
      grads.w_uv.add_(at::mm(x.t(), uv));
      Tensor dx = grads.x.narrow(0, begin, rows);
      at::mm_out(dx, uv, w_uv_.t());
    });
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

  // Computes u, v and g of rows of x.
  void hide(const Tensor& x) {
    Tensor uv = uv_.narrow(0, 0, x.size(0));
    at::mm_out(uv, x, w_uv_);
    check(swiglu_gate_cuda(dtype_, uv.const_data_ptr(), g_.mutable_data_ptr(), x.size(0), g_.size(1), call_.stream()));
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
  Tensor w_uv_;                     // [D, 2 F]: w_u and w_v side by side
  Tensor uv_, g_;                   // [capacity, 2 F] and [capacity, F]; in the backward pass their gradients too
  Tensor h_;                        // [capacity, D]; not defined without a norm
  Tensor norm_weight_, norm_bias_;  // [D]; not defined where not given
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> swiglu_ffn_norm_on_cuda(const SwigluFfnNormTensors& in, double eps) {
  Network network(in);
  const Tensor y = at::empty(in.x.sizes(), in.x.options());
  const Tensor mean = at::empty({network.norm() ? in.x.size(0) : 0}, in.x.options().dtype(at::kFloat));
  const Tensor rstd = at::empty_like(mean);
  network.forward(eps, y, mean, rstd);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> swiglu_ffn_norm_backward_on_cuda(
    const SwigluFfnNormTensors& in, const Tensor& dy, const Tensor& mean, const Tensor& rstd, bool x_grad) {
  Network network(in);
  const at::TensorOptions sums = in.x.options().dtype(at::kFloat);
  const int64_t parts = network.norm() ? (in.x.size(0) + kNormPartRows - 1) / kNormPartRows : 0;
  const int64_t hidden = in.w_u.size(1);
  const Network::Gradients grads{at::empty(in.x.sizes(), in.x.options()), at::zeros({in.x.size(1), 2 * hidden}, sums),
                                 at::zeros(in.w_o.sizes(), sums), at::empty({parts, 2, in.x.size(1)}, sums)};
  network.backward(dy.contiguous(), mean.contiguous(), rstd.contiguous(), grads);
  const at::ScalarType dtype = in.x.scalar_type();
  const Tensor of_norm = at::sum(grads.norm_sums, 0).to(dtype), none = at::empty({0}, in.x.options());
  const auto half = [&](int64_t i) { return grads.w_uv.narrow(1, i * hidden, hidden).to(dtype).contiguous(); };
  return {x_grad ? grads.x : none.clone(),  // the chunks write it whether wanted or not
          half(0),
          half(1),
          grads.w_o.to(dtype),
          in.norm_weight.has_value() ? of_norm[0].clone() : none,
          in.norm_bias.has_value() ? of_norm[1].clone() : none.clone()};
}

}  // namespace stca
