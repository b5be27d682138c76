// Kernels of causal attention without stored probabilities, by online softmax (Milakov and
// Gimelshein, 2018; Dao et al., 2022): one for many queries, one for a few over a long cache.
#pragma once

#include "context.h"

namespace lte {

template <class T>
struct AttentionIn {
  const T *qkv, *k, *v;  // [N, width] [B,K,S,C] [B,K,S,C]
  int64_t width, S, T_;
  Position pos;
  int H, K, C;
  T scale;

  __device__ const T* query(int64_t b, int h, int64_t t) const {
    return qkv + (b * T_ + t) * width + static_cast<int64_t>(h) * C;
  }
  __device__ int64_t cache(int64_t b, int h) const { return (b * K + h * K / H) * S * C; }
};

// Tiles of `height` rows of every head of every sequence.
inline dim3 attention_grid(Chunk c, int64_t heads, int64_t height) {
  return dim3(static_cast<unsigned>(pieces(c.T, height)), static_cast<unsigned>(heads),
              static_cast<unsigned>(c.B));
}

constexpr int kTileQ = 16, kTileK = 32, kTileThreads = 128;

// Dynamic shared memory of attention_tile_kernel, in elements.
inline int64_t attention_tile_size(int64_t C) {
  return (kTileQ + kTileK) * (C + 1) + kTileQ * (kTileK + 1) + kTileQ * C + 3 * kTileQ;
}

// One block: kTileQ queries of one head of one sequence, against tiles of kTileK keys.
// Grid (tiles of queries, H, B). Eight threads share a query. log_sums[B,H,T], log(sum of exp) of the scores,
// may be null.
template <class T>
__global__ void attention_tile_kernel(T* out, T* log_sums, AttentionIn<T> in) {
  const int C = in.C, h = static_cast<int>(blockIdx.y);
  const int64_t b = blockIdx.z, first = blockIdx.x * static_cast<int64_t>(kTileQ);
  T* q = dynamic_shared<T>();        // [kTileQ, C+1]
  T* kv = q + kTileQ * (C + 1);      // [kTileK, C+1] keys, then values
  T* s = kv + kTileK * (C + 1);      // [kTileQ, kTileK+1]
  T* o = s + kTileQ * (kTileK + 1);  // [kTileQ, C] the sum of exp(s - top) v so far
  T *top = o + kTileQ * C, *sum = top + kTileQ, *shrink = sum + kTileQ;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kTileQ * C; i += kTileThreads) {
    const int64_t t = first + i / C;
    q[i / C * (C + 1) + i % C] = t < in.T_ ? in.query(b, h, t)[i % C] * in.scale : T(0);
    o[i] = 0;
  }
  if (thread < kTileQ) top[thread] = kLowest<T>, sum[thread] = 0;
  const int64_t last = first + kTileQ < in.T_ ? first + kTileQ : in.T_;
  const int64_t reach = in.pos + last;  // keys that the tile's last query sees
  const T *keys = in.k + in.cache(b, h), *values = in.v + in.cache(b, h);
  for (int64_t from = 0; from < reach; from += kTileK) {
    const int count = static_cast<int>(reach - from < kTileK ? reach - from : kTileK);
    __syncthreads();
    for (int i = thread; i < count * C; i += kTileThreads) {
      kv[i / C * (C + 1) + i % C] = keys[from * C + i];
    }
    __syncthreads();
    for (int i = thread; i < kTileQ * kTileK; i += kTileThreads) {
      const int r = i / kTileK, c = i % kTileK;
      T dot = kLowest<T>;
      if (c < count && from + c <= in.pos + first + r) {
        dot = 0;
        for (int d = 0; d < C; ++d) dot += q[r * (C + 1) + d] * kv[c * (C + 1) + d];
      }
      s[r * (kTileK + 1) + c] = dot;
    }
    __syncthreads();
    if (thread < kTileQ) {
      T* row = s + thread * (kTileK + 1);
      T most = top[thread], all = 0;
      for (int c = 0; c < kTileK; ++c) most = max_of(most, row[c]);
      const T factor = top[thread] == kLowest<T> ? T(0) : exp_of(top[thread] - most);
      for (int c = 0; c < kTileK; ++c) {
        row[c] = row[c] == kLowest<T> ? T(0) : exp_of(row[c] - most);
        all += row[c];
      }
      sum[thread] = sum[thread] * factor + all, top[thread] = most, shrink[thread] = factor;
    }
    __syncthreads();
    for (int i = thread; i < count * C; i += kTileThreads) {
      kv[i / C * (C + 1) + i % C] = values[from * C + i];
    }
    __syncthreads();
    for (int i = thread; i < kTileQ * C; i += kTileThreads) {
      const int r = i / C, d = i % C;
      T x = o[i] * shrink[r];
      for (int c = 0; c < count; ++c) x += s[r * (kTileK + 1) + c] * kv[c * (C + 1) + d];
      o[i] = x;
    }
  }
  __syncthreads();
  if (log_sums && thread < kTileQ && first + thread < in.T_) {
    log_sums[(b * in.H + h) * in.T_ + first + thread] = top[thread] + log_of(sum[thread]);
  }
  for (int i = thread; i < kTileQ * C; i += kTileThreads) {
    const int64_t t = first + i / C;
    if (t < in.T_) out[((b * in.T_ + t) * in.H + h) * C + i % C] = o[i] / sum[i / C];
  }
}

// Of chunks of one token: its key and value are turned, used and written to the cache.
template <class T>
struct OwnToken {
  T *k, *v;
  double theta;  // 0: nothing is turned
};

constexpr int kPieceWarps = 16;
// How far position 1 turns the thread's pair of columns.
template <class T>
__device__ __forceinline__ double turn_of_pair(const OwnToken<T>& to, int half) {
  const double i = thread_rank();
  return thread_rank() < half && to.theta > 0 ? pow(to.theta, -i / static_cast<double>(half)) : 0;
}
// own[3 C] = q (scaled), k and v of head h, turned as rope_kernel does it; where `writes`, the first head of a group
// writes k and v to the cache. For whole blocks of 2 C <= kPieceWarps kWarp threads or more.
template <class T>
__device__ __forceinline__ void take_token(T* own, const AttentionIn<T>& in, const OwnToken<T>& to,
                                           double turn, int64_t n, int h, bool writes) {
  const int C = in.C, half = C / 2, group = in.H / in.K, kv = h / group, i = thread_rank();
  const T* row = in.qkv + n * in.width;
  const T *q = row + static_cast<int64_t>(h) * C, *k = row + static_cast<int64_t>(in.H + kv) * C;
  const T* v = k + static_cast<int64_t>(in.K) * C;
  if (i >= C && i < 2 * C) {
    own[C + i] = v[i - C];
  } else if (i < C && to.theta == 0) {
    own[i] = q[i] * in.scale, own[C + i] = k[i];
  } else if (i < half) {
    const double angle = static_cast<double>(static_cast<int64_t>(in.pos)) * turn;
    const T c = static_cast<T>(cos(angle)), s = static_cast<T>(sin(angle));
    own[i] = (q[i] * c - q[i + half] * s) * in.scale;
    own[i + half] = (q[i] * s + q[i + half] * c) * in.scale;
    own[C + i] = k[i] * c - k[i + half] * s;
    own[C + i + half] = k[i] * s + k[i + half] * c;
  }
  __syncthreads();
  if (!writes || h % group != 0 || i >= C) return;
  const int64_t at = in.cache(n, h) + in.pos * C + i;
  to.k[at] = own[C + i], to.v[at] = own[2 * C + i];
}

// A query over one piece of the cache: grid (pieces, H, N). parts[n, h, piece, C + 2] gets the sum
// of exp(s - top) v, top and the sum of exp(s - top) over its keys; of a single piece out[N,HC] is written. Each warp walks over keys of its
// own, kKeys at a time, a lane over every kWarp-th of the C <= kWarp kPer columns; then the warps are joined.
// kOwn: chunks of one token, whose key and value are not in the cache yet.
template <int kPer, bool kOwn, class T>
__global__ void __launch_bounds__(kPieceWarps* kWarp)
    attention_piece_kernel(T* out, T* parts, AttentionIn<T> in, int64_t grain, OwnToken<T> to) {
  constexpr int kColumns = kPer * static_cast<int>(sizeof(T)), kKeys = kColumns <= 16   ? 4
                                                                       : kColumns <= 32 ? 2
                                                                                        : 1;
  const int C = in.C, h = static_cast<int>(blockIdx.y), lane = lane_of_thread();
  const int warp = warp_of_thread(), warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t n = blockIdx.z, b = n / in.T_, t = n % in.T_;
  let_next_begin();
  const T *keys = in.k + in.cache(b, h), *values = in.v + in.cache(b, h);
  const int64_t begin = blockIdx.x * grain;
  double turn = 0;
  if (kOwn) {
    turn = turn_of_pair(to, C / 2);
    // The position may be about to change: what is asked for is a guess.
    const int64_t about = in.pos.pos + (in.pos.at ? __ldcg(in.pos.at) : 0);
    const int64_t most = begin + grain < in.S ? begin + grain : in.S;
    const int64_t stop = about < most ? about : most;
    constexpr int64_t kLine = 128 / sizeof(T);
    for (int64_t i = begin * C + thread_rank() * kLine; i < stop * C;
         i += threads_of_block() * kLine)
      prefetch_l2(keys + i), prefetch_l2(values + i);
  }
  await_inputs();
  const int64_t reach = in.pos + t + 1;
  const int64_t end = begin + grain < reach ? begin + grain : reach;
  T k[kKeys][kPer], v[kKeys][kPer];
  // What follows the last row, or is not in the cache yet, is read as the last row that is there.
  const int64_t last = kOwn && end == reach && end > begin + 1 ? end - 2 : end - 1;
  const auto load = [&](int64_t j) {
#pragma unroll
    for (int m = 0; m < kKeys; ++m) {
      const int64_t row = (j + m < last ? j + m : last) * C;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const int d = lane + i * kWarp;
        k[m][i] = d < C ? keys[row + d] : T(0), v[m][i] = d < C ? values[row + d] : T(0);
      }
    }
  };
  int64_t j = begin + warp * kKeys;
  if (j < end) load(j);
  T* token = dynamic_shared<T>() + warps * (C + 2);
  if (kOwn) take_token(token, in, to, turn, n, h, begin < reach && end == reach);
  T q[kPer], own[kPer] = {}, top = kLowest<T>, sum = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int d = lane + i * kWarp;
    if (kOwn) {
      q[i] = d < C ? token[d] : T(0);
    } else {
      q[i] = d < C ? in.query(b, h, t)[d] * in.scale : T(0);
    }
  }
  while (j < end) {
    T s[kKeys] = {};
    if (kOwn) {
#pragma unroll
      for (int m = 0; m < kKeys; ++m) {
        if (j + m < reach - 1) continue;  // what lies behind is not counted
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
          const int d = lane + i * kWarp;
          k[m][i] = d < C ? token[C + d] : T(0), v[m][i] = d < C ? token[2 * C + d] : T(0);
        }
      }
    }
    T most = top;
#pragma unroll
    for (int m = 0; m < kKeys; ++m) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) s[m] += q[i] * k[m][i];
      s[m] = j + m < end ? warp_sum(s[m]) : kLowest<T>;  // all lanes alike
      most = max_of(most, s[m]);
    }
    const T factor = top == kLowest<T> ? T(0) : exp_of(top - most);
    sum *= factor, top = most;
#pragma unroll
    for (int i = 0; i < kPer; ++i) own[i] *= factor;
#pragma unroll
    for (int m = 0; m < kKeys; ++m) {
      const T p = j + m < end ? exp_of(s[m] - most) : T(0);
      sum += p;
#pragma unroll
      for (int i = 0; i < kPer; ++i) own[i] += p * v[m][i];
    }
    j += warps * kKeys;
    if (j < end) load(j);
  }
  T* mine = dynamic_shared<T>() + warp * (C + 2);  // [warps, C + 2]
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (lane + i * kWarp < C) mine[lane + i * kWarp] = own[i];
  }
  if (lane == 0) mine[C] = top, mine[C + 1] = sum;
  __syncthreads();
  const T* all = dynamic_shared<T>();
  T most = kLowest<T>, total = 0;
  for (int w = 0; w < warps; ++w) most = max_of(most, all[w * (C + 2) + C]);
  const auto joined = [&](int d) {
    T x = 0;
    for (int w = 0; w < warps; ++w) {
      const T w_top = all[w * (C + 2) + C];
      if (w_top != kLowest<T>) x += all[w * (C + 2) + d] * exp_of(w_top - most);
    }
    return x;
  };
  const int64_t head = n * in.H + h;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (gridDim.x == 1) {
    if (thread < C) total = joined(C + 1);
    for (int d = thread; d < C; d += threads) out[head * C + d] = joined(d) / total;
    return;
  }
  T* part = parts + (head * gridDim.x + blockIdx.x) * (C + 2);
  for (int d = thread; d < C + 2; d += threads) part[d] = d == C ? most : joined(d);
}

// Joins the pieces of one query and head in order. Grid (H, N).
template <class T>
__global__ void attention_join_kernel(T* out, const T* parts, int pieces, int C) {
  const int64_t head = blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x;
  const T* part = parts + head * pieces * (C + 2);
  let_next_begin();
  await_inputs();
  T top = kLowest<T>, sum = 0;
  for (int i = 0; i < pieces; ++i) top = max_of(top, part[i * (C + 2) + C]);
  for (int i = 0; i < pieces; ++i) {
    const T own = part[i * (C + 2) + C];
    if (own != kLowest<T>) sum += part[i * (C + 2) + C + 1] * exp_of(own - top);
  }
  for (int d = static_cast<int>(threadIdx.x); d < C; d += static_cast<int>(blockDim.x)) {
    T x = 0;
    for (int i = 0; i < pieces; ++i) {
      const T own = part[i * (C + 2) + C];
      if (own != kLowest<T>) x += part[i * (C + 2) + d] * exp_of(own - top);
    }
    out[head * C + d] = x / sum;
  }
}

}  // namespace lte
