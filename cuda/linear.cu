// Linear algebra: cuBLAS for matrix products, own kernels where weights are bf16 and tokens few, for
// biases and for sums.
#include "columns.h"
#include "few_cores.h"
#include "product.h"

namespace lte {
namespace {

// bf16 weights and a few rows of x: a warp a column of out, which reads its row of w once.
constexpr int64_t kFewRows = 8;

template <int kRows, bool kAdd, class T, class W>
__global__ void __launch_bounds__(256, 4)
    few_rows_kernel(T* out, const T* x, const W* w, int rows, int64_t cols, int64_t inner,
                    bool vector) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_of_thread();
  let_next_begin();
  if (m < cols) prefetch_row(w + m * inner, inner);
  await_inputs();
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

// One row, by rows of whole pieces of 16 bytes: the first ones are there before x is.
template <bool kAdd>
__global__ void __launch_bounds__(kSplitThreads, 2)
    split_rows_kernel(float* out, const float* x, const bf16* w, int64_t cols, int64_t inner) {
  float all;
  const int64_t m = split_product(all, PlainRow<float>{x}, w, cols, inner);
  if (m >= 0) out[m] = kAdd ? out[m] + all : all;
}

// Weights of bf16: x is rounded to bf16 too, products are summed in float on tensor cores.
template <bool kAdd>
void gemm_bf16(Ctx& ctx, const Product& p, Tensor out, Tensor a, Tensor b) {
  CudaCtx& c = cuda(ctx);
  LTE_CHECK(a.dtype == DType::f32 && out.dtype == DType::f32, "weights of bf16 go with f32");
  const bool vector = p.inner % Pack<bf16>::kSize == 0 && aligned16(a.data, b.data);
  const bool by_rows = p.ta == CUBLAS_OP_N && p.tb == CUBLAS_OP_T;
  if (p.rows == 1 && p.ta == CUBLAS_OP_N && p.tb == CUBLAS_OP_N) {
    const bool wide = p.cols % Pack<bf16>::kSize == 0 && aligned16(b.data);
    const int64_t splits = column_splits(p.inner, p.cols, wide ? Pack<bf16>::kSize : 1);
    float* parts = c.workspace<float>(splits * p.cols);
    column_sums<false>(c, parts, ptr<float>(a), ptr<bf16>(b), AllRows{p.inner}, p.cols, splits,
                       wide);
    return join_parts<kAdd>(c, ptr<float>(out), parts, p.cols, splits);
  }
  if (by_rows && vector && fits_cores(p.rows, p.inner) && p.cols >= kCoreRows) {
    return core_rows<kAdd>(ctx, ptr<float>(out), ptr<float>(a), ptr<bf16>(b), p.rows, p.cols,
                           p.inner);
  }
  if (by_rows && p.rows == 1 && vector && fits_split<bf16>(p.inner)) {
    launch_early(split_rows_kernel<kAdd>, static_cast<unsigned>(pieces(p.cols, kSplitRows)),
                 kSplitThreads, 0, c.stream, ptr<float>(out), ptr<float>(a), ptr<bf16>(b), p.cols,
                 p.inner);
    return;
  }
  if (by_rows && p.rows <= kFewRows) {
    const auto kernel = p.rows == 1 ? few_rows_kernel<1, kAdd, float, bf16>
                                    : few_rows_kernel<kFewRows, kAdd, float, bf16>;
    launch_early(kernel, static_cast<unsigned>(pieces(p.cols, 8)), 256, 0, c.stream,
                 ptr<float>(out), ptr<float>(a), ptr<bf16>(b), p.rows, p.cols, p.inner, vector);
    return;
  }
  bf16* x = c.workspace<bf16>(a.size());
  round_to_bf16(ctx, x, ptr<float>(a), a.size());
  multiply_bf16(c, p, out.data, CUDA_R_32F, x, ptr<bf16>(b), kAdd);
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

// x op(w) + b by one launch where cuBLAS multiplies: floats, or many rows by weights of bf16, for which x is rounded.
template <bool kTf32>
void linear(Ctx& ctx, Tensor out, Tensor x, Tensor w, bool tw, Tensor b) {
  CudaCtx& c = cuda(ctx);
  const Product p = product_of(out, x, false, w, tw);
  if (out.dtype != DType::f32 || !fits_epilogue(p, out, x, w, b)) {
    gemm<false, kTf32>(ctx, out, x, false, w, tw);
    return bias_add(ctx, out, b);
  }
  LTE_CHECK(x.dtype == DType::f32, "linear: types do not fit");
  if (w.dtype == DType::bf16) {
    bf16* a = c.workspace<bf16>(x.size());
    round_to_bf16(ctx, a, ptr<float>(x), x.size());
    return multiply_add_bias(c, p, out, a, w.data, CUDA_R_16BF, CUBLAS_COMPUTE_32F, b.data);
  }
  multiply_add_bias(c, p, out, x.data, w.data, CUDA_R_32F,
                    kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, b.data);
}

void bias_backward_add(Ctx& ctx, Tensor db, Tensor dout) {
  with_kept(dout, [&]<class T, class S>() {
    const int64_t cols = dout.cols();
    add_column_sums(ctx, ptr<T>(db), ptr<S>(dout), dout.rows(), cols, cols);
  });
}

template <class T>
struct Add {
  T* out;
  const T *a, *b;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, T> sum = load_few<kFew>(a + i);
    const Few<kFew, T> y = load_few<kFew>(b + i);
    for (int j = 0; j < kFew; ++j) sum.at[j] += y.at[j];
    store_few(out + i, sum);
  }
};
void add(Ctx& ctx, Tensor out, Tensor a, Tensor b) {
  with_type(out, [&]<class T>() {
    each_few<T>(ctx, out.size(), aligned16(out.data, a.data, b.data),
                Add<T>{ptr<T>(out), ptr<T>(a), ptr<T>(b)});
  });
}

template <class T>
struct Fill {
  T* out;
  T value;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, T> few;
    for (T& x : few.at) x = value;
    store_few(out + i, few);
  }
};
void fill(Ctx& ctx, Tensor out, double value) {
  with_type(out, [&]<class T>() {
    each_few<T>(ctx, out.size(), aligned16(out.data), Fill<T>{ptr<T>(out), static_cast<T>(value)});
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

void patch_tf32(Ops& ops) {
  ops.gemm = gemm<false, true>, ops.gemm_add = gemm<true, true>, ops.linear = linear<true>;
  // Of what a variant named before set, nothing that does products stays.
  ops.linear_backward = nullptr, ops.linear_activate = nullptr;
  ops.linear_activate_backward = nullptr;
  ops.kept_type = [](Ctx&) { return DType::f32; };
}

template <class T, class W>
struct AddBias {
  T* x;
  const W* b;
  int64_t cols;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, T> y = load_few<kFew>(x + i);
    const Few<kFew, W> by = load_few<kFew>(b + column_of(i, cols));
    for (int j = 0; j < kFew; ++j) y.at[j] = rounded<T>(to_float(y.at[j]) + to_float(by.at[j]));
    store_few(x + i, y);
  }
};

}  // namespace

void plain_gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add) {
  (add ? gemm<true, false> : gemm<false, false>)(ctx, out, a, ta, b, tb);
}

void bias_add(Ctx& ctx, Tensor x, Tensor b) {
  const auto run = [&]<class T, class W>() {
    const bool vector = x.cols() % Pack<T>::kSize == 0 && aligned16(x.data, b.data);
    each_few<T>(ctx, x.size(), vector, AddBias<T, W>{ptr<T>(x), ptr<W>(b), x.cols()});
  };
  if (x.dtype == DType::bf16) {
    LTE_CHECK(b.dtype == DType::f32, "bias_add: types do not fit");
    return run.operator()<bf16, float>();
  }
  with_types(x, b, run);
}

extern void (*const kCudaTf32)(Ops&);
void (*const kCudaTf32)(Ops&) = patch_tf32;

void fill_cuda_linear(Ops& ops) {
  ops.gemm = gemm<false, false>;
  ops.linear = linear<false>;
  ops.gemm_add = gemm<true, false>;
  ops.bias_add = bias_add;
  ops.bias_backward_add = bias_backward_add;
  ops.add = add;
  ops.fill = fill;
  ops.sum_squares = sum_squares;
}

}  // namespace lte
