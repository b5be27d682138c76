// The gathered feed-forward layer and sparse inputs: only what is selected is read. Nothing is read
// back: grids are for the worst case, counts are read on the device.
#include "few_cores.h"

namespace lte {
namespace {

template <bool kAtomic, class T, class W>
void one_token(Ctx& ctx, T* out, const Gathered<T, W>& f) {
  CudaCtx& c = cuda(ctx);
  const int64_t F = f.E * f.G, splits = column_splits(F, f.D, f.vector ? Pack<W>::kSize : 1);
  T *h = c.workspace<T>(F + (kAtomic ? 0 : splits * f.D)), *parts = kAtomic ? out : h + F;
  const bool split =
      sizeof(W) == 2 && f.up && !f.known && f.vector && fits_split<W>(f.D) && f.G % kSplitRows == 0;
  if constexpr (sizeof(W) == 2) {
    if (split) split_hidden<true>(c, h, PlainRow<T>{f.x}, f);
  }
  if (!split)
    launch_early(one_hidden_kernel<T, W>, static_cast<unsigned>(pieces(F, kHiddenWarps)),
                 kHiddenWarps * kWarp, 0, c.stream, h, f);
  if (kAtomic) check_cuda(cudaMemsetAsync(out, 0, f.D * sizeof(T), c.stream), "clearing out");
  column_sums<kAtomic>(c, parts, h, f.down,
                       OpenRows{f.count, static_cast<int>(f.E), static_cast<int>(f.G)}, f.D, splits,
                       f.vector, row_list_size(F, f.G, splits));
  if (!kAtomic) join_parts<false>(c, out, parts, f.D, splits);
}

template <class X>
bool dense_token(Ctx& ctx, Tensor out, Tensor x, X row, FfnWeights w, Act act) {
  const int64_t F = w.down.rows(), D = x.cols();
  const bool fits = x.rows() == 1 && x.dtype == DType::f32 && w.down.dtype == DType::bf16 &&
                    fits_split<bf16>(D) && D % Pack<bf16>::kSize == 0 &&
                    aligned16(x.data, w.up.data, w.gate_w.data, w.down.data);
  if (!fits) return false;
  const Gathered<float, bf16> f{.x = ptr<float>(x),
                                .gates = nullptr,
                                .known = nullptr,
                                .up_bias = ptr<float>(w.up_bias),
                                .index = nullptr,
                                .count = nullptr,
                                .up = ptr<bf16>(w.up),
                                .gate_w = ptr<bf16>(w.gate_w),
                                .down = ptr<bf16>(w.down),
                                .act = act,
                                .N = 1,
                                .D = D,
                                .E = 1,
                                .G = F,
                                .vector = true};
  CudaCtx& c = cuda(ctx);
  const int64_t splits = column_splits(F, D, Pack<bf16>::kSize);
  float *h = c.workspace<float>(F + splits * D), *parts = h + F;
  split_hidden<false>(c, h, row, f);
  column_sums<false>(c, parts, h, f.down, AllRows{static_cast<int>(F)}, D, splits, true);
  join_parts<false>(c, ptr<float>(out), parts, D, splits);
  return true;
}

bool ffn_token(Ctx& ctx, Tensor out, Tensor x, FfnWeights w, Act act) {
  return dense_token(ctx, out, x, PlainRow<float>{ptr<float>(x)}, w, act);
}
bool norm_ffn_token(Ctx& ctx, Tensor out, AddNorm in, FfnWeights w, Act act) {
  return fits_normed(in, w.up) && dense_token(ctx, out, in.out, normed_row(in), w, act);
}

// active[0 .. total) = the experts that one of the N tokens selects, ascending. One block.
template <class T>
__global__ void active_kernel(int32_t* active, int32_t* total, const T* gates, int N, int64_t E) {
  let_next_begin();
  await_inputs();
  int base = 0;
  for (int64_t from = 0; from < E; from += blockDim.x) {
    const int64_t e = from + threadIdx.x;
    bool yes = false;
    for (int n = 0; n < N && e < E; ++n) yes |= gates[n * E + e] != T(0);
    const Place place = block_place(yes);
    if (yes) active[base + place.before] = static_cast<int32_t>(e);
    base += place.all;
  }
  if (threadIdx.x == 0) *total = base;
}
template <class T, class W>
void find_active(CudaCtx& c, int32_t* active, int32_t* total, const Gathered<T, W>& f) {
  launch_early(active_kernel<T>, 1, f.E > 256 ? 1024 : 256, 0, c.stream, active, total, f.gates,
               static_cast<int>(f.N), f.E);
}

template <int kTokens, bool kAtomic, class T, class W>
void few_tokens(Ctx& ctx, T* out, const Gathered<T, W>& f) {
  CudaCtx& c = cuda(ctx);
  constexpr int kPack = Pack<W>::kSize;
  const int64_t tiles = pieces(f.D, kWarp * (f.vector ? kPack : 1));
  // Some eight blocks for each of the largest GPUs' multiprocessors, with 16 rows or more each.
  const int64_t splits = std::clamp<int64_t>(
      pieces(1024, tiles), 1, std::max<int64_t>(1, f.E * f.G / (kColumnWarps * kDownRows)));
  const int64_t hidden = f.E * f.G * f.N, parts = kAtomic ? 0 : splits * f.N * f.D;
  T* h = c.workspace<T>(hidden + parts + (f.E + 1) * 4 / static_cast<int64_t>(sizeof(T)) + 1);
  T* part = h + hidden;
  auto* active = reinterpret_cast<int32_t*>(part + parts);
  int32_t* total = active + f.E;
  find_active(c, active, total, f);
  launch(few_hidden_kernel<kTokens, T, W>, static_cast<unsigned>(pieces(f.E * f.G, 4)), 128, 0,
         c.stream, h, active, total, f);
  if (kAtomic) check_cuda(cudaMemsetAsync(out, 0, f.N * f.D * sizeof(T), c.stream), "clearing out");
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(splits));
  const auto down = f.vector ? few_down_kernel<kTokens, kPack, kAtomic, T, W>
                             : few_down_kernel<kTokens, 1, kAtomic, T, W>;
  launch(down, grid, kColumnWarps * kWarp, 0, c.stream, kAtomic ? out : part, h, active, total, f);
  if (kAtomic) return;
  join_parts<false>(c, out, part, f.N * f.D, splits);
}

// As few_tokens, on tensor cores.
template <int kCols, bool kAtomic>
void few_on_cores(Ctx& ctx, float* out, const Gathered<float, bf16>& f) {
  CudaCtx& c = cuda(ctx);
  const int64_t tiles = f.E * f.G / kCoreRows, wide = pieces(f.D, kCoreCols);
  const int64_t splits =
      std::clamp<int64_t>(kCoreBlocks / wide, 1, std::max<int64_t>(1, tiles / kCoreGroup));
  const int64_t hidden = f.E * f.G * kCoreTokens<kCols>, parts = kAtomic ? 0 : splits * f.N * f.D;
  float* h = c.workspace<float>(hidden + parts + f.E + 1);
  float* part = h + hidden;
  auto* active = reinterpret_cast<int32_t*>(part + parts);
  int32_t* total = active + f.E;
  find_active(c, active, total, f);
  const auto hidden_kernel = f.gate_w ? core_hidden_kernel<2, kCols> : core_hidden_kernel<1, kCols>;
  const int64_t own = f.gate_w ? kOwn<2, kCols> : kOwn<1, kCols>;
  launch_early(hidden_kernel, static_cast<unsigned>(pieces(tiles, own)), kCoreThreads, 0, c.stream,
               h, active, total, f);
  if (kAtomic)
    check_cuda(cudaMemsetAsync(out, 0, f.N * f.D * sizeof(float), c.stream), "clearing out");
  const dim3 grid(static_cast<unsigned>(wide), static_cast<unsigned>(splits));
  launch_early(core_down_kernel<kCols, kAtomic>, grid, kCoreThreads, 0, c.stream,
               kAtomic ? out : part, h, active, total, f);
  if (kAtomic) return;
  join_parts<false>(c, out, part, f.N * f.D, splits);
}

// The same for more tokens, 16 at a time: the weights are read again for each 16, and still the products over the
// experts of grouped.cu, whose tiles are 128 tokens high, take longer.
constexpr int64_t kTokensInTurns = 96;
template <bool kAtomic>
void in_turns(Ctx& ctx, float* out, const Gathered<float, bf16>& f) {
  for (int64_t first = 0; first < f.N; first += kFewTokens) {
    Gathered<float, bf16> some = f;
    some.N = std::min<int64_t>(kFewTokens, f.N - first);
    some.x += first * f.D, some.gates += first * f.E;
    if (f.known) some.known += first * f.E * f.G;
    (some.N <= 8 ? few_on_cores<1, kAtomic> : few_on_cores<2, kAtomic>)(ctx, out + first * f.D,
                                                                        some);
  }
}

template <class T, class W>
void many_tokens(Ctx& ctx, T* out, const Gathered<T, W>& f) {
  CudaCtx& c = cuda(ctx);
  const int64_t ranges = pieces(f.N, kRange), hidden = f.N * f.E * f.G;
  T* h = c.workspace<T>(hidden + (ranges + 1) * f.E * 4 / static_cast<int64_t>(sizeof(T)) + 1);
  auto* bounds = reinterpret_cast<int32_t*>(h + hidden);
  each(ctx, (ranges + 1) * f.E, RangeBounds{bounds, f.index, f.count, f.N, f.E, kRange});
  const dim3 tiles(static_cast<unsigned>(pieces(f.N, kTile)), static_cast<unsigned>(f.E),
                   static_cast<unsigned>(pieces(f.G, kTile)));
  launch(many_hidden_kernel<T, W>, tiles, 256, 0, c.stream, h, f);
  const dim3 grid(static_cast<unsigned>(pieces(f.D, kTile)), static_cast<unsigned>(ranges));
  launch(many_down_kernel<T, W>, grid, 256, 0, c.stream, out, h, bounds, f);
}

template <bool kAtomic>
void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act) {
  with_types(out, down, [&]<class T, class W>() {
    const bool vector =
        x.cols() % Pack<W>::kSize == 0 && aligned16(x.data, up.data, gate_w.data, down.data);
    const Gathered<T, W> f{.x = ptr<T>(x),
                           .gates = ptr<T>(gates),
                           .known = ptr<T>(known),
                           .up_bias = ptr<T>(up_bias),
                           .index = ptr<int32_t>(index),
                           .count = ptr<int32_t>(count),
                           .up = ptr<W>(up),
                           .gate_w = ptr<W>(gate_w),
                           .down = ptr<W>(down),
                           .act = act,
                           .N = x.rows(),
                           .D = x.cols(),
                           .E = gates.cols(),
                           .G = down.rows() / gates.cols(),
                           .vector = vector};
    if constexpr (sizeof(W) == 2) {
      if (f.vector && f.N > 1 && f.N <= kTokensInTurns && fits_cores(f.D) && f.G % kCoreRows == 0)
        return in_turns<kAtomic>(ctx, ptr<T>(out), f);
    }
    if (f.N == 1) return one_token<kAtomic>(ctx, ptr<T>(out), f);
    if (f.N <= 4) return few_tokens<4, kAtomic>(ctx, ptr<T>(out), f);
    if (f.N <= kFewTokens) return few_tokens<kFewTokens, kAtomic>(ctx, ptr<T>(out), f);
    if constexpr (sizeof(W) == 2) {
      if (fits_grouped(f)) return grouped_tokens(ctx, ptr<T>(out), f);
    }
    many_tokens(ctx, ptr<T>(out), f);
  });
}

template <class T>
__global__ void keep_large_kernel(T* out, T* kept, const T* x, int64_t D, T cut) {
  const int64_t row = blockIdx.x * D;
  int count = 0;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    const T v = abs_of(x[row + d]) > cut ? x[row + d] : T(0);
    out[row + d] = v, count += v != T(0);
  }
  count = block_sum(count);
  if (threadIdx.x == 0) kept[blockIdx.x] = static_cast<T>(count) / static_cast<T>(D);
}
void keep_large(Ctx& ctx, Tensor out, Tensor kept, Tensor x, double cut) {
  with_type(x, [&]<class T>() {
    launch_rows(ctx, keep_large_kernel<T>, x.rows(), x.cols(), ptr<T>(out), ptr<T>(kept), ptr<T>(x),
                x.cols(), static_cast<T>(cut));
  });
}

// A thread a column of one token's output; all threads pass over the same inputs.
template <class T, class W>
struct SparseProduct {
  T* out;
  const T* x;
  const W* wt;
  int64_t D, F;
  __device__ void operator()(int64_t i) const {
    const T* in = x + i / F * D;
    T sum = 0;
    for (int64_t d = 0; d < D; ++d) {
      const T v = in[d];
      if (v != T(0)) sum += v * to_float(wt[d * F + i % F]);
    }
    out[i] = sum;
  }
};
void gemm_sparse(Ctx& ctx, Tensor out, Tensor x, Tensor wt) {
  with_types(out, wt, [&]<class T, class W>() {
    each(ctx, out.size(),
         SparseProduct<T, W>{ptr<T>(out), ptr<T>(x), ptr<W>(wt), x.cols(), wt.cols()});
  });
}

void patch_atomic(Ops& ops) { ops.ffn_gathered = ffn_gathered<true>; }

}  // namespace

extern void (*const kCudaAtomic)(Ops&);
void (*const kCudaAtomic)(Ops&) = patch_atomic;

void fill_cuda_gathered(Ops& ops) {
  ops.ffn_gathered = ffn_gathered<false>;
  ops.ffn_token = ffn_token;
  ops.norm_ffn_token = norm_ffn_token;
  ops.keep_large = keep_large;
  ops.gemm_sparse = gemm_sparse;
}

}  // namespace lte
