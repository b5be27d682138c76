// Matrix products as cuBLAS is told them.
#pragma once

#include "context.h"

namespace lte {

struct Product {  // row-major out[rows, cols] = op(a) op(b)
  int rows, cols, inner, lda, ldb, ldc;
  cublasOperation_t ta, tb;
};
// Throws where shapes do not fit.
inline Product product_of(const Tensor& out, const Tensor& a, bool ta, const Tensor& b, bool tb) {
  const int64_t inner = ta ? a.rows() : a.cols();
  LTE_CHECK((ta ? a.cols() : a.rows()) == out.rows() && (tb ? b.rows() : b.cols()) == out.cols() &&
                (tb ? b.cols() : b.rows()) == inner,
            "gemm: shapes do not fit");
  LTE_CHECK(std::max({out.rows(), out.cols(), inner}) < (int64_t{1} << 31), "gemm: too large");
  return {static_cast<int>(out.rows()),   static_cast<int>(out.cols()),
          static_cast<int>(inner),        static_cast<int>(a.cols()),
          static_cast<int>(b.cols()),     static_cast<int>(out.cols()),
          ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N};
}

// out = or += op(a) op(b) of bf16, summed in f32 on tensor cores; out is f32 or bf16.
inline void multiply_bf16(CudaCtx& c, const Product& p, void* out, cudaDataType type, const bf16* a,
                          const bf16* b, bool add) {
  if (p.rows == 0 || p.cols == 0) return;
  // cuBLAS counts columns first: out' = op(b)' op(a)'.
  const float one = 1, beta = add ? 1 : 0;
  check_blas(cublasGemmEx(c.blas, p.tb, p.ta, p.cols, p.rows, p.inner, &one, b, CUDA_R_16BF, p.ldb,
                          a, CUDA_R_16BF, p.lda, &beta, out, type, p.ldc, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT),
             "cublasGemmEx of bf16");
}

// Whether x w' + b can be one launch of cuBLASLt: of few rows it is not.
inline bool fits_epilogue(const Product& p, const Tensor& out, const Tensor& x, const Tensor& w,
                          const Tensor& b) {
  return b.dtype == DType::f32 && p.rows > 16 && p.cols % 4 == 0 && p.inner % 8 == 0 &&
         aligned16(out.data, x.data, w.data, b.data);
}
// out = op(a) op(b) + bias[cols], factors of one type, by one launch of cuBLASLt. out is f32 or bf16, and bias of
// its type. With `pre`: that of the sums, and out GELU (by tanh) of them, all of bf16.  (epilogue.cu)
void multiply_add_bias(CudaCtx&, const Product&, const Tensor& out, const void* a, const void* b,
                       cudaDataType type, cublasComputeType_t, const void* bias,
                       void* pre = nullptr);
// out = (op(a) op(b)) GELU'(pre), all of bf16.
void multiply_gelu_slope(CudaCtx&, const Product&, const Tensor& out, const bf16* a, const bf16* b,
                         const void* pre);

// What products are without a variant, and biases.  (linear.cu)
void plain_gemm(Ctx&, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add);
void bias_add(Ctx&, Tensor x, Tensor b);

}  // namespace lte
