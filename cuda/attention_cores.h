// Causal attention on tensor cores, for whole prompts of floats: the factors of every product are rounded to bf16,
// sums and the softmax stay in f32 (variant bf16). As in attention.h and attention_backward.h no score matrix is
// written and every sum has one order; here a warp holds its rows of scores and of results in registers, and
// probabilities go from one product into the next without leaving them (Dao, 2023).
#pragma once

#include "attention_backward.h"

namespace lte {

constexpr int kCoreTile = 64;  // queries or keys
constexpr int kCoreForwardThreads = 128, kCoreBackThreads = 256;
constexpr float kLog2E = 1.4426950408889634f;  // exp(x) = 2^(x kLog2E)
template <int kC>
constexpr int kCoreStride = kC + kPad<bf16>;
constexpr int kCoreScores = kCoreTile + kPad<bf16>;  // the stride of a tile of scores

inline size_t core_shared(int kC, int tiles, int scores, int columns) {
  return (static_cast<size_t>(tiles) * kCoreTile * (kC + kPad<bf16>)+static_cast<size_t>(scores) *
          kCoreTile * kCoreScores) *
             sizeof(bf16) +
         static_cast<size_t>(columns) * kCoreTile * sizeof(float);
}

__device__ __forceinline__ uint32_t as_pair(float low, float high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
         static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}
// Two tiles of 16 columns of sums, as factors of the next product: what lane l holds of D is what it needs of A.
__device__ __forceinline__ void as_factor(uint32_t (&a)[1][4], const float (&left)[4],
                                          const float (&right)[4]) {
  a[0][0] = as_pair(left[0], left[1]), a[0][1] = as_pair(left[2], left[3]);
  a[0][2] = as_pair(right[0], right[1]), a[0][3] = as_pair(right[2], right[3]);
}

// The sum or maximum of a row of sums: four lanes share one.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

// kCoreTile queries of one head against all keys that they see: four warps with 16 queries each. Grid (tiles of
// queries, H, B); the last tiles, which see most, begin first. C <= kC. log_sums[B,H,T] may be null.
template <int kC>
__global__ void attention_core_kernel(float* out, float* log_sums, AttentionIn<float> in,
                                      bool wide) {
  constexpr int kStride = kCoreStride<kC>;
  bf16 *q = dynamic_shared<bf16>(), *k = q + kCoreTile * kStride, *v = k + kCoreTile * kStride;
  const int h = static_cast<int>(blockIdx.y), row0 = warp_of_thread() * 16;
  const int64_t b = blockIdx.z, first = (gridDim.x - 1 - blockIdx.x) * int64_t{kCoreTile};
  const float* keys = in.k + in.cache(b, h);
  const float* values = in.v + in.cache(b, h);
  stage<bf16, kC>(q, kCoreTile, in.C, wide,
                  [&](int r) { return first + r < in.T_ ? in.query(b, h, first + r) : nullptr; });
  const int64_t begin = in.pos + first;  // the first query's own key
  const int64_t reach = begin + (in.T_ - first < kCoreTile ? in.T_ - first : kCoreTile);
  const float scale = in.scale * kLog2E;
  float o[1][kC / 8][4] = {};
  float top[2] = {kLowest<float>, kLowest<float>}, sum[2] = {};
  for (int64_t from = 0; from < reach; from += kCoreTile) {
    __syncthreads();
    stage<bf16, kC>(k, kCoreTile, in.C, wide,
                    [&](int r) { return from + r < reach ? keys + (from + r) * in.C : nullptr; });
    stage<bf16, kC>(v, kCoreTile, in.C, wide,
                    [&](int r) { return from + r < reach ? values + (from + r) * in.C : nullptr; });
    __syncthreads();
    float s[1][kCoreTile / 8][4] = {};
#pragma unroll
    for (int c = 0; c < kC; c += kDepth<bf16>) {
      add_product<true, true>(s, q + row0 * kStride + c, kStride, k + c, kStride);
    }
    const bool edge = from + kCoreTile > begin;
    float most[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < kCoreTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = s[0][n][i];
        x = edge && from + sum_col(n, i) > begin + row0 + sum_row(0, i) ? kLowest<float>
                                                                        : x * scale;
        most[i / 2] = fmaxf(most[i / 2], x);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      most[i] = quad_max(most[i]);
      const float shrink =
          exp2f(top[i] - most[i]);  // every row sees the first key: most is a number
      top[i] = most[i], sum[i] *= shrink;
#pragma unroll
      for (int n = 0; n < kC / 8; ++n) o[0][n][2 * i] *= shrink, o[0][n][2 * i + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < kCoreTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i / 2] += s[0][n][i] = exp2f(s[0][n][i] - top[i / 2]);
    }
#pragma unroll
    for (int j = 0; j < kCoreTile; j += 16) {
      uint32_t p[1][4];
      as_factor(p, s[0][j / 8], s[0][j / 8 + 1]);
      multiply<false>(o, p, v + j * kStride, kStride);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float all = quad_sum(sum[i]);
    const int64_t t = first + row0 + sum_row(0, 2 * i);
    if (t >= in.T_) continue;
    if (log_sums && lane_of_thread() % 4 == 0)
      log_sums[(b * in.H + h) * in.T_ + t] = (top[i] + log2f(all)) / kLog2E;
    float* to = out + ((b * in.T_ + t) * in.H + h) * in.C;
#pragma unroll
    for (int n = 0; n < kC / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int c = sum_col(n, j);
        if (c < in.C) to[c] = o[0][n][2 * i + j] / all;
      }
    }
  }
}

// == Backward

// Rounded copies, rows kC wide with zeros from column C on.  q,d[B,H,T,kC] k,v[B,K,T,kC]
struct CoreBack {
  AttentionBack<float> f;
  bf16 *q, *d, *k, *v;

  __device__ int64_t row(int64_t b, int heads, int h, int64_t t) const {
    return (b * heads + h) * f.in.T_ + t;
  }
};
template <int kC>
struct RoundRows {
  CoreBack to;
  __device__ void operator()(int64_t i) const {  // i over [B,T,H + K,kC / 8]
    constexpr int kPieces = kC / Pack<bf16>::kSize;
    const AttentionIn<float>& in = to.f.in;
    const int c = static_cast<int>(i % kPieces) * Pack<bf16>::kSize,
              head = static_cast<int>(i / kPieces % (in.H + in.K));
    const int64_t n = i / kPieces / (in.H + in.K), b = n / in.T_, t = n % in.T_;
    const auto copy = [&](bf16* out, const float* x) {
      Pack<bf16> pack;
      for (int j = 0; j < Pack<bf16>::kSize; ++j)
        pack.at[j] = from_float<bf16>(c + j < in.C ? x[c + j] : 0.0f);
      store16(out + c, pack);
    };
    if (head < in.H) {
      copy(to.q + to.row(b, in.H, head, t) * kC, in.query(b, head, t));
      copy(to.d + to.row(b, in.H, head, t) * kC, to.f.d(b, head, t));
    } else {
      const int g = head - in.H;
      const int64_t from = ((b * in.K + g) * in.S + t) * in.C;
      copy(to.k + to.row(b, in.K, g, t) * kC, in.k + from);
      copy(to.v + to.row(b, in.K, g, t) * kC, in.v + from);
    }
  }
};

// A warp's 16 x 32 of probabilities of the queries t0 .. over the keys j0 .., and of dP = dO V'; 0 where a query
// does not see a key. log_sums in powers of two.
template <int kC>
struct CoreProbs {
  float p[1][4][4] = {}, dp[1][4][4] = {};

  __device__ __forceinline__ CoreProbs(const bf16* q, const bf16* d, const bf16* k, const bf16* v,
                                       const float* log_sums, const AttentionIn<float>& in,
                                       int64_t t0, int64_t j0) {
    constexpr int kStride = kCoreStride<kC>;
    const int row = row0() * kStride, col = col0() * kStride;
#pragma unroll
    for (int c = 0; c < kC; c += kDepth<bf16>) {
      add_product<true, true>(p, q + row + c, kStride, k + col + c, kStride);
      add_product<true, true>(dp, d + row + c, kStride, v + col + c, kStride);
    }
    const float scale = in.scale * kLog2E;
    const float sums[2] = {log_sums[row0() + sum_row(0, 0)], log_sums[row0() + sum_row(0, 2)]};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row0() + sum_row(0, i), j = col0() + sum_col(n, i);
        const bool sees = t0 + r < in.T_ && j0 + j <= t0 + r;
        p[0][n][i] = sees ? exp2f(p[0][n][i] * scale - sums[i / 2]) : 0.0f;
      }
    }
  }
  __device__ static int row0() { return warp_of_thread() / 2 * 16; }
  __device__ static int col0() { return warp_of_thread() % 2 * 32; }
  // scores[row, column] = f(row, i of p, dp) for pairs of columns
  template <class F>
  __device__ __forceinline__ void write(bf16* scores, F f) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int r = row0() + sum_row(0, i);
        *reinterpret_cast<uint32_t*>(scores + r * kCoreScores + col0() + sum_col(n, i)) =
            as_pair(f(r, p[0][n][i], dp[0][n][i]), f(r, p[0][n][i + 1], dp[0][n][i + 1]));
      }
    }
  }
};

// A warp's share of a tile of results [kCoreTile, kC]: 16 rows, half of the columns.
template <int kC>
struct CoreSums {
  float sum[1][kC / 16][4] = {};

  // += op(scores) x, scores[kCoreTile, kCoreTile] transposed where kTurned
  template <bool kTurned>
  __device__ __forceinline__ void add(const bf16* scores, const bf16* x) {
#pragma unroll
    for (int j = 0; j < kCoreTile; j += kDepth<bf16>) {
      add_product<!kTurned, false>(
          sum, kTurned ? scores + j * kCoreScores + row0() : scores + row0() * kCoreScores + j,
          kCoreScores, x + j * kCoreStride<kC> + col0(), kCoreStride<kC>);
    }
  }
  // f(row, column, value)
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int n = 0; n < kC / 16; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row0() + sum_row(0, i), col0() + sum_col(n, i), sum[0][n][i]);
    }
  }
  __device__ static int row0() { return warp_of_thread() / 2 * 16; }
  __device__ static int col0() { return warp_of_thread() % 2 * (kC / 2); }
};

// Asks for kCoreTile rows from row `first` of T_ on, those of `rows`[T_, kC]; zeros beyond the last.
template <int kC>
__device__ __forceinline__ void ask_for_tile(bf16* to, const bf16* rows, int64_t first,
                                             int64_t T_) {
  stage<bf16, kC>(to, kCoreTile, kC, true,
                  [&](int r) { return first + r < T_ ? rows + (first + r) * kC : nullptr; });
}

// dq and delta = rowsum(P dP) of a tile of queries of one head: a walk over the keys for delta, and one for dq.
// Grid (tiles of queries, H, B); the last tiles, which see most, begin first.
template <int kC>
__global__ void __launch_bounds__(kCoreBackThreads) attention_core_dq_kernel(CoreBack back) {
  constexpr int kSize = kCoreTile * kCoreStride<kC>;
  const AttentionBack<float>& f = back.f;
  const AttentionIn<float>& in = f.in;
  bf16 *q = dynamic_shared<bf16>(), *d = q + kSize, *kv = d + kSize,
       *ds = kv + 4 * kSize;  // kv[2, k and v]
  auto* log_sums = reinterpret_cast<float*>(ds + kCoreTile * kCoreScores);
  float *delta = log_sums + kCoreTile, *half = delta + kCoreTile;  // half[2, kCoreTile]
  const int h = static_cast<int>(blockIdx.y), g = h * in.K / in.H, thread = thread_rank();
  const int64_t b = blockIdx.z, t0 = (gridDim.x - 1 - blockIdx.x) * int64_t{kCoreTile};
  const auto row = [&](int r) { return t0 + r < in.T_; };
  ask_for_tile<kC>(q, back.q + back.row(b, in.H, h, 0) * kC, t0, in.T_);
  ask_for_tile<kC>(d, back.d + back.row(b, in.H, h, 0) * kC, t0, in.T_);
  if (thread < kCoreTile) {
    log_sums[thread] = row(thread) ? f.log_sums[f.row(b, h, t0 + thread)] * kLog2E : 0.0f;
  }
  const int64_t tiles = t0 / kCoreTile + 1;
  const auto load = [&](int64_t j) {
    bf16* to = kv + j % 2 * 2 * kSize;
    ask_for_tile<kC>(to, back.k + back.row(b, in.K, g, 0) * kC, j * kCoreTile, in.T_);
    ask_for_tile<kC>(to + kSize, back.v + back.row(b, in.K, g, 0) * kC, j * kCoreTile, in.T_);
    copy16_group();
  };
  const auto probs = [&](int64_t j) {
    const bf16* k = kv + j % 2 * 2 * kSize;
    return CoreProbs<kC>(q, d, k, k + kSize, log_sums, in, t0, j * kCoreTile);
  };
  float mean[2] = {};  // the lane's part of its two rows
  in_two_buffers(tiles, load, [&](int64_t j) {
    const CoreProbs<kC> s = probs(j);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) mean[i / 2] += s.p[0][n][i] * s.dp[0][n][i];
    }
  });
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    mean[i] = quad_sum(mean[i]);
    if (lane_of_thread() % 4 == 0) {
      half[warp_of_thread() % 2 * kCoreTile + CoreProbs<kC>::row0() + sum_row(0, 2 * i)] = mean[i];
    }
  }
  __syncthreads();
  if (thread < kCoreTile) {
    delta[thread] = half[thread] + half[kCoreTile + thread];
    if (row(thread)) f.delta[f.row(b, h, t0 + thread)] = delta[thread];
  }
  CoreSums<kC> dq;
  in_two_buffers(tiles, load, [&](int64_t j) {
    probs(j).write(ds, [&](int r, float p, float dp) { return p * (dp - delta[r]) * in.scale; });
    __syncthreads();
    dq.template add<false>(ds, kv + j % 2 * 2 * kSize);
  });
  dq.each([&](int r, int c, float x) {
    if (row(r) && c < in.C) f.dq(b, t0 + r)[h * in.C + c] = x;
  });
}

// dk and dv of a tile of keys of one key-value head: a walk over its query heads, and the queries of each that
// see the tile. Grid (tiles of keys, K, B).
template <int kC>
__global__ void __launch_bounds__(kCoreBackThreads) attention_core_dkv_kernel(CoreBack back) {
  constexpr int kSize = kCoreTile * kCoreStride<kC>;
  const AttentionBack<float>& f = back.f;
  const AttentionIn<float>& in = f.in;
  bf16 *k = dynamic_shared<bf16>(), *v = k + kSize, *qd = v + kSize,
       *ps = qd + 4 * kSize;  // qd[2, q and d]
  bf16* ds = ps + kCoreTile * kCoreScores;
  auto* sums = reinterpret_cast<float*>(ds + kCoreTile * kCoreScores);  // [2, log_sums and delta]
  const int g = static_cast<int>(blockIdx.y), group = in.H / in.K, thread = thread_rank();
  const int64_t b = blockIdx.z, j0 = blockIdx.x * int64_t{kCoreTile};
  const int64_t tiles = gridDim.x - blockIdx.x;  // of queries that see the keys
  ask_for_tile<kC>(k, back.k + back.row(b, in.K, g, 0) * kC, j0, in.T_);
  ask_for_tile<kC>(v, back.v + back.row(b, in.K, g, 0) * kC, j0, in.T_);
  const auto first_query = [&](int64_t step) { return j0 + step % tiles * kCoreTile; };
  CoreSums<kC> dk, dv;
  in_two_buffers(
      group * tiles,
      [&](int64_t step) {
        const int h = g * group + static_cast<int>(step / tiles);
        const int64_t t0 = first_query(step), t = t0 + thread;
        bf16* to = qd + step % 2 * 2 * kSize;
        ask_for_tile<kC>(to, back.q + back.row(b, in.H, h, 0) * kC, t0, in.T_);
        ask_for_tile<kC>(to + kSize, back.d + back.row(b, in.H, h, 0) * kC, t0, in.T_);
        float* own = sums + step % 2 * 2 * kCoreTile;
        if (thread < kCoreTile) {
          own[thread] = t < in.T_ ? f.log_sums[f.row(b, h, t)] * kLog2E : 0.0f;
          own[kCoreTile + thread] = t < in.T_ ? f.delta[f.row(b, h, t)] : 0.0f;
        }
        copy16_group();
      },
      [&](int64_t step) {
        const bf16 *q = qd + step % 2 * 2 * kSize, *d = q + kSize;
        const float *log_sums = sums + step % 2 * 2 * kCoreTile, *delta = log_sums + kCoreTile;
        const CoreProbs<kC> s(q, d, k, v, log_sums, in, first_query(step), j0);
        s.write(ps, [](int, float p, float) { return p; });
        s.write(ds, [&](int r, float p, float dp) { return p * (dp - delta[r]) * in.scale; });
        __syncthreads();
        dk.template add<true>(ds, q);
        dv.template add<true>(ps, d);
      });
  const auto write = [&](const CoreSums<kC>& tile, int64_t head) {
    tile.each([&](int r, int c, float x) {
      if (j0 + r < in.T_ && c < in.C) f.dq(b, j0 + r)[head * in.C + c] = x;
    });
  };
  write(dk, in.H + g);
  write(dv, in.H + in.K + g);
}

}  // namespace lte
