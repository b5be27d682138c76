// cuBLAS's matrix products by Eigen.
#include <Eigen/Core>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "cublasLt.h"

struct SimtCublas {
  cudaStream_t stream = nullptr;
};

namespace {

struct Product {
  cublasOperation_t ta, tb;
  int m, n, k, lda, ldb, ldc, batch;
  long long stride_a, stride_b, stride_c;
};

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

// op(x) as rows x cols of S, from column-major x of leading dimension ld: only what op(x) names is
// read.
template <class S, class T>
Matrix<S> read(const T* x, int ld, cublasOperation_t op, int rows, int cols) {
  Matrix<S> out(rows, cols);
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      out(i, j) = static_cast<S>(op == CUBLAS_OP_N ? x[j * ld + i] : x[i * ld + j]);
    }
  }
  return out;
}

// One batch after another, with sums and scale factors in S.
template <class S, class In, class Out>
void multiply(const Product& p, S alpha, const In* a, const In* b, S beta, Out* c) {
  for (int64_t at = 0; at < p.batch; ++at) {
    Matrix<S> sum(p.m, p.n);
    sum.noalias() = read<S>(a + at * p.stride_a, p.lda, p.ta, p.m, p.k) *
                    read<S>(b + at * p.stride_b, p.ldb, p.tb, p.k, p.n);
    Out* to = c + at * p.stride_c;
    for (int64_t j = 0; j < p.n; ++j) {
      for (int64_t i = 0; i < p.m; ++i) {
        Out& o = to[j * p.ldc + i];
        const S old = beta == S(0) ? S(0) : beta * static_cast<S>(o);
        o = static_cast<Out>(alpha * sum(i, j) + old);
      }
    }
  }
}

cublasStatus_t check(cublasHandle_t handle, const Product& p) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  const int rows_a = p.ta == CUBLAS_OP_N ? p.m : p.k, rows_b = p.tb == CUBLAS_OP_N ? p.k : p.n;
  const bool ok = p.m >= 0 && p.n >= 0 && p.k >= 0 && p.batch >= 0 &&
                  p.lda >= std::max(1, rows_a) && p.ldb >= std::max(1, rows_b) &&
                  p.ldc >= std::max(1, p.m);
  return ok ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

template <class S, class In, class Out>
cublasStatus_t submit(cublasHandle_t handle, const Product& p, const void* alpha, const void* a,
                      const void* b, const void* beta, void* c) {
  const cublasStatus_t status = check(handle, p);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  // The scale factors are read now, as cuBLAS does with pointers to host memory.
  const S by = *static_cast<const S*>(alpha), keep = *static_cast<const S*>(beta);
  lte::simt::submit(handle->stream, [=] {
    multiply<S>(p, by, static_cast<const In*>(a), static_cast<const In*>(b), keep,
                static_cast<Out*>(c));
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

const char* cublasGetStatusString(cublasStatus_t s) {
  switch (s) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the GPU program failed to execute";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "an internal operation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
  }
  return "unknown status";
}
cublasStatus_t cublasCreate(cublasHandle_t* h) {
  return *h = new SimtCublas, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t h) { return delete h, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t stream) {
  return h->stream = stream, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetPointerMode(cublasHandle_t, cublasPointerMode_t mode) {
  return mode == CUBLAS_POINTER_MODE_HOST ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasSgemm(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                           int n, int k, const float* alpha, const float* a, int lda,
                           const float* b, int ldb, const float* beta, float* c, int ldc) {
  return submit<float, float, float>(h, {ta, tb, m, n, k, lda, ldb, ldc, 1, 0, 0, 0}, alpha, a, b,
                                     beta, c);
}
cublasStatus_t cublasDgemm(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                           int n, int k, const double* alpha, const double* a, int lda,
                           const double* b, int ldb, const double* beta, double* c, int ldc) {
  return submit<double, double, double>(h, {ta, tb, m, n, k, lda, ldb, ldc, 1, 0, 0, 0}, alpha, a,
                                        b, beta, c);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta,
                                         cublasOperation_t tb, int m, int n, int k,
                                         const float* alpha, const float* a, int lda,
                                         long long stride_a, const float* b, int ldb,
                                         long long stride_b, const float* beta, float* c, int ldc,
                                         long long stride_c, int batch) {
  return submit<float, float, float>(
      h, {ta, tb, m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c}, alpha, a, b, beta,
      c);
}
cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t h, cublasOperation_t ta,
                                         cublasOperation_t tb, int m, int n, int k,
                                         const double* alpha, const double* a, int lda,
                                         long long stride_a, const double* b, int ldb,
                                         long long stride_b, const double* beta, double* c, int ldc,
                                         long long stride_c, int batch) {
  return submit<double, double, double>(
      h, {ta, tb, m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c}, alpha, a, b, beta,
      c);
}
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                            int n, int k, const void* alpha, const void* a, cudaDataType type_a,
                            int lda, const void* b, cudaDataType type_b, int ldb, const void* beta,
                            void* c, cudaDataType type_c, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algo) {
  return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0,
                                    beta, c, type_c, ldc, 0, 1, compute, algo);
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta,
                                          cublasOperation_t tb, int m, int n, int k,
                                          const void* alpha, const void* a, cudaDataType type_a,
                                          int lda, long long stride_a, const void* b,
                                          cudaDataType type_b, int ldb, long long stride_b,
                                          const void* beta, void* c, cudaDataType type_c, int ldc,
                                          long long stride_c, int batch,
                                          cublasComputeType_t compute, cublasGemmAlgo_t) {
  const Product p{ta, tb, m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c};
  const bool f32 = type_a == CUDA_R_32F && type_b == CUDA_R_32F && type_c == CUDA_R_32F;
  const bool f64 = type_a == CUDA_R_64F && type_b == CUDA_R_64F && type_c == CUDA_R_64F;
  const bool bf16 = type_a == CUDA_R_16BF && type_b == CUDA_R_16BF;
  if (compute == CUBLAS_COMPUTE_64F) {
    return f64 ? submit<double, double, double>(h, p, alpha, a, b, beta, c)
               : CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (f32) return submit<float, float, float>(h, p, alpha, a, b, beta, c);
  // The modes with rounded f32 inputs are for f32 inputs alone.
  if (!bf16 || compute == CUBLAS_COMPUTE_32F_FAST_TF32 || compute == CUBLAS_COMPUTE_32F_FAST_16BF) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (type_c == CUDA_R_32F) return submit<float, __nv_bfloat16, float>(h, p, alpha, a, b, beta, c);
  if (type_c != CUDA_R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
  return submit<float, __nv_bfloat16, __nv_bfloat16>(h, p, alpha, a, b, beta, c);
}

namespace {
// GELU by tanh, and its slope.
float tanh_part(float x) { return std::tanh(0.79788456f * (x + 0.044715f * x * x * x)); }
float gelu_of(float x) { return 0.5f * x * (1 + tanh_part(x)); }
float gelu_slope(float x) {
  const float t = tanh_part(x);
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * x * x);
}
}  // namespace

struct SimtMatmul {
  cublasComputeType_t compute;
  cublasOperation_t ta = CUBLAS_OP_N, tb = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;  // of the result's type
  void* aux = nullptr;         // what GELU is taken of; of the result's type
  int64_t aux_ld = 0;
};
struct SimtLayout {
  cudaDataType type;
  uint64_t rows, cols;
  int64_t ld;
};

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute,
                                        cudaDataType scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *d = new SimtMatmul{compute};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
  delete d;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void* value, size_t bytes) {
  const auto take = [&](auto& to) {
    if (bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(d->ta);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(d->tb);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return take(d->bias);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return take(d->aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return take(d->aux_ld);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  *l = new SimtLayout{type, rows, cols, ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
  delete l;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t how, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t of_a, const void* b,
                              cublasLtMatrixLayout_t of_b, const void* beta, const void* c,
                              cublasLtMatrixLayout_t of_c, void* d, cublasLtMatrixLayout_t of_d,
                              const cublasLtMatmulAlgo_t* algo, void*, size_t,
                              cudaStream_t stream) {
  if (!h || stream != h->stream || algo) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool half = of_d->type == CUDA_R_16BF;
  if (c != d || of_c->ld != of_d->ld || (!half && of_d->type != CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto rows = [](cublasOperation_t op, const SimtLayout* l) {
    return op == CUBLAS_OP_N ? l->rows : l->cols;
  };
  const auto cols = [](cublasOperation_t op, const SimtLayout* l) {
    return op == CUBLAS_OP_N ? l->cols : l->rows;
  };
  const uint64_t m = of_d->rows, n = of_d->cols, k = cols(how->ta, of_a);
  if (rows(how->ta, of_a) != m || rows(how->tb, of_b) != k || cols(how->tb, of_b) != n)
    return CUBLAS_STATUS_INVALID_VALUE;
  // What the epilogue makes of sums of f32 is rounded to bf16 once.
  const bool plain = how->epilogue == CUBLASLT_EPILOGUE_DEFAULT, bias = how->epilogue & 4,
             gelu = how->epilogue & 32, slope = how->epilogue & 64;
  if (bias && !how->bias) return CUBLAS_STATUS_INVALID_VALUE;
  if ((gelu || slope) && (!half || !how->aux || how->aux_ld % 8 != 0))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto sums = std::make_shared<std::vector<float>>(half && !plain ? m * n : 0);
  const bool aside = !sums->empty();
  if (aside && *static_cast<const float*>(beta) != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  const int64_t ld = aside ? static_cast<int64_t>(m) : of_d->ld;
  const auto status = cublasGemmEx(
      h, how->ta, how->tb, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), alpha, a,
      of_a->type, static_cast<int>(of_a->ld), b, of_b->type, static_cast<int>(of_b->ld), beta,
      aside ? sums->data() : d, aside ? CUDA_R_32F : of_d->type, static_cast<int>(ld), how->compute,
      CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS || plain) return status;
  const auto finish = [&]<class T>(T* out, const float* in) {
    lte::simt::submit(stream, [=, by = *how, to_ld = of_d->ld] {
      for (int64_t col = 0; col < static_cast<int64_t>(n); ++col) {
        for (int64_t row = 0; row < static_cast<int64_t>(m); ++row) {
          float x = in[col * ld + row];
          if (bias) x += static_cast<float>(static_cast<const T*>(by.bias)[row]);
          if (gelu || slope) {
            T& pre = static_cast<T*>(by.aux)[col * by.aux_ld + row];
            if (gelu) pre = static_cast<T>(x), x = gelu_of(x);
            if (slope) x *= gelu_slope(static_cast<float>(pre));
          }
          out[col * to_ld + row] = static_cast<T>(x);
        }
      }
      (void)sums;
    });
  };
  if (half) {
    finish(static_cast<__nv_bfloat16*>(d), sums->data());
  } else {
    finish(static_cast<float*>(d), static_cast<const float*>(d));
  }
  return CUBLAS_STATUS_SUCCESS;
}
