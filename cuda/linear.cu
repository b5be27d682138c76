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

// to[i] = from[i], and 0 from n on.
struct ToBf16 {
  bf16* to;
  const float* from;
  int64_t n;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, bf16> out;
    if (i < n) {
      const Few<kFew, float> in = load_few<kFew>(from + i);
      for (int j = 0; j < kFew; ++j) out.at[j] = from_float<bf16>(in.at[j]);
    } else {
      for (bf16& x : out.at) x = from_float<bf16>(0);
    }
    store_few(to + i, out);
  }
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
void multiply_bf16(CudaCtx& c, const Product& p, float* out, const bf16* a, const bf16* b) {
  if (p.rows == 0 || p.cols == 0) return;
  const float one = 1, beta = kAdd ? 1 : 0;
  check_blas(cublasGemmEx(c.blas, p.tb, p.ta, p.cols, p.rows, p.inner, &one, b, CUDA_R_16BF, p.ldb,
                          a, CUDA_R_16BF, p.lda, &beta, out, CUDA_R_32F, p.ldc, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT),
             "cublasGemmEx of bf16");
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
  if (by_rows && p.rows <= kFewRows) {
    const auto kernel = p.rows == 1 ? few_rows_kernel<1, kAdd, float, bf16>
                                    : few_rows_kernel<kFewRows, kAdd, float, bf16>;
    launch_early(kernel, static_cast<unsigned>(pieces(p.cols, 8)), 256, 0, c.stream,
                 ptr<float>(out), ptr<float>(a), ptr<bf16>(b), p.rows, p.cols, p.inner, vector);
    return;
  }
  bf16* x = c.workspace<bf16>(a.size());
  round_to_bf16(ctx, x, ptr<float>(a), a.size());
  multiply_bf16<kAdd>(c, p, ptr<float>(out), x, ptr<bf16>(b));
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

// == Variant bf16: factors of floats, rounded on the way. Copies of both are 2 bytes a number more to write
// and to read; those of weights are made again at every product: nobody tells when weights change.

// cuBLAS is several times slower where rows, or the length of what is contiguous, are no multiples of 16
// bytes. Copies therefore are padded with zeros, which add nothing to a sum, to multiples of 8 both ways.
int64_t padded(int64_t n) { return pieces(n, 8) * 8; }
int64_t padded_size(const Tensor& t) { return padded(t.rows()) * padded(t.cols()); }

constexpr int kRowPieces = 8;  // elements of a row that a lane copies
__global__ void pad_kernel(bf16* to, const float* from, int64_t rows, int64_t cols, int64_t all,
                           int64_t ld) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRowPieces * kWarp + threadIdx.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; r < all;
       r += static_cast<int64_t>(gridDim.y) * blockDim.y) {
    float x[kRowPieces];
#pragma unroll
    for (int k = 0; k < kRowPieces; ++k) {
      const int64_t c = first + k * kWarp;
      x[k] = r < rows && c < cols ? from[r * cols + c] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kRowPieces; ++k) {
      const int64_t c = first + k * kWarp;
      if (c < ld) to[r * ld + c] = from_float<bf16>(x[k]);
    }
  }
}
void round_padded(Ctx& ctx, bf16* to, const Tensor& t) {
  const int64_t rows = t.rows(), cols = t.cols(), all = padded(rows), ld = padded(cols);
  if (ld == cols) {
    return round_to_bf16(ctx, to, ptr<float>(t), t.size(), all * ld);
  }
  const dim3 grid(static_cast<unsigned>(pieces(ld, kRowPieces * kWarp)), grid_for(all, 8));
  launch(pad_kernel, grid, dim3(kWarp, 8), 0, cuda(ctx).stream, to, ptr<float>(t), rows, cols, all,
         ld);
}

// How many floats lie before the first at a multiple of 16 bytes.
__host__ __device__ __forceinline__ int floats_before(const float* p) {
  return static_cast<int>(-(reinterpret_cast<uintptr_t>(p) / sizeof(float)) & 3);
}
// The columns of out = a b' that lie before the first and after the last whole 16 bytes of their row, at most
// 6: a warp a row. a[rows,ld] b[cols,ld], where ld is a multiple of 8 and the padding 0.
template <bool kAdd>
__global__ void edge_columns_kernel(float* out, const bf16* a, const bf16* b, int64_t rows,
                                    int64_t cols, int64_t ld) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_of_thread();
  if (r >= rows) return;  // a whole warp
  const int before = floats_before(out + r * cols);
  const int edges = before + static_cast<int>((cols - before) % 4);
  for (int e = 0; e < edges; ++e) {
    const int64_t c = e < before ? e : cols - edges + e;
    float sum = 0;
    for (int64_t i = lane_of_thread() * 8; i < ld; i += kWarp * 8) {
      const Pack<bf16> x = load16(a + r * ld + i), y = load16(b + c * ld + i);
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += to_float(x.at[k]) * to_float(y.at[k]);
    }
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) out[r * cols + c] = kAdd ? out[r * cols + c] + sum : sum;
  }
}

// Products of padded copies. From so many elements of out on, several aligned products take less time than
// one that is not.
constexpr int64_t kLargeProduct = int64_t{1} << 20;
template <bool kAdd>
void multiply_padded(CudaCtx& c, const Tensor& t, const bf16* a, const bf16* b, Product p) {
  float* out = ptr<float>(t);
  p.inner = static_cast<int>(padded(p.inner));
  p.lda = static_cast<int>(padded(p.lda)), p.ldb = static_cast<int>(padded(p.ldb));
  const bool large = t.size() >= kLargeProduct;
  if (large && p.cols % 4 != 0 && p.ta == CUBLAS_OP_N && p.tb == CUBLAS_OP_T) {
    // Rows of logits, say, begin anywhere, but every second or fourth of them alike: those together are a
    // product whose rows of out are that much further apart, from their first whole 16 bytes on.
    const int apart = p.cols % 2 == 0 ? 2 : 4;
    for (int q = 0; q < apart; ++q) {
      float* row = out + int64_t{q} * p.cols;
      const int before = floats_before(row);
      Product some = p;
      some.rows = (p.rows - q + apart - 1) / apart, some.cols = (p.cols - before) / 4 * 4;
      some.lda = apart * p.lda, some.ldc = apart * p.ldc;
      multiply_bf16<kAdd>(c, some, row + before, a + int64_t{q} * p.lda,
                          b + int64_t{before} * p.ldb);
    }
    launch(edge_columns_kernel<kAdd>, static_cast<unsigned>(pieces(p.rows, 8)), 256, 0, c.stream,
           out, a, b, p.rows, p.cols, p.inner);
    return;
  }
  if (const int rest = p.rows % 8; large && rest != 0 && p.ta == CUBLAS_OP_T) {
    // Rows of out lie along rows of a: the last few alone.
    p.rows -= rest;
    multiply_bf16<kAdd>(c, p, out, a, b);
    out += int64_t{p.rows} * p.ldc, a += p.rows, p.rows = rest;
  }
  multiply_bf16<kAdd>(c, p, out, a, b);
}

bool rounds(const Tensor& out, const Tensor& w) {
  return out.dtype != DType::f64 && w.dtype != DType::bf16;
}
void check_floats(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors) LTE_CHECK(t.dtype == DType::f32, "gemm: types do not fit");
}

template <bool kAdd>
void gemm_rounded(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (!rounds(out, b)) return gemm<kAdd, false>(ctx, out, a, ta, b, tb);
  const Product p = product_of(out, a, ta, b, tb);
  if (p.rows == 0 || p.cols == 0) return;
  check_floats({out, a, b});
  CudaCtx& c = cuda(ctx);
  bf16* x = c.workspace<bf16>(padded_size(a) + padded_size(b));
  bf16* y = x + padded_size(a);
  round_padded(ctx, x, a), round_padded(ctx, y, b);
  multiply_padded<kAdd>(c, out, x, y, p);
}

// Rounds dout once for both products.
void linear_backward(Ctx& ctx, Tensor dx, bool add_dx, Tensor dw, Tensor dout, Tensor x, Tensor w,
                     bool tw) {
  const Product by_x = product_of(dx, dout, false, w, !tw);
  const Product by_w =
      tw ? product_of(dw, dout, true, x, false) : product_of(dw, x, true, dout, false);
  if (!rounds(dx, w)) {
    (add_dx ? gemm<true, false> : gemm<false, false>)(ctx, dx, dout, false, w, !tw);
    return gemm<true, false>(ctx, dw, tw ? dout : x, true, tw ? x : dout, false);
  }
  check_floats({dx, dw, dout, x, w});
  CudaCtx& c = cuda(ctx);
  bf16* d = c.workspace<bf16>(padded_size(dout) + std::max(padded_size(w), padded_size(x)));
  bf16* other = d + padded_size(dout);
  round_padded(ctx, d, dout), round_padded(ctx, other, w);
  (add_dx ? multiply_padded<true> : multiply_padded<false>)(c, dx, d, other, by_x);
  round_padded(ctx, other, x);
  multiply_padded<true>(c, dw, tw ? d : other, tw ? other : d, by_w);
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
    for (int j = 0; j < kFew; ++j) y.at[j] += to_float(by.at[j]);
    store_few(x + i, y);
  }
};
void bias_add(Ctx& ctx, Tensor x, Tensor b) {
  with_types(x, b, [&]<class T, class W>() {
    const bool vector = x.cols() % Pack<T>::kSize == 0 && aligned16(x.data, b.data);
    each_few<T>(ctx, x.size(), vector, AddBias<T, W>{ptr<T>(x), ptr<W>(b), x.cols()});
  });
}

// x w' + b by one launch where cuBLAS multiplies: floats, rounded first in variant bf16, or many rows by weights
// of bf16.
template <bool kTf32, bool kRound>
void linear(Ctx& ctx, Tensor out, Tensor x, Tensor w, Tensor b) {
  CudaCtx& c = cuda(ctx);
  const Product p = product_of(out, x, false, w, true);
  const bool half = w.dtype == DType::bf16, round = kRound && rounds(out, w);
  const bool here = out.dtype == DType::f32 && b.dtype == DType::f32 && p.rows > kFewTokens &&
                    p.cols % 4 == 0 && p.inner % 8 == 0 &&
                    aligned16(out.data, x.data, w.data, b.data);
  if (!here) {
    (kRound ? gemm_rounded<false> : gemm<false, kTf32>)(ctx, out, x, false, w, true);
    return bias_add(ctx, out, b);
  }
  LTE_CHECK(x.dtype == DType::f32, "linear: types do not fit");
  const auto* bias = ptr<const float>(b);
  if (!half && !round) {
    return multiply_add_bias(c, p, ptr<float>(out), x.data, w.data, CUDA_R_32F,
                             kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, bias);
  }
  bf16* a = c.workspace<bf16>(x.size() + (half ? 0 : w.size()));
  round_to_bf16(ctx, a, ptr<float>(x), x.size());
  if (!half) round_to_bf16(ctx, a + x.size(), ptr<float>(w), w.size());
  multiply_add_bias(c, p, ptr<float>(out), a, half ? w.data : a + x.size(), CUDA_R_16BF,
                    CUBLAS_COMPUTE_32F, bias);
}

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
  ops.gemm = gemm<false, true>, ops.gemm_add = gemm<true, true>, ops.linear = linear<true, false>;
}

}  // namespace

void round_to_bf16(Ctx& ctx, bf16* to, const float* from, int64_t n, int64_t all) {
  all = std::max(n, all);
  each_few<float>(ctx, all, aligned16(from), ToBf16{to, from, n});
}

extern void (*const kCudaTf32)(Ops&);
void (*const kCudaTf32)(Ops&) = patch_tf32;

void round_cuda_products(Ops& ops) {
  ops.gemm = gemm_rounded<false>, ops.gemm_add = gemm_rounded<true>;
  ops.linear = linear<false, true>;
  ops.linear_backward = linear_backward;
}

void fill_cuda_linear(Ops& ops) {
  ops.gemm = gemm<false, false>;
  ops.linear = linear<false, false>;
  ops.gemm_add = gemm<true, false>;
  ops.bias_add = bias_add;
  ops.bias_backward_add = bias_backward_add;
  ops.add = add;
  ops.fill = fill;
  ops.sum_squares = sum_squares;
}

}  // namespace lte
