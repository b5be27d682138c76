// Dot products of rows of weights with a few rows of x, by one warp.
#pragma once

#include "context.h"

namespace lte {

// sum[r][n] += row[r] . x[n] for the lane's share of the rows, which are read together, front to back in
// pieces of 16 bytes; of the tokens n < `tokens`, those whose bit is set in `on`. x[., D]; `vector`: all
// rows begin at multiples of 16 bytes.
template <int kRows, int kTokens, class T, class W>
__device__ __forceinline__ void row_products(T (&sum)[kRows][kTokens], const W* const (&row)[kRows],
                                             const T* x, int64_t D, int tokens, unsigned on,
                                             bool vector) {
  const int lane = lane_of_thread();
  if (vector) {
    constexpr int kPack = Pack<W>::kSize, kX = Pack<T>::kSize;
    [[maybe_unused]] constexpr int kUnroll = 4 / kRows;  // the pragma alone uses it
#pragma unroll kUnroll
    for (int64_t d = lane * kPack; d < D; d += kWarp * kPack) {
      Pack<W> w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = load16_once(row[r] + d);
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        if (n >= tokens) break;
        if (!(on >> n & 1)) continue;
#pragma unroll
        for (int part = 0; part < kPack / kX; ++part) {
          const Pack<T> in = load16(x + n * D + d + part * kX);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int i = 0; i < kX; ++i) sum[r][n] += to_float(w[r].at[part * kX + i]) * in.at[i];
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
