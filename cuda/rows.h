// Dot products of rows of weights with a few rows of x, by one warp, and with one row of x, by a block.
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

// == Rows by blocks

// x as it lies.
template <class T>
struct PlainRow {
  static constexpr bool kNormed = false;
  const T* x;
  __device__ __forceinline__ void ask(int64_t) const {}
  __device__ __forceinline__ Pack<T> operator()(int64_t d, T&) const { return load16(x + d); }
};
// x = RMSNorm(a + b), not made yet, without its factor rstd: squares are summed on the way, sums of products multiplied.
// One block writes what add_norm does.
template <class T>
struct NormedRow {
  static constexpr bool kNormed = true;
  T *out, *stats, *sum;
  const T *a, *b, *w;
  T eps;
  // The norm's weights, last read a whole token ago.
  __device__ __forceinline__ void ask(int64_t D) const {
    constexpr int kLine = 128 / sizeof(T);
    for (int64_t d = thread_rank() * kLine; blockIdx.x == 0 && d < D;
         d += threads_of_block() * kLine)
      prefetch_l2(w + d);
  }
  __device__ __forceinline__ Pack<T> added(int64_t d) const {
    Pack<T> x = load16(a + d);
    const Pack<T> more = load16(b + d);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) x.at[i] += more.at[i];
    return x;
  }
  __device__ __forceinline__ Pack<T> operator()(int64_t d, T& square) const {
    Pack<T> x = added(d);
    const Pack<T> scale = load16(w + d);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) square += x.at[i] * x.at[i], x.at[i] *= scale.at[i];
    return x;
  }
  // By a whole block.
  __device__ __forceinline__ void write(T rstd, int64_t D) const {
    constexpr int kX = Pack<T>::kSize;
    for (int64_t d = thread_rank() * kX; d < D; d += threads_of_block() * kX) {
      Pack<T> x = added(d);
      const Pack<T> scale = load16(w + d);
      store16(sum + d, x);
#pragma unroll
      for (int i = 0; i < kX; ++i) x.at[i] = x.at[i] * rstd * scale.at[i];
      store16(out + d, x);
    }
    if (thread_rank() == 0) stats[0] = 0, stats[1] = rstd;
  }
};

// Dot products of kSplitRows rows of weights with one x, by a block whose warps share out the columns. A lane has
// kPieces pieces of 16 bytes of every row, kTurn columns a block, and needs few numbers of x: `load` may come before x
// is awaited, and little is left to do once x is there. Rows begin at multiples of 16 bytes.
constexpr int kSplitWarps = 8, kSplitRows = 8, kSplitThreads = kSplitWarps * kWarp;
// Shorter rows leave most of a block without work.
template <class W>
bool fits_split(int64_t D) {
  return D >= kSplitThreads * int64_t{Pack<W>::kSize};
}
template <class W>
struct SplitRows {
  static constexpr int kPieces = 2, kPack = Pack<W>::kSize;
  static constexpr int kTurn = kSplitWarps * kPieces * kWarp * kPack;
  uint4 w[kPieces][kSplitRows];

  static __device__ __forceinline__ int64_t column(int64_t base, int piece) {
    return base + ((warp_of_thread() * kPieces + piece) * kWarp + lane_of_thread()) * kPack;
  }
  // The turn that begins at column `base` of rows at(r); beyond the end of a row stands its beginning.
  template <class At>
  __device__ __forceinline__ void load(const At& at, int64_t base, int64_t D) {
#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const int64_t d = column(base, u);
#pragma unroll
      for (int r = 0; r < kSplitRows; ++r) w[u][r] = raw16_once(at(r) + (d < D ? d : 0));
    }
  }
  template <class T, class X>
  __device__ __forceinline__ void add(T (&sum)[kSplitRows], T& square, const X& x, int64_t base,
                                      int64_t D) const {
    constexpr int kX = Pack<T>::kSize;
#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const int64_t d = column(base, u);
      T in[kPack];
#pragma unroll
      for (int part = 0; part < kPack / kX; ++part) {
        T squares = 0;
        const Pack<T> some = x((d < D ? d : 0) + part * kX, squares);
        square += d < D ? squares : T(0);
#pragma unroll
        for (int i = 0; i < kX; ++i) in[part * kX + i] = d < D ? some.at[i] : T(0);
      }
#pragma unroll
      for (int r = 0; r < kSplitRows; ++r) {
        const Pack<W> row = pack_of<W>(w[u][r]);
#pragma unroll
        for (int i = 0; i < kPack; ++i) sum[r] += to_float(row.at[i]) * in[i];
      }
    }
  }
  // Thread r < kSplitRows gets row r . x, the first turn being loaded. For whole blocks.
  template <class T, class At, class X>
  __device__ __forceinline__ T total(const At& at, const X& x, int64_t D) {
    LTE_SHARED(T, parts[kSplitWarps][kSplitRows + 1]);
    T sum[kSplitRows] = {}, square = 0;
    add(sum, square, x, 0, D);
    for (int64_t base = kTurn; base < D; base += kTurn)
      load(at, base, D), add(sum, square, x, base, D);
    // Half of the rows go to half of the lanes, three times; then four lanes share a row.
    const int lane = lane_of_thread();
#pragma unroll
    for (int half = kSplitRows / 2; half > 0; half /= 2) {
      const bool upper = lane & half * 4;
#pragma unroll
      for (int r = 0; r < half; ++r) {
        const T other = __shfl_xor_sync(kAllLanes, upper ? sum[r] : sum[r + half], half * 4);
        sum[r] = (upper ? sum[r + half] : sum[r]) + other;
      }
    }
    sum[0] += __shfl_xor_sync(kAllLanes, sum[0], 2);
    sum[0] += __shfl_xor_sync(kAllLanes, sum[0], 1);
    if (lane % 4 == 0) parts[warp_of_thread()][lane / 4] = sum[0];
    if constexpr (X::kNormed) {
      square = warp_sum(square);
      if (lane == 0) parts[warp_of_thread()][kSplitRows] = square;
    }
    __syncthreads();
    T all = 0;
    if (thread_rank() < kSplitRows) {
#pragma unroll
      for (int i = 0; i < kSplitWarps; ++i) all += parts[i][thread_rank()];
    }
    if constexpr (X::kNormed) {
      square = 0;
#pragma unroll
      for (int i = 0; i < kSplitWarps; ++i) square += parts[i][kSplitRows];
      const T rstd = T(1) / sqrt_of(square / static_cast<T>(D) + x.eps);
      if (blockIdx.x == 0) x.write(rstd, D);
      all *= rstd;
    }
    return all;
  }
};

// Whether the products below take that row and w, and the row as they do.
inline NormedRow<float> normed_row(const AddNorm& n) {
  return {ptr<float>(n.out), ptr<float>(n.stats), ptr<float>(n.sum),        ptr<float>(n.a),
          ptr<float>(n.b),   ptr<float>(n.w),     static_cast<float>(n.eps)};
}
inline bool fits_normed(const AddNorm& n, Tensor w) {
  return fits_split<__nv_bfloat16>(n.out.cols()) && n.out.cols() % 8 == 0 && n.out.rows() == 1 &&
         n.out.dtype == DType::f32 && n.w.dtype == DType::f32 && w.dtype == DType::bf16 &&
         !n.bias && n.sum.data != n.a.data && n.sum.data != n.b.data &&
         aligned16(n.out.data, n.sum.data, n.a.data, n.b.data, n.w.data, w.data);
}

// product = w[row] . x, and the row, of the thread's own of the block's kSplitRows rows of w[count,D]; -1: it has none.
// Begins early: the first weights are there before x is.
template <class X>
__device__ __forceinline__ int64_t split_product(float& product, const X& x, const __nv_bfloat16* w,
                                                 int64_t count, int64_t D) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSplitRows;
  let_next_begin();
  const auto at = [&](int r) { return w + (first + r < count ? first + r : count - 1) * D; };
  SplitRows<__nv_bfloat16> rows;
  rows.load(at, 0, D);
  x.ask(D);
  await_inputs();
  product = rows.template total<float>(at, x, D);
  const int64_t row = first + thread_rank();
  return thread_rank() < kSplitRows && row < count ? row : -1;
}

}  // namespace lte
