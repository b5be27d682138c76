// Hard gates by every rule, softmax over the kept, and the compaction of the gates into lists.
#include "place.h"

namespace lte {
namespace {

template <class T>
struct Threshold {
  T* gates;
  const T* scores;
  T cut;
  bool all;
  __device__ void operator()(int64_t i) const { gates[i] = all || scores[i] > cut ? T(1) : T(0); }
};

// score >= cut times the row's highest. A row that begins with NaN has no highest; else NaN is
// passed over, as std::max_element does.
template <class T>
__global__ void relative_max_kernel(T* gates, const T* scores, int64_t E, T cut) {
  const T* s = scores + blockIdx.x * E;
  T top = kLowest<T>;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) top = s[e] > top ? s[e] : top;
  top = block_max(top);
  const T least = cut * (s[0] == s[0] ? top : s[0]);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    gates[blockIdx.x * E + e] = s[e] >= least ? T(1) : T(0);
  }
}

// A whole number that falls as the score rises; NaN counts as the lowest score, -0 as 0.
__device__ __forceinline__ unsigned long long falling_key(double score) {
  if (score != score) score = -INFINITY;
  if (score == 0) score = 0;
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(score));
  return bits >> 63 ? bits : ~(bits | 1ull << 63);
}

// The k highest of a row, ties to the lower number. The k-th smallest key is found by eight passes
// over its bytes, from the highest; of the keys equal to it the first few are taken.
template <class T>
__global__ void top_k_kernel(T* gates, const T* scores, int64_t E, int64_t k) {
  const T* s = scores + blockIdx.x * E;
  T* g = gates + blockIdx.x * E;
  LTE_SHARED(int, bins[256]);
  LTE_SHARED(unsigned long long, found[1]);
  LTE_SHARED(int, left[1]);
  unsigned long long prefix = 0;  // of the k-th key
  int wanted = static_cast<int>(k);
  for (int byte = 7; byte >= 0; --byte) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x)) {
      bins[i] = 0;
    }
    __syncthreads();
    for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
      const unsigned long long key = falling_key(s[e]);
      const bool same = byte == 7 || key >> (8 * (byte + 1)) == prefix;
      if (same) atomicAdd(&bins[key >> (8 * byte) & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 0;
      for (; bin < 255 && bins[bin] < wanted; ++bin) wanted -= bins[bin];
      found[0] = prefix << 8 | static_cast<unsigned long long>(bin), left[0] = wanted;
    }
    __syncthreads();
    prefix = found[0], wanted = left[0];
  }
  int taken = 0;  // keys equal to the k-th, so far
  for (int64_t from = 0; from < E; from += blockDim.x) {
    const int64_t e = from + threadIdx.x;
    const unsigned long long key = e < E ? falling_key(s[e]) : ~0ull;
    const bool equal = e < E && key == prefix;
    const Place place = block_place(equal);
    const bool open = key < prefix || (equal && taken + place.before < wanted);
    if (e < E) g[e] = open && k > 0 ? T(1) : T(0);
    taken += place.all;
  }
}

// The shortest list of highest scores whose sum is at least `share` of all: ranks by counting, sums
// in order by one thread. order[row, E] is scratch.
template <class T>
__global__ void cumulative_kernel(T* gates, int32_t* order, const T* scores, int64_t E,
                                  double share) {
  const T* s = scores + blockIdx.x * E;
  T* g = gates + blockIdx.x * E;
  int32_t* list = order + blockIdx.x * E;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    const unsigned long long key = falling_key(s[e]);
    int64_t rank = 0;
    for (int64_t i = 0; i < E; ++i) {
      const unsigned long long other = falling_key(s[i]);
      rank += other < key || (other == key && i < e);
    }
    list[rank] = static_cast<int32_t>(e);
    g[e] = 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double all = 0, sum = 0;
    for (int64_t e = 0; e < E; ++e) all += static_cast<double>(s[e]);
    for (int64_t i = 0; i < E && (i == 0 || sum < share * all); ++i) {
      g[list[i]] = T(1), sum += static_cast<double>(s[list[i]]);
    }
  }
}

void gate(Ctx& ctx, Tensor gates, Tensor scores, Rule rule, double cut) {
  const int64_t N = scores.rows(), E = scores.cols();
  with_type(gates, [&]<class T>() {
    T* g = ptr<T>(gates);
    const T* s = ptr<T>(scores);
    if (rule == Rule::all || rule == Rule::threshold) {
      each(ctx, N * E, Threshold<T>{g, s, static_cast<T>(cut), rule == Rule::all});
    } else if (rule == Rule::relative_max) {
      launch_rows(ctx, relative_max_kernel<T>, N, E, g, s, E, static_cast<T>(cut));
    } else if (rule == Rule::top_k) {
      const int64_t k = std::clamp<int64_t>(static_cast<int64_t>(cut), 0, E);
      launch_rows(ctx, top_k_kernel<T>, N, E, g, s, E, k);
    } else {
      launch_rows(ctx, cumulative_kernel<T>, N, E, g, cuda(ctx).workspace<int32_t>(N * E), s, E,
                  cut);
    }
  });
}

template <class T>
__global__ void gate_softmax_kernel(T* gates, const T* scores, int64_t E) {
  T* g = gates + blockIdx.x * E;
  const T* s = scores + blockIdx.x * E;
  T top = kLowest<T>, sum = 0;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    if (g[e] != T(0)) top = max_of(top, s[e]);
  }
  top = block_max(top);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    if (g[e] != T(0)) sum += exp_of(s[e] - top);
  }
  sum = block_sum(sum);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    if (g[e] != T(0)) g[e] = exp_of(s[e] - top) / sum;  // of a row with one open: 1 or more, or NaN
  }
}
void gate_softmax(Ctx& ctx, Tensor gates, Tensor scores) {
  with_type(gates, [&]<class T>() {
    launch_rows(ctx, gate_softmax_kernel<T>, gates.rows(), gates.cols(), ptr<T>(gates),
                ptr<T>(scores), gates.cols());
  });
}

template <class T>
__global__ void gate_softmax_backward_kernel(T* dz, const T* dgates, const T* gates, int64_t E) {
  const int64_t row = blockIdx.x * E;
  T sum = 0;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) sum += gates[row + e] * dgates[row + e];
  sum = block_sum(sum);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    dz[row + e] = gates[row + e] * (dgates[row + e] - sum);
  }
}
void gate_softmax_backward(Ctx& ctx, Tensor dz, Tensor dgates, Tensor gates) {
  with_type(gates, [&]<class T>() {
    launch_rows(ctx, gate_softmax_backward_kernel<T>, gates.rows(), gates.cols(), ptr<T>(dz),
                ptr<T>(dgates), ptr<T>(gates), gates.cols());
  });
}

// A block compacts 32 experts, a lane each; its warps take ranges of the tokens that follow each
// other: they count, learn where they begin, and write.
constexpr int kRouteWarps = 8;
template <class T>
__global__ void route_kernel(int32_t* index, int32_t* count, const T* gates, int64_t N, int64_t E) {
  LTE_SHARED(int, counts[kRouteWarps][kWarp]);
  const int lane = lane_of_thread(), warp = warp_of_thread();
  const int64_t e = blockIdx.x * static_cast<int64_t>(kWarp) + lane;
  const int64_t grain = (N + kRouteWarps - 1) / kRouteWarps, begin = warp * grain;
  const int64_t end = begin + grain < N ? begin + grain : N;
  int own = 0;
  for (int64_t n = begin; e < E && n < end; ++n) own += gates[n * E + e] != T(0);
  counts[warp][lane] = own;
  __syncthreads();
  int at = 0, all = 0;
  for (int w = 0; w < kRouteWarps; ++w) {
    at += w < warp ? counts[w][lane] : 0;
    all += counts[w][lane];
  }
  if (e >= E) return;
  if (warp == 0) count[e] = all;
  for (int64_t n = begin; n < end; ++n) {
    if (gates[n * E + e] != T(0)) index[e * N + at++] = static_cast<int32_t>(n);
  }
}
void route(Ctx& ctx, Tensor index, Tensor count, Tensor gates) {
  const int64_t N = gates.rows(), E = gates.cols();
  with_type(gates, [&]<class T>() {
    launch(route_kernel<T>, static_cast<unsigned>(pieces(E, kWarp)), kRouteWarps * kWarp, 0,
           cuda(ctx).stream, ptr<int32_t>(index), ptr<int32_t>(count), ptr<T>(gates), N, E);
  });
}

}  // namespace

void fill_cuda_gates(Ops& ops) {
  ops.gate = gate;
  ops.gate_softmax = gate_softmax;
  ops.gate_softmax_backward = gate_softmax_backward;
  ops.route = route;
}

}  // namespace lte
