// Row-major matrix products by the Fortran BLAS that torch's own library exports. Called from inside a parallel
// region, where the BLAS runs on the calling thread alone.
#pragma once

#include <cstdint>

extern "C" {
void sgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
            const float* beta, float* c, const int* ldc);
void dgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const double* alpha, const double* a, const int* lda, const double* b, const int* ldb,
            const double* beta, double* c, const int* ldc);
}

namespace stca {
namespace STCA_ISA {

enum class Layout : char { kPlain = 'N', kTransposed = 'T' };

// A matrix operand: element (i, j) is at data[i * stride + j].
template <class A>
struct Matrix {
  A* data;
  int64_t stride;
};

// c [m, n] = beta * c + alpha * op(a) [m, k] op(b) [k, n], where op transposes what is stored if told so.
template <class A>
inline void gemm(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, A alpha, Matrix<const A> a,
                 Matrix<const A> b, A beta, Matrix<A> c) {
  // BLAS is column-major: its view of our row-major c is the transpose, so a and b change places.
  const char ta = char(layout_a), tb = char(layout_b);
  const int m_ = int(m), n_ = int(n), k_ = int(k);
  const int lda = int(a.stride), ldb = int(b.stride), ldc = int(c.stride);
  if constexpr (sizeof(A) == sizeof(double)) {
    dgemm_(&tb, &ta, &n_, &m_, &k_, &alpha, b.data, &ldb, a.data, &lda, &beta, c.data, &ldc);
  } else {
    sgemm_(&tb, &ta, &n_, &m_, &k_, &alpha, b.data, &ldb, a.data, &lda, &beta, c.data, &ldc);
  }
}

}  // namespace STCA_ISA
}  // namespace stca
