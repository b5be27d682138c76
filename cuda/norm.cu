// LayerNorm and RMSNorm, also of a sum that is made on the way: one block a row.
#include "context.h"

namespace lte {
namespace {

// A thread keeps kKept times kFew numbers of its row; of longer rows the rest is read again.
constexpr int kKept = 2;

// T: sums; W: weights; O: the result.
template <class T, class W, class O>
struct Norm {
  O* out;
  T *stats, *sum;  // sum and more: null where x alone is the row
  const T *x, *more;
  const W *w, *b;
  int D;
  T eps;
};

template <int kFew, class T, class W, class O>
__global__ void norm_kernel(Norm<T, W, O> f) {
  let_next_begin();
  const int own = static_cast<int>(threadIdx.x) * kFew, step = static_cast<int>(blockDim.x) * kFew;
  const int D = f.D;
  if (gridDim.x == 1) {  // one token: the weights come while the row is waited for
    constexpr int kLine = 128 / sizeof(W);
    for (int d = static_cast<int>(threadIdx.x) * kLine; d < D;
         d += static_cast<int>(blockDim.x) * kLine) {
      prefetch_l2(f.w + d);
      if (f.b) prefetch_l2(f.b + d);
    }
  }
  await_inputs();
  const int64_t row = blockIdx.x * int64_t{D};
  const T* in = f.x + row;
  const auto add = [&](int d, Few<kFew, T>& x, const Few<kFew, T>& more) {
    for (int j = 0; j < kFew; ++j) x.at[j] += more.at[j];
    store_few(f.sum + row + d, x);
  };
  // All are asked for before the first sum is written.
  Few<kFew, T> kept[kKept] = {}, more[kKept] = {};
  Few<kFew, W> scale[kKept] = {};
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int d = own + i * step;
    if (d >= D) continue;
    kept[i] = load_few<kFew>(in + d), scale[i] = load_few<kFew>(f.w + d);
    if (f.more) more[i] = load_few<kFew>(f.more + row + d);
  }
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (f.more && own + i * step < D) add(own + i * step, kept[i], more[i]);
  }
  for (int d = own + kKept * step; f.more && d < D; d += step) {
    Few<kFew, T> x = load_few<kFew>(in + d);
    add(d, x, load_few<kFew>(f.more + row + d));
  }
  if (f.more) in = f.sum + row;
  // use(d, the numbers of the row from d on) for the thread's own
  const auto each_of_row = [&](auto use) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (own + i * step < D) use(own + i * step, kept[i]);
    }
    for (int d = own + kKept * step; d < D; d += step) use(d, load_few<kFew>(in + d));
  };
  T mean = 0;
  if (f.b) {
    T sum = 0;
    each_of_row([&](int, const Few<kFew, T>& v) {
      for (T x : v.at) sum += x;
    });
    mean = block_sum(sum) / static_cast<T>(D);
  }
  T square = 0;
  each_of_row([&](int, const Few<kFew, T>& v) {
    for (T x : v.at) square += (x - mean) * (x - mean);
  });
  square = block_sum(square) / static_cast<T>(D);
  const T rstd = T(1) / sqrt_of(square + f.eps);
  const auto write = [&](int d, const Few<kFew, T>& v, const Few<kFew, W>& w) {
    Few<kFew, W> b = {};
    if (f.b) b = load_few<kFew>(f.b + d);
    Few<kFew, O> y;
    for (int j = 0; j < kFew; ++j) {
      const T z = (v.at[j] - mean) * rstd * to_float(w.at[j]);
      y.at[j] = rounded<O>(f.b ? z + to_float(b.at[j]) : z);
    }
    store_few(f.out + row + d, y);
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (own + i * step < D) write(own + i * step, kept[i], scale[i]);
  }
  for (int d = own + kKept * step; d < D; d += step)
    write(d, load_few<kFew>(in + d), load_few<kFew>(f.w + d));
  if (threadIdx.x == 0) f.stats[2 * blockIdx.x] = mean, f.stats[2 * blockIdx.x + 1] = rstd;
}

void add_norm(Ctx& ctx, Tensor out, Tensor stats, Tensor sum, Tensor a, Tensor b, Tensor w,
              Tensor bias, double eps) {
  if (out.rows() == 0) return;
  with_types(a, w, [&]<class T, class W>() {
    constexpr int kFew = Pack<T>::kSize;
    const bool vector =
        a.cols() % kFew == 0 && aligned16(out.data, sum.data, a.data, b.data, w.data, bias.data);
    const int64_t few = vector ? kFew : 1;
    const auto threads =
        std::clamp<int64_t>(pieces(out.cols(), few * kWarp) * kWarp, kWarp, vector ? 512 : 1024);
    const auto run = [&]<class O>() {
      const Norm<T, W, O> f{.out = ptr<O>(out),
                            .stats = ptr<T>(stats),
                            .sum = ptr<T>(sum),
                            .x = ptr<T>(a),
                            .more = ptr<T>(b),
                            .w = ptr<W>(w),
                            .b = ptr<W>(bias),
                            .D = static_cast<int>(out.cols()),
                            .eps = static_cast<T>(eps)};
      launch_early(vector ? norm_kernel<kFew, T, W, O> : norm_kernel<1, T, W, O>,
                   static_cast<unsigned>(out.rows()), static_cast<unsigned>(threads), 0,
                   cuda(ctx).stream, f);
    };
    if constexpr (std::is_same_v<T, float>) {
      if (out.dtype == DType::bf16) return run.template operator()<bf16>();
    }
    run.template operator()<T>();
  });
}
void norm(Ctx& ctx, Tensor out, Tensor stats, Tensor x, Tensor w, Tensor b, double eps) {
  add_norm(ctx, out, stats, {}, x, {}, w, b, eps);
}

// With xh = (x - mean) rstd and g = dout w:  dx += rstd (g - mean(g) - xh mean(g xh)), where mean(g)
// is left out for RMSNorm. A block walks over rows and keeps in shared memory what they add to dw and
// db, every thread its own columns: parts[blocks, 2, D].
template <int kFew, class T, class S>
__global__ void norm_backward_kernel(T* dx, T* parts, const S* dout, const T* stats, const T* x,
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
      const Few<kFew, S> dy = load_few<kFew>(dout + row + d);
      const Few<kFew, T> in = load_few<kFew>(x + row + d), by = load_few<kFew>(w + d);
      Few<kFew, T> scale = load_few<kFew>(dw + d), shift = load_few<kFew>(db + d);
      for (int j = 0; j < kFew; ++j) {
        const T up = to_float(dy.at[j]), xh = (in.at[j] - mean) * rstd, g = up * by.at[j];
        sum_g += g, sum_gx += g * xh;
        scale.at[j] += up * xh, shift.at[j] += up;
      }
      store_few(dw + d, scale), store_few(db + d, shift);
    }
    sum_g = centred ? block_sum(sum_g) / static_cast<T>(D) : T(0);
    sum_gx = block_sum(sum_gx) / static_cast<T>(D);
    for (int64_t d = own; d < D; d += step) {
      const Few<kFew, S> dy = load_few<kFew>(dout + row + d);
      const Few<kFew, T> in = load_few<kFew>(x + row + d), by = load_few<kFew>(w + d);
      Few<kFew, T> out = load_few<kFew>(dx + row + d);
      for (int j = 0; j < kFew; ++j) {
        const T xh = (in.at[j] - mean) * rstd;
        out.at[j] += rstd * (to_float(dy.at[j]) * by.at[j] - sum_g - xh * sum_gx);
      }
      store_few(dx + row + d, out);
    }
  }
  for (int64_t d = own; d < D; d += step) {
    store_few(parts + 2 * blockIdx.x * D + d, load_few<kFew>(dw + d));
    store_few(parts + (2 * blockIdx.x + 1) * D + d, load_few<kFew>(db + d));
  }
}

void norm_backward_add(Ctx& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dout, Tensor stats,
                       Tensor x, Tensor w) {
  const int64_t N = x.rows(), D = x.cols();
  if (N == 0) return;
  CudaCtx& c = cuda(ctx);
  const int64_t blocks = std::min<int64_t>(N, 8 * c.multiprocessors), size = blocks * D;
  with_kept(dout, [&]<class T, class S>() {
    T* parts = c.workspace<T>(2 * (size + kColumnParts * D));
    constexpr int kFew = Pack<T>::kSize;
    const bool vector = D % kFew == 0 && aligned16(dx.data, dout.data, x.data, w.data);
    launch(vector ? norm_backward_kernel<kFew, T, S> : norm_backward_kernel<1, T, S>,
           static_cast<unsigned>(blocks), row_threads(vector ? D / kFew : D),
           static_cast<size_t>(2 * D) * sizeof(T), c.stream, ptr<T>(dx), parts, ptr<S>(dout),
           ptr<T>(stats), ptr<T>(x), ptr<T>(w), N, D, static_cast<bool>(db));
    add_column_sums(ctx, ptr<T>(dw), parts, blocks, 2 * D, D, ptr<T>(db), 2 * size);
  });
}

}  // namespace

void fill_cuda_norm(Ops& ops) {
  ops.norm = norm;
  ops.add_norm = add_norm;
  ops.norm_backward_add = norm_backward_add;
}

}  // namespace lte
