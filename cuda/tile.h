// Tiles in shared memory and their products by a warp: of bf16 on tensor cores with sums in f32, of float and
// double by loops. All hold their sums in the same places, so that a kernel is written once.
#pragma once

#include <type_traits>

#include "context.h"
#include "copy.h"
#include "mma.h"

namespace lte {

// A step along the inner dimension is 64 bytes: 32 bf16, 16 float or 8 double. Rows in shared memory are 16
// bytes longer than their contents, so that eight of them lie in different banks.
template <class S>
constexpr int kDepth = 64 / static_cast<int>(sizeof(S));
template <class S>
constexpr int kPad = 16 / static_cast<int>(sizeof(S));
template <class S>
using SumOf = std::conditional_t<std::is_same_v<S, bf16>, float, S>;

// Sums of a warp: lane l = 4 g + t holds in sum[m][n][i] row 16 m + g + 8 (i / 2), column 8 n + 2 t + i % 2.
__device__ __forceinline__ int sum_row(int m, int i) {
  return m * 16 + lane_of_thread() / 4 + i / 2 * 8;
}
__device__ __forceinline__ int sum_col(int n, int i) {
  return n * 8 + lane_of_thread() % 4 * 2 + i % 2;
}

// sum += A B over 16, A in registers as load_matrices gives it, B[k, j] = b[j ldb + k] if kAlongB, else
// b[k ldb + j]. All lanes of a warp; ldb a multiple of 16 bytes.
template <bool kAlongB, int kM, int kN>
__device__ __forceinline__ void multiply(float (&sum)[kM][kN][4], const uint32_t (&left)[kM][4],
                                         const bf16* b, int ldb) {
  static_assert(kN % 2 == 0);
  const int low = lane_of_thread() % 8, mid = lane_of_thread() / 8 % 2 * 8,
            high = lane_of_thread() / 16 * 8;
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t right[4];
    load_matrices<!kAlongB>(right, kAlongB ? b + (n * 8 + low + high) * ldb + mid
                                           : b + (low + mid) * ldb + n * 8 + high);
    const uint32_t one[2] = {right[0], right[1]}, two[2] = {right[2], right[3]};
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      mma_bf16(sum[m][n], left[m], one);
      mma_bf16(sum[m][n + 1], left[m], two);
    }
  }
}

// A[16 kM, 16] in registers, for `multiply`: A[i, k] = a[i lda + k] if kAlongA, else a[k lda + i].
template <bool kAlongA, int kM>
__device__ __forceinline__ void load_left(uint32_t (&left)[kM][4], const bf16* a, int lda) {
  const int low = lane_of_thread() % 8, mid = lane_of_thread() / 8 % 2 * 8,
            high = lane_of_thread() / 16 * 8;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    load_matrices<!kAlongA>(left[m], kAlongA ? a + (m * 16 + low + mid) * lda + high
                                             : a + (low + high) * lda + m * 16 + mid);
  }
}

// sum += A B over kDepth, A and B in shared memory as above. All lanes of a warp; lda, ldb multiples of 16 bytes.
template <bool kAlongA, bool kAlongB, int kM, int kN>
__device__ __forceinline__ void add_product(float (&sum)[kM][kN][4], const bf16* a, int lda,
                                            const bf16* b, int ldb) {
#pragma unroll
  for (int k = 0; k < kDepth<bf16>; k += 16) {
    uint32_t left[kM][4];
    load_left<kAlongA>(left, kAlongA ? a + k : a + k * lda, lda);
    multiply<kAlongB>(sum, left, kAlongB ? b + k : b + k * ldb, ldb);
  }
}
template <bool kAlongA, bool kAlongB, int kM, int kN, class T>
__device__ __forceinline__ void add_product(T (&sum)[kM][kN][4], const T* a, int lda, const T* b,
                                            int ldb) {
#pragma unroll 4
  for (int k = 0; k < kDepth<T>; ++k) {
    T left[kM][2], right[kN][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const int row = sum_row(m, 2 * i);
        left[m][i] = kAlongA ? a[row * lda + k] : a[k * lda + row];
      }
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int col = sum_col(n, i);
        right[n][i] = kAlongB ? b[col * ldb + k] : b[k * ldb + col];
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] += left[m][i / 2] * right[n][i % 2];
      }
    }
  }
}

// to[r, 0 .. kWidth) = from(r)[0 .. kWidth) for r < rows, rounded to S; 0 where from(r) is null and from
// column `cols` on. `wide`: rows begin at multiples of 16 bytes and `cols` is one of whole packs; then copies
// without rounding are asynchronous, and count to the thread's open group.
template <class S, int kWidth, class F>
__device__ __forceinline__ void stage(S* to, int rows, int64_t cols, bool wide, F from) {
  using X = std::remove_const_t<std::remove_pointer_t<decltype(from(0))>>;
  constexpr int kPack = Pack<S>::kSize, kPieces = kWidth / kPack;
  static_assert(kPack % Pack<X>::kSize == 0 && kWidth % kPack == 0);
  for (int i = thread_rank(); i < rows * kPieces; i += threads_of_block()) {
    const int r = i / kPieces, c = i % kPieces * kPack;
    S* piece = to + r * (kWidth + kPad<S>)+c;
    const X* x = from(r);
    const bool whole = x && wide && c < cols;
    if constexpr (std::is_same_v<S, X>) {
      if (whole) {
        copy16_async(piece, x + c);
        continue;
      }
    }
    Pack<S> pack;
    if (whole) {
      constexpr int kPart = Pack<X>::kSize;
#pragma unroll
      for (int p = 0; p < kPack; p += kPart) {
        const Pack<X> part = load16(x + c + p);
#pragma unroll
        for (int j = 0; j < kPart; ++j) pack.at[p + j] = rounded<S>(part.at[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        pack.at[j] = x && c + j < cols ? rounded<S>(x[c + j]) : rounded<S>(SumOf<S>(0));
      }
    }
    store16(piece, pack);
  }
}

// use(step) for steps 0, 1, .. of what load(step) has asked for, in the buffer step % 2, while the next
// one is on its way. For whole blocks; load ends with copy16_group(). One barrier a step: a thread that asks for the
// next step knows that all have used the last one. begin() comes before the first use, once what was asked for before
// is there.
struct DoNothing {
  __device__ void operator()() const {}
};
template <class N, class Load, class Use, class Begin = DoNothing>
__device__ __forceinline__ void in_two_buffers(N steps, Load&& load, Use&& use,
                                               Begin&& begin = {}) {
  if (steps > 0) load(N(0));
  copy16_wait<0>();
  __syncthreads();
  begin();
  for (N step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    use(step);
    copy16_wait<0>();
    __syncthreads();
  }
}

}  // namespace lte
