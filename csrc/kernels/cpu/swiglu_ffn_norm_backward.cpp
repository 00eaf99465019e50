// Backward pass of swiglu_ffn_norm on the CPU (formula and shapes: ../swiglu_ffn_norm.h).
//
//   dh = rstd * (a - mean(a) - xhat * mean(a * xhat))    a = dy * norm_weight, xhat = (h - mean) * rstd
//   dg = dh w_o^T    du = dg * silu(v)    dv = dg * u * silu'(v)    dx = du w_u^T + dv w_v^T
//   dw_o = g^T dh    dw_u = x^T du    dw_v = x^T dv    dnorm_weight = sum dy * xhat    dnorm_bias = sum dy
//
// A tile's u and v are computed again where they were not kept, and h where it was not and xhat cannot be had from y,
// (y - norm_bias) / norm_weight. The weights' gradients are summed over a thread's own rows; the parts are added in
// order of rows. Rows whose dy is all 0 are left out: 0 times what they hold would be NaN where that is no finite
// number.
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

// The largest |bias / weight| if y can tell xhat = (y - bias) / weight, else infinity. Of a weight close to the
// smallest numbers y keeps few bits (none where the CPU takes subnormal ones as 0), and of one close to the largest it
// overflows.
template <class A>
A bias_ratio(const A* weight, const A* bias, int64_t width) {
  constexpr A kMost = sizeof(A) == sizeof(double) ? A(0x1p960) : A(0x1p96);
  A ratio = 0;
  for (int64_t d = 0; d < width; ++d) {
    const A size = __builtin_fabs(weight[d]), each = __builtin_fabs(bias[d]) / size;
    if (!(size >= 1 / kMost && size <= kMost && each < kInfinity<A>)) return kInfinity<A>;
    ratio = each > ratio ? each : ratio;
  }
  return ratio;
}

// xhat over y, for one row; everything is filled up to whole panels, the weight with zeros. False where what the bias
// rounded off y counts in xhat: its root mean square is 1, but less where eps hides the variance of h.
template <class A>
bool recover_xhat(const A* weight, const A* bias, A ratio, int64_t width, A* row) {
  constexpr A kMostRatio = 8;  // of the bias to what the norm adds to it: an error of 17 roundings at most
  vec_t<A> squares{};
  for (int64_t d = 0; d < whole_panels<A>(width); d += kLanes<A>) {
    const vec_t<A> w = load(weight + d), xhat = (load(row + d) - load(bias + d)) / w;
    const vec_t<A> known = w != A(0) ? xhat : vec_t<A>{};
    squares += known * known;
    store(row + d, known);
  }
  return kMostRatio * kMostRatio * sum<A>(squares) >= ratio * ratio * A(width);
}

// dh over xhat, for one row; takes dy as working memory and adds to the norm's own gradients. Everything is filled up
// to whole panels, dy and the weight with zeros. Where h is large beside its deviation, rounding leaves xhat a mean,
// which is taken off, so that the sum of dh is 0 as it must be.
template <class A>
void differentiate_norm(A* dy, const A* weight, A rstd, int64_t width, A* row, A* dweight, A* dbias) {
  vec_t<A> total{}, dot{}, xhats{};
  const int64_t whole = whole_panels<A>(width);
  for (int64_t d = width; d < whole; ++d) row[d] = 0;
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec_t<A> grad = load(dy + d), xhat = load(row + d), a = grad * load(weight + d);
    store(dweight + d, load(dweight + d) + grad * xhat);
    store(dbias + d, load(dbias + d) + grad);
    store(dy + d, a);  // rounded as its mean is, so that what cancels below cancels exactly
    total += a;
    dot += a * xhat;
    xhats += xhat;
  }
  const A a_mean = sum<A>(total) / A(width), dot_mean = sum<A>(dot) / A(width);
  const A mean = sum<A>(xhats) / A(width);
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    store(row + d, rstd * (load(dy + d) - a_mean - (load(row + d) - mean) * dot_mean));
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

// xhat of a tile from y; false where it cannot be recovered from y. `row_at(i)` is the tile's row i among all.
template <class T, class RowAt>
bool recover_tile(const SwigluFfnNormParams& p, int64_t rows, RowAt row_at, accumulator_t<T> ratio,
                  accumulator_t<T>* xhat) {
  using A = accumulator_t<T>;
  const A *weight = static_cast<const A*>(p.norm_weight), *bias = static_cast<const A*>(p.norm_bias);
  bool told = ratio < kInfinity<A>;
  for (int64_t i = 0; i < rows && told; ++i) {
    A* row = xhat + i * whole_panels<A>(p.dim);
    widen<T>(static_cast<const T*>(p.y) + row_at(i) * p.dim, row, p.dim);
    told = recover_xhat(weight, bias, ratio, p.dim, row);
  }
  return told;
}

// dh of a tile over its xhat, or over nothing without a norm. `dy` is working memory of one row, zeros behind D.
template <class T, class RowAt>
void differentiate_rows(const SwigluFfnNormBackwardParams& params, int64_t rows, RowAt row_at, accumulator_t<T>* dy,
                        accumulator_t<T>* dh, accumulator_t<T>* dweight, accumulator_t<T>* dbias) {
  using A = accumulator_t<T>;
  const SwigluFfnNormParams& p = params.forward;
  for (int64_t i = 0; i < rows; ++i) {
    A* row = dh + i * whole_panels<A>(p.dim);
    widen<T>(static_cast<const T*>(params.dy) + row_at(i) * p.dim, p.norm ? dy : row, p.dim);
    if (!p.norm) continue;
    differentiate_norm<A>(dy, static_cast<const A*>(p.norm_weight), static_cast<const A*>(p.rstd)[row_at(i)], p.dim,
                          row, dweight, dbias);
  }
}

// What a tile's rows become, in the thread's scratch memory.
template <class T>
struct Workspace {
  using A = accumulator_t<T>;
  A *u, *v, *g;  // [rows, F]; g holds dg later, u and v du and dv
  A *dh, *dx;    // [rows, D]; dh holds xhat first
  A* dy;         // [D] of one row, zeros behind it
  tile_t<T>* x;  // [rows, D] where x is copied
  void* pairs;   // g or the columns of x, where they are rounded to pairs
};

template <class T>
Workspace<T> workspace_of(const SwigluFfnNormParams& p, Scratch& scratch) {
  using A = accumulator_t<T>;
  using E = operand_t<tile_t<T>>;
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  Workspace<T> work;
  work.u = scratch.take<A>(p.tile_rows * hidden);
  work.v = scratch.take<A>(p.tile_rows * hidden);
  work.g = scratch.take<A>(p.tile_rows * hidden);
  work.dh = scratch.take<A>(p.tile_rows * dim);
  work.dx = scratch.take<A>(p.tile_rows * dim);
  work.dy = scratch.take<A>(dim);
  work.x = scratch.take<tile_t<T>>(p.tile_rows * whole_operands<tile_t<T>>(p.dim));
  const int64_t pairs = kTerms<tile_t<T>> == 1 ? 0 : p.tile_rows * max(hidden, whole_panels<E>(p.dim));
  work.pairs = scratch.take<A>(pairs);
  return work;
}

// A tile of a kept tensor's rows [N, width], which start `stride` elements apart, filled up to whole panels with zeros.
template <class T, class RowAt>
void load_kept(const void* tensor, int64_t stride, int64_t width, int64_t rows, RowAt row_at, accumulator_t<T>* to) {
  const int64_t padded_width = whole_panels<accumulator_t<T>>(width);
  for (int64_t i = 0; i < rows; ++i, to += padded_width) {
    widen<T>(static_cast<const T*>(tensor) + row_at(i) * stride, to, width);
    for (int64_t c = width; c < padded_width; ++c) to[c] = 0;
  }
}

// u, v and g of a tile, and in dh what the gradient of h starts from: xhat, by way of y or of h, or nothing.
template <class T, class RowAt>
void restore_tile(const SwigluFfnNormParams& p, Rows<tile_t<T>> x, int64_t rows, RowAt row_at, accumulator_t<T> ratio,
                  const Workspace<T>& work) {
  using A = accumulator_t<T>;
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  const A *mean = static_cast<const A*>(p.mean), *rstd = static_cast<const A*>(p.rstd);
  if (p.uv == nullptr) {
    project_up<T>(p, x, rows, work.u, work.v, hidden);
  } else {
    const T* uv = static_cast<const T*>(p.uv);
    load_kept<T>(uv, 2 * p.hidden, p.hidden, rows, row_at, work.u);
    load_kept<T>(uv + p.hidden, 2 * p.hidden, p.hidden, rows, row_at, work.v);
  }
  gate<A>(work.u, work.v, work.g, rows * hidden);
  if (!p.norm || recover_tile<T>(p, rows, row_at, ratio, work.dh)) return;
  if (p.h == nullptr) {
    project_down<T>(p, work.g, hidden, rows, work.pairs, work.dh, dim);
  } else {
    load_kept<A>(p.h, p.dim, p.dim, rows, row_at, work.dh);
  }
  for (int64_t i = 0; i < rows; ++i) {
    A* row = work.dh + i * dim;
    for (int64_t d = 0; d < dim; ++d) row[d] = (row[d] - mean[row_at(i)]) * rstd[row_at(i)];
  }
}

// From dh of a tile its part of the weights' gradients, and dx. `add`: to the parts of tiles before.
template <class T, class RowAt>
void differentiate_network(const SwigluFfnNormBackwardParams& params, Rows<tile_t<T>> x, int64_t rows, RowAt row_at,
                           bool add, const Workspace<T>& work, accumulator_t<T>* grads) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  using E = operand_t<S>;
  const SwigluFfnNormParams& p = params.forward;
  const SwigluFfnNormWeightGrads at = swiglu_ffn_norm_weight_grads(p);
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  const S* dh = round_rows<S>(work.dh, rows, p.dim, dim, work.dh);
  multiply<S>(p.hidden, p.dim, rows, round_columns<S>(work.g, rows, hidden, work.g), Rows<S>{dh, dim}, grads + at.w_o,
              p.dim, add);
  A* dg = work.g;
  multiply<S>(rows, hidden, p.dim, by_rows(dh, dim), packed<S>(params.w_o_t, p.dim), dg, hidden, false);
  differentiate_gate<A>(work.u, work.v, dg, rows * hidden);
  const S* du = round_rows<S>(work.u, rows, p.hidden, hidden, work.u);
  const S* dv = round_rows<S>(work.v, rows, p.hidden, hidden, work.v);
  const Strided<E> x_columns = by_columns(x, rows, p.dim, work.pairs);
  multiply<S>(p.dim, p.hidden, rows, x_columns, Rows<S>{du, hidden}, grads + at.w_u, p.hidden, add);
  multiply<S>(p.dim, p.hidden, rows, x_columns, Rows<S>{dv, hidden}, grads + at.w_v, p.hidden, add);
  if (params.dx == nullptr) return;
  multiply<S>(rows, dim, p.hidden, by_rows(du, hidden), packed<S>(params.w_u_t, p.hidden), work.dx, dim, false);
  multiply<S>(rows, dim, p.hidden, by_rows(dv, hidden), packed<S>(params.w_v_t, p.hidden), work.dx, dim, true);
  for (int64_t i = 0; i < rows; ++i) {
    narrow<T>(work.dx + i * dim, static_cast<T*>(params.dx) + row_at(i) * p.dim, p.dim);
  }
}

template <class T>
void backward_rows(const SwigluFfnNormBackwardParams& params, int64_t places_begin, int64_t places_end,
                   void* weight_grads, void* memory) {
  using A = accumulator_t<T>;
  const SwigluFfnNormParams& p = params.forward;
  Scratch scratch(memory);
  const Workspace<T> work = workspace_of<T>(p, scratch);
  for (int64_t d = 0; d < whole_panels<A>(p.dim); ++d) work.dy[d] = 0;

  const SwigluFfnNormWeightGrads at = swiglu_ffn_norm_weight_grads(p);
  A* grads = static_cast<A*>(weight_grads);
  for (int64_t i = places_begin < places_end ? at.norm_weight : 0; i < at.size; ++i) grads[i] = 0;
  const A ratio = p.norm && p.y != nullptr
                      ? bias_ratio(static_cast<const A*>(p.norm_weight), static_cast<const A*>(p.norm_bias), p.dim)
                      : kInfinity<A>;

  for (int64_t begin = places_begin; begin < places_end; begin += p.tile_rows) {
    const int64_t rows = min(p.tile_rows, places_end - begin);
    auto row_at = [&](int64_t i) { return params.rows == nullptr ? begin + i : params.rows[begin + i]; };
    const Rows<tile_t<T>> x = load_rows<T>(p.x, p.x_stride, p.dim, rows, work.x, row_at);
    restore_tile<T>(p, x, rows, row_at, ratio, work);
    differentiate_rows<T>(params, rows, row_at, work.dy, work.dh, grads + at.norm_weight, grads + at.norm_bias);
    differentiate_network<T>(params, x, rows, row_at, begin > places_begin, work, grads);
  }
}

// By words of 8 bytes, for any type at the same speed.
template <class T>
bool has_gradient(const T* row, int64_t width) {
  constexpr int64_t kWords = 8, kStep = kWords * 8 / int64_t(sizeof(T));
  constexpr uint64_t kMagnitude = sizeof(T) == 8   ? 0x7fffffffffffffff
                                  : sizeof(T) == 4 ? 0x7fffffff7fffffff
                                                   : 0x7fff7fff7fff7fff;
  int64_t d = 0;
  for (; d + kStep <= width; d += kStep) {
    uint64_t words[kWords], bits = 0;
    __builtin_memcpy(words, row + d, sizeof words);
    for (uint64_t word : words) bits |= word;
    if ((bits & kMagnitude) != 0) return true;
  }
  for (; d < width; ++d) {
    if (!(widen(row[d]) == 0)) return true;  // not a number is not zero
  }
  return false;
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

void find_gradients(Dtype dtype, const void* dy, int64_t dim, int64_t begin, int64_t end, bool* has) {
  visit_own_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    for (int64_t i = begin; i < end; ++i) has[i] = has_gradient(static_cast<const T*>(dy) + i * dim, dim);
  });
}

int64_t swiglu_ffn_norm_backward_scratch(const SwigluFfnNormParams& params) {
  Scratch scratch(nullptr);
  visit_own_dtype(params.dtype, [&](auto type) { workspace_of<typename decltype(type)::element>(params, scratch); });
  return scratch.bytes();
}

void swiglu_ffn_norm_backward_rows(const SwigluFfnNormBackwardParams& params, int64_t begin, int64_t end,
                                   void* weight_grads, void* scratch) {
  visit_own_dtype(params.forward.dtype, [&](auto type) {
    backward_rows<typename decltype(type)::element>(params, begin, end, weight_grads, scratch);
  });
}

void sum_partials(Dtype dtype, const void* const* partials, int64_t count, int64_t offset, int64_t size, void* to) {
  visit_own_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    sum_partials_of<T>(partials, count, offset, size, static_cast<T*>(to));
  });
}

}  // namespace STCA_ISA
}  // namespace stca
