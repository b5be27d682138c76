// Cross-entropy with its softmax, distillation, and the update: one block a row of logits.
#include "context.h"

namespace lte {
namespace {

// A thread reads so many neighbours of a row at once, and so many times before it uses the first: rows of f32
// begin anywhere, those of bf16 (S) at multiples of 16 bytes.
template <class S>
constexpr int kBeside = std::is_same_v<S, bf16> ? 8 : 1;
template <class S>
constexpr int kAhead = std::is_same_v<S, bf16> ? 4 : 8;

// use(v, numbers v .. of the row z[V]) for the thread's own: packs, and what is left one by one.
template <class T, class S, class F>
__device__ __forceinline__ void each_ahead(const S* z, int V, F use) {
  const int step = static_cast<int>(blockDim.x), packs = V / kBeside<S>;
  for (int first = static_cast<int>(threadIdx.x); first < packs; first += kAhead<S> * step) {
    Few<kBeside<S>, S> x[kAhead<S>];
#pragma unroll
    for (int k = 0; k < kAhead<S>; ++k) {
      const int i = first + k * step < packs ? first + k * step : first;
      x[k] = load_few<kBeside<S>>(z + i * kBeside<S>);
    }
#pragma unroll
    for (int k = 0; k < kAhead<S>; ++k) {
      T y[kBeside<S>];
#pragma unroll
      for (int j = 0; j < kBeside<S>; ++j) y[j] = to_float(x[k].at[j]);
      if (first + k * step < packs) use((first + k * step) * kBeside<S>, y);
    }
  }
  for (int v = packs * kBeside<S> + static_cast<int>(threadIdx.x); v < V; v += step) {
    const T y[1] = {to_float(z[v])};
    use(v, y);
  }
}

// exp(x), x <= 0: of what is rounded to bf16 by a power of two, which is cheaper.
template <class S, class T>
__device__ __forceinline__ T exp_below(T x) {
  if constexpr (std::is_same_v<S, bf16>) {
    return power_of_two(x * kLog2E);
  } else {
    return exp_of(x);
  }
}

// The row's largest number and the sum of exp(z - top): one walk, in which every thread keeps a top
// of its own.
template <class T>
struct SoftmaxOf {
  T top, sum;
};
template <class T, class S>
__device__ SoftmaxOf<T> softmax_of(const S* z, int V) {
  T top = kLowest<T>, sum = 0;
  each_ahead<T>(z, V, [&](int, const auto& x) {
    T most = top;
    for (T y : x) most = y > most ? y : most;
    if (most > top) sum *= exp_below<S>(top - most), top = most;
    const T from = top == kLowest<T> ? T(0) : top;  // of nothing but -infinity, so far
    for (T y : x) sum += exp_below<S>(y - from);
  });
  const T all = block_max(top);
  return {all, block_sum(sum == T(0) ? T(0) : sum * exp_below<S>(top - all))};  // NaN stays NaN
}

// A block walks over rows: so few are under way that the second reading of one finds it in the L2 cache.
// logits,dlogits[N,ld]: beyond V a gradient is 0.
template <class T, class S>
__global__ void __launch_bounds__(1024, 1)
    cross_entropy_kernel(T* loss, S* dlogits, const S* logits, const int32_t* targets, int64_t N,
                         int V, int ld, T scale) {
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int32_t target = targets[n];
    const S* z = logits + n * ld;
    S* d = dlogits ? dlogits + n * ld : nullptr;
    if (target < 0) {  // all threads of the block
      if (threadIdx.x == 0) loss[n] = 0;
      for (int v = static_cast<int>(threadIdx.x); d && v < ld; v += static_cast<int>(blockDim.x))
        d[v] = rounded<S>(T(0));
      continue;
    }
    const SoftmaxOf<T> s = softmax_of<T>(z, V);
    if (threadIdx.x == 0) loss[n] = log_of(s.sum) + s.top - to_float(z[target]);
    if (!d) continue;
    __syncthreads();  // z[target] was read: dlogits may lie over logits
    const T factor = scale / s.sum;
    each_ahead<T>(z, V, [&](int v, const auto& x) {
      constexpr int kHere = sizeof(x) / sizeof(T);
      Few<kHere, S> few;
#pragma unroll
      for (int j = 0; j < kHere; ++j) few.at[j] = rounded<S>(exp_below<S>(x[j] - s.top) * factor);
      if (v <= target && target < v + kHere) {
#pragma unroll
        for (int j = 0; j < kHere; ++j) {
          if (v + j == target) few.at[j] = rounded<S>(exp_below<S>(x[j] - s.top) * factor - scale);
        }
      }
      store_few(d + v, few);
    });
    for (int v = V + static_cast<int>(threadIdx.x); v < ld; v += static_cast<int>(blockDim.x))
      d[v] = rounded<S>(T(0));
  }
}

void cross_entropy(Ctx& ctx, Tensor loss, Tensor dlogits, Tensor logits, Tensor targets,
                   double scale, int64_t V) {
  const int64_t N = logits.rows(), ld = logits.cols();
  if (N == 0) return;
  const bool half = logits.dtype == DType::bf16;
  LTE_CHECK((half ? ld == pieces(V, 8) * 8 && aligned16(logits.data, dlogits.data) : ld == V) &&
                (!dlogits || (dlogits.cols() == ld && dlogits.dtype == logits.dtype)),
            "cross_entropy: shapes do not fit");
  CudaCtx& c = cuda(ctx);
  const int32_t* target = device_list(c, targets);
  // 1024 threads a multiprocessor, in one block, or of bf16 two, where rows are long.
  const int64_t threads = std::clamp<int64_t>(pieces(V, 8 * kWarp), 1, half ? 16 : 32) * kWarp;
  const int64_t blocks = std::min(N, c.multiprocessors * (1024 / threads));
  with_kept(logits, [&]<class T, class S>() {
    launch(cross_entropy_kernel<T, S>, static_cast<unsigned>(blocks),
           static_cast<unsigned>(threads), 0, c.stream, ptr<T>(loss), ptr<S>(dlogits),
           ptr<S>(logits), target, N, static_cast<int>(V), static_cast<int>(ld),
           static_cast<T>(scale));
  });
}

// teacher[N,V] logits,dlogits[N,ld]
template <class T, class S>
__global__ void distill_kernel(S* dlogits, const S* logits, const T* teacher,
                               const int32_t* targets, int V, int ld, T w) {
  if (targets[blockIdx.x] < 0) return;
  const S* z = logits + int64_t{blockIdx.x} * ld;
  const T* y = teacher + int64_t{blockIdx.x} * V;
  const SoftmaxOf<T> p = softmax_of<T>(z, V), q = softmax_of<T>(y, V);
  S* d = dlogits + int64_t{blockIdx.x} * ld;
  for (int v = static_cast<int>(threadIdx.x); v < V; v += static_cast<int>(blockDim.x)) {
    const T more = w * (exp_of(T(to_float(z[v])) - p.top) / p.sum - exp_of(y[v] - q.top) / q.sum);
    d[v] = rounded<S>(to_float(d[v]) + more);
  }
}

void distill_add(Ctx& ctx, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                 double w) {
  const int32_t* target = device_list(cuda(ctx), targets);
  const int64_t V = teacher.cols();
  with_kept(logits, [&]<class T, class S>() {
    launch_rows(ctx, distill_kernel<T, S>, logits.rows(), V, ptr<S>(dlogits), ptr<S>(logits),
                ptr<T>(teacher), target, static_cast<int>(V), static_cast<int>(logits.cols()),
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
