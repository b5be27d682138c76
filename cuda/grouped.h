// Products over the experts of a layer, each with its own tokens. The rows of the open (token, expert) pairs
// are packed: those of expert e begin at first[e], in the order of its list (see PackedRows). Nothing is read
// back: grids are for the worst case, and blocks without work leave. Sums have one order: experts ascending,
// an expert's tokens ascending. S is the type of factors in shared memory; see tile.h.
#pragma once

#include "gathered.h"
#include "tile.h"

namespace lte {

struct Lists {
  const int32_t *index, *count, *first;  // [E,N] [E] [E]
  int64_t N, E, G;
};

// first[e] = count[0] + .. + count[e-1]. One warp.
__global__ void first_rows_kernel(int32_t* first, const int32_t* count, int64_t E) {
  int32_t base = 0;
  const int lane = lane_of_thread();
  for (int64_t from = 0; from < E; from += kWarp) {
    const int32_t own = from + lane < E ? count[from + lane] : 0;
    int32_t sum = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    if (from + lane < E) first[from + lane] = base + sum - own;
    base += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
}

// == Rows of the pairs from rows of tokens

// finish(e, token, row, j, u, v) for neuron j of expert e and each of its tokens, `row` being the packed row
// and u, v the products of x[token,:] with w0[e G + j, :] and, if kMats is 2, w1[e G + j, :]. w0 may be null:
// the products are 0. Grid (tiles of an expert's tokens, E, tiles of its neurons); x[N,D] w0,w1[F,D].
constexpr int kPairRows = 128, kPairCols = 32, kPairThreads = kPairRows;  // a warp: 32 x 32
template <int kMats, class S, class X, class W, class F>
__global__ void pair_rows_kernel(Lists l, const X* x, const W* w0, const W* w1, int64_t D,
                                 bool wide, F finish) {
  constexpr int kStride = kDepth<S> + kPad<S>;
  LTE_SHARED(S, xs[2][kPairRows * kStride]);
  LTE_SHARED(S, ws[2][kMats][kPairCols * kStride]);
  const int64_t e = blockIdx.y;
  const int begin = static_cast<int>(blockIdx.x) * kPairRows, all = l.count[e];
  if (begin >= all) return;
  const int rows = all - begin < kPairRows ? all - begin : kPairRows;
  const int j0 = static_cast<int>(blockIdx.z) * kPairCols, left = static_cast<int>(l.G) - j0;
  const int cols = left < kPairCols ? left : kPairCols;
  const int32_t* list = l.index + e * l.N + begin;
  const int64_t neuron = e * l.G + j0, steps = w0 ? (D + kDepth<S> - 1) / kDepth<S> : 0;
  const auto load = [&](int64_t step) {
    const int64_t d = step * kDepth<S>;
    stage<S, kDepth<S>>(xs[step % 2], rows, D - d, wide,
                        [&](int r) { return x + list[r] * D + d; });
#pragma unroll
    for (int m = 0; m < kMats; ++m) {
      const W* w = (m == 0 ? w0 : w1) + neuron * D + d;
      stage<S, kDepth<S>>(ws[step % 2][m], cols, D - d, wide, [&](int r) { return w + r * D; });
    }
    copy16_group();
  };
  SumOf<S> sum[kMats][2][kPairCols / 8][4] = {};
  const int row0 = warp_of_thread() * 32;
  in_two_buffers(steps, load, [&](int64_t step) {
    if (row0 >= rows) return;  // a whole warp
#pragma unroll
    for (int m = 0; m < kMats; ++m) {
      add_product<true, true>(sum[m], xs[step % 2] + row0 * kStride, kStride, ws[step % 2][m],
                              kStride);
    }
  });
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row0 + sum_row(m, i);
      if (r >= rows) continue;
      const int64_t row = l.first[e] + begin + r;
#pragma unroll
      for (int n = 0; n < kPairCols / 8; ++n) {
        const int j = sum_col(n, i);
        if (j >= cols) continue;
        finish(e, list[r], row, j0 + j, sum[0][m][n][i],
               kMats > 1 ? sum[kMats - 1][m][n][i] : SumOf<S>(0));
      }
    }
  }
}

// == Rows of tokens from rows of the pairs

// out[n,:] = (or += if kAdd) sum over experts e of n, in order, of gates[n,e] rows[row of (n, e), :] times
// w[e G .. e G + G, :]; gates null: 1. A block owns kJoinRange tokens and kJoinCols columns, holds their sums in
// shared memory and walks over the experts, kDepth neurons at a time; bounds are those of RangeBounds. Grid (tiles of
// columns, ranges); out[N,D] rows[.,G] w[F,D]. A warp takes 16 columns of all rows, so that all have work.
constexpr int kJoinRange = 128, kJoinCols = 64, kJoinThreads = kJoinCols / 16 * kWarp;
constexpr int kJoinStride = kJoinCols + 8;  // of sums

template <class S>
constexpr int kJoinRows = kJoinRange*(kDepth<S> + kPad<S>);  // staged rows of pairs, in elements
template <class S>
constexpr int kJoinWeights = kDepth<S>*(kJoinCols + kPad<S>);
template <class S>
constexpr size_t kJoinShared = kJoinRange* kJoinStride * sizeof(SumOf<S>) +
                               2 * (kJoinRows<S> + kJoinWeights<S>)*sizeof(S);

template <bool kAdd, class S, class R, class W>
__global__ void join_pairs_kernel(SumOf<S>* out, Lists l, const int32_t* bounds, const R* rows,
                                  const W* w, const SumOf<S>* gates, int64_t D, bool wide,
                                  bool wide_rows) {
  using T = SumOf<S>;
  constexpr int kLda = kDepth<S> + kPad<S>, kLdb = kJoinCols + kPad<S>;
  LTE_SHARED(int32_t, place[2][kJoinRange]);  // of a staged row among the block's tokens
  LTE_SHARED(T, weight[2][kJoinRange]);
  T* sums = dynamic_shared<T>();
  S* a = reinterpret_cast<S*>(sums + kJoinRange * kJoinStride);
  S* b = a + 2 * kJoinRows<S>;
  const int64_t base = blockIdx.y * static_cast<int64_t>(kJoinRange),
                d0 = blockIdx.x * int64_t{kJoinCols};
  const int32_t *begins = bounds + blockIdx.y * l.E, *ends = begins + l.E;
  const int thread = thread_rank(), col0 = warp_of_thread() * 16;
  for (int i = thread; i < kJoinRange * kJoinStride; i += kJoinThreads) sums[i] = 0;
  struct Unit {
    int64_t e, j;
  };
  const auto open = [&](int64_t e) {  // the first expert from e on that has tokens here
    while (e < l.E && begins[e] == ends[e]) ++e;
    return e;
  };
  const auto load = [&](Unit u, int which) {
    const int begin = begins[u.e], count = ends[u.e] - begin;
    const R* from = rows + (l.first[u.e] + begin) * l.G + u.j;
    stage<S, kDepth<S>>(a + which * kJoinRows<S>, count, l.G - u.j, wide_rows,
                        [&](int r) { return from + r * l.G; });
    const W* v = w + (u.e * l.G + u.j) * D + d0;
    stage<S, kJoinCols>(b + which * kJoinWeights<S>, kDepth<S>, D - d0, wide,
                        [&](int r) { return u.j + r < l.G ? v + r * D : nullptr; });
    copy16_group();
    for (int i = thread; i < count; i += kJoinThreads) {
      const int32_t n = l.index[u.e * l.N + begin + i];
      place[which][i] = static_cast<int32_t>(n - base);
      weight[which][i] = gates ? gates[n * l.E + u.e] : T(1);
    }
  };
  Unit now{open(0), 0};
  int which = 0;
  if (now.e < l.E) load(now, which);
  while (now.e < l.E) {
    Unit next{now.e, now.j + kDepth<S>};
    if (next.j >= l.G) next = {open(now.e + 1), 0};
    if (next.e < l.E) {
      load(next, 1 - which);
      copy16_wait<1>();
    } else {
      copy16_wait<0>();
    }
    __syncthreads();
    const int count = ends[now.e] - begins[now.e];
    for (int r0 = 0; r0 < count; r0 += 16) {
      T sum[1][2][4] = {};
      add_product<true, false>(sum, a + which * kJoinRows<S> + r0 * kLda, kLda,
                               b + which * kJoinWeights<S> + col0, kLdb);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = r0 + sum_row(0, i);
        if (r >= count) continue;
        T* to = sums + place[which][r] * kJoinStride + col0;
        const T g = weight[which][r];
        to[sum_col(0, i)] += g * sum[0][0][i];
        to[sum_col(1, i)] += g * sum[0][1][i];
      }
    }
    __syncthreads();
    now = next, which = 1 - which;
  }
  __syncthreads();
  for (int i = thread; i < kJoinRange * kJoinCols; i += kJoinThreads) {
    const int64_t n = base + i / kJoinCols, d = d0 + i % kJoinCols;
    if (n >= l.N || d >= D) continue;
    const T x = sums[i / kJoinCols * kJoinStride + i % kJoinCols];
    out[n * D + d] = kAdd ? out[n * D + d] + x : x;
  }
}

// == Rows of weights from rows of the pairs and of tokens

// dw[e G + j, :] += sum over the tokens n of expert e, in order, of rows[row of (n, e), j] x[n,:]. Grid (tiles of
// columns, E, tiles of an expert's neurons); dw[F,D] rows[.,G] x[N,D].
constexpr int kOuterRows = 32, kOuterCols = 128, kOuterThreads = kOuterCols;  // a warp: 32 x 32
template <class S, class R, class X>
__global__ void add_outer_kernel(SumOf<S>* dw, Lists l, const R* rows, const X* x, int64_t D,
                                 bool wide, bool wide_rows) {
  constexpr int kLda = kOuterRows + kPad<S>, kLdb = kOuterCols + kPad<S>;
  LTE_SHARED(S, as[2][kDepth<S> * kLda]);
  LTE_SHARED(S, bs[2][kDepth<S> * kLdb]);
  const int64_t e = blockIdx.y, d0 = blockIdx.x * int64_t{kOuterCols},
                j0 = blockIdx.z * int64_t{kOuterRows};
  const int count = l.count[e];
  if (count == 0) return;
  const int32_t* list = l.index + e * l.N;
  const R* from = rows + l.first[e] * l.G + j0;
  const int steps = (count + kDepth<S> - 1) / kDepth<S>;
  const auto load = [&](int64_t step) {
    const int begin = static_cast<int>(step) * kDepth<S>;
    stage<S, kOuterRows>(as[step % 2], kDepth<S>, l.G - j0, wide_rows, [&](int r) {
      return begin + r < count ? from + (begin + r) * l.G : nullptr;
    });
    stage<S, kOuterCols>(bs[step % 2], kDepth<S>, D - d0, wide, [&](int r) {
      return begin + r < count ? x + list[begin + r] * D + d0 : nullptr;
    });
    copy16_group();
  };
  SumOf<S> sum[2][4][4] = {};
  const int col0 = warp_of_thread() * 32;
  in_two_buffers(steps, load, [&](int64_t step) {
    add_product<false, false>(sum, as[step % 2], kLda, bs[step % 2] + col0, kLdb);
  });
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t j = j0 + sum_row(m, i), d = d0 + col0 + sum_col(n, i);
        if (j < l.G && d < D) dw[(e * l.G + j) * D + d] += sum[m][n][i];
      }
    }
  }
}

}  // namespace lte
