// Backward pass of swiglu_ffn_norm on the CPU (formula and shapes: ../swiglu_ffn_norm.h).
//
//   dh = rstd * (a - mean(a) - xhat * mean(a * xhat))    a = dy * norm_weight, xhat = (h - mean) * rstd
//   dg = dh w_o^T    du = dg * silu(v)    dv = dg * u * silu'(v)    dx = du w_u^T + dv w_v^T
//   dw_o = g^T dh    dw_u = x^T du    dw_v = x^T dv    dnorm_weight = sum dy * xhat    dnorm_bias = sum dy
//
// A tile's u, v and g are computed again, and h where xhat cannot be had from y, (y - norm_bias) / norm_weight. The
// weights' gradients are summed over a thread's own rows; the parts are added in order of rows.
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

// Whether (y - bias) / weight is xhat, but for an error of 17 roundings at most.
template <class A>
bool recovers(const A* weight, const A* bias, int64_t width) {
  bool all = true;
  for (int64_t d = 0; d < width; ++d) {
    const A most = A(8) * __builtin_fabs(weight[d]);
    all = all && most > A(0) && most < kInfinity<A> && __builtin_fabs(bias[d]) <= most;
  }
  return all;
}

// dh over xhat, for one row; takes dy as working memory and adds to the norm's own gradients. Everything is filled up
// to whole panels, dy and the weight with zeros.
template <class A>
void differentiate_norm(A* dy, const A* weight, A rstd, int64_t width, A* row, A* dweight, A* dbias) {
  vec_t<A> total{}, dot{};
  const int64_t whole = whole_panels<A>(width);
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec_t<A> grad = load(dy + d), xhat = load(row + d), a = grad * load(weight + d);
    store(dweight + d, load(dweight + d) + grad * xhat);
    store(dbias + d, load(dbias + d) + grad);
    store(dy + d, a);  // rounded as its mean is, so that what cancels below cancels exactly
    total += a;
    dot += a * xhat;
  }
  const A a_mean = sum<A>(total) / A(width), dot_mean = sum<A>(dot) / A(width);
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    store(row + d, rstd * (load(dy + d) - a_mean - load(row + d) * dot_mean));
  }
}

// The transpose of rows of a tile as a left matrix, [width, rows]; pairs are made in `buffer`.
template <class S>
Strided<operand_t<S>> by_columns(Rows<S> x, int64_t rows, int64_t width, void* buffer) {
  if constexpr (kTerms<S> == 1) {
    return {x.data, 1, x.stride};
  } else {
    const int64_t stride = whole_panels<operand_t<S>>(width);
    operand_t<S>* pairs = static_cast<operand_t<S>*>(buffer);
    for (int64_t i = 0; i < rows; i += 2) {
      const S* row = x.data + i * x.stride;
      pair_rows(row, i + 1 < rows ? row + x.stride : nullptr, width, pairs + i / 2 * stride);
    }
    return {pairs, 1, stride};
  }
}

template <class T>
void backward_rows(const SwigluFfnNormBackwardParams& params, int64_t row_begin, int64_t row_end, void* weight_grads,
                   void* scratch) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const SwigluFfnNormParams& p = params.forward;
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  A* u = static_cast<A*>(scratch);
  A* v = u + p.tile_rows * hidden;
  A* g = v + p.tile_rows * hidden;
  A* dh = g + p.tile_rows * hidden;
  A* dx = dh + p.tile_rows * dim;
  A* dy = dx + p.tile_rows * dim;  // [D] of one row
  A* x_buffer = dy + dim;
  A* rounded = x_buffer + p.tile_rows * dim;  // g, or the columns of x
  for (int64_t d = 0; d < dim; ++d) dy[d] = 0;

  const SwigluFfnNormWeightGrads at = swiglu_ffn_norm_weight_grads(p);
  A* grads = static_cast<A*>(weight_grads);
  for (int64_t i = row_begin < row_end ? at.norm_weight : 0; i < at.size; ++i) grads[i] = 0;
  const A *weight = static_cast<const A*>(p.norm_weight), *bias = static_cast<const A*>(p.norm_bias);
  const bool has_xhat = p.norm && p.y != nullptr && recovers(weight, bias, p.dim);

  for (int64_t begin = row_begin; begin < row_end; begin += p.tile_rows) {
    const int64_t rows = min(p.tile_rows, row_end - begin);
    const bool add = begin > row_begin;
    const Rows<S> x = load_rows<T>(p.x, p.x_stride, p.dim, begin, rows, reinterpret_cast<S*>(x_buffer));
    const T* dy_rows = static_cast<const T*>(params.dy) + begin * p.dim;
    project_up(p, x, rows, u, v, hidden);
    gate<A>(u, v, g, rows * hidden);
    if (p.norm && !has_xhat) project_down<S>(p, g, hidden, rows, rounded, dh, dim);
    for (int64_t i = 0; i < rows; ++i) {
      if (!p.norm) {
        widen<T>(dy_rows + i * p.dim, dh + i * dim, p.dim);
        continue;
      }
      A* row = dh + i * dim;
      const A mean = static_cast<const A*>(p.mean)[begin + i], rstd = static_cast<const A*>(p.rstd)[begin + i];
      if (has_xhat) {
        widen<T>(static_cast<const T*>(p.y) + (begin + i) * p.dim, row, p.dim);
        for (int64_t d = 0; d < p.dim; ++d) row[d] = (row[d] - bias[d]) / weight[d];
        for (int64_t d = p.dim; d < dim; ++d) row[d] = 0;
      } else {
        for (int64_t d = 0; d < dim; ++d) row[d] = (row[d] - mean) * rstd;
      }
      widen<T>(dy_rows + i * p.dim, dy, p.dim);
      differentiate_norm<A>(dy, weight, rstd, p.dim, row, grads + at.norm_weight, grads + at.norm_bias);
    }
    const S* dh_rows = round_rows<S>(dh, rows, p.dim, dim, dh);
    multiply<S>(p.hidden, p.dim, rows, round_columns<S>(g, rows, hidden, g), Rows<S>{dh_rows, dim}, grads + at.w_o,
                p.dim, add);
    A* dg = g;
    multiply<S>(rows, whole_panels<A>(p.hidden), p.dim, by_rows(dh_rows, dim), packed<S>(params.w_o_t, p.dim), dg,
                hidden, false);
    differentiate_gate<A>(u, v, dg, rows * hidden);
    const S *du = round_rows<S>(u, rows, p.hidden, hidden, u), *dv = round_rows<S>(v, rows, p.hidden, hidden, v);
    const Strided<E> x_columns = by_columns(x, rows, p.dim, rounded);
    multiply<S>(p.dim, p.hidden, rows, x_columns, Rows<S>{du, hidden}, grads + at.w_u, p.hidden, add);
    multiply<S>(p.dim, p.hidden, rows, x_columns, Rows<S>{dv, hidden}, grads + at.w_v, p.hidden, add);
    if (params.dx == nullptr) continue;
    multiply<S>(rows, whole_panels<A>(p.dim), p.hidden, by_rows(du, hidden), packed<S>(params.w_u_t, p.hidden), dx, dim,
                false);
    multiply<S>(rows, whole_panels<A>(p.dim), p.hidden, by_rows(dv, hidden), packed<S>(params.w_v_t, p.hidden), dx, dim,
                true);
    for (int64_t i = 0; i < rows; ++i) {
      narrow<T>(dx + i * dim, static_cast<T*>(params.dx) + (begin + i) * p.dim, p.dim);
    }
  }
}

template <class T>
void sum_partials_of(const void* const* partials, int64_t count, int64_t offset, int64_t size, T* to) {
  using A = accumulator_t<T>;
  auto element = [&](int64_t part, int64_t i) { return static_cast<const A*>(partials[part])[offset + i]; };
  for (int64_t i = 0; i < size; ++i) {
    A total = element(0, i);
    for (int64_t part = 1; part < count; ++part) total += element(part, i);
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

void sum_partials(Dtype dtype, const void* const* partials, int64_t count, int64_t offset, int64_t size, void* to) {
  visit_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    sum_partials_of<T>(partials, count, offset, size, static_cast<T*>(to));
  });
}

}  // namespace STCA_ISA
}  // namespace stca
