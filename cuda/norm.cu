// LayerNorm and RMSNorm, also of a sum that is made on the way: one block a row.
#include "context.h"

namespace lte {
namespace {

// A thread keeps kKept numbers of its row; of longer rows the rest is read again.
constexpr int kKept = 4;

template <class T, class W>
struct Norm {
  T *out, *stats, *sum;  // sum and more: null where x alone is the row
  const T *x, *more;
  const W *w, *b;
  int D;
  T eps;
};

template <class T, class W>
__global__ void norm_kernel(Norm<T, W> f) {
  let_next_begin();
  await_inputs();
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int D = f.D;
  const int64_t row = blockIdx.x * int64_t{D};
  const T* in = f.x + row;
  T kept[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int d = thread + i * threads;
    kept[i] = d < D ? in[d] : T(0);
    if (f.more && d < D) f.sum[row + d] = kept[i] += f.more[row + d];
  }
  if (f.more) {
    for (int d = thread + kKept * threads; d < D; d += threads)
      f.sum[row + d] = in[d] + f.more[row + d];
    in = f.sum + row;
  }
  // use(d, number d of the row) for the thread's own
  const auto each_of_row = [&](auto use) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (thread + i * threads < D) use(thread + i * threads, kept[i]);
    }
    for (int d = thread + kKept * threads; d < D; d += threads) use(d, in[d]);
  };
  T mean = 0;
  if (f.b) {
    T sum = 0;
    each_of_row([&](int, T v) { sum += v; });
    mean = block_sum(sum) / static_cast<T>(D);
  }
  T square = 0;
  each_of_row([&](int, T v) { square += (v - mean) * (v - mean); });
  square = block_sum(square) / static_cast<T>(D);
  const T rstd = T(1) / sqrt_of(square + f.eps);
  each_of_row([&](int d, T v) {
    const T y = (v - mean) * rstd * to_float(f.w[d]);
    f.out[row + d] = f.b ? y + to_float(f.b[d]) : y;
  });
  if (thread == 0) f.stats[2 * blockIdx.x] = mean, f.stats[2 * blockIdx.x + 1] = rstd;
}

void add_norm(Ctx& ctx, Tensor out, Tensor stats, Tensor sum, Tensor a, Tensor b, Tensor w,
              Tensor bias, double eps) {
  if (out.rows() == 0) return;
  const auto threads = std::clamp<int64_t>(pieces(out.cols(), kKept * kWarp) * kWarp, kWarp, 1024);
  with_types(out, w, [&]<class T, class W>() {
    const Norm<T, W> f{.out = ptr<T>(out),
                       .stats = ptr<T>(stats),
                       .sum = ptr<T>(sum),
                       .x = ptr<T>(a),
                       .more = ptr<T>(b),
                       .w = ptr<W>(w),
                       .b = ptr<W>(bias),
                       .D = static_cast<int>(out.cols()),
                       .eps = static_cast<T>(eps)};
    launch_early(norm_kernel<T, W>, static_cast<unsigned>(out.rows()),
                 static_cast<unsigned>(threads), 0, cuda(ctx).stream, f);
  });
}
void norm(Ctx& ctx, Tensor out, Tensor stats, Tensor x, Tensor w, Tensor b, double eps) {
  add_norm(ctx, out, stats, {}, x, {}, w, b, eps);
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
      prefetch_l2(dx + row + d);
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
  ops.add_norm = add_norm;
  ops.norm_backward_add = norm_backward_add;
}

}  // namespace lte
