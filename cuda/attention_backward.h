// The backward pass of causal attention from log(sum of exp) of every row (Dao et al., 2022): probabilities are
// found again tile by tile, and the score matrix is never written. No atomics: one kernel owns queries and
// walks over keys, the other owns keys and walks over queries, so that every sum has one order.
#pragma once

#include "attention.h"
#include "tile.h"

namespace lte {

template <class T>
struct AttentionBack {
  AttentionIn<T> in;         // pos is 0
  const T *dout, *log_sums;  // [N,HC] [B,H,T]
  T *delta, *dqkv;           // [B,H,T] rowsum(P dP); [N,width]

  __device__ int64_t row(int64_t b, int h, int64_t t) const { return (b * in.H + h) * in.T_ + t; }
  __device__ const T* d(int64_t b, int h, int64_t t) const {
    return dout + ((b * in.T_ + t) * in.H + h) * in.C;
  }
  __device__ T* dq(int64_t b, int64_t t) const { return dqkv + (b * in.T_ + t) * in.width; }
};

// Tiles are kBackTile queries or keys high and C wide, filled with zeros up to whole steps; see tile.h.
constexpr int kBackTile = 32, kBackThreads = 128;
__host__ __device__ __forceinline__ int back_width(int C) { return (C + 15) / 16 * 16; }
template <class T>
__host__ __device__ __forceinline__ int back_stride(int C) {
  return back_width(C) + kPad<T>;
}
template <class T>
constexpr int kScoreStride = kBackTile + kPad<T>;
// Shared memory in elements: q, d, k, v, `sums` tiles of sums, two of scores, four columns.
template <class T>
int64_t back_shared(int C, int sums) {
  return int64_t{4 + sums} * kBackTile * back_stride<T>(C) + 2 * kBackTile * kScoreStride<T> +
         4 * kBackTile;
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

// dq and delta of a tile of queries of one head: a walk over the keys for delta, and one for dq. Grid (tiles of
// queries, H, B).
template <class T>
__global__ void attention_dq_kernel(AttentionBack<T> f) {
  const AttentionIn<T>& in = f.in;
  const int C = in.C, size = kBackTile * back_stride<T>(C), h = static_cast<int>(blockIdx.y);
  const int64_t b = blockIdx.z, t0 = blockIdx.x * int64_t{kBackTile};
  T *q = dynamic_shared<T>(), *d = q + size, *k = d + size, *v = k + size, *dq = v + size;
  T *ds = dq + size, *log_sums = ds + 2 * kBackTile * kScoreStride<T>;
  T *delta = log_sums + kBackTile, *half = delta + kBackTile;  // half[2, kBackTile]
  const int thread = thread_rank();
  const auto row = [&](int r) { return t0 + r < in.T_; };
  stage_tile(q, C, [&](int r) { return row(r) ? in.query(b, h, t0 + r) : nullptr; });
  stage_tile(d, C, [&](int r) { return row(r) ? f.d(b, h, t0 + r) : nullptr; });
  for (int i = thread; i < size; i += kBackThreads) dq[i] = 0;
  if (thread < kBackTile)
    log_sums[thread] = row(thread) ? f.log_sums[f.row(b, h, t0 + thread)] : T(0);
  const int64_t reach = t0 + kBackTile < in.T_ ? t0 + kBackTile : in.T_;
  const T *keys = in.k + in.cache(b, h), *values = in.v + in.cache(b, h);
  const auto load = [&](int64_t j0) {
    __syncthreads();
    stage_tile(k, C, [&](int r) { return j0 + r < reach ? keys + (j0 + r) * C : nullptr; });
    stage_tile(v, C, [&](int r) { return j0 + r < reach ? values + (j0 + r) * C : nullptr; });
    __syncthreads();
  };
  T mean[2] = {};  // the lane's part of its two rows
  for (int64_t j0 = 0; j0 < reach; j0 += kBackTile) {
    load(j0);
    const Probs<T> s(q, d, k, v, log_sums, in, t0, j0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      mean[i / 2] += s.p[0][0][i] * s.dp[0][0][i] + s.p[0][1][i] * s.dp[0][1][i];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    for (int step = 1; step < 4; step *= 2) mean[i] += __shfl_xor_sync(kAllLanes, mean[i], step);
    if (lane_of_thread() % 4 == 0) {
      half[warp_of_thread() % 2 * kBackTile + Probs<T>::row0() + sum_row(0, 2 * i)] = mean[i];
    }
  }
  __syncthreads();
  if (thread < kBackTile) {
    delta[thread] = half[thread] + half[kBackTile + thread];
    if (row(thread)) f.delta[f.row(b, h, t0 + thread)] = delta[thread];
  }
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
