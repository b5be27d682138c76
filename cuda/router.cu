// A linear router for few tokens in one launch: product, sigmoid, threshold and lists.
#include "few_cores.h"

namespace lte {
namespace {

constexpr int kRouterTokens = 16, kRouterWarps = 4;

// A warp an expert, which reads the expert's row of w once.
template <int kTokens, class T, class W>
__global__ void __launch_bounds__(kRouterWarps* kWarp, 4)
    route_linear_kernel(T* scores, T* gates, int32_t* index, int32_t* count, const T* x, const W* w,
                        const T* b, int N, int64_t D, int64_t E, T cut, bool vector) {
  const int64_t e = thread_in_grid() / kWarp;
  let_next_begin();
  if (e < E) prefetch_row(w + e * D, D);
  await_inputs();
  if (e >= E) return;  // a whole warp
  T sum[1][kTokens] = {};
  row_products(sum, {w + e * D}, x, D, N, kAllLanes, vector);
  int open = 0;
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    if (n >= N) break;
    T z = warp_sum(sum[0][n]);
    if (b) z += b[e];
    const T score = T(1) / (T(1) + exp_of(-z));
    const bool yes = score > cut;
    if (lane_of_thread() == 0) {
      scores[n * E + e] = score, gates[n * E + e] = yes ? T(1) : T(0);
      if (yes) index[e * N + open] = n;
    }
    open += yes;
  }
  if (lane_of_thread() == 0) count[e] = open;
}

// One token and rows of whole pieces of 16 bytes: by blocks, which have the first ones before x is there.
template <class X>
__global__ void __launch_bounds__(kSplitThreads, 2)
    split_route_kernel(float* scores, float* gates, int32_t* index, int32_t* count, X x,
                       const bf16* w, const float* b, int64_t D, int64_t E, float cut) {
  float z;
  const int64_t e = split_product(z, x, w, E, D);
  if (e < 0) return;
  if (b) z += b[e];
  const float score = 1.0f / (1.0f + exp_of(-z));
  const bool yes = score > cut;
  scores[e] = score, gates[e] = yes ? 1.0f : 0.0f, count[e] = yes;
  if (yes) index[e] = 0;
}

// The same on tensor cores: 16 experts a block. The last one reaches back, and writes what is its own.
template <int kCols>
__global__ void __launch_bounds__(kCoreThreads, 1)
    core_route_kernel(float* scores, float* gates, int32_t* index, int32_t* count, const float* x,
                      const bf16* w, const float* b, int N, int64_t D, int64_t E, float cut) {
  LTE_SHARED(bool, open[kCoreRows][kCoreTokens<kCols>]);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kCoreRows;
  const int64_t first = own + kCoreRows < E ? own : E - kCoreRows;
  CoreBlock<1, kCols, 1> block;
  block.add({w + first * D}, x, N, D);
  float z = block.total(0);
  const int n = thread_rank() / kCoreRows, r = block.row();
  const int64_t e = first + r;
  if (n < N) {
    if (b) z += b[e];
    const float score = 1.0f / (1.0f + exp_of(-z));
    const bool yes = score > cut;
    if (e >= own) scores[n * E + e] = score, gates[n * E + e] = yes ? 1.0f : 0.0f;
    open[r][n] = yes;
  }
  __syncthreads();
  if (n > 0 || e < own) return;
  int all = 0;
  for (int i = 0; i < N; ++i) {
    if (open[r][i]) index[e * N + all++] = i;
  }
  count[e] = all;
}

template <class X>
void split_route(Ctx& ctx, Tensor scores, ExpertLists out, X x, Tensor w, Tensor b, double cut) {
  launch_early(split_route_kernel<X>, static_cast<unsigned>(pieces(w.rows(), kSplitRows)),
               kSplitThreads, 0, cuda(ctx).stream, ptr<float>(scores), ptr<float>(out.gates),
               ptr<int32_t>(out.index), ptr<int32_t>(out.count), x, ptr<bf16>(w), ptr<float>(b),
               w.cols(), w.rows(), static_cast<float>(cut));
}

bool route_linear(Ctx& ctx, Tensor scores, ExpertLists out, Tensor x, Tensor w, Tensor b,
                  double cut) {
  const int64_t N = x.rows(), D = x.cols(), E = w.rows();
  if (N > kRouterTokens) return false;
  with_types(x, w, [&]<class T, class W>() {
    LTE_CHECK(!b || b.dtype == x.dtype, "route_linear: x and b are not of one type");
    const bool vector = D % Pack<W>::kSize == 0 && aligned16(x.data, w.data);
    if constexpr (sizeof(W) == 2) {
      if (vector && fits_cores(N, D) && E >= kCoreRows) {
        launch(N <= 8 ? core_route_kernel<1> : core_route_kernel<2>,
               static_cast<unsigned>(pieces(E, kCoreRows)), kCoreThreads, 0, cuda(ctx).stream,
               ptr<T>(scores), ptr<T>(out.gates), ptr<int32_t>(out.index), ptr<int32_t>(out.count),
               ptr<T>(x), ptr<W>(w), ptr<T>(b), static_cast<int>(N), D, E, static_cast<T>(cut));
        return;
      }
      if (N == 1 && vector && fits_split<W>(D)) {
        return split_route(ctx, scores, out, PlainRow<T>{ptr<T>(x)}, w, b, cut);
      }
    }
    const auto kernel = N == 1   ? route_linear_kernel<1, T, W>
                        : N <= 4 ? route_linear_kernel<4, T, W>
                                 : route_linear_kernel<kRouterTokens, T, W>;
    launch_early(kernel, static_cast<unsigned>(pieces(E, kRouterWarps)), kRouterWarps * kWarp, 0,
                 cuda(ctx).stream, ptr<T>(scores), ptr<T>(out.gates), ptr<int32_t>(out.index),
                 ptr<int32_t>(out.count), ptr<T>(x), ptr<W>(w), ptr<T>(b), static_cast<int>(N), D,
                 E, static_cast<T>(cut), vector);
  });
  return true;
}

bool norm_route_linear(Ctx& ctx, Tensor scores, ExpertLists out, AddNorm in, Tensor w, Tensor b,
                       double cut) {
  if (!fits_normed(in, w)) return false;
  split_route(ctx, scores, out, normed_row(in), w, b, cut);
  return true;
}

}  // namespace

void fill_cuda_router(Ops& ops) {
  ops.route_linear = route_linear, ops.norm_route_linear = norm_route_linear;
}

}  // namespace lte
