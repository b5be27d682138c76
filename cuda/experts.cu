// Scores of routers and oracles, masked execution and the losses on scores.
#include "context.h"
#include "core/rng.h"

namespace lte {
namespace {

template <class T>
struct Sigmoid {
  T* x;
  __device__ void operator()(int64_t i) const { x[i] = T(1) / (T(1) + exp_of(-x[i])); }
};
void sigmoid(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() { each(ctx, x.size(), Sigmoid<T>{ptr<T>(x)}); });
}

template <class T>
struct SigmoidBackward {
  T* dz;
  const T *d, *g;
  __device__ void operator()(int64_t i) const { dz[i] = d[i] * g[i] * (T(1) - g[i]); }
};
void sigmoid_backward(Ctx& ctx, Tensor dz, Tensor dscore, Tensor score) {
  with_type(dz, [&]<class T>() {
    each(ctx, dz.size(), SigmoidBackward<T>{ptr<T>(dz), ptr<T>(dscore), ptr<T>(score)});
  });
}

template <class T>
struct Absolute {
  T* x;
  __device__ void operator()(int64_t i) const { x[i] = abs_of(x[i]); }
};
void absolute(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() { each(ctx, x.size(), Absolute<T>{ptr<T>(x)}); });
}

template <class T>
__global__ void softmax_kernel(T* x, int64_t E) {
  T* row = x + blockIdx.x * E;
  T top = kLowest<T>, sum = 0;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) top = max_of(top, row[e]);
  top = block_max(top);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) sum += exp_of(row[e] - top);
  sum = block_sum(sum);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) row[e] = exp_of(row[e] - top) / sum;
}
void softmax(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() {
    launch_rows(ctx, softmax_kernel<T>, x.rows(), x.cols(), ptr<T>(x), x.cols());
  });
}

template <class T>
__global__ void unit_rows_kernel(T* out, const T* x, int64_t D) {
  const int64_t row = blockIdx.x * D;
  T square = 0;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) square += x[row + d] * x[row + d];
  const T length = sqrt_of(block_sum(square)), factor = length > T(0) ? T(1) / length : T(0);
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) out[row + d] = x[row + d] * factor;
}
void unit_rows(Ctx& ctx, Tensor out, Tensor x) {
  with_type(x, [&]<class T>() {
    launch_rows(ctx, unit_rows_kernel<T>, x.rows(), x.cols(), ptr<T>(out), ptr<T>(x), x.cols());
  });
}

// The draws of the CPU: Rng::normal by the device's functions.
template <class T>
struct Noise {
  T* x;
  double std;
  uint64_t seed;
  __device__ void operator()(int64_t i) const {
    Rng rng(hash64(seed, 0x2015e, static_cast<uint64_t>(i)));
    const double u = 1.0 - rng.uniform(), v = rng.uniform();
    x[i] += static_cast<T>(std * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
  }
};
void noise_add(Ctx& ctx, Tensor x, double std, uint64_t seed) {
  with_type(x, [&]<class T>() { each(ctx, x.size(), Noise<T>{ptr<T>(x), std, seed}); });
}

template <class T, class W>
__global__ void row_lengths_kernel(T* length, const W* w, int64_t D) {
  T square = 0;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    const T v = to_float(w[blockIdx.x * D + d]);
    square += v * v;
  }
  square = block_sum(square);
  if (threadIdx.x == 0) length[blockIdx.x] = sqrt_of(square);
}
template <class T>
struct MeasureExpert {
  T* scores;
  const T *a, *w;
  int64_t E, G;
  Measure how;
  __device__ void operator()(int64_t i) const {  // i = n E + e, and so a[n,F] begins at i G
    T sum = 0;
    for (int64_t j = 0; j < G; ++j) {
      const T worth = w ? a[i * G + j] * w[i % E * G + j] : a[i * G + j];
      if (how == Measure::magnitude) sum += abs_of(worth);
      if (how == Measure::norm) sum += worth * worth;
      if (how == Measure::positive && worth > T(0)) sum += worth;
    }
    scores[i] = how == Measure::norm ? sqrt_of(sum) : sum;
  }
};
void measure(Ctx& ctx, Tensor scores, Tensor a, Tensor down, Measure how) {
  const int64_t E = scores.cols(), G = a.cols() / E;
  with_types(scores, down ? down : scores, [&]<class T, class W>() {
    T* w = nullptr;
    if (down) {
      w = cuda(ctx).workspace<T>(down.rows());
      launch_rows(ctx, row_lengths_kernel<T, W>, down.rows(), down.cols(), w, ptr<W>(down),
                  down.cols());
    }
    each(ctx, scores.size(), MeasureExpert<T>{ptr<T>(scores), ptr<T>(a), w, E, G, how});
  });
}

template <class T>
struct ScaleExperts {
  T* out;
  const T *a, *gates;
  int64_t G;
  __device__ void operator()(int64_t i) const {
    const T g = gates[i / G];
    out[i] = g == T(0) ? T(0) : a[i] * g;  // not a product: 0 times infinity is not 0
  }
};
void scale_experts(Ctx& ctx, Tensor out, Tensor a, Tensor gates) {
  with_type(out, [&]<class T>() {
    each(ctx, out.size(),
         ScaleExperts<T>{ptr<T>(out), ptr<T>(a), ptr<T>(gates), a.cols() / gates.cols()});
  });
}

// A warp an expert of a token; each lane reads and writes its own neurons, so da may alias dout.
template <class T>
__global__ void scale_experts_backward_kernel(T* da, T* dgates, const T* dout, const T* a,
                                              const T* gates, int64_t count, int64_t G) {
  const int64_t warps = threads_of_grid() / kWarp;
  for (int64_t i = thread_in_grid() / kWarp; i < count; i += warps) {
    const T g = gates[i];
    T sum = 0;
    for (int64_t j = i * G + lane_of_thread(); j < (i + 1) * G; j += kWarp) {
      const T d = dout[j];
      sum += d * a[j], da[j] = d * g;
    }
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) dgates[i] = sum;
  }
}
template <class T>
struct ScaleNeuronBackward {  // experts of one neuron
  T *da, *dgates;
  const T *dout, *a, *gates;
  __device__ void operator()(int64_t i) const {
    const T d = dout[i];
    dgates[i] = d * a[i], da[i] = d * gates[i];
  }
};
void scale_experts_backward(Ctx& ctx, Tensor da, Tensor dgates, Tensor dout, Tensor a,
                            Tensor gates) {
  const int64_t G = a.cols() / gates.cols(), count = gates.size();
  with_type(da, [&]<class T>() {
    if (G == 1) {
      each(ctx, count,
           ScaleNeuronBackward<T>{ptr<T>(da), ptr<T>(dgates), ptr<T>(dout), ptr<T>(a),
                                  ptr<T>(gates)});
      return;
    }
    launch(scale_experts_backward_kernel<T>, grid_for(count, 8), 256, 0, cuda(ctx).stream,
           ptr<T>(da), ptr<T>(dgates), ptr<T>(dout), ptr<T>(a), ptr<T>(gates), count, G);
  });
}

// d/dG of G^2 is 2 G; d/dG of 1 / ((G - tau)^2 + eps) is -2 (G - tau) / ((G - tau)^2 + eps)^2.
template <class T>
struct GateTerms {
  T* dscores;
  const T* scores;
  GateLoss loss;
  __device__ void operator()(int64_t i, double* sum) const {
    const double g = scores[i], off = g - loss.tau, term = 1 / (off * off + loss.eps);
    const bool clipped = loss.clip > 0 && term > loss.clip;
    sum[0] += g * g, sum[1] += clipped ? loss.clip : term, sum[2] += off > 0 ? 1 : 0;
    if (!dscores) return;
    double d = loss.efficiency * 2 * g;
    if (!clipped && loss.separability != 0) d -= loss.separability * 2 * off * term * term;
    dscores[i] += static_cast<T>(d);
  }
};
void gate_loss_add(Ctx& ctx, Tensor dscores, Tensor sums, Tensor scores, GateLoss loss) {
  with_type(scores, [&]<class T>() {
    sum_all<3>(ctx, ptr<double>(sums), scores.size(),
               GateTerms<T>{ptr<T>(dscores), ptr<T>(scores), loss});
  });
}

// d/da of S^2 / Q, with S = sum |a| and Q = sum a^2: 2 S sign(a) / Q - 2 S^2 a / Q^2.
template <class T>
__global__ void hoyer_kernel(T* da, double* parts, const T* a, int64_t N, int64_t F,
                             double weight) {
  const int64_t row = blockIdx.x * F;
  double S = 0, Q = 0;
  for (int64_t j = threadIdx.x; j < F; j += blockDim.x) {
    const double x = a[row + j];
    S += fabs(x), Q += x * x;
  }
  S = block_sum(S), Q = block_sum(Q);
  if (threadIdx.x == 0) parts[blockIdx.x] = (Q > 0 ? S * S / Q : 1) / static_cast<double>(N);
  if (!(Q > 0)) return;
  const double scale = weight / static_cast<double>(N);
  const T up = static_cast<T>(scale * 2 * S / Q),
          back = static_cast<T>(scale * 2 * S * S / (Q * Q));
  for (int64_t j = threadIdx.x; j < F; j += blockDim.x) {
    const T x = a[row + j];
    da[row + j] += (x > T(0) ? up : x < T(0) ? -up : T(0)) - x * back;
  }
}
void hoyer_add(Ctx& ctx, Tensor da, Tensor sum, Tensor a, double weight) {
  const int64_t N = a.rows(), F = a.cols();
  with_type(a, [&]<class T>() {
    double* parts = cuda(ctx).workspace<double>(N);
    launch_rows(ctx, hoyer_kernel<T>, N, F, ptr<T>(da), parts, ptr<T>(a), N, F, weight);
    launch(sum_total_kernel<1>, 1, 256, 0, cuda(ctx).stream, ptr<double>(sum), parts,
           static_cast<int>(N));
  });
}

}  // namespace

void fill_cuda_experts(Ops& ops) {
  ops.sigmoid = sigmoid;
  ops.sigmoid_backward = sigmoid_backward;
  ops.softmax = softmax;
  ops.absolute = absolute;
  ops.unit_rows = unit_rows;
  ops.noise_add = noise_add;
  ops.measure = measure;
  ops.scale_experts = scale_experts;
  ops.scale_experts_backward = scale_experts_backward;
  ops.gate_loss_add = gate_loss_add;
  ops.hoyer_add = hoyer_add;
}

}  // namespace lte
