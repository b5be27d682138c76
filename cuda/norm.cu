// LayerNorm and RMSNorm: one block a row.
#include "context.h"

namespace lte {
namespace {

template <class T, class W>
__global__ void norm_kernel(T* out, T* stats, const T* x, const W* w, const W* b, int64_t D,
                            T eps) {
  const T* in = x + blockIdx.x * D;
  T* o = out + blockIdx.x * D;
  T mean = 0;
  if (b) {
    T sum = 0;
    for (int64_t d = threadIdx.x; d < D; d += blockDim.x) sum += in[d];
    mean = block_sum(sum) / static_cast<T>(D);
  }
  T square = 0;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) square += (in[d] - mean) * (in[d] - mean);
  square = block_sum(square) / static_cast<T>(D);
  const T rstd = T(1) / sqrt_of(square + eps);
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    const T y = (in[d] - mean) * rstd * to_float(w[d]);
    o[d] = b ? y + to_float(b[d]) : y;
  }
  if (threadIdx.x == 0) stats[2 * blockIdx.x] = mean, stats[2 * blockIdx.x + 1] = rstd;
}

void norm(Ctx& ctx, Tensor out, Tensor stats, Tensor x, Tensor w, Tensor b, double eps) {
  with_types(out, w, [&]<class T, class W>() {
    launch_rows(ctx, norm_kernel<T, W>, x.rows(), x.cols(), ptr<T>(out), ptr<T>(stats), ptr<T>(x),
                ptr<W>(w), ptr<W>(b), x.cols(), static_cast<T>(eps));
  });
}

// With xh = (x - mean) rstd and g = dout w:  dx += rstd (g - mean(g) - xh mean(g xh)), where mean(g)
// is left out for RMSNorm. A block walks over rows and keeps in shared memory what they add to dw and
// db, every thread its own columns: parts[2, blocks, D].
template <int kFew, class T>
__global__ void norm_backward_kernel(T* dx, T* parts, const T* dout, const T* stats, const T* x,
                                     const T* w, int64_t N, int64_t D, bool centred) {
  T *dw = dynamic_shared<T>(), *db = dw + D;
  const int64_t own = threadIdx.x * kFew, step = blockDim.x * kFew;
  for (int64_t d = own; d < D; d += step) {
    for (int j = 0; j < kFew; ++j) dw[d + j] = db[d + j] = 0;
  }
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int64_t row = n * D;
    const T mean = stats[2 * n], rstd = stats[2 * n + 1];
    T sum_g = 0, sum_gx = 0;
    for (int64_t d = own; d < D; d += step) {
      prefetch(dx + row + d);
      const Few<kFew, T> dy = load_few<kFew>(dout + row + d), in = load_few<kFew>(x + row + d),
                         by = load_few<kFew>(w + d);
      Few<kFew, T> scale = load_few<kFew>(dw + d), shift = load_few<kFew>(db + d);
      for (int j = 0; j < kFew; ++j) {
        const T xh = (in.at[j] - mean) * rstd, g = dy.at[j] * by.at[j];
        sum_g += g, sum_gx += g * xh;
        scale.at[j] += dy.at[j] * xh, shift.at[j] += dy.at[j];
      }
      store_few(dw + d, scale), store_few(db + d, shift);
    }
    sum_g = centred ? block_sum(sum_g) / static_cast<T>(D) : T(0);
    sum_gx = block_sum(sum_gx) / static_cast<T>(D);
    for (int64_t d = own; d < D; d += step) {
      const Few<kFew, T> dy = load_few<kFew>(dout + row + d), in = load_few<kFew>(x + row + d),
                         by = load_few<kFew>(w + d);
      Few<kFew, T> out = load_few<kFew>(dx + row + d);
      for (int j = 0; j < kFew; ++j) {
        const T xh = (in.at[j] - mean) * rstd;
        out.at[j] += rstd * (dy.at[j] * by.at[j] - sum_g - xh * sum_gx);
      }
      store_few(dx + row + d, out);
    }
  }
  for (int64_t d = own; d < D; d += step) {
    store_few(parts + blockIdx.x * D + d, load_few<kFew>(dw + d));
    store_few(parts + (gridDim.x + blockIdx.x) * D + d, load_few<kFew>(db + d));
  }
}

void norm_backward_add(Ctx& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dout, Tensor stats,
                       Tensor x, Tensor w) {
  const int64_t N = x.rows(), D = x.cols();
  if (N == 0) return;
  CudaCtx& c = cuda(ctx);
  const int64_t blocks = std::min<int64_t>(N, 8 * c.multiprocessors), size = blocks * D;
  with_type(dout, [&]<class T>() {
    T* parts = c.workspace<T>(2 * size + kColumnParts * D);
    constexpr int kFew = Pack<T>::kSize;
    const bool vector = D % kFew == 0 && aligned16(dx.data, dout.data, x.data, w.data);
    launch(vector ? norm_backward_kernel<kFew, T> : norm_backward_kernel<1, T>,
           static_cast<unsigned>(blocks), row_threads(vector ? D / kFew : D),
           static_cast<size_t>(2 * D) * sizeof(T), c.stream, ptr<T>(dx), parts, ptr<T>(dout),
           ptr<T>(stats), ptr<T>(x), ptr<T>(w), N, D, static_cast<bool>(db));
    add_column_sums<T>(ctx, ptr<T>(dw), blocks, D, Element<T>{parts, D}, 2 * size);
    if (!db) return;
    add_column_sums<T>(ctx, ptr<T>(db), blocks, D, Element<T>{parts + size, D}, 2 * size);
  });
}

}  // namespace

void fill_cuda_norm(Ops& ops) {
  ops.norm = norm;
  ops.norm_backward_add = norm_backward_add;
}

}  // namespace lte
