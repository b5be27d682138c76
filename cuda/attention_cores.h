// Causal attention on tensor cores, from rows of bf16: tensors of it, or copies that round floats (variant bf16). Sums
// and the softmax stay in f32. As in attention.h no score matrix is written and every sum has one order; a
// warp holds its rows of scores and of results in registers, and probabilities go from one product into the
// next without leaving them (Dao, 2023).
#pragma once

#include "attention.h"
#include "tile.h"

namespace lte {

// Four warps of a block own 16 kM rows each, of queries or keys, and walk over the others kAttendStep at a time. Of
// wider heads a warp's registers hold fewer rows.
constexpr int kAttendWarps = 4, kAttendThreads = kAttendWarps * kWarp, kAttendStep = 64;
template <int kM>
constexpr int kAttendRows = kAttendWarps * 16 * kM;
template <int kC>
constexpr int kCoreStride = kC + kPad<bf16>;
// Shared memory of a kernel in bytes: `rows` rows of its own, two buffers of two tiles, columns of f32.
template <int kC>
constexpr size_t core_shared(int64_t rows, int columns) {
  return static_cast<size_t>(rows + 4 * kAttendStep) * kCoreStride<kC> * sizeof(bf16) +
         static_cast<size_t>(columns) * kAttendStep * sizeof(float);
}

// What the kernels read. Rows of C <= kC numbers begin at multiples of 16 bytes, and C is a multiple of 8.
struct CoreIn {
  const bf16 *q, *k, *v;  // [N, width] [B,K,S,C] [B,K,S,C]
  int64_t S;
  Position pos;
  int width, T_, H, K, C;
  float scale, power_scale;  // 1 / sqrt(C), and kLog2E times it

  __device__ const bf16* query(int b, int h, int t) const {
    return q + int64_t{b * T_ + t} * width + h * C;
  }
  __device__ int64_t cache(int b, int g) const { return (b * K + g) * S * C; }
};

__device__ __forceinline__ uint32_t as_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
// Two tiles of 8 columns of sums, as factors of the next product: what lane l holds of D is what it needs of A.
template <int kM, int kN>
__device__ __forceinline__ void as_factor(uint32_t (&a)[kM][4], const float (&sum)[kM][kN][4],
                                          int n) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    a[m][0] = as_pair(sum[m][n][0], sum[m][n][1]), a[m][1] = as_pair(sum[m][n][2], sum[m][n][3]);
    a[m][2] = as_pair(sum[m][n + 1][0], sum[m][n + 1][1]);
    a[m][3] = as_pair(sum[m][n + 1][2], sum[m][n + 1][3]);
  }
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

// The thread's number, read again: what follows from it is found where it is wanted, and takes no register from one step
// to the next.
__device__ __forceinline__ int thread_again() {
#ifdef LTE_SIMT
  return thread_rank();
#else
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#endif
}

// Asks for kRows rows of C numbers, of which `count` are there; zeros beyond, and from column C on.
template <int kC, int kRows>
__device__ __forceinline__ void ask_for_rows(bf16* to, const bf16* from, int stride, int count,
                                             int C) {
  constexpr int kPack = Pack<bf16>::kSize, kPieces = kC / kPack, kPass = kAttendThreads / kPieces;
  const int thread = thread_again(), row = thread / kPieces, c = thread % kPieces * kPack;
#pragma unroll
  for (int r = row; r < kRows + row; r += kPass) {
    copy16_async(to + r * kCoreStride<kC> + c, from + (r * stride + c), r < count && c < C);
  }
}

// Asks for a tile of keys and one of values, those of step `step`, in its buffer of kv[2, k and v].
template <int kC>
__device__ __forceinline__ void ask_for_keys(bf16* kv, const CoreIn& in, int64_t cache, int step,
                                             int reach) {
  constexpr int kSize = kAttendStep * kCoreStride<kC>;
  const int from = step * kAttendStep;
  const int64_t at = cache + int64_t{from} * in.C;
  bf16* to = kv + step % 2 * 2 * kSize;
  ask_for_rows<kC, kAttendStep>(to, in.k + at, in.C, reach - from, in.C);
  ask_for_rows<kC, kAttendStep>(to + kSize, in.v + at, in.C, reach - from, in.C);
  copy16_group();
}

// The 16 kM rows of a warp, all of their columns, as factors in registers.
template <int kC, int kM>
struct OwnRows {
  uint32_t part[kC / 16][kM][4];

  __device__ __forceinline__ void load(const bf16* rows) {
#pragma unroll
    for (int c = 0; c < kC / 16; ++c) load_left<true>(part[c], rows + c * 16, kCoreStride<kC>);
  }
  // sum += rows x', x[8 kN, kC]
  template <int kN>
  __device__ __forceinline__ void times(float (&sum)[kM][kN][4], const bf16* x) const {
#pragma unroll
    for (int c = 0; c < kC / 16; ++c) multiply<true>(sum, part[c], x + c * 16, kCoreStride<kC>);
  }
};

// Scores where the column passes `shift` and the row, or with kTurned the row `shift` and the column, become `value`.
template <bool kTurned, int kM, int kN>
__device__ __forceinline__ void hide(float (&sum)[kM][kN][4], int shift, float value) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = sum_row(m, i), col = sum_col(n, i);
        if (kTurned ? row > shift + col : col > shift + row) sum[m][n][i] = value;
      }
    }
  }
}

// sum += factor x for 8 kN columns of factor, x[8 kN, kC]
template <int kC, int kM, int kN>
__device__ __forceinline__ void add_times(float (&sum)[kM][kC / 8][4],
                                          const float (&factor)[kM][kN][4], const bf16* x) {
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t left[kM][4];
    as_factor(left, factor, n);
    multiply<false>(sum, left, x + n * 8 * kCoreStride<kC>, kCoreStride<kC>);
  }
}

// The row of the block that sum[m][.][2 i ..] belongs to.
template <int kM>
__device__ __forceinline__ int result_row(int m, int i) {
  const int thread = thread_again();
  return thread / kWarp * 16 * kM + m * 16 + i * 8 + thread % kWarp / 4;
}
// to[0 .. C) = factor times a row of sums, the upper (i = 0) or the lower (i = 1) of those that the lane holds.
template <int kN, class X>
__device__ __forceinline__ void write_row(X* to, int C, const float (&sum)[kN][4], int i,
                                          float factor) {
  const int first = thread_again() % 4 * 2;  // sum_col(0, 0)
  const bool pairs = C % 2 == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Few<2, X>) == 0;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const int c = n * 8 + first;
    const Few<2, X> x{from_float<X>(sum[n][2 * i] * factor),
                      from_float<X>(sum[n][2 * i + 1] * factor)};
    if (pairs) {
      if (c < C) store_few(to + c, x);
    } else {
      if (c < C) to[c] = x.at[0];
      if (c + 1 < C) to[c + 1] = x.at[1];
    }
  }
}

// Queries of one head against all keys that they see. Grid (tiles of queries, H, B); the last tiles, which see
// most, begin first. out[N,HC], with C columns a head; log_sums[B,H,T] may be null.
template <int kC, int kM, class X>
__global__ void __launch_bounds__(kAttendThreads, 2)
    attention_core_kernel(X* out, float* log_sums, CoreIn in, int C) {
  constexpr int kRows = kAttendRows<kM>, kSize = kAttendStep * kCoreStride<kC>;
  bf16 *q = dynamic_shared<bf16>(), *kv = q + kRows * kCoreStride<kC>;  // kv[2, k and v]
  const int h = static_cast<int>(blockIdx.y), row0 = warp_of_thread() * 16 * kM;
  const int b = static_cast<int>(blockIdx.z);
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int rows = in.T_ - first < kRows ? in.T_ - first : kRows;
  let_next_begin();
  await_inputs();
  // The first query's own key, and the end of what the last one sees.
  const int begin = static_cast<int>(in.pos) + first, reach = begin + rows;
  const int64_t cache = in.cache(b, h * in.K / in.H);
  const float scale = in.power_scale;
  OwnRows<kC, kM> own;
  float o[kM][kC / 8][4] = {}, top[kM][2], sum[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) top[m][0] = top[m][1] = kLowest<float>;
  ask_for_rows<kC, kRows>(q, in.query(b, h, first), in.width, rows, in.C);
  const auto load = [&](int step) { ask_for_keys<kC>(kv, in, cache, step, reach); };
  const auto use = [&](int step) {
    const bf16* k = kv + step % 2 * 2 * kSize;
    const int shift =
        begin + row0 - step * kAttendStep;  // the warp's first query sees keys up to it
    if (shift <= -16 * kM) return;
    float s[kM][kAttendStep / 8][4] = {};
    own.times(s, k);
    if (shift < kAttendStep - 1) hide<false>(s, shift, kLowest<float>);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float most = top[m][i];
#pragma unroll
        for (int n = 0; n < kAttendStep / 8; ++n)
          most = fmaxf(most, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        most = quad_max(most);
        // Every row sees the first key: `most` is a number.
        const float shrink = power_of_two((top[m][i] - most) * scale), base = most * scale;
        top[m][i] = most, sum[m][i] *= shrink;
#pragma unroll
        for (int n = 0; n < kC / 8; ++n) o[m][n][2 * i] *= shrink, o[m][n][2 * i + 1] *= shrink;
#pragma unroll
        for (int n = 0; n < kAttendStep / 8; ++n) {
#pragma unroll
          for (int j = 2 * i; j < 2 * i + 2; ++j)
            sum[m][i] += s[m][n][j] = power_of_two(s[m][n][j] * scale - base);
        }
      }
    }
    add_times<kC>(o, s, k + kSize);
  };
  in_two_buffers((reach + kAttendStep - 1) / kAttendStep, load, use,
                 [&] { own.load(q + row0 * kCoreStride<kC>); });
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float all = quad_sum(sum[m][i]);
      const int t = first + result_row<kM>(m, i);
      if (t >= in.T_) continue;
      if (log_sums && lane_of_thread() % 4 == 0)
        log_sums[int64_t{b * in.H + h} * in.T_ + t] = (top[m][i] * scale + log2f(all)) / kLog2E;
      write_row(out + (int64_t{b * in.T_ + t} * in.H + h) * C, C, o[m], i, 1 / all);
    }
  }
}

// As Ops::attention and attention_backward with row sums, or none forward; all tensors but
// the sums of bf16, or of f32, which is rounded to it. At most kMostKeptColumns columns a head.  (attention_cores.cu)
void core_attention(Ctx&, Tensor out, Tensor log_sums, Tensor qkv, Tensor k, Tensor v, Chunk,
                    HeadShape);
void core_backward(Ctx&, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k, Tensor v,
                   Tensor log_sums, Chunk, HeadShape);

}  // namespace lte
