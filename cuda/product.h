// Matrix products as cuBLAS is told them.
#pragma once

#include "context.h"

namespace lte {

struct Product {  // row-major out[rows, cols] = op(a) op(b)
  int rows, cols, inner, lda, ldb, ldc;
  cublasOperation_t ta, tb;
};

// out = op(a) op(b) + bias[cols], factors of one type, by one launch of cuBLASLt.          (epilogue.cu)
void multiply_add_bias(CudaCtx&, const Product&, float* out, const void* a, const void* b,
                       cudaDataType type, cublasComputeType_t, const float* bias);

}  // namespace lte
