// Variant bf16: the factors of products of floats are rounded to bf16, sums and weights stay f32. Activations that
// training keeps as bf16 (Ops::kept_type) are factors as they are, and so may results be rounded. Copies are 2 bytes a
// number more to write and to read; those of weights are made again at every product: nobody tells when weights change.
#include "product.h"

namespace lte {
namespace {

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

// cuBLAS is several times slower where rows, or the length of what is contiguous, are no multiples of 16
// bytes. Copies therefore are padded with zeros, which add nothing to a sum, to multiples of 8 both ways.
int64_t padded(int64_t n) { return pieces(n, 8) * 8; }
bool is_factor(const Tensor& t) {
  return t.dtype == DType::bf16 && t.rows() % 8 == 0 && t.cols() % 8 == 0 && aligned16(t.data);
}
int64_t copy_size(const Tensor& t) {
  return is_factor(t) ? 0 : padded(t.rows()) * padded(t.cols());
}

constexpr int kRowPieces = 8;  // elements of a row that a lane copies
template <class T>
__global__ void pad_kernel(bf16* to, const T* from, int64_t rows, int64_t cols, int64_t all,
                           int64_t ld) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRowPieces * kWarp + threadIdx.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; r < all;
       r += static_cast<int64_t>(gridDim.y) * blockDim.y) {
    float x[kRowPieces];
#pragma unroll
    for (int k = 0; k < kRowPieces; ++k) {
      const int64_t c = first + k * kWarp;
      x[k] = r < rows && c < cols ? to_float(from[r * cols + c]) : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kRowPieces; ++k) {
      const int64_t c = first + k * kWarp;
      if (c < ld) to[r * ld + c] = from_float<bf16>(x[k]);
    }
  }
}
// The factor t: itself, or a copy at `space`, which then moves on.
const bf16* factor(Ctx& ctx, bf16*& space, const Tensor& t) {
  if (is_factor(t)) return ptr<bf16>(t);
  const int64_t rows = t.rows(), cols = t.cols(), all = padded(rows), ld = padded(cols);
  bf16* to = space;
  space += all * ld;
  if (t.dtype == DType::f32 && ld == cols) {
    round_to_bf16(ctx, to, ptr<float>(t), t.size(), all * ld);
    return to;
  }
  const dim3 grid(static_cast<unsigned>(pieces(ld, kRowPieces * kWarp)), grid_for(all, 8));
  with_kept(t, [&]<class T, class S>() {
    launch(pad_kernel<S>, grid, dim3(kWarp, 8), 0, cuda(ctx).stream, to, ptr<S>(t), rows, cols, all,
           ld);
  });
  return to;
}

// How many floats lie before the first at a multiple of 16 bytes.
__host__ __device__ __forceinline__ int floats_before(const float* p) {
  return static_cast<int>(-(reinterpret_cast<uintptr_t>(p) / sizeof(float)) & 3);
}
// The columns of out = a b' that lie before the first and after the last whole 16 bytes of their row, at most
// 6: a warp a row. a[rows,ld] b[cols,ld], where ld is a multiple of 8 and the padding 0.
__global__ void edge_columns_kernel(float* out, const bf16* a, const bf16* b, int64_t rows,
                                    int64_t cols, int64_t ld, bool add) {
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
    if (lane_of_thread() == 0) out[r * cols + c] = add ? out[r * cols + c] + sum : sum;
  }
}

// Products of what `factor` gave. From so many elements of out on, several aligned products take less time than
// one that is not.
constexpr int64_t kLargeProduct = int64_t{1} << 20;
void multiply_padded(CudaCtx& c, const Tensor& t, const bf16* a, const bf16* b, Product p,
                     bool add) {
  p.inner = static_cast<int>(padded(p.inner));
  p.lda = static_cast<int>(padded(p.lda)), p.ldb = static_cast<int>(padded(p.ldb));
  if (t.dtype == DType::bf16) return multiply_bf16(c, p, t.data, CUDA_R_16BF, a, b, add);
  float* out = ptr<float>(t);
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
      multiply_bf16(c, some, row + before, CUDA_R_32F, a + int64_t{q} * p.lda,
                    b + int64_t{before} * p.ldb, add);
    }
    launch(edge_columns_kernel, static_cast<unsigned>(pieces(p.rows, 8)), 256, 0, c.stream, out, a,
           b, p.rows, p.cols, p.inner, add);
    return;
  }
  if (const int rest = p.rows % 8; large && rest != 0 && p.ta == CUBLAS_OP_T) {
    // Rows of out lie along rows of a: the last few alone.
    p.rows -= rest;
    multiply_bf16(c, p, out, CUDA_R_32F, a, b, add);
    out += int64_t{p.rows} * p.ldc, a += p.rows, p.rows = rest;
  }
  multiply_bf16(c, p, out, CUDA_R_32F, a, b, add);
}

bool rounds(const Tensor& out, const Tensor& w) {
  return out.dtype != DType::f64 && w.dtype != DType::bf16;
}
// Factors and results are f32, or kept as bf16; weights and their gradients f32.
void check_types(std::initializer_list<Tensor> kept, std::initializer_list<Tensor> weights) {
  for (const Tensor& t : kept)
    LTE_CHECK(t.dtype == DType::f32 || t.dtype == DType::bf16, "gemm: types do not fit");
  for (const Tensor& t : weights) LTE_CHECK(t.dtype == DType::f32, "gemm: types do not fit");
}

// t without the columns of zeros by which its rows may be longer than the `cols` of their product.
Tensor inside_of(Tensor t, int64_t cols) {
  LTE_CHECK(t.cols() == cols || (t.dtype == DType::bf16 && t.cols() == padded(cols)),
            "gemm: shapes do not fit");
  t.dim[t.rank - 1] = cols;
  return t;
}

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (!rounds(out, b)) return plain_gemm(ctx, out, a, ta, b, tb, kAdd);
  Product p = product_of(inside_of(out, tb ? b.rows() : b.cols()), a, ta, b, tb);
  p.cols = p.ldc = static_cast<int>(out.cols());  // zeros are written as products by padding
  if (p.rows == 0 || p.cols == 0) return;
  check_types({out, a}, {b});
  CudaCtx& c = cuda(ctx);
  bf16* space = c.workspace<bf16>(copy_size(a) + copy_size(b));
  const bf16* left = factor(ctx, space, a);
  multiply_padded(c, out, left, factor(ctx, space, b), p, kAdd);
}

// Rounds dout once for both products.
void linear_backward(Ctx& ctx, Tensor dx, bool add_dx, Tensor dw, Tensor dout, Tensor x, Tensor w,
                     bool tw) {
  if (!rounds(dx, w)) {
    plain_gemm(ctx, dx, dout, false, w, !tw, add_dx);
    return plain_gemm(ctx, dw, tw ? dout : x, true, tw ? x : dout, false, true);
  }
  const Tensor inside = inside_of(dout, tw ? w.rows() : w.cols());
  Product by_x = product_of(dx, inside, false, w, !tw);
  Product by_w =
      tw ? product_of(dw, inside, true, x, false) : product_of(dw, x, true, inside, false);
  by_x.lda = (tw ? by_w.lda : by_w.ldb) = static_cast<int>(dout.cols());
  check_types({dx, dout, x}, {dw, w});
  CudaCtx& c = cuda(ctx);
  bf16* space = c.workspace<bf16>(copy_size(dout) + std::max(copy_size(w), copy_size(x)));
  const bf16* d = factor(ctx, space, dout);
  bf16* again = space;
  multiply_padded(c, dx, d, factor(ctx, space, w), by_x, add_dx);
  const bf16* in = factor(ctx, again, x);
  multiply_padded(c, dw, tw ? d : in, tw ? in : d, by_w, true);
}

void linear(Ctx& ctx, Tensor out, Tensor x, Tensor w, bool tw, Tensor b) {
  const Product p = product_of(out, x, false, w, tw);
  const bool whole = p.rows % 8 == 0 && p.cols % 8 == 0;
  if (!rounds(out, w) || !whole || !fits_epilogue(p, out, x, w, b)) {
    gemm<false>(ctx, out, x, false, w, tw);
    return bias_add(ctx, out, b);
  }
  check_types({out, x}, {w, b});
  CudaCtx& c = cuda(ctx);
  const bool rounded = out.dtype == DType::bf16;  // then the bias is too
  bf16* space = c.workspace<bf16>(copy_size(x) + copy_size(w) + (rounded ? padded(b.size()) : 0));
  const bf16 *in = factor(ctx, space, x), *weights = factor(ctx, space, w);
  if (rounded) round_to_bf16(ctx, space, ptr<float>(b), b.size());
  multiply_add_bias(c, p, out, in, weights, CUDA_R_16BF, CUBLAS_COMPUTE_32F,
                    rounded ? space : b.data);
}

// Of what is kept as bf16, in whole packs of 16 bytes.
bool fits_gelu(const Product& p, std::initializer_list<Tensor> kept, Act act) {
  bool fits = act == Act::gelu_tanh && p.rows > 16 && p.cols % 8 == 0 && p.inner % 8 == 0;
  for (const Tensor& t : kept) fits = fits && is_factor(t);
  return fits;
}

bool linear_activate(Ctx& ctx, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor b, Act act) {
  const Product p = product_of(out, x, false, w, true);
  if (!fits_gelu(p, {out, pre, x}, act) || w.dtype != DType::f32) return false;
  check_types({out, pre, x}, {w, b});
  CudaCtx& c = cuda(ctx);
  bf16* space = c.workspace<bf16>(copy_size(w) + padded(b.size()));
  const bf16* weights = factor(ctx, space, w);
  round_to_bf16(ctx, space, ptr<float>(b), b.size());
  multiply_add_bias(c, p, out, ptr<bf16>(x), weights, CUDA_R_16BF, CUBLAS_COMPUTE_32F, space,
                    pre.data);
  return true;
}

bool linear_activate_backward(Ctx& ctx, Tensor dpre, Tensor dw, Tensor dout, Tensor out, Tensor pre,
                              Tensor w, Act act) {
  const Product p = product_of(dpre, dout, false, w, true);
  if (!fits_gelu(p, {dpre, out, pre}, act) || w.dtype != DType::f32) return false;
  check_types({dpre, dout, out, pre}, {dw, w});
  CudaCtx& c = cuda(ctx);
  bf16* space = c.workspace<bf16>(copy_size(dout) + copy_size(w));
  const bf16 *d = factor(ctx, space, dout), *weights = factor(ctx, space, w);
  multiply_gelu_slope(c, p, dpre, d, weights, pre.data);
  multiply_padded(c, dw, ptr<bf16>(out), d, product_of(dw, out, true, dout, false), true);
  return true;
}

}  // namespace

void round_to_bf16(Ctx& ctx, bf16* to, const float* from, int64_t n, int64_t all) {
  all = std::max(n, all);
  each_few<float>(ctx, all, aligned16(from), ToBf16{to, from, n});
}

void round_cuda_products(Ops& ops) {
  ops.gemm = gemm<false>, ops.gemm_add = gemm<true>;
  ops.linear = linear;
  ops.linear_backward = linear_backward;
  ops.linear_activate = linear_activate;
  ops.linear_activate_backward = linear_activate_backward;
  ops.kept_type = [](Ctx&) { return DType::bf16; };
}

}  // namespace lte
