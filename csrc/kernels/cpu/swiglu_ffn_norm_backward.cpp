// Backward pass of swiglu_ffn_norm on the CPU (formula and shapes: ../swiglu_ffn_norm.h).
//
//   dh = rstd * (a - mean(a) - xhat * mean(a * xhat))    a = dy * norm_weight, xhat = (h - mean) * rstd
//   dg = dh w_o^T    du = dg * silu(v)    dv = dg * u * silu'(v)    dx = du w_u^T + dv w_v^T
//   dw_o = g^T dh    dw_u = x^T du    dw_v = x^T dv    dnorm_weight = sum dy * xhat    dnorm_bias = sum dy
//
// A tile's u, v, g and h are computed again. The weights' gradients are summed over a thread's own rows; the parts are
// added in order of rows.
#include "swiglu_ffn_norm_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// du over u and dv over v, from dg.
template <class A>
void differentiate_gate(A* u, A* v, const A* dg, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const vec_t<A> up = load(u + i), x = load(v + i), d = load(dg + i);
    const vec_t<A> s = sigmoid<A>(x);
    store(u + i, d * x * s);
    store(v + i, d * up * s * (A(1) + x * (A(1) - s)));
  }
}

// dh over h, for one row; takes dy as working memory and adds to the norm's own gradients. Everything is filled up to
// whole panels, dy and the weight with zeros.
template <class A>
void differentiate_norm(A* dy, const A* weight, A mean, A rstd, int64_t width, A* h, A* dweight, A* dbias) {
  vec_t<A> total{}, dot{};
  const int64_t whole = whole_panels<A>(width);
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec_t<A> grad = load(dy + d), xhat = (load(h + d) - mean) * rstd, a = grad * load(weight + d);
    store(dweight + d, load(dweight + d) + grad * xhat);
    store(dbias + d, load(dbias + d) + grad);
    store(dy + d, a);  // rounded as its mean is, so that what cancels below cancels exactly
    total += a;
    dot += a * xhat;
  }
  const A a_mean = sum<A>(total) / A(width), dot_mean = sum<A>(dot) / A(width);
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec_t<A> xhat = (load(h + d) - mean) * rstd;
    store(h + d, rstd * (load(dy + d) - a_mean - xhat * dot_mean));
  }
}

template <class T>
void backward_rows(const SwigluFfnNormBackwardParams& params, int64_t row_begin, int64_t row_end, void* weight_grads,
                   void* scratch) {
  using A = accumulator_t<T>;
  const SwigluFfnNormParams& p = params.forward;
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  A* u = static_cast<A*>(scratch);
  A* v = u + kSwigluTileRows * hidden;
  A* g = v + kSwigluTileRows * hidden;
  A* dh = g + kSwigluTileRows * hidden;
  A* dx = dh + kSwigluTileRows * dim;
  A* x_buffer = dx + kSwigluTileRows * dim;
  A* dy = x_buffer + kSwigluTileRows * dim;  // [D] of one row
  for (int64_t d = 0; d < dim; ++d) dy[d] = 0;

  const SwigluFfnNormWeightGrads at = swiglu_ffn_norm_weight_grads(p);
  A* grads = static_cast<A*>(weight_grads);
  for (int64_t i = 0; i < at.size; ++i) grads[i] = 0;

  for (int64_t begin = row_begin; begin < row_end; begin += kSwigluTileRows) {
    const int64_t rows = min(kSwigluTileRows, row_end - begin);
    const Strided<A> x = load_rows<T>(p.x, p.x_stride, p.dim, begin, rows, x_buffer);
    const Strided<A> x_columns{x.data, x.column, x.row};
    const T* dy_rows = static_cast<const T*>(params.dy) + begin * p.dim;
    project_up<A>(p, x, rows, u, v, hidden);
    gate<A>(u, v, g, rows * hidden);
    if (p.norm) project_down<A>(p, g, hidden, rows, dh, dim);
    for (int64_t i = 0; i < rows; ++i) {
      if (!p.norm) {
        widen<T>(dy_rows + i * p.dim, dh + i * dim, p.dim);
        continue;
      }
      widen<T>(dy_rows + i * p.dim, dy, p.dim);
      differentiate_norm<A>(dy, static_cast<const A*>(p.norm_weight), static_cast<const A*>(p.mean)[begin + i],
                            static_cast<const A*>(p.rstd)[begin + i], p.dim, dh + i * dim, grads + at.norm_weight,
                            grads + at.norm_bias);
    }
    multiply<A>(p.hidden, p.dim, rows, {g, 1, hidden}, plain_rows(dh, dim), grads + at.w_o, p.dim, true);
    A* dg = g;
    multiply<A>(rows, whole_panels<A>(p.hidden), p.dim, {dh, dim, 1}, panels_from<A>(params.w_o_t, p.dim, 0, 0), dg,
                hidden, false);
    differentiate_gate<A>(u, v, dg, rows * hidden);
    const A *du = u, *dv = v;
    multiply<A>(p.dim, p.hidden, rows, x_columns, plain_rows(du, hidden), grads + at.w_u, p.hidden, true);
    multiply<A>(p.dim, p.hidden, rows, x_columns, plain_rows(dv, hidden), grads + at.w_v, p.hidden, true);
    multiply<A>(rows, whole_panels<A>(p.dim), p.hidden, {du, hidden, 1}, panels_from<A>(params.w_u_t, p.hidden, 0, 0),
                dx, dim, false);
    multiply<A>(rows, whole_panels<A>(p.dim), p.hidden, {dv, hidden, 1}, panels_from<A>(params.w_v_t, p.hidden, 0, 0),
                dx, dim, true);
    for (int64_t i = 0; i < rows; ++i) {
      narrow<T>(dx + i * dim, static_cast<T*>(params.dx) + (begin + i) * p.dim, p.dim);
    }
  }
}

template <class T>
void sum_partials_of(const accumulator_t<T>* partials, int64_t count, int64_t stride, int64_t size, T* to) {
  for (int64_t i = 0; i < size; ++i) {
    accumulator_t<T> total = partials[i];
    for (int64_t part = 1; part < count; ++part) total += partials[part * stride + i];
    to[i] = narrow<T>(total);
  }
}

}  // namespace

void swiglu_ffn_norm_backward_rows(const SwigluFfnNormBackwardParams& params, int64_t row_begin, int64_t row_end,
                                   void* weight_grads, void* scratch) {
  visit_dtype(params.forward.dtype, [&](auto type) {
    backward_rows<typename decltype(type)::element>(params, row_begin, row_end, weight_grads, scratch);
  });
}

void sum_partials(Dtype dtype, const void* partials, int64_t count, int64_t stride, int64_t size, void* to) {
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    sum_partials_of<T>(static_cast<const accumulator_t<T>*>(partials), count, stride, size, static_cast<T*>(to));
  });
}

}  // namespace STCA_ISA
}  // namespace stca
