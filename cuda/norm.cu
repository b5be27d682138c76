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
    for (int d = thread + kKept * threads; d < D; d += threads) f.sum[row + d] = in[d] + f.more[row + d];
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
// is left out for RMSNorm.
template <class T>
__global__ void norm_backward_kernel(T* dx, const T* dout, const T* stats, const T* x, const T* w,
                                     int64_t D, bool centred) {
  const int64_t row = blockIdx.x * D;
  const T mean = stats[2 * blockIdx.x], rstd = stats[2 * blockIdx.x + 1];
  T sum_g = 0, sum_gx = 0;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    const T g = dout[row + d] * w[d];
    sum_g += g, sum_gx += g * (x[row + d] - mean) * rstd;
  }
  sum_g = centred ? block_sum(sum_g) / static_cast<T>(D) : T(0);
  sum_gx = block_sum(sum_gx) / static_cast<T>(D);
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    const T xh = (x[row + d] - mean) * rstd;
    dx[row + d] += rstd * (dout[row + d] * w[d] - sum_g - xh * sum_gx);
  }
}

template <class T>
struct ScaleGradient {
  const T *dout, *x, *stats;
  int64_t D;
  __device__ T operator()(int64_t n, int64_t d) const {
    return dout[n * D + d] * (x[n * D + d] - stats[2 * n]) * stats[2 * n + 1];
  }
};
template <class T>
struct ShiftGradient {
  const T* dout;
  int64_t D;
  __device__ T operator()(int64_t n, int64_t d) const { return dout[n * D + d]; }
};

void norm_backward_add(Ctx& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dout, Tensor stats,
                       Tensor x, Tensor w) {
  const int64_t N = x.rows(), D = x.cols();
  with_type(dout, [&]<class T>() {
    launch_rows(ctx, norm_backward_kernel<T>, N, D, ptr<T>(dx), ptr<T>(dout), ptr<T>(stats),
                ptr<T>(x), ptr<T>(w), D, static_cast<bool>(db));
    add_column_sums<T>(ctx, ptr<T>(dw), N, D,
                       ScaleGradient<T>{ptr<T>(dout), ptr<T>(x), ptr<T>(stats), D});
    if (db) add_column_sums<T>(ctx, ptr<T>(db), N, D, ShiftGradient<T>{ptr<T>(dout), D});
  });
}

}  // namespace

void fill_cuda_norm(Ops& ops) {
  ops.norm = norm;
  ops.add_norm = add_norm;
  ops.norm_backward_add = norm_backward_add;
}

}  // namespace lte
