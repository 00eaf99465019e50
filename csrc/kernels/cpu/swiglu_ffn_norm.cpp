// Forward pass of swiglu_ffn_norm on the CPU (formula and shapes: ../swiglu_ffn_norm.h).
//
// A tile of rows goes through the whole network while it is in cache: two products up, the gate, the product down, the
// norm. The weights are read in panels packed once per call, or, by few rows, where they lie.
#include "swiglu_ffn_norm_tile.h"

namespace stca {
namespace STCA_ISA {
namespace {

// Mean and reciprocal deviation of a row, in two passes.
template <class A>
void statistics(const A* h, int64_t width, A eps, A* mean, A* rstd) {
  const int64_t whole = width / kLanes<A> * kLanes<A>;
  vec_t<A> total = load_first(h + whole, width - whole, A(0));
  for (int64_t d = 0; d < whole; d += kLanes<A>) total += load(h + d);
  *mean = sum<A>(total) / A(width);
  const vec_t<A> rest = load_first(h + whole, width - whole, *mean) - *mean;
  vec_t<A> squares = rest * rest;
  for (int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec_t<A> difference = load(h + d) - *mean;
    squares += difference * difference;
  }
  const A variance = sum<A>(squares) / A(width) + eps;
  *rstd = A(1) / A(sizeof(A) == sizeof(double) ? __builtin_sqrt(variance) : __builtin_sqrtf(variance));
}

// What a tile's rows become, in the thread's scratch memory.
template <class T>
struct Workspace {
  accumulator_t<T>*u, *v, *h;  // [rows, F], [rows, F], [rows, D]
  tile_t<T>* x;                // [rows, D] where x is copied
};

template <class T>
Workspace<T> workspace_of(const SwigluFfnNormParams& p, Scratch& scratch) {
  using A = accumulator_t<T>;
  const int64_t hidden = p.tile_rows * whole_panels<A>(p.hidden), dim = p.tile_rows * whole_panels<A>(p.dim);
  Workspace<T> work;
  work.u = scratch.take<A>(hidden);
  work.v = scratch.take<A>(hidden);
  work.h = scratch.take<A>(dim);
  work.x = scratch.take<tile_t<T>>(p.tile_rows * whole_operands<tile_t<T>>(p.dim));
  return work;
}

template <class T>
void forward_rows(const SwigluFfnNormParams& p, int64_t row_begin, int64_t row_end, void* memory) {
  using A = accumulator_t<T>;
  const int64_t hidden = whole_panels<A>(p.hidden), dim = whole_panels<A>(p.dim);
  Scratch scratch(memory);
  const Workspace<T> work = workspace_of<T>(p, scratch);
  const A* weight = static_cast<const A*>(p.norm_weight);
  const A* bias = static_cast<const A*>(p.norm_bias);
  for (int64_t begin = row_begin; begin < row_end; begin += p.tile_rows) {
    const int64_t rows = min(p.tile_rows, row_end - begin);
    const Rows<tile_t<T>> x = load_rows<T>(p.x, p.x_stride, p.dim, rows, work.x, [&](int64_t i) { return begin + i; });
    project_up<T>(p, x, rows, work.u, work.v, hidden);
    for (int64_t i = 0; p.uv != nullptr && i < rows; ++i) {
      T* kept = static_cast<T*>(p.uv) + (begin + i) * 2 * p.hidden;
      narrow<T>(work.u + i * hidden, kept, p.hidden);
      narrow<T>(work.v + i * hidden, kept + p.hidden, p.hidden);
    }
    gate<A>(work.u, work.v, work.u, rows * hidden);
    project_down<T>(p, work.u, hidden, rows, work.u, work.h, dim);
    for (int64_t i = 0; i < rows; ++i) {
      A* row = work.h + i * dim;
      T* y = static_cast<T*>(p.y) + (begin + i) * p.dim;
      if (!p.norm) {
        narrow<T>(row, y, p.dim);
        continue;
      }
      if (p.h != nullptr) __builtin_memcpy(static_cast<A*>(p.h) + (begin + i) * p.dim, row, p.dim * sizeof(A));
      A mean, rstd;
      statistics(row, p.dim, A(p.eps), &mean, &rstd);
      for (int64_t d = 0; d < p.dim; ++d) row[d] = (row[d] - mean) * rstd * weight[d] + bias[d];
      narrow<T>(row, y, p.dim);
      static_cast<A*>(p.mean)[begin + i] = mean;
      static_cast<A*>(p.rstd)[begin + i] = rstd;
    }
  }
}

// A row of a whole panel from contiguous elements; `rows` are left, of which it takes as many as an operand has terms.
template <class T>
void pack_row(const T* from, int64_t row_stride, int64_t rows, operand_t<tile_t<T>>* to) {
  using E = operand_t<tile_t<T>>;
  if constexpr (kTerms<tile_t<T>> == 1) {
    widen<T>(from, to, kPanel<E>);
  } else {
    pair_rows(from, rows > 1 ? from + row_stride : nullptr, kPanel<E>, to);
  }
}

template <class T>
void pack(const T* from, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride, int64_t begin,
          int64_t end, operand_t<tile_t<T>>* to) {
  using S = tile_t<T>;
  using E = operand_t<S>;
  constexpr int64_t kRun = 16;  // operands of a column at a time: lines a power of two apart evict each other
  const int64_t depth = operands<S>(rows);
  for (int64_t j = begin; j < end; j += kPanel<E>) {
    E* panel = to + j * depth;
    const int64_t width = min(kPanel<E>, columns - j);
    for (int64_t first = 0; first < depth; first += kRun) {
      const int64_t last = min(first + kRun, depth);
      auto element = [&](int64_t k, int64_t c) { return from + k * kTerms<S> * row_stride + (j + c) * column_stride; };
      if (column_stride == 1 && width == kPanel<E>) {
        for (int64_t k = first; k < last; ++k) {
          pack_row(element(k, 0), row_stride, rows - k * kTerms<S>, panel + k * kPanel<E>);
        }
        continue;
      }
      for (int64_t c = 0; c < kPanel<E>; ++c) {
        for (int64_t k = first; k < last; ++k) {
          panel[k * kPanel<E> + c] = c < width ? load_operand(element(k, c), row_stride, rows - k * kTerms<S>) : E{};
        }
      }
    }
  }
}

}  // namespace

void pack_panels(Dtype dtype, const void* from, int64_t rows, int64_t columns, int64_t row_stride,
                 int64_t column_stride, int64_t begin, int64_t end, void* to) {
  visit_own_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    pack<T>(static_cast<const T*>(from), rows, columns, row_stride, column_stride, begin, end,
            static_cast<operand_t<tile_t<T>>*>(to));
  });
}

int64_t swiglu_ffn_norm_scratch(const SwigluFfnNormParams& params) {
  Scratch scratch(nullptr);
  visit_own_dtype(params.dtype, [&](auto type) { workspace_of<typename decltype(type)::element>(params, scratch); });
  return scratch.bytes();
}

void swiglu_ffn_norm_rows(const SwigluFfnNormParams& params, int64_t row_begin, int64_t row_end, void* scratch) {
  visit_own_dtype(params.dtype, [&](auto type) {
    forward_rows<typename decltype(type)::element>(params, row_begin, row_end, scratch);
  });
}

}  // namespace STCA_ISA
}  // namespace stca
