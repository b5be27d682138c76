// The sum of chosen rows of a matrix, each times a number: one token's product by columns of the weights. Rows are
// read front to back in pieces of 16 bytes; blocks share out tiles of columns and ranges of rows.
#pragma once

#include "context.h"

namespace lte {

// Which rows: all n, or the G neurons of each expert e < E with count[e] > 0, which somebody wrote before the
// kernel that precedes this one.
struct AllRows {
  int n;
};
struct OpenRows {
  const int32_t* count;
  int E, G;
};

// kColumnWarps warps a block, each with kFlight rows on their way; kStage rows at a time are laid out in shared
// memory.
constexpr int kColumnWarps = 4, kFlight = 8, kStage = 512;

// The block's range of rows, split blockIdx.y of gridDim.y: [begin, end) in the order of the open ones, and the
// row of the i-th.
struct RowRange {
  int begin, end, G = 1, first = 0;
  const int32_t* list = nullptr;  // experts, from the first-th open one on
  __device__ int at(int i) const { return list ? list[i / G - first] * G + i % G : i; }
  __device__ RowRange(int all) {
    const int splits = static_cast<int>(gridDim.y), grain = (all + splits - 1) / splits;
    begin = static_cast<int>(blockIdx.y) * grain;
    end = begin + grain < all ? begin + grain : all;
  }
};
// Dynamic shared memory of the list, in elements, for experts of G neurons and F in all.
inline int64_t row_list_size(int64_t F, int64_t G, int64_t splits) {
  return pieces(pieces(F, splits), G) + 1;
}
__device__ __forceinline__ RowRange row_range(AllRows rows) { return RowRange(rows.n); }
// Every thread counts the open ones of its piece of the experts, then lists those that fall into the range. Counts
// are read past the L1 cache: nothing has been awaited yet.
__device__ __forceinline__ RowRange row_range(OpenRows rows) {
  constexpr int kThreads = kColumnWarps * kWarp;
  LTE_SHARED(int, warp_sums[kColumnWarps]);
  const int per = (rows.E + kThreads - 1) / kThreads, from = thread_rank() * per;
  const int to = from + per < rows.E ? from + per : rows.E;
  int open = 0;
#pragma unroll 4
  for (int e = from; e < to; ++e) open += __ldcg(rows.count + e) > 0;
  int before = open;  // up to this thread's, in its warp
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane_of_thread() >= step) before += other;
  }
  if (lane_of_thread() == kWarp - 1) warp_sums[warp_of_thread()] = before;
  __syncthreads();
  before -= open;
  int all = 0;
  for (int w = 0; w < kColumnWarps; ++w) {
    if (w < warp_of_thread()) before += warp_sums[w];
    all += warp_sums[w];
  }
  RowRange range(all * rows.G);
  auto* list = dynamic_shared<int32_t>();
  range.G = rows.G, range.first = range.begin / rows.G, range.list = list;
  for (int e = from; e < to && open > 0; ++e) {
    if (__ldcg(rows.count + e) <= 0) continue;
    if (before * rows.G < range.end && before >= range.first) list[before - range.first] = e;
    ++before, --open;
  }
  __syncthreads();
  return range;
}

// The lane's kPack columns, from `columns` on, of rows row[0 .. kRows) of a matrix of D columns, as they come from memory:
// all are asked for before the first is used.
template <int kRows, int kPack, class W>
struct RowsAhead {
  std::conditional_t<kPack == 1, W, uint4> raw[kRows];

  __device__ __forceinline__ void load(const W* columns, int64_t D, const int32_t* row) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kPack == 1) {
        raw[r] = columns[row[r] * D];
      } else {
        raw[r] = raw16_once(columns + row[r] * D);
      }
    }
  }
  __device__ __forceinline__ void take(W (&w)[kPack], int r) const {
    if constexpr (kPack == 1) {
      w[0] = raw[r];
    } else {
      const Pack<W> pack = pack_of<W>(raw[r]);
#pragma unroll
      for (int k = 0; k < kPack; ++k) w[k] = pack.at[k];
    }
  }
};

// to[c] = the block's sum of column c < left of its tile, or added by atomics: the warps' are added in order.
// sum: the lane's columns; sums: shared memory. For whole blocks.
template <bool kAtomic, int kPack, class T>
__device__ __forceinline__ void write_columns(T* to, T (&sums)[kColumnWarps][kWarp * kPack],
                                              const T (&sum)[kPack], int64_t left) {
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPack; ++i) sums[warp_of_thread()][lane_of_thread() * kPack + i] = sum[i];
  __syncthreads();
  for (int c = thread_rank(); c < kWarp * kPack && c < left; c += kColumnWarps * kWarp) {
    T all = sums[0][c];
#pragma unroll
    for (int w = 1; w < kColumnWarps; ++w) all += sums[w][c];
    if constexpr (kAtomic) {
      if (all != T(0)) atomicAdd(&to[c], all);
    } else {
      to[c] = all;
    }
  }
}

// parts[split, d] = sum over the split's rows r of h[r] w[r, d], or added to parts[d] by atomics. Grid (tiles of
// kWarp kPack columns, splits). A lane owns kPack columns, a warp every kColumnWarps-th group of kFlight rows, and
// the warps are added in order. Which rows, and of weights of bf16 the first group of each warp, are there before h is
// awaited.
template <int kPack, bool kAtomic, class T, class W, class Rows>
__global__ void __launch_bounds__(kColumnWarps* kWarp, 6)
    column_sums_kernel(T* parts, const T* h, const W* w, Rows rows, int D) {
  LTE_SHARED(int32_t, row[kStage]);
  LTE_SHARED(T, value[kStage]);
  LTE_SHARED(T, sums[kColumnWarps][kWarp * kPack]);
  const int lane = lane_of_thread(), warp = warp_of_thread(), thread = thread_rank();
  const int tile = static_cast<int>(blockIdx.x) * kWarp * kPack, d = tile + lane * kPack;
  constexpr int kStep = kColumnWarps * kFlight;
  constexpr bool kHold = sizeof(W) == 2;
  let_next_begin();
  const RowRange range = row_range(rows);
  const int begin = range.begin, end = range.end;
  T sum[kPack] = {};
  if (!kHold || begin >= end) await_inputs();
  const W* columns = w + (d < D ? d : 0);
  for (int from = begin; from < end; from += kStage) {
    const int count = end - from < kStage ? end - from : kStage;
    const int whole = (count + kFlight - 1) / kFlight * kFlight;
    __syncthreads();
    // Beyond the last row stands that row, times 0: no branch, that loads go out together.
    for (int i = thread; i < whole; i += kColumnWarps * kWarp)
      row[i] = range.at(from + (i < count ? i : count - 1));
    __syncthreads();
    int i = warp * kFlight;
    RowsAhead<kFlight, kPack, W> loaded;
    loaded.load(columns, D, row + (i < count ? i : 0));
    if (kHold && from == begin) await_inputs();
    for (int k = thread; k < whole; k += kColumnWarps * kWarp)
      value[k] = k < count ? h[row[k]] : T(0);
    __syncthreads();
    while (i < count) {
#pragma unroll
      for (int r = 0; r < kFlight; ++r) {
        W w[kPack];
        loaded.take(w, r);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum[k] += value[i + r] * to_float(w[k]);
      }
      i += kStep;
      if (i < count) loaded.load(columns, D, row + i);
    }
  }
  T* to = kAtomic ? parts : parts + static_cast<int64_t>(blockIdx.y) * D;
  write_columns<kAtomic>(to + tile, sums, sum, D - tile);
}

// out[c] = sum over i < count of parts[i, c], or added to it. A block takes kWarp columns; its warps take every
// kJoinWarps-th part and are then added in pairs, always the same ones.
constexpr int kJoinWarps = 8;
template <bool kAdd, class T>
__global__ void join_parts_kernel(T* out, const T* parts, int64_t cols, int count) {
  LTE_SHARED(T, sums[kJoinWarps][kWarp]);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + x;
  let_next_begin();
  await_inputs();
  T sum = 0;
  if (c < cols) {
#pragma unroll 4
    for (int i = y; i < count; i += kJoinWarps) sum += parts[i * cols + c];
  }
  sums[y][x] = sum;
  for (int step = kJoinWarps / 2; step > 0; step /= 2) {
    __syncthreads();
    if (y < step) sums[y][x] += sums[y + step][x];
  }
  if (y == 0 && c < cols) out[c] = kAdd ? out[c] + sums[0][x] : sums[0][x];
}
template <bool kAdd, class T>
void join_parts(CudaCtx& c, T* out, const T* parts, int64_t cols, int64_t count) {
  launch_early(join_parts_kernel<kAdd, T>, static_cast<unsigned>(pieces(cols, kWarp)),
               dim3(kWarp, kJoinWarps), 0, c.stream, out, parts, cols, static_cast<int>(count));
}

// How many ranges the `rows` rows (at most) of a matrix of D columns are cut into: some four blocks for each of
// the largest GPUs' multiprocessors, and no range below what the warps of a block have on their way at once.
inline int64_t column_splits(int64_t rows, int64_t D, int64_t per_lane) {
  return std::clamp<int64_t>(pieces(512, pieces(D, kWarp * per_lane)), 1,
                             std::max<int64_t>(1, rows / (kColumnWarps * kFlight)));
}
// parts[splits, D], or out[D] itself by atomics. list: row_list_size, where Rows has one.
template <bool kAtomic, class T, class W, class Rows>
void column_sums(CudaCtx& c, T* parts, const T* h, const W* w, Rows rows, int64_t D, int64_t splits,
                 bool vector, int64_t list = 0) {
  constexpr int kPack = Pack<W>::kSize;
  const auto tiles = static_cast<unsigned>(pieces(D, kWarp * (vector ? kPack : 1)));
  launch_early(vector ? column_sums_kernel<kPack, kAtomic, T, W, Rows>
                      : column_sums_kernel<1, kAtomic, T, W, Rows>,
               dim3(tiles, static_cast<unsigned>(splits)), kColumnWarps * kWarp,
               static_cast<size_t>(list) * sizeof(int32_t), c.stream, parts, h, w, rows,
               static_cast<int>(D));
}

}  // namespace lte
