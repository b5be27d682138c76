// Dot products of rows of weights with a few rows of x, by one warp.
#pragma once

#include "context.h"

namespace lte {

// Asks for the first 1024 bytes of a row of weights, before what x waits for is done. On an H100 four times as
// much cost a dense layer of LLaMA-2 7B a tenth of its time.
template <class W>
__device__ __forceinline__ void prefetch_row(const W* row, int64_t D) {
  const int64_t at = lane_of_thread() * int64_t{128 / sizeof(W)};
  if (lane_of_thread() < 8 && at < D) prefetch_l2(row + at);
}

// sum[r][n] += row[r] . x[n] for the lane's share of the rows, which are read together, front to back in
// pieces of 16 bytes; of the tokens n < `tokens`, those whose bit is set in `on`. x[., D]; `vector`: all
// rows begin at multiples of 16 bytes.
template <int kRows, int kTokens, class T, class W>
__device__ __forceinline__ void row_products(T (&sum)[kRows][kTokens], const W* const (&row)[kRows],
                                             const T* x, int64_t D, int tokens, unsigned on,
                                             bool vector) {
  const int lane = lane_of_thread();
  if (vector) {
    constexpr int kPack = Pack<W>::kSize, kX = Pack<T>::kSize, kStep = kWarp * kPack;
    // Pieces of each row, asked for before the first is used: no branch lies between. Beyond the end the first
    // stands again, times 0.
    constexpr int kFlight = kTokens == 1 ? 4 : 4 / kRows;
    for (int64_t from = lane * kPack; from < D; from += kFlight * kStep) {
      Pack<W> w[kFlight][kRows];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const int64_t d = from + u * kStep < D ? from + u * kStep : from;
#pragma unroll
        for (int r = 0; r < kRows; ++r) w[u][r] = load16_once(row[r] + d);
      }
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const bool inside = from + u * kStep < D;
        const int64_t d = inside ? from + u * kStep : from;
#pragma unroll
        for (int n = 0; n < kTokens; ++n) {
          if (kTokens > 1 && n >= tokens) break;
          if (kTokens > 1 && !(on >> n & 1)) continue;
#pragma unroll
          for (int part = 0; part < kPack / kX; ++part) {
            const Pack<T> in = load16(x + n * D + d + part * kX);
#pragma unroll
            for (int i = 0; i < kX; ++i) {
              const T value = inside ? in.at[i] : T(0);
#pragma unroll
              for (int r = 0; r < kRows; ++r)
                sum[r][n] += to_float(w[u][r].at[part * kX + i]) * value;
            }
          }
        }
      }
    }
    return;
  }
  for (int64_t d = lane; d < D; d += kWarp) {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      if (n >= tokens || !(on >> n & 1)) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r][n] += to_float(row[r][d]) * x[n * D + d];
    }
  }
}

}  // namespace lte
