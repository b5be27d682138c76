// Kernels of the gathered FFN: only rows of experts that some token selected are read. Weights are
// neuron-major, so that a neuron's row is read front to back in pieces of 16 bytes.
#pragma once

#include "activation.h"
#include "columns.h"
#include "place.h"
#include "rows.h"

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

// == One token

// h[j] of the open experts' neurons: a warp a neuron, which reads its up and gate rows together. What follows
// reads `count` before it awaits this kernel, and so may not begin before that is there.
constexpr int kHiddenWarps = 4;
template <class T, class W>
__global__ void __launch_bounds__(kHiddenWarps* kWarp, 5)
    one_hidden_kernel(T* h, Gathered<T, W> f) {
  await_inputs();
  let_next_begin();
  const int j = static_cast<int>(blockIdx.x) * kHiddenWarps + warp_of_thread();
  const int G = static_cast<int>(f.G), e = j / G;
  if (j >= f.E * f.G || f.count[e] == 0) return;  // a whole warp
  T u[1][1] = {}, both[2][1] = {};
  if (f.up && f.gate_w) {
    row_products(both, {f.up + j * f.D, f.gate_w + j * f.D}, f.x, f.D, 1, 1, f.vector);
  } else if (f.up) {
    row_products(u, {f.up + j * f.D}, f.x, f.D, 1, 1, f.vector);
    both[0][0] = u[0][0];
  }
  const T us = warp_sum(both[0][0]), gs = f.gate_w ? warp_sum(both[1][0]) : T(0);
  if (lane_of_thread() == 0) h[j] = f.hidden(0, j, us, gs) * f.gates[e];
}

// The same by blocks, kSplitRows / kMatrices neurons each: of one expert (kOpen), or of a dense layer, whose first rows
// are there before x is.
template <int kMatrices, bool kOpen, class X, class T, class W>
__global__ void __launch_bounds__(kSplitThreads, 2)
    split_hidden_kernel(T* h, X x, Gathered<T, W> f) {
  constexpr int kOwn = kSplitRows / kMatrices;
  const int first = static_cast<int>(blockIdx.x) * kOwn, F = static_cast<int>(f.E * f.G);
  const int j = first + thread_rank(), e = first / static_cast<int>(f.G);
  if (kOpen) await_inputs();
  let_next_begin();
  if (kOpen && f.count[e] == 0) return;  // the whole block
  const auto at = [&](int r) {
    const int64_t i = first + r % kOwn < F ? first + r % kOwn : F - 1;
    return (r < kOwn ? f.up : f.gate_w) + i * f.D;
  };
  SplitRows<W> rows;
  rows.load(at, 0, f.D);
  x.ask(f.D);
  if (!kOpen) await_inputs();
  T u = rows.template total<T>(at, x, f.D), g = 0;
  if (thread_rank() >= kWarp) return;
  if (kMatrices > 1) g = __shfl_down_sync(kAllLanes, u, kOwn);
  if (thread_rank() < kOwn && j < F) h[j] = f.hidden(0, j, u, g) * (kOpen ? f.gates[e] : T(1));
}
template <bool kOpen, class X, class T, class W>
void split_hidden(CudaCtx& c, T* h, X x, const Gathered<T, W>& f) {
  launch_early(
      f.gate_w ? split_hidden_kernel<2, kOpen, X, T, W> : split_hidden_kernel<1, kOpen, X, T, W>,
      static_cast<unsigned>(pieces(f.E * f.G, kSplitRows / (f.gate_w ? 2 : 1))), kSplitThreads, 0,
      c.stream, h, x, f);
}

// == A few tokens

constexpr int kFewTokens = 16;

// h[r, n] for row r = (place in active) G + j: a warp a neuron, grid for all neurons. 0 where the
// token did not select the expert. The neuron's up and gate rows are read together.
template <int kTokens, class T, class W>
__global__ void few_hidden_kernel(T* h, const int32_t* active, const int32_t* total,
                                  Gathered<T, W> f) {
  const int r = static_cast<int>(thread_in_grid() / kWarp), G = static_cast<int>(f.G);
  if (r >= *total * G) return;  // a whole warp
  const int64_t e = active[r / G], j = e * G + r % G;
  const int N = static_cast<int>(f.N);
  unsigned on = 0;
  for (int n = 0; n < N; ++n) on |= f.gates[n * f.E + e] != T(0) ? 1u << n : 0u;
  T u[kTokens] = {}, g[kTokens] = {};
  if (f.up && f.gate_w) {
    T both[2][kTokens] = {};
    row_products(both, {f.up + j * f.D, f.gate_w + j * f.D}, f.x, f.D, N, on, f.vector);
#pragma unroll
    for (int n = 0; n < kTokens; ++n) u[n] = both[0][n], g[n] = both[1][n];
  } else if (f.up) {
    T one[1][kTokens] = {};
    row_products(one, {f.up + j * f.D}, f.x, f.D, N, on, f.vector);
#pragma unroll
    for (int n = 0; n < kTokens; ++n) u[n] = one[0][n];
  }
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    if (n >= N) break;
    const T us = warp_sum(u[n]), gs = f.gate_w ? warp_sum(g[n]) : T(0);
    if (lane_of_thread() != 0) continue;
    h[static_cast<int64_t>(r) * N + n] =
        on >> n & 1 ? f.hidden(n, j, us, gs) * f.gates[n * f.E + e] : T(0);
  }
}

// The down product: kColumnWarps warps a block, each with kDownRows rows in flight; kFewStage rows at a time
// are laid out in shared memory.
constexpr int kDownRows = 4, kFewStage = 128;

// sum[n, .] += h[r, n] down[row r, the lane's kPack columns] for kRows staged rows: all of them are asked
// for before the first is used.
template <int kRows, int kTokens, int kPack, class T, class W>
__device__ __forceinline__ void add_rows(T (&sum)[kTokens][kPack], const W* down, int D,
                                         const int32_t* row, const T* h, int N) {
  RowsAhead<kRows, kPack, W> loaded;
  loaded.load(down, D, row);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    W w[kPack];
    loaded.take(w, r);
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      if (n >= N) break;
      const T value = h[r * N + n];
      if (kTokens > 1 && value == T(0)) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[n][i] += value * to_float(w[i]);
    }
  }
}

// parts[split, n, d] = sum over the split's rows r of h[r, n] down[r, d], or added to out by atomics.
// Grid (tiles of kWarp kPack columns, splits). A lane owns kPack columns, a warp every kColumnWarps-th
// group of kDownRows rows, and the warps are added in order. The cut into splits follows from the number
// of active experts, which is read here.
template <int kTokens, int kPack, bool kAtomic, class T, class W>
__global__ void few_down_kernel(T* parts, const T* h, const int32_t* active, const int32_t* total,
                                Gathered<T, W> f) {
  LTE_SHARED(int32_t, row[kFewStage]);        // of down
  LTE_SHARED(T, value[kFewStage * kTokens]);  // h[row, n]
  LTE_SHARED(T, sums[kColumnWarps][kWarp * kPack]);
  const int N = static_cast<int>(f.N), G = static_cast<int>(f.G), D = static_cast<int>(f.D);
  const int rows = *total * G;
  const int lane = lane_of_thread(), warp = warp_of_thread(), thread = thread_rank();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarp * kPack, d = tile + lane * kPack;
  const int splits = static_cast<int>(gridDim.y), grain = (rows + splits - 1) / splits;
  const int begin = static_cast<int>(blockIdx.y) * grain;
  const int end = begin + grain < rows ? begin + grain : rows;
  T sum[kTokens][kPack] = {};
  for (int from = begin; from < end; from += kFewStage) {
    const int count = end - from < kFewStage ? end - from : kFewStage;
    __syncthreads();
    for (int i = thread; i < count; i += kColumnWarps * kWarp) {
      row[i] = active[(from + i) / G] * G + (from + i) % G;
    }
    const T* source = h + static_cast<int64_t>(from) * N;
    for (int i = thread; i < count * N; i += kColumnWarps * kWarp) value[i] = source[i];
    __syncthreads();
    if (d >= f.D) continue;
    int i = warp * kDownRows;
    for (; i + kDownRows <= count; i += kColumnWarps * kDownRows) {
      add_rows<kDownRows>(sum, f.down + d, D, row + i, value + i * N, N);
    }
    for (; i < count; ++i) add_rows<1>(sum, f.down + d, D, row + i, value + i * N, N);
  }
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    if (n >= N) break;
    T* to = kAtomic ? parts : parts + static_cast<int64_t>(blockIdx.y) * N * f.D;
    write_columns<kAtomic>(to + n * f.D + tile, sums, sum[n], f.D - tile);
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

// bounds[i, e] = how many tokens of expert e's list lie below i range.
struct RangeBounds {
  int32_t* bounds;
  const int32_t *index, *count;
  int64_t N, E, range;
  __device__ void operator()(int64_t i) const {
    const int64_t e = i % E, limit = i / E * range;
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

// Weights of bf16, many tokens, on tensor cores (grouped.cu): whether it may be, and out.
bool fits_grouped(const Gathered<float, bf16>&);
void grouped_tokens(Ctx&, float* out, const Gathered<float, bf16>&);

}  // namespace lte
