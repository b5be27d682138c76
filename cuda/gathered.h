// Kernels of the gathered FFN: only rows of experts that some token selected are read. Weights are
// neuron-major, so that a neuron's row is read front to back in pieces of 16 bytes.
#pragma once

#include "activation.h"
#include "place.h"

namespace lte {

template <class T, class W>
struct Gathered {
  const T *x, *gates, *known, *up_bias;  // [N,D] [N,E] [N,F] [F]; the last two may be null
  const int32_t *index, *count;          // [E,N] [E]
  const W *up, *gate_w, *down;           // [F,D] each; all but down may be null
  Act act;
  int64_t N, D, E, G;
  bool vector;  // rows can be read in pieces of 16 bytes

  // h of one neuron j and token n before the gate, from its two dot products.
  __device__ T hidden(int64_t n, int64_t j, T u, T g) const {
    if (up && up_bias) u += up_bias[j];
    if (known) return up ? u * known[n * E * G + j] : known[n * E * G + j];
    return gate_w ? act_value(act, g) * u : act_value(act, u);
  }
};

constexpr int kFewTokens = 16;

// sum[n] += w . x[n] for the lanes' share of a row.
template <int kTokens, class T, class W>
__device__ __forceinline__ void row_products(T (&sum)[kTokens], const W* row, const T* x, int64_t D,
                                             int tokens, unsigned on, bool vector) {
  const int lane = lane_of_thread();
  if (vector) {
    constexpr int kPack = Pack<W>::kSize, kX = Pack<T>::kSize;
#pragma unroll 2
    for (int64_t d = lane * kPack; d < D; d += kWarp * kPack) {
      const Pack<W> w = load16_once(row + d);
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        if (n >= tokens) break;
        if (!(on >> n & 1)) continue;
#pragma unroll
        for (int part = 0; part < kPack / kX; ++part) {
          const Pack<T> in = load16(x + n * D + d + part * kX);
#pragma unroll
          for (int i = 0; i < kX; ++i) sum[n] += to_float(w.at[part * kX + i]) * in.at[i];
        }
      }
    }
    return;
  }
  for (int64_t d = lane; d < D; d += kWarp) {
    const T w = to_float(row[d]);
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      if (n < tokens && (on >> n & 1)) sum[n] += w * x[n * D + d];
    }
  }
}

// h[r, n] for row r = (place in active) G + j: a warp a neuron, grid for all neurons. 0 where the
// token did not select the expert.
template <int kTokens, class T, class W>
__global__ void few_hidden_kernel(T* h, const int32_t* active, const int32_t* total,
                                  Gathered<T, W> f) {
  const int64_t r = thread_in_grid() / kWarp;
  if (r >= *total * f.G) return;  // a whole warp
  const int64_t e = active[r / f.G], j = e * f.G + r % f.G;
  const int N = static_cast<int>(f.N);
  unsigned on = 0;
  for (int n = 0; n < N; ++n) on |= f.gates[n * f.E + e] != T(0) ? 1u << n : 0u;
  T u[kTokens] = {}, g[kTokens] = {};
  if (f.up) row_products(u, f.up + j * f.D, f.x, f.D, N, on, f.vector);
  if (f.gate_w) row_products(g, f.gate_w + j * f.D, f.x, f.D, N, on, f.vector);
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    if (n >= N) break;
    const T us = warp_sum(u[n]), gs = f.gate_w ? warp_sum(g[n]) : T(0);
    if (lane_of_thread() != 0) continue;
    h[r * N + n] = on >> n & 1 ? f.hidden(n, j, us, gs) * f.gates[n * f.E + e] : T(0);
  }
}

// parts[split, n, d] = sum over the split's rows r of h[r, n] down[r, d], or added to out by atomics.
// Grid (tiles of columns, splits); a thread owns kPack columns. The cut into splits follows from the
// number of active experts, which is read here.
template <int kTokens, int kPack, bool kAtomic, class T, class W>
__global__ void few_down_kernel(T* parts, const T* h, const int32_t* active, const int32_t* total,
                                Gathered<T, W> f) {
  const int64_t d = thread_in_grid() * kPack, rows = *total * f.G;
  if (d >= f.D) return;
  const int64_t grain = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * grain;
  const int64_t end = begin + grain < rows ? begin + grain : rows;
  const int N = static_cast<int>(f.N);
  T sum[kTokens][kPack] = {};
#pragma unroll 4
  for (int64_t r = begin; r < end; ++r) {
    const W* row = f.down + (active[r / f.G] * f.G + r % f.G) * f.D + d;
    W w[kPack];
    if constexpr (kPack == 1) {
      w[0] = row[0];
    } else {
      const Pack<W> pack = load16_once(row);
#pragma unroll
      for (int i = 0; i < kPack; ++i) w[i] = pack.at[i];
    }
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      if (n >= N) break;
      const T value = h[r * N + n];
      if (kTokens > 1 && value == T(0)) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[n][i] += value * to_float(w[i]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    if (n >= N) break;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if constexpr (kAtomic) {
        if (sum[n][i] != T(0)) atomicAdd(&parts[n * f.D + d + i], sum[n][i]);
      } else {
        parts[(blockIdx.y * f.N + n) * f.D + d + i] = sum[n][i];
      }
    }
  }
}

// == Many tokens

constexpr int kTile = 32, kRange = 64;

// h[n, j] = the gated hidden value, at selected (token, expert) alone. Grid (tiles of an expert's
// tokens, E, tiles of its neurons): x rows are gathered, a tile of 32 x 32 a block.
template <class T, class W>
__global__ void many_hidden_kernel(T* h, Gathered<T, W> f) {
  const int64_t e = blockIdx.y, F = f.E * f.G;
  const int count = f.count[e], first = static_cast<int>(blockIdx.x) * kTile;
  if (first >= count) return;
  LTE_SHARED(T, xs[kTile][kTile + 1]);
  LTE_SHARED(T, us[kTile][kTile + 1]);
  LTE_SHARED(T, gs[kTile][kTile + 1]);
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
  const int64_t j0 = blockIdx.z * static_cast<int64_t>(kTile);  // first neuron inside the expert
  const int32_t* list = f.index + e * f.N + first;
  const int tokens = count - first < kTile ? count - first : kTile;
  T u[4] = {}, g[4] = {};
  for (int64_t d0 = 0; f.up && d0 < f.D; d0 += kTile) {
    for (int y = ty; y < kTile; y += 8) {
      const int64_t d = d0 + tx, j = j0 + y;
      xs[y][tx] = y < tokens && d < f.D ? f.x[list[y] * f.D + d] : T(0);
      const bool in = j < f.G && d < f.D;
      us[y][tx] = in ? to_float(f.up[(e * f.G + j) * f.D + d]) : T(0);
      if (f.gate_w) gs[y][tx] = in ? to_float(f.gate_w[(e * f.G + j) * f.D + d]) : T(0);
    }
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
      for (int d = 0; d < kTile; ++d) {
        u[i] += xs[ty + 8 * i][d] * us[tx][d];
        if (f.gate_w) g[i] += xs[ty + 8 * i][d] * gs[tx][d];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    const int y = ty + 8 * i;
    if (y >= tokens || j0 + tx >= f.G) continue;
    const int64_t n = list[y], j = e * f.G + j0 + tx;
    h[n * F + j] = f.hidden(n, j, u[i], g[i]) * f.gates[n * f.E + e];
  }
}

// bounds[range, e] = how many tokens of expert e's list lie below range kRange.
struct RangeBounds {
  int32_t* bounds;
  const int32_t *index, *count;
  int64_t N, E;
  __device__ void operator()(int64_t i) const {
    const int64_t e = i % E, limit = i / E * kRange;
    int low = 0, high = count[e];
    while (low < high) {
      const int middle = (low + high) / 2;
      if (index[e * N + middle] < limit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    bounds[i] = low;
  }
};

// out[n, d] for a range of tokens and a tile of columns: the block walks over the experts in order
// and adds to sums in shared memory, so that the order is fixed. Grid (tiles of columns, ranges).
template <class T, class W>
__global__ void many_down_kernel(T* out, const T* h, const int32_t* bounds, Gathered<T, W> f) {
  LTE_SHARED(T, sums[kRange][kTile]);
  LTE_SHARED(T, hs[kRange][kTile + 1]);
  LTE_SHARED(T, ds[kTile][kTile]);
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
  const int64_t d = blockIdx.x * static_cast<int64_t>(kTile) + tx, F = f.E * f.G;
  const int64_t range = blockIdx.y, base = range * kRange;
  for (int y = ty; y < kRange; y += 8) sums[y][tx] = 0;
  for (int64_t e = 0; e < f.E; ++e) {
    const int begin = bounds[range * f.E + e], end = bounds[(range + 1) * f.E + e];
    if (begin == end) continue;  // the whole block
    const int32_t* list = f.index + e * f.N + begin;
    const int tokens = end - begin;
    for (int64_t j0 = 0; j0 < f.G; j0 += kTile) {
      __syncthreads();
      for (int y = ty; y < tokens; y += 8) {
        hs[y][tx] = j0 + tx < f.G ? h[list[y] * F + e * f.G + j0 + tx] : T(0);
      }
      for (int y = ty; y < kTile; y += 8) {
        const bool in = j0 + y < f.G && d < f.D;
        ds[y][tx] = in ? to_float(f.down[(e * f.G + j0 + y) * f.D + d]) : T(0);
      }
      __syncthreads();
      const int width = static_cast<int>(f.G - j0 < kTile ? f.G - j0 : kTile);
      for (int y = ty; y < tokens; y += 8) {
        T sum = 0;
        for (int j = 0; j < width; ++j) sum += hs[y][j] * ds[j][tx];
        sums[list[y] - base][tx] += sum;
      }
    }
  }
  __syncthreads();
  for (int y = ty; y < kRange; y += 8) {
    if (base + y < f.N && d < f.D) out[(base + y) * f.D + d] = sums[y][tx];
  }
}

}  // namespace lte
