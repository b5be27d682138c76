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

// use(v, numbers v .. of the row z[V]) for the thread's own; what lies beyond V is the lowest number.
template <class T, class S, class F>
__device__ __forceinline__ void each_ahead(const S* z, int64_t V, F use) {
  const int64_t step = blockDim.x * kBeside<S>;
  for (int64_t first = threadIdx.x * kBeside<S>; first < V; first += kAhead<S> * step) {
    Few<kBeside<S>, S> x[kAhead<S>];
#pragma unroll
    for (int k = 0; k < kAhead<S>; ++k) {
      const int64_t v = first + k * step < V ? first + k * step : first;
      x[k] = load_few<kBeside<S>>(z + v);
    }
#pragma unroll
    for (int k = 0; k < kAhead<S>; ++k) {
      T y[kBeside<S>];
#pragma unroll
      for (int j = 0; j < kBeside<S>; ++j)
        y[j] = first + k * step + j < V ? T(to_float(x[k].at[j])) : kLowest<T>;
      use(first + k * step, y);
    }
  }
}

// The row's largest number and the sum of exp(z - top): one walk, in which every thread keeps a top
// of its own.
template <class T>
struct SoftmaxOf {
  T top, sum;
};
template <class T, class S>
__device__ SoftmaxOf<T> softmax_of(const S* z, int64_t V) {
  T top = kLowest<T>, sum = 0;
  each_ahead<T>(z, V, [&](int64_t, const auto& x) {
    T most = top;
    for (T y : x) most = y > most ? y : most;
    if (most > top) sum *= exp_of(top - most), top = most;
    for (T y : x) sum += y == kLowest<T> ? T(0) : exp_of(y - top);
  });
  const T all = block_max(top);
  return {all, block_sum(sum == T(0) ? T(0) : sum * exp_of(top - all))};  // NaN stays NaN
}

// A block walks over rows: so few are under way that the second reading of one finds it in the L2 cache.
// logits,dlogits[N,ld]: beyond V a gradient is 0.
template <class T, class S>
__global__ void __launch_bounds__(1024)
    cross_entropy_kernel(T* loss, S* dlogits, const S* logits, const int32_t* targets, int64_t N,
                         int64_t V, int64_t ld, T scale) {
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int32_t target = targets[n];
    const S* z = logits + n * ld;
    S* d = dlogits ? dlogits + n * ld : nullptr;
    if (target < 0) {  // all threads of the block
      if (threadIdx.x == 0) loss[n] = 0;
      for (int64_t v = threadIdx.x; d && v < ld; v += blockDim.x) d[v] = from_number<S>(T(0));
      continue;
    }
    const SoftmaxOf<T> s = softmax_of<T>(z, V);
    if (threadIdx.x == 0) loss[n] = log_of(s.sum) + s.top - to_float(z[target]);
    if (!d) continue;
    __syncthreads();  // z[target] was read: dlogits may lie over logits
    const T factor = scale / s.sum;
    each_ahead<T>(z, V, [&](int64_t v, const auto& x) {
      if (v >= V) return;
      Few<kBeside<S>, S> few;
#pragma unroll
      for (int j = 0; j < kBeside<S>; ++j) {
        const T own = v + j == target ? scale : T(0);
        few.at[j] = from_number<S>(v + j < V ? exp_of(x[j] - s.top) * factor - own : T(0));
      }
      store_few(d + v, few);
    });
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
           ptr<S>(logits), target, N, V, ld, static_cast<T>(scale));
  });
}

// teacher[N,V] logits,dlogits[N,ld]
template <class T, class S>
__global__ void distill_kernel(S* dlogits, const S* logits, const T* teacher,
                               const int32_t* targets, int64_t V, int64_t ld, T w) {
  if (targets[blockIdx.x] < 0) return;
  const S* z = logits + blockIdx.x * ld;
  const T* y = teacher + blockIdx.x * V;
  const SoftmaxOf<T> p = softmax_of<T>(z, V), q = softmax_of<T>(y, V);
  S* d = dlogits + blockIdx.x * ld;
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    const T more = w * (exp_of(T(to_float(z[v])) - p.top) / p.sum - exp_of(y[v] - q.top) / q.sum);
    d[v] = from_number<S>(to_float(d[v]) + more);
  }
}

void distill_add(Ctx& ctx, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                 double w) {
  const int32_t* target = device_list(cuda(ctx), targets);
  const int64_t V = teacher.cols();
  with_kept(logits, [&]<class T, class S>() {
    launch_rows(ctx, distill_kernel<T, S>, logits.rows(), V, ptr<S>(dlogits), ptr<S>(logits),
                ptr<T>(teacher), target, V, logits.cols(), static_cast<T>(w));
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
