// Products to whose sums something is done before they are written, by cuBLASLt.
#include <cublasLt.h>

#include "product.h"

namespace lte {
namespace {

struct Description {
  cublasLtMatmulDesc_t get = nullptr;
  explicit Description(cublasComputeType_t compute) {
    check_blas(cublasLtMatmulDescCreate(&get, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
  }
  ~Description() { cublasLtMatmulDescDestroy(get); }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  template <class T>
  void set(cublasLtMatmulDescAttributes_t what, const T& value) {
    check_blas(cublasLtMatmulDescSetAttribute(get, what, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute");
  }
};
struct Layout {
  cublasLtMatrixLayout_t get = nullptr;
  Layout(cudaDataType type, int rows, int cols, int64_t ld) {
    check_blas(cublasLtMatrixLayoutCreate(&get, type, static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), ld),
               "cublasLtMatrixLayoutCreate");
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(get); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
};

// It counts columns first: out' = op(b)' op(a)'.
void multiply(CudaCtx& c, Description& how, const Product& p, const Tensor& out, const void* a,
              const void* b, cudaDataType type) {
  const auto layout = [&](cublasOperation_t op, int rows, int cols, int ld) {
    return op == CUBLAS_OP_N ? Layout(type, rows, cols, ld) : Layout(type, cols, rows, ld);
  };
  how.set(CUBLASLT_MATMUL_DESC_TRANSA, p.tb);
  how.set(CUBLASLT_MATMUL_DESC_TRANSB, p.ta);
  const Layout left = layout(p.tb, p.cols, p.inner, p.ldb),
               right = layout(p.ta, p.inner, p.rows, p.lda),
               result(out.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F, p.cols, p.rows, p.ldc);
  const float one = 1, zero = 0;
  // A handle of cuBLAS is one of cuBLASLt.
  check_blas(cublasLtMatmul(reinterpret_cast<cublasLtHandle_t>(c.blas), how.get, &one, b, left.get,
                            a, right.get, &zero, out.data, result.get, out.data, result.get,
                            nullptr, c.blas_space.data.get(), c.blas_space.capacity, c.stream),
             "cublasLtMatmul");
}
void set_aux(Description& how, cublasLtEpilogue_t epilogue, const void* pre, int64_t ld) {
  how.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  how.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre);
  how.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, ld);
}

}  // namespace

void multiply_add_bias(CudaCtx& c, const Product& p, const Tensor& out, const void* a,
                       const void* b, cudaDataType type, cublasComputeType_t compute,
                       const void* bias, void* pre) {
  Description how(compute);
  how.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  how.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (pre) set_aux(how, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, pre, p.ldc);
  multiply(c, how, p, out, a, b, type);
}
void multiply_gelu_slope(CudaCtx& c, const Product& p, const Tensor& out, const bf16* a,
                         const bf16* b, const void* pre) {
  Description how(CUBLAS_COMPUTE_32F);
  set_aux(how, CUBLASLT_EPILOGUE_DGELU, pre, p.ldc);
  multiply(c, how, p, out, a, b, CUDA_R_16BF);
}

}  // namespace lte
