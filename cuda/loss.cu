// Cross-entropy with its softmax, distillation, and the update: one block a row of logits.
#include "context.h"

namespace lte {
namespace {

constexpr int kAhead = 8;  // elements of a row that a thread reads together

// The row's largest number and the sum of exp(z - top): one walk, in which every thread keeps a top
// of its own.
template <class T>
struct SoftmaxOf {
  T top, sum;
};
template <class T>
__device__ SoftmaxOf<T> softmax_of(const T* z, int64_t V) {
  T top = kLowest<T>, sum = 0;
  const int64_t step = blockDim.x;
  for (int64_t first = threadIdx.x; first < V; first += kAhead * step) {
    T x[kAhead], most = top;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      x[k] = first + k * step < V ? z[first + k * step] : kLowest<T>;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) most = x[k] > most ? x[k] : most;
    if (most > top) sum *= exp_of(top - most), top = most;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) sum += x[k] == kLowest<T> ? T(0) : exp_of(x[k] - top);
  }
  const T all = block_max(top);
  return {all, block_sum(sum == T(0) ? T(0) : sum * exp_of(top - all))};  // NaN stays NaN
}

// A block walks over rows: so few are under way that the second reading of one finds it in the L2 cache.
// dlogits[N,ld], of ld - V columns more than logits, which become 0.
template <class T, class S>
__global__ void __launch_bounds__(1024)
    cross_entropy_kernel(T* loss, S* dlogits, const T* logits, const int32_t* targets, int64_t N,
                         int64_t V, int64_t ld, T scale) {
  const int64_t step = blockDim.x;
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int32_t target = targets[n];
    const T* z = logits + n * V;
    S* d = dlogits ? dlogits + n * ld : nullptr;
    const int64_t zeros = target < 0 ? 0 : V;  // from there on
    for (int64_t v = zeros + threadIdx.x; d && v < ld; v += step) d[v] = from_number<S>(T(0));
    if (target < 0) {  // all threads of the block
      if (threadIdx.x == 0) loss[n] = 0;
      continue;
    }
    const SoftmaxOf<T> s = softmax_of(z, V);
    if (threadIdx.x == 0) loss[n] = log_of(s.sum) + s.top - z[target];
    __syncthreads();  // z[target] was read: dlogits may lie over logits
    const T factor = scale / s.sum;
    for (int64_t first = threadIdx.x; d && first < V; first += kAhead * step) {
      T x[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (first + k * step < V) x[k] = __ldcs(z + first + k * step);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int64_t v = first + k * step;
        const T gradient = exp_of(x[k] - s.top) * factor - (v == target ? scale : T(0));
        if (v < V) __stcs(d + v, from_number<S>(gradient));
      }
    }
  }
}

void cross_entropy(Ctx& ctx, Tensor loss, Tensor dlogits, Tensor logits, Tensor targets,
                   double scale) {
  const int64_t N = logits.rows(), V = logits.cols(), ld = dlogits ? dlogits.cols() : V;
  if (N == 0) return;
  const bool half = dlogits.dtype == DType::bf16;
  LTE_CHECK(half ? logits.dtype == DType::f32 && ld >= V : ld == V,
            "cross_entropy: shapes do not fit");
  CudaCtx& c = cuda(ctx);
  const int32_t* target = device_list(c, targets);
  // 1024 threads a multiprocessor, in one block where rows are long.
  const int64_t threads = std::clamp<int64_t>(pieces(V, kAhead * kWarp), 1, 32) * kWarp;
  const int64_t blocks = std::min(N, c.multiprocessors * (1024 / threads));
  const auto run = [&]<class T, class S>() {
    launch(cross_entropy_kernel<T, S>, static_cast<unsigned>(blocks),
           static_cast<unsigned>(threads), 0, c.stream, ptr<T>(loss), ptr<S>(dlogits),
           ptr<T>(logits), target, N, V, ld, static_cast<T>(scale));
  };
  if (half) return run.operator()<float, bf16>();
  with_type(logits, [&]<class T>() { run.template operator()<T, T>(); });
}

template <class T, class S>
__global__ void distill_kernel(S* dlogits, const T* logits, const T* teacher,
                               const int32_t* targets, int64_t V, int64_t ld, T w) {
  if (targets[blockIdx.x] < 0) return;
  const T *z = logits + blockIdx.x * V, *y = teacher + blockIdx.x * V;
  const SoftmaxOf<T> p = softmax_of(z, V), q = softmax_of(y, V);
  S* d = dlogits + blockIdx.x * ld;
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    const T more = w * (exp_of(z[v] - p.top) / p.sum - exp_of(y[v] - q.top) / q.sum);
    d[v] = from_number<S>(to_float(d[v]) + more);
  }
}

void distill_add(Ctx& ctx, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                 double w) {
  const int32_t* target = device_list(cuda(ctx), targets);
  with_kept(dlogits, [&]<class T, class S>() {
    launch_rows(ctx, distill_kernel<T, S>, logits.rows(), logits.cols(), ptr<S>(dlogits),
                ptr<T>(logits), ptr<T>(teacher), target, logits.cols(), dlogits.cols(),
                static_cast<T>(w));
  });
}

template <class T>
struct Update {
  T *p, *m, *v;
  const T* grad;
  T b1, b2, eps, rate, root, keep, scale;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, T> x = load_few<kFew>(p + i), first = load_few<kFew>(m + i),
                 second = load_few<kFew>(v + i);
    const Few<kFew, T> gradient = load_few<kFew>(grad + i);
    for (int j = 0; j < kFew; ++j) {
      const T g = scale * gradient.at[j];
      T &m_ = first.at[j], &v_ = second.at[j];
      m_ = b1 * m_ + (T(1) - b1) * g;
      v_ = b2 * v_ + (T(1) - b2) * g * g;
      x.at[j] = keep * x.at[j] - rate * m_ / (sqrt_of(v_) * root + eps);
    }
    store_few(p + i, x), store_few(m + i, first), store_few(v + i, second);
  }
};

void adamw(Ctx& ctx, Tensor p, Tensor grad, Tensor m, Tensor v, AdamW a) {
  const double correct1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correct2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  with_type(p, [&]<class T>() {
    each_few<T>(ctx, p.size(), aligned16(p.data, m.data, v.data, grad.data),
                Update<T>{.p = ptr<T>(p),
                          .m = ptr<T>(m),
                          .v = ptr<T>(v),
                          .grad = ptr<T>(grad),
                          .b1 = static_cast<T>(a.beta1),
                          .b2 = static_cast<T>(a.beta2),
                          .eps = static_cast<T>(a.eps),
                          .rate = static_cast<T>(a.lr / correct1),
                          .root = static_cast<T>(1 / std::sqrt(correct2)),
                          .keep = static_cast<T>(1 - a.lr * a.decay),
                          .scale = static_cast<T>(a.grad_scale)});
  });
}

}  // namespace

void fill_cuda_loss(Ops& ops) {
  ops.cross_entropy = cross_entropy;
  ops.distill_add = distill_add;
  ops.adamw = adamw;
}

}  // namespace lte
