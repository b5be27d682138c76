// Cross-entropy with its softmax, distillation, and the update: one block a row of logits.
#include "context.h"

namespace lte {
namespace {

// The row's largest number and the sum of exp(z - top): one walk, in which every thread keeps a top
// of its own.
template <class T>
struct SoftmaxOf {
  T top, sum;
};
template <class T>
__device__ SoftmaxOf<T> softmax_of(const T* z, int64_t V) {
  T top = kLowest<T>, sum = 0;
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    if (z[v] > top) sum *= exp_of(top - z[v]), top = z[v];
    sum += z[v] == kLowest<T> ? T(0) : exp_of(z[v] - top);
  }
  const T all = block_max(top);
  return {all, block_sum(sum == T(0) ? T(0) : sum * exp_of(top - all))};  // NaN stays NaN
}

template <class T>
__global__ void cross_entropy_kernel(T* loss, T* dlogits, const T* logits, const int32_t* targets,
                                     int64_t V, T scale) {
  const int32_t target = targets[blockIdx.x];
  const T* z = logits + blockIdx.x * V;
  T* d = dlogits ? dlogits + blockIdx.x * V : nullptr;
  if (target < 0) {  // all threads of the block
    if (threadIdx.x == 0) loss[blockIdx.x] = 0;
    for (int64_t v = threadIdx.x; d && v < V; v += blockDim.x) d[v] = 0;
    return;
  }
  const SoftmaxOf<T> s = softmax_of(z, V);
  if (threadIdx.x == 0) loss[blockIdx.x] = log_of(s.sum) + s.top - z[target];
  __syncthreads();  // z[target] was read: dlogits may lie over logits
  const T factor = scale / s.sum;
  for (int64_t v = threadIdx.x; d && v < V; v += blockDim.x) {
    d[v] = exp_of(z[v] - s.top) * factor - (v == target ? scale : T(0));
  }
}

void cross_entropy(Ctx& ctx, Tensor loss, Tensor dlogits, Tensor logits, Tensor targets,
                   double scale) {
  const int32_t* target = device_list(cuda(ctx), targets);
  with_type(logits, [&]<class T>() {
    launch_rows(ctx, cross_entropy_kernel<T>, logits.rows(), logits.cols(), ptr<T>(loss),
                ptr<T>(dlogits), ptr<T>(logits), target, logits.cols(), static_cast<T>(scale));
  });
}

template <class T>
__global__ void distill_kernel(T* dlogits, const T* logits, const T* teacher,
                               const int32_t* targets, int64_t V, T w) {
  if (targets[blockIdx.x] < 0) return;
  const T *z = logits + blockIdx.x * V, *y = teacher + blockIdx.x * V;
  const SoftmaxOf<T> p = softmax_of(z, V), q = softmax_of(y, V);
  T* d = dlogits + blockIdx.x * V;
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    d[v] += w * (exp_of(z[v] - p.top) / p.sum - exp_of(y[v] - q.top) / q.sum);
  }
}

void distill_add(Ctx& ctx, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                 double w) {
  const int32_t* target = device_list(cuda(ctx), targets);
  with_type(logits, [&]<class T>() {
    launch_rows(ctx, distill_kernel<T>, logits.rows(), logits.cols(), ptr<T>(dlogits),
                ptr<T>(logits), ptr<T>(teacher), target, logits.cols(), static_cast<T>(w));
  });
}

template <class T>
struct Update {
  T *p, *m, *v;
  const T* grad;
  T b1, b2, eps, rate, root, keep, scale;
  __device__ void operator()(int64_t i) const {
    const T g = scale * grad[i];
    m[i] = b1 * m[i] + (T(1) - b1) * g;
    v[i] = b2 * v[i] + (T(1) - b2) * g * g;
    p[i] = keep * p[i] - rate * m[i] / (sqrt_of(v[i]) * root + eps);
  }
};

void adamw(Ctx& ctx, Tensor p, Tensor grad, Tensor m, Tensor v, AdamW a) {
  const double correct1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correct2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  with_type(p, [&]<class T>() {
    each(ctx, p.size(),
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
