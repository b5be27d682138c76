// Linear algebra: cuBLAS for matrix products, own kernels where weights are bf16 and tokens few, for
// biases and for sums.
#include "few_cores.h"

namespace lte {
namespace {

// bf16 weights and a few rows of x: a warp a column of out, which reads its row of w once.
constexpr int64_t kFewRows = 8;

template <int kRows, bool kAdd, class T, class W>
__global__ void few_rows_kernel(T* out, const T* x, const W* w, int rows, int64_t cols,
                                int64_t inner, bool vector) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_of_thread();
  if (m >= cols) return;  // a whole warp
  T sum[1][kRows] = {};
  row_products(sum, {w + m * inner}, x, inner, rows, kAllLanes, vector);
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    if (n >= rows) break;
    const T all = warp_sum(sum[0][n]);
    if (lane_of_thread() == 0) out[n * cols + m] = kAdd ? out[n * cols + m] + all : all;
  }
}

struct ToBf16 {
  bf16* to;
  const float* from;
  __device__ void operator()(int64_t i) const { to[i] = from_float<bf16>(from[i]); }
};

struct Product {  // row-major out[rows, cols] = op(a) op(b)
  int rows, cols, inner, lda, ldb, ldc;
  cublasOperation_t ta, tb;
};

Product product_of(const Tensor& out, const Tensor& a, bool ta, const Tensor& b, bool tb) {
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

// out = op(a) op(b) of bf16, summed in float on tensor cores. cuBLAS counts columns first: out' = op(b)' op(a)'.
template <bool kAdd>
void multiply_bf16(CudaCtx& c, const Product& p, const Tensor& out, const bf16* a, const bf16* b) {
  const float one = 1, beta = kAdd ? 1 : 0;
  check_blas(cublasGemmEx(c.blas, p.tb, p.ta, p.cols, p.rows, p.inner, &one, b, CUDA_R_16BF, p.ldb,
                          a, CUDA_R_16BF, p.lda, &beta, out.data, CUDA_R_32F, p.ldc,
                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
             "cublasGemmEx of bf16");
}

// Weights of bf16: x is rounded to bf16 too, products are summed in float on tensor cores.
template <bool kAdd>
void gemm_bf16(Ctx& ctx, const Product& p, Tensor out, Tensor a, Tensor b) {
  CudaCtx& c = cuda(ctx);
  LTE_CHECK(a.dtype == DType::f32 && out.dtype == DType::f32, "weights of bf16 go with f32");
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool vector = p.inner % Pack<bf16>::kSize == 0 && aligned(a.data) && aligned(b.data);
  const bool by_rows = p.ta == CUBLAS_OP_N && p.tb == CUBLAS_OP_T;
  if (by_rows && vector && fits_cores(p.rows, p.inner) && p.cols >= kCoreRows) {
    return core_rows<kAdd>(ctx, ptr<float>(out), ptr<float>(a), ptr<bf16>(b), p.rows, p.cols,
                           p.inner);
  }
  if (by_rows && p.rows <= kFewRows) {
    const auto kernel = p.rows == 1 ? few_rows_kernel<1, kAdd, float, bf16>
                                    : few_rows_kernel<kFewRows, kAdd, float, bf16>;
    launch(kernel, static_cast<unsigned>(pieces(p.cols, 8)), 256, 0, c.stream, ptr<float>(out),
           ptr<float>(a), ptr<bf16>(b), p.rows, p.cols, p.inner, vector);
    return;
  }
  bf16* x = c.workspace<bf16>(a.size());
  each(ctx, a.size(), ToBf16{x, ptr<float>(a)});
  multiply_bf16<kAdd>(c, p, out, x, ptr<bf16>(b));
}

// cuBLAS counts columns first: out' = op(b)' op(a)'.
template <bool kAdd, bool kTf32>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  const Product p = product_of(out, a, ta, b, tb);
  if (p.rows == 0 || p.cols == 0) return;
  if (b.dtype == DType::bf16) return gemm_bf16<kAdd>(ctx, p, out, a, b);
  LTE_CHECK(a.dtype == out.dtype && b.dtype == out.dtype, "gemm: types do not fit");
  if (out.dtype == DType::f64) {
    const double one = 1, beta = kAdd ? 1 : 0;
    check_blas(
        cublasDgemm(cuda(ctx).blas, p.tb, p.ta, p.cols, p.rows, p.inner, &one, ptr<double>(b),
                    p.ldb, ptr<double>(a), p.lda, &beta, ptr<double>(out), p.ldc),
        "cublasDgemm");
    return;
  }
  const float one = 1, beta = kAdd ? 1 : 0;
  check_blas(
      cublasGemmEx(cuda(ctx).blas, p.tb, p.ta, p.cols, p.rows, p.inner, &one, b.data, CUDA_R_32F,
                   p.ldb, a.data, CUDA_R_32F, p.lda, &beta, out.data, CUDA_R_32F, p.ldc,
                   kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

// Factors of floats, rounded to bf16 on the way (variant bf16): copies of both, 2 bytes a number more to
// write and to read. Those of weights are made again at every product: nobody tells when weights change.
template <bool kAdd>
void gemm_rounded(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (out.dtype == DType::f64 || b.dtype == DType::bf16)
    return gemm<kAdd, false>(ctx, out, a, ta, b, tb);
  const Product p = product_of(out, a, ta, b, tb);
  if (p.rows == 0 || p.cols == 0) return;
  LTE_CHECK(a.dtype == DType::f32 && b.dtype == DType::f32, "gemm: types do not fit");
  CudaCtx& c = cuda(ctx);
  const int64_t first = pieces(a.size(), 8) * 8;  // both copies begin at multiples of 16 bytes
  bf16* x = c.workspace<bf16>(first + b.size());
  each(ctx, a.size(), ToBf16{x, ptr<float>(a)});
  each(ctx, b.size(), ToBf16{x + first, ptr<float>(b)});
  multiply_bf16<kAdd>(c, p, out, x, x + first);
}

template <class T, class W>
struct AddBias {
  T* x;
  const W* b;
  int64_t cols;
  __device__ void operator()(int64_t i) const { x[i] += to_float(b[i % cols]); }
};
void bias_add(Ctx& ctx, Tensor x, Tensor b) {
  with_types(x, b, [&]<class T, class W>() {
    each(ctx, x.size(), AddBias<T, W>{ptr<T>(x), ptr<W>(b), x.cols()});
  });
}

template <class T>
struct Element {
  const T* x;
  int64_t cols;
  __device__ T operator()(int64_t r, int64_t c) const { return x[r * cols + c]; }
};
void bias_backward_add(Ctx& ctx, Tensor db, Tensor dout) {
  with_type(dout, [&]<class T>() {
    add_column_sums<T>(ctx, ptr<T>(db), dout.rows(), dout.cols(),
                       Element<T>{ptr<T>(dout), dout.cols()});
  });
}

template <class T>
struct Add {
  T* out;
  const T *a, *b;
  __device__ void operator()(int64_t i) const { out[i] = a[i] + b[i]; }
};
void add(Ctx& ctx, Tensor out, Tensor a, Tensor b) {
  with_type(out, [&]<class T>() {
    each(ctx, out.size(), Add<T>{ptr<T>(out), ptr<T>(a), ptr<T>(b)});
  });
}

template <class T>
struct Fill {
  T* out;
  T value;
  __device__ void operator()(int64_t i) const { out[i] = value; }
};
void fill(Ctx& ctx, Tensor out, double value) {
  with_type(out, [&]<class T>() {
    each(ctx, out.size(), Fill<T>{ptr<T>(out), static_cast<T>(value)});
  });
}

template <class T>
struct Square {
  const T* x;
  __device__ void operator()(int64_t i, double* sum) const {
    sum[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
};
void sum_squares(Ctx& ctx, Tensor sum, Tensor x) {
  with_type(x,
            [&]<class T>() { sum_all<1>(ctx, ptr<double>(sum), x.size(), Square<T>{ptr<T>(x)}); });
}

void patch_tf32(Ops& ops) { ops.gemm = gemm<false, true>, ops.gemm_add = gemm<true, true>; }

}  // namespace

extern void (*const kCudaTf32)(Ops&);
void (*const kCudaTf32)(Ops&) = patch_tf32;

void round_cuda_products(Ops& ops) {
  ops.gemm = gemm_rounded<false>, ops.gemm_add = gemm_rounded<true>;
}

void fill_cuda_linear(Ops& ops) {
  ops.gemm = gemm<false, false>;
  ops.gemm_add = gemm<true, false>;
  ops.bias_add = bias_add;
  ops.bias_backward_add = bias_backward_add;
  ops.add = add;
  ops.fill = fill;
  ops.sum_squares = sum_squares;
}

}  // namespace lte
