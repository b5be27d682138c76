// The backward pass of causal attention from log(sum of exp) of every row (Dao et al., 2022): probabilities are
// found again tile by tile, and the score matrix is never written. No atomics: one kernel owns queries and
// walks over keys, the other owns keys and walks over queries, so that every sum has one order.
#pragma once

#include "attention.h"
#include "tile.h"

namespace lte {

template <class T>
struct AttentionBack {
  AttentionIn<T> in;                 // pos is 0
  const T *dout, *log_sums, *delta;  // [N,HC] [B,H,T] [B,H,T]
  T* dqkv;                           // [N,width]

  __device__ int64_t row(int64_t b, int h, int64_t t) const { return (b * in.H + h) * in.T_ + t; }
  __device__ const T* d(int64_t b, int h, int64_t t) const {
    return dout + ((b * in.T_ + t) * in.H + h) * in.C;
  }
  __device__ T* dq(int64_t b, int64_t t) const { return dqkv + (b * in.T_ + t) * in.width; }
};

// delta[B,H,T] = rowsum(P dP) = rowsum(dout * out): of each row and head, C numbers that lie together (Dao, 2023).
// Eight lanes share one.
constexpr int kDeltaLanes = 8, kDeltaThreads = 256;
template <class X, class T>
__global__ void attention_delta_kernel(T* delta, const X* dout, const X* out, int64_t N, int64_t T_,
                                       int H, int C, bool vector) {
  const int64_t i = (blockIdx.x * int64_t{kDeltaThreads} + thread_rank()) / kDeltaLanes;
  const int lane = lane_of_thread() % kDeltaLanes, pack = vector ? Pack<X>::kSize : 1;
  let_next_begin();
  await_inputs();
  T sum = 0;
  for (int c = lane * pack; i < N * H && c < C; c += kDeltaLanes * pack) {
    const int64_t at = i * C + c;
    if (vector) {
      const Pack<X> a = load16(dout + at), b = load16(out + at);
#pragma unroll
      for (int j = 0; j < Pack<X>::kSize; ++j) sum += to_float(a.at[j]) * to_float(b.at[j]);
    } else {
      sum += to_float(dout[at]) * to_float(out[at]);
    }
  }
  for (int step = 1; step < kDeltaLanes; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  const int64_t n = i / H, b = n / T_;
  if (i < N * H && lane == 0) delta[(b * H + i % H) * T_ + n % T_] = sum;
}

template <class X, class T>
void row_deltas(Ctx& ctx, T* delta, Tensor dout, Tensor out, const Chunk& chunk,
                const HeadShape& s) {
  const int64_t N = chunk.B * chunk.T;
  const X *d = ptr<X>(dout), *o = ptr<X>(out);
  launch_early(attention_delta_kernel<X, T>,
               static_cast<unsigned>(pieces(N * s.H, kDeltaThreads / kDeltaLanes)), kDeltaThreads,
               0, cuda(ctx).stream, delta, d, o, N, chunk.T, static_cast<int>(s.H),
               static_cast<int>(s.C), s.C % Pack<X>::kSize == 0 && aligned16(d, o));
}

// Tiles are kBackTile queries or keys high and C wide, filled with zeros up to whole steps; see tile.h.
constexpr int kBackTile = 32, kBackThreads = 128;
__host__ __device__ __forceinline__ int back_width(int C) { return (C + 15) / 16 * 16; }
template <class T>
__host__ __device__ __forceinline__ int back_stride(int C) {
  return back_width(C) + kPad<T>;
}
template <class T>
constexpr int kScoreStride = kBackTile + kPad<T>;
// Shared memory in elements: q, d, k, v, `sums` tiles of sums, two of scores, two columns.
template <class T>
int64_t back_shared(int C, int sums) {
  return int64_t{4 + sums} * kBackTile * back_stride<T>(C) + 2 * kBackTile * kScoreStride<T> +
         2 * kBackTile;
}

// to[r, :] = from(r)[0 .. C), zeros where from(r) is null and from column C on.
template <class T, class F>
__device__ __forceinline__ void stage_tile(T* to, int C, F from) {
  const int width = back_width(C), stride = back_stride<T>(C);
  for (int i = thread_rank(); i < kBackTile * width; i += kBackThreads) {
    const int r = i / width, c = i % width;
    const T* x = from(r);
    to[r * stride + c] = x && c < C ? x[c] : T(0);
  }
}

// A warp's 16 x 16 of probabilities of queries t0 .. over keys j0 .., and of dP = dO V'; 0 where a query does
// not see a key.
template <class T>
struct Probs {
  T p[1][2][4] = {}, dp[1][2][4] = {};
  __device__ static int row0() { return warp_of_thread() / 2 * 16; }
  __device__ static int col0() { return warp_of_thread() % 2 * 16; }

  __device__ Probs(const T* q, const T* d, const T* k, const T* v, const T* log_sums,
                   const AttentionIn<T>& in, int64_t t0, int64_t j0) {
    const int stride = back_stride<T>(in.C), row = row0() * stride, col = col0() * stride;
    for (int c = 0; c < back_width(in.C); c += kDepth<T>) {
      add_product<true, true>(p, q + row + c, stride, k + col + c, stride);
      add_product<true, true>(dp, d + row + c, stride, v + col + c, stride);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row0() + sum_row(0, i), j = col0() + sum_col(n, i);
        const bool sees = t0 + r < in.T_ && j0 + j <= t0 + r;
        p[0][n][i] = sees ? exp_of(p[0][n][i] * in.scale - log_sums[r]) : T(0);
      }
    }
  }
  // f(row, column, p, dp)
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f(row0() + sum_row(0, i), col0() + sum_col(n, i), p[0][n][i], dp[0][n][i]);
      }
    }
  }
};

// sums[kBackTile, width] += op(scores) x, scores[kBackTile, kBackTile] transposed where kTurned; a warp takes
// 16 columns at a time.
template <bool kTurned, class T>
__device__ __forceinline__ void add_scores_times(T* sums, const T* scores, const T* x, int C) {
  const int stride = back_stride<T>(C);
  for (int c = warp_of_thread() * 16; c < back_width(C); c += kBackThreads / kWarp * 16) {
    T sum[2][2][4] = {};
    for (int k = 0; k < kBackTile; k += kDepth<T>) {
      add_product<!kTurned, false>(sum, scores + (kTurned ? k * kScoreStride<T> : k),
                                   kScoreStride<T>, x + k * stride + c, stride);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[sum_row(m, i) * stride + c + sum_col(n, i)] += sum[m][n][i];
      }
    }
  }
}

// dq of a tile of queries of one head: a walk over the keys. Grid (tiles of queries, H, B).
template <class T>
__global__ void attention_dq_kernel(AttentionBack<T> f) {
  const AttentionIn<T>& in = f.in;
  const int C = in.C, size = kBackTile * back_stride<T>(C), h = static_cast<int>(blockIdx.y);
  const int64_t b = blockIdx.z, t0 = blockIdx.x * int64_t{kBackTile};
  T *q = dynamic_shared<T>(), *d = q + size, *k = d + size, *v = k + size, *dq = v + size;
  T *ds = dq + size, *log_sums = ds + 2 * kBackTile * kScoreStride<T>;
  T* delta = log_sums + kBackTile;
  const int thread = thread_rank();
  const auto row = [&](int r) { return t0 + r < in.T_; };
  stage_tile(q, C, [&](int r) { return row(r) ? in.query(b, h, t0 + r) : nullptr; });
  stage_tile(d, C, [&](int r) { return row(r) ? f.d(b, h, t0 + r) : nullptr; });
  for (int i = thread; i < size; i += kBackThreads) dq[i] = 0;
  if (thread < kBackTile) {
    log_sums[thread] = row(thread) ? f.log_sums[f.row(b, h, t0 + thread)] : T(0);
    delta[thread] = row(thread) ? f.delta[f.row(b, h, t0 + thread)] : T(0);
  }
  const int64_t reach = t0 + kBackTile < in.T_ ? t0 + kBackTile : in.T_;
  const T *keys = in.k + in.cache(b, h), *values = in.v + in.cache(b, h);
  const auto load = [&](int64_t j0) {
    __syncthreads();
    stage_tile(k, C, [&](int r) { return j0 + r < reach ? keys + (j0 + r) * C : nullptr; });
    stage_tile(v, C, [&](int r) { return j0 + r < reach ? values + (j0 + r) * C : nullptr; });
    __syncthreads();
  };
  for (int64_t j0 = 0; j0 < reach; j0 += kBackTile) {
    load(j0);
    Probs<T>(q, d, k, v, log_sums, in, t0, j0).each([&](int r, int j, T p, T dp) {
      ds[r * kScoreStride<T> + j] = p * (dp - delta[r]) * in.scale;
    });
    __syncthreads();
    add_scores_times<false>(dq, ds, k, C);
  }
  __syncthreads();
  for (int i = thread; i < kBackTile * C; i += kBackThreads) {
    if (row(i / C)) f.dq(b, t0 + i / C)[h * C + i % C] = dq[i / C * back_stride<T>(C) + i % C];
  }
}

// dk and dv of a tile of keys of one key-value head: a walk over its query heads, and the queries of each that
// see the tile. Grid (tiles of keys, K, B).
template <class T>
__global__ void attention_dkv_kernel(AttentionBack<T> f) {
  const AttentionIn<T>& in = f.in;
  const int C = in.C, size = kBackTile * back_stride<T>(C), g = static_cast<int>(blockIdx.y);
  const int group = in.H / in.K;
  const int64_t b = blockIdx.z, j0 = blockIdx.x * int64_t{kBackTile};
  T *q = dynamic_shared<T>(), *d = q + size, *k = d + size, *v = k + size, *dk = v + size;
  T *dv = dk + size, *p = dv + size, *ds = p + kBackTile * kScoreStride<T>;
  T *log_sums = ds + kBackTile * kScoreStride<T>, *delta = log_sums + kBackTile;
  const int thread = thread_rank();
  const T *keys = in.k + in.cache(b, g * group), *values = in.v + in.cache(b, g * group);
  const auto key = [&](int r) { return j0 + r < in.T_; };
  stage_tile(k, C, [&](int r) { return key(r) ? keys + (j0 + r) * C : nullptr; });
  stage_tile(v, C, [&](int r) { return key(r) ? values + (j0 + r) * C : nullptr; });
  for (int i = thread; i < 2 * size; i += kBackThreads) dk[i] = 0;  // and dv
  for (int h = g * group; h < (g + 1) * group; ++h) {
    for (int64_t t0 = j0; t0 < in.T_; t0 += kBackTile) {
      const auto row = [&](int r) { return t0 + r < in.T_; };
      __syncthreads();
      stage_tile(q, C, [&](int r) { return row(r) ? in.query(b, h, t0 + r) : nullptr; });
      stage_tile(d, C, [&](int r) { return row(r) ? f.d(b, h, t0 + r) : nullptr; });
      if (thread < kBackTile) {
        log_sums[thread] = row(thread) ? f.log_sums[f.row(b, h, t0 + thread)] : T(0);
        delta[thread] = row(thread) ? f.delta[f.row(b, h, t0 + thread)] : T(0);
      }
      __syncthreads();
      Probs<T>(q, d, k, v, log_sums, in, t0, j0).each([&](int r, int j, T x, T dx) {
        p[r * kScoreStride<T> + j] = x;
        ds[r * kScoreStride<T> + j] = x * (dx - delta[r]) * in.scale;
      });
      __syncthreads();
      add_scores_times<true>(dk, ds, q, C);
      add_scores_times<true>(dv, p, d, C);
    }
  }
  __syncthreads();
  for (int i = thread; i < kBackTile * C; i += kBackThreads) {
    if (!key(i / C)) continue;
    T* to = f.dq(b, j0 + i / C) + (in.H + g) * C + i % C;
    to[0] = dk[i / C * back_stride<T>(C) + i % C];
    to[in.K * C] = dv[i / C * back_stride<T>(C) + i % C];
  }
}

}  // namespace lte
