// The backward pass of attention_cores.h, as attention_backward.h has it: one kernel owns queries, the other keys. Both
// hold their rows of P and of dS as the factors of the next product, which for keys are scores transposed.
#pragma once

#include "attention_cores.h"

namespace lte {

struct CoreBack {
  CoreIn in;  // pos is 0
  const bf16* dout;
  const float *log_sums, *delta;  // [B,H,T]
  int dout_width;                 // rows of H heads of in.C numbers, as far apart

  __device__ int64_t row(int b, int h) const { return int64_t{b * in.H + h} * in.T_; }
  __device__ const bf16* d(int b, int h, int t) const {
    return dout + int64_t{b * in.T_ + t} * dout_width + h * in.C;
  }
};

// Of the kAttendStep keys or queries of a step, those whose scores a warp holds at once.
constexpr int kAttendPart = 16;

// dq of a tile of queries of one head. Grid (tiles of queries, H, B); the last tiles, which see most, begin first.
// dqkv[N,width], C columns a head.
template <int kC, int kM, class X>
__global__ void __launch_bounds__(kAttendThreads, 2)
    attention_core_dq_kernel(X* dqkv, int64_t width, CoreBack f, int C) {
  constexpr int kRows = kAttendRows<kM>, kStride = kCoreStride<kC>, kSize = kAttendStep * kStride;
  const CoreIn& in = f.in;
  bf16 *q = dynamic_shared<bf16>(), *d = q + kRows * kStride, *kv = d + kRows * kStride;
  const int h = static_cast<int>(blockIdx.y), row0 = warp_of_thread() * 16 * kM;
  const int b = static_cast<int>(blockIdx.z);
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int rows = in.T_ - first < kRows ? in.T_ - first : kRows, reach = first + rows;
  const int64_t cache = in.cache(b, h * in.K / in.H);
  const float scale = in.power_scale;
  let_next_begin();
  await_inputs();
  float base[kM][2], delta[kM][2], dq[kM][kC / 8][4] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = first + row0 + sum_row(m, 2 * i);
      base[m][i] = t < in.T_ ? f.log_sums[f.row(b, h) + t] * kLog2E : 0.0f;
      delta[m][i] = t < in.T_ ? f.delta[f.row(b, h) + t] : 0.0f;
    }
  }
  ask_for_rows<kC, kRows>(q, in.query(b, h, first), in.width, rows, in.C);
  ask_for_rows<kC, kRows>(d, f.d(b, h, first), f.dout_width, rows, in.C);
  OwnRows<kC, kM> own_q, own_d;
  const auto load = [&](int step) { ask_for_keys<kC>(kv, in, cache, step, reach); };
  // Of keys from k on; the warp's first query sees those up to `shift`, and all queries all of them unless kEdge.
  const auto add_part = [&]<bool kEdge>(const bf16* k, int shift) {
    float s[kM][kAttendPart / 8][4] = {}, dp[kM][kAttendPart / 8][4] = {};
    own_q.times(s, k);
    own_d.times(dp, k + kSize);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kAttendPart / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float p = power_of_two(s[m][n][i] * scale - base[m][i / 2]);
          s[m][n][i] = p * (dp[m][n][i] - delta[m][i / 2]);
        }
      }
    }
    if (kEdge) hide<false>(s, shift, 0.0f);
    add_times<kC>(dq, s, k);
  };
  const auto use = [&](int step) {
    const int shift = first + row0 - step * kAttendStep;
    const bf16* k = kv + step % 2 * 2 * kSize;
    if (shift >= kAttendStep - 1) {
#pragma unroll 2
      for (int j = 0; j < kAttendStep; j += kAttendPart)
        add_part.template operator()<false>(k + j * kStride, 0);
    } else {
#pragma unroll 1
      for (int j = 0; j < kAttendStep && shift - j > -16 * kM; j += kAttendPart)
        add_part.template operator()<true>(k + j * kStride, shift - j);
    }
  };
  in_two_buffers((reach + kAttendStep - 1) / kAttendStep, load, use,
                 [&] { own_q.load(q + row0 * kStride), own_d.load(d + row0 * kStride); });
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = first + result_row<kM>(m, i);
      if (t < in.T_)
        write_row(dqkv + int64_t{b * in.T_ + t} * width + h * C, C, dq[m], i, in.scale);
    }
  }
}

// dk and dv of a tile of keys of one key-value head: a walk over its query heads, and the queries of each that
// see the tile. Grid (tiles of keys, K, B).
template <int kC, int kM, class X>
__global__ void __launch_bounds__(kAttendThreads, 2)
    attention_core_dkv_kernel(X* dqkv, int64_t width, CoreBack f, int C) {
  constexpr int kRows = kAttendRows<kM>, kStride = kCoreStride<kC>, kSize = kAttendStep * kStride;
  const CoreIn& in = f.in;
  bf16 *k = dynamic_shared<bf16>(), *v = k + kRows * kStride, *qd = v + kRows * kStride;
  auto* sums = reinterpret_cast<float*>(qd + 4 * kSize);  // [2, log_sums and delta, kAttendStep]
  const int g = static_cast<int>(blockIdx.y), group = in.H / in.K;
  const auto row0 = [] { return thread_again() / kWarp * 16 * kM; };
  const int b = static_cast<int>(blockIdx.z);
  const int j0 = static_cast<int>(blockIdx.x) * kRows, left = in.T_ - j0;
  const int tiles = (left + kAttendStep - 1) / kAttendStep;  // of queries that see the keys
  const float scale = in.power_scale;
  let_next_begin();
  await_inputs();
  ask_for_rows<kC, kRows>(k, in.k + in.cache(b, g) + int64_t{j0} * in.C, in.C, left, in.C);
  ask_for_rows<kC, kRows>(v, in.v + in.cache(b, g) + int64_t{j0} * in.C, in.C, left, in.C);
  float dk[kM][kC / 8][4] = {}, dv[kM][kC / 8][4] = {};
  OwnRows<kC, kM> own_k, own_v;
  const auto load = [&](int step) {
    const int h = g * group + step / tiles, t0 = j0 + step % tiles * kAttendStep;
    const int count = in.T_ - t0;
    bf16* to = qd + step % 2 * 2 * kSize;
    ask_for_rows<kC, kAttendStep>(to, in.query(b, h, t0), in.width, count, in.C);
    ask_for_rows<kC, kAttendStep>(to + kSize, f.d(b, h, t0), f.dout_width, count, in.C);
    static_assert(kAttendThreads == 2 * kAttendStep);
    const int thread = thread_again(), r = thread % kAttendStep;
    const bool second = thread >= kAttendStep;
    float* own = sums + step % 2 * 2 * kAttendStep + thread;
    if (r < count) {
      copy4_async(own, (second ? f.delta : f.log_sums) + f.row(b, h) + t0 + r);
    } else {
      *own = second ? 0.0f : INFINITY;  // the probabilities of no query are 0
    }
    copy16_group();
  };
  // Of queries from q on; the first sees the warp's keys up to `shift`, and all queries all of them unless kEdge.
  const auto add_part = [&]<bool kEdge>(const bf16* q, const float* columns, int shift) {
    float p[kM][kAttendPart / 8][4] = {}, ds[kM][kAttendPart / 8][4] = {};
    own_k.times(p, q);
    own_v.times(ds, q + kSize);
#pragma unroll
    for (int n = 0; n < kAttendPart / 8; ++n) {
      const Few<2, float> log_sum = load_few<2>(columns + sum_col(n, 0)),
                          delta = load_few<2>(columns + kAttendStep + sum_col(n, 0));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float &x = p[m][n][i], &dx = ds[m][n][i];
          x = power_of_two(x * scale - log_sum.at[i % 2] * kLog2E);
          dx = x * (dx - delta.at[i % 2]);
        }
      }
    }
    if (kEdge) hide<true>(p, shift, 0.0f), hide<true>(ds, shift, 0.0f);
    add_times<kC>(dv, p, q + kSize);
    add_times<kC>(dk, ds, q);
  };
  const auto use = [&](int step) {
    int shift = step % tiles * kAttendStep - row0();
    const bf16* q = qd + step % 2 * 2 * kSize;
    const float* columns = sums + step % 2 * 2 * kAttendStep;
    const auto add_parts = [&]<bool kEdge>() {
#pragma unroll 1
      for (int j = 0; j < kAttendStep; j += kAttendPart) {
        if (!kEdge || shift > -kAttendPart) add_part.template operator()<kEdge>(q, columns, shift);
        q += kAttendPart * kStride, columns += kAttendPart, shift += kAttendPart;
      }
    };
    shift < 16 * kM - 1 ? add_parts.template operator()<true>()
                        : add_parts.template operator()<false>();
  };
  in_two_buffers(group * tiles, load, use,
                 [&] { own_k.load(k + row0() * kStride), own_v.load(v + row0() * kStride); });
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = j0 + result_row<kM>(m, i);
      if (j >= in.T_) continue;
      X* to = dqkv + int64_t{b * in.T_ + j} * width + (in.H + g) * C;
      write_row(to, C, dk[m], i, in.scale);
      write_row(to + in.K * C, C, dv[m], i, 1.0f);
    }
  }
}

}  // namespace lte
