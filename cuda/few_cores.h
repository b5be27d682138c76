// Products of 2 to 16 tokens with weights of bf16 on tensor cores, as fast as the weights can be read: every
// lane loads 16 bytes of them from where they lie into the registers that mma wants, for the order of a sum's
// terms is free where both factors follow it. Inputs keep all bits of their floats, as three bf16 each.
#pragma once

#include "gathered.h"
#include "mma.h"

namespace lte {

// A block of kCoreWarps warps, whose sums are added in order. Tiles are 16 rows of weights; tokens are taken
// eight at a time, kCols times.
constexpr int kCoreWarps = 16, kCoreThreads = kCoreWarps * kWarp, kCoreRows = 16, kCoreStep = 32;
template <int kCols>
constexpr int kCoreTokens = 8 * kCols;
constexpr int64_t kCoreBlocks = 132;  // that a large GPU runs at once

// What both need: 16-byte rows of whole steps.
inline bool fits_cores(int64_t D) { return D > 0 && D % kCoreStep == 0; }
inline bool fits_cores(int64_t N, int64_t D) { return N > 1 && N <= kFewTokens && fits_cores(D); }

// x = part[0] + part[1] + part[2] in the lower halves, y in the upper ones: 24 bits, eight at a time,
// exactly. An infinite x has a NaN among its parts: a product with it is NaN.
constexpr int kParts = 3;
__device__ __forceinline__ void split(uint32_t (&part)[kParts], float x, float y) {
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const uint32_t a = __float_as_uint(x), b = __float_as_uint(y);
    part[p] = __byte_perm(a, b, 0x7632);
    x -= __uint_as_float(a & 0xffff0000u), y -= __uint_as_float(b & 0xffff0000u);
  }
}

__device__ __forceinline__ Pack<uint32_t> load_words(const bf16* p) {
  return load16_once(reinterpret_cast<const uint32_t*>(p));
}

// == Rows of weights by rows of tokens

// sum[m][c] += rows of tile m by tokens of c, over kSteps steps from column d on. Lane 4 g + t has in row[m]
// the row g of the tile from its column 8 t on, in x[c] token g likewise; row g + 8 is `eight` further.
template <int kSteps, int kTiles, int kCols>
__device__ __forceinline__ void add_steps(float (&sum)[kTiles][kCols][4],
                                          const bf16* const (&row)[kTiles],
                                          const float* const (&x)[kCols], int64_t eight, int d) {
  Pack<uint32_t> w[kSteps][kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        w[s][m][i] = load_words(row[m] + i * eight + d + s * kCoreStep);
      }
    }
  }
  __syncwarp();  // or compilers ask for the last ones when the first are used
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of the lane's eight columns
      uint32_t low[kCols][kParts], high[kCols][kParts];
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        const Pack<float> in = load16(x[c] + d + s * kCoreStep + half * 4);
        split(low[c], in.at[0], in.at[1]), split(high[c], in.at[2], in.at[3]);
      }
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
#pragma unroll
        for (int c = 0; c < kCols; ++c) {
          const uint32_t b[2] = {low[c][p], high[c][p]};
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            const auto &one = w[s][m][0].at, &two = w[s][m][1].at;
            const uint32_t a[4] = {one[half * 2], two[half * 2], one[half * 2 + 1],
                                   two[half * 2 + 1]};
            mma_bf16(sum[m][c], a, b);
          }
        }
      }
    }
  }
}

// What a block computes: its warps stand in kGroups groups of kTiles tiles each, which share x by way of L1,
// and those of a group share the columns. A thread ends with the sums of one token and one row of its tiles.
template <int kTiles, int kCols, int kGroups>
struct CoreBlock {
  static constexpr int kTokens = kCoreTokens<kCols>, kWarps = kCoreWarps / kGroups;
  static constexpr int kAll = kGroups * kTiles;  // tiles
  float sum[kTiles][kCols][4] = {};

  __device__ static int group() { return warp_of_thread() / kWarps; }
  // Where the thread's sums belong; group_of_sum() is kGroups or more where they are nobody's.
  __device__ static int group_of_sum() { return thread_rank() / (kTokens * kCoreRows); }
  __device__ static int token() { return thread_rank() / kCoreRows % kTokens; }
  __device__ static int row() { return thread_rank() % kCoreRows; }

  // first[m] is the first row of the group's tile m. A lane has eight pieces of weights on their way, a warp
  // whole lines of 128 bytes. Tokens beyond N repeat the last one.
  __device__ void add(const bf16* const (&first)[kTiles], const float* x, int N, int64_t D) {
    constexpr int kSteps = 4 / kTiles;
    const int lane = lane_of_thread(), g = lane / 4, t = lane % 4, warp = warp_of_thread() % kWarps;
    const bf16* row[kTiles];
    const float* token[kCols];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) row[m] = first[m] + g * D + t * 8;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const int n = c * 8 + g;
      token[c] = x + (n < N ? n : N - 1) * D + t * 8;
    }
    const int steps = static_cast<int>(D / kCoreStep), whole = steps / kSteps * kSteps;
#pragma unroll 1
    for (int i = warp * kSteps; i < whole; i += kWarps * kSteps) {
      add_steps<kSteps>(sum, row, token, 8 * D, i * kCoreStep);
    }
    static_assert(kSteps <= kWarps);
    const int rest = whole + warp;
    if (rest < steps) add_steps<1>(sum, row, token, 8 * D, rest * kCoreStep);
  }

  // The sums of tile m over the group's warps, in order. For whole blocks.
  __device__ float total(int m) {
    constexpr int kStride = kCoreRows + 4;  // other banks for other tokens
    LTE_SHARED(float, part[kCoreWarps][kTokens * kStride]);
    const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        part[warp_of_thread()][(c * 8 + t * 2 + k % 2) * kStride + g + k / 2 * 8] = sum[m][c][k];
      }
    }
    __syncthreads();
    if (group_of_sum() >= kGroups) return 0;
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      all += part[group_of_sum() * kWarps + w][token() * kStride + row()];
    return all;
  }
};

// out[n, j] (+)= x[n,:] . w[j,:]. The last tiles reach back, and write what is their own.
template <int kCols, int kGroups, bool kAdd>
__global__ void __launch_bounds__(kCoreThreads, 1)
    core_rows_kernel(float* out, const float* x, const bf16* w, int N, int64_t cols, int64_t D) {
  using Block = CoreBlock<2, kCols, kGroups>;
  let_next_begin();
  await_inputs();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * Block::kAll * kCoreRows;
  const auto begin = [&](int64_t own) { return own < cols - kCoreRows ? own : cols - kCoreRows; };
  const auto tile = [&](int group, int m) { return first + (group * 2 + m) * kCoreRows; };
  Block b;
  b.add({w + begin(tile(b.group(), 0)) * D, w + begin(tile(b.group(), 1)) * D}, x, N, D);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const float all = b.total(m);
    const int64_t own = tile(b.group_of_sum(), m), j = begin(own) + b.row();
    const int n = b.token();
    if (b.group_of_sum() < kGroups && n < N && j >= own) {
      out[n * cols + j] = kAdd ? out[n * cols + j] + all : all;
    }
  }
}
// cols >= 16, rows of 16-byte pieces. Blocks of more rows, where there are enough for all multiprocessors,
// read x less often.
template <bool kAdd>
void core_rows(Ctx& ctx, float* out, const float* x, const bf16* w, int N, int64_t cols,
               int64_t D) {
  const bool tall = N > 8 && cols >= 64 * kCoreBlocks;
  const auto kernel = N <= 8 ? core_rows_kernel<1, 1, kAdd>
                      : tall ? core_rows_kernel<2, 2, kAdd>
                             : core_rows_kernel<2, 1, kAdd>;
  launch_early(kernel, static_cast<unsigned>(pieces(cols, tall ? 64 : 32)), kCoreThreads, 0,
               cuda(ctx).stream, out, x, w, N, cols, D);
}

// == The gathered FFN

// Tile i of the active experts' neurons, G / 16 an expert: its expert and first neuron.
struct NeuronTile {
  int64_t e, j;
  __device__ NeuronTile(const int32_t* active, int G, int i) {
    const int per = G / kCoreRows;
    e = active[i / per], j = e * G + i % per * kCoreRows;
  }
};

// h[i, n, r] for neuron r of tile i: 0 where the token did not select the expert, or is none. kMats is 2
// where there are gate rows, read together with the up rows. Grid for all neurons, kOwn tiles a block.
template <int kMats, int kCols>
constexpr int kOwn = 2 * kCols / kMats;
template <int kMats, int kCols>
__global__ void __launch_bounds__(kCoreThreads, 1)
    core_hidden_kernel(float* h, const int32_t* active, const int32_t* total,
                       Gathered<float, bf16> f) {
  using Block = CoreBlock<2, kCols, kCols>;
  let_next_begin();
  await_inputs();
  const int G = static_cast<int>(f.G), tiles = *total * (G / kCoreRows);
  const int begin = static_cast<int>(blockIdx.x) * kOwn<kMats, kCols>;
  if (begin >= tiles) return;
  Block b;
  if (f.up) {
    const auto first = [&](int m) {
      const int i = begin + (b.group() * 2 + m) / kMats;
      const NeuronTile tile(active, G, i < tiles ? i : tiles - 1);
      return (m < kMats - 1 || kMats == 1 ? f.up : f.gate_w) + tile.j * f.D;
    };
    b.add({first(0), first(1)}, f.x, static_cast<int>(f.N), f.D);
  }
  const int n = b.token(), r = b.row();
#pragma unroll
  for (int m = 0; m < 2; m += kMats) {
    const float u = b.total(m), g = kMats == 2 ? b.total(1) : 0.0f;
    const int i = begin + (b.group_of_sum() * 2 + m) / kMats;
    if (b.group_of_sum() >= kCols || i >= tiles) continue;
    const NeuronTile tile(active, G, i);
    const float gate = n < f.N ? f.gates[n * f.E + tile.e] : 0.0f;
    h[(static_cast<int64_t>(i) * Block::kTokens + n) * kCoreRows + r] =
        gate != 0.0f ? f.hidden(n, tile.j + r, u, g) * gate : 0.0f;
  }
}

// sum[j] += h' down over kTiles tiles from i on, for the columns of which the lane's begin at `down`. Lane
// 4 g + t loads columns 8 g .. 8 g + 7 of rows 4 t .. 4 t + 3: column g of the j-th product is 8 g + j.
template <int kTiles, int kCols>
__device__ __forceinline__ void add_tiles(float (&sum)[8][4], const bf16* down, const float* h,
                                          const int32_t* active, int G, int64_t D, int i) {
  constexpr int kTokens = kCoreTokens<kCols>;
  const int t = lane_of_thread() % 4;
  Pack<uint32_t> w[kTiles][4];
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    const bf16* row = down + (NeuronTile(active, G, i + k).j + t * 4) * D;
#pragma unroll
    for (int r = 0; r < 4; ++r) w[k][r] = load_words(row + r * D);
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    const float* own = h + static_cast<int64_t>(i + k) * kTokens * kCoreRows + lane_of_thread() * 4;
    uint32_t a[kParts][4] = {};
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const Pack<float> in = load16(own + c * 8 * kCoreRows);
      uint32_t low[kParts], high[kParts];
      split(low, in.at[0], in.at[1]), split(high, in.at[2], in.at[3]);
#pragma unroll
      for (int p = 0; p < kParts; ++p) a[p][c] = low[p], a[p][c + 2] = high[p];
    }
    uint32_t b[8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        b[j][r] =
            __byte_perm(w[k][r * 2].at[j / 2], w[k][r * 2 + 1].at[j / 2], j % 2 ? 0x7632 : 0x5410);
      }
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_bf16(sum[j], a[p], b[j]);
    }
  }
}

// As few_down_kernel, with h as core_hidden_kernel leaves it. Grid (tiles of kCoreCols columns, splits of
// the tiles of rows). The warps stand in two groups of 64 columns, whose h is the same; those of a group take
// two tiles of rows each in turn.
constexpr int kCoreCols = 128, kCoreGroup = kCoreWarps / 2;
template <int kCols, bool kAtomic>
__global__ void __launch_bounds__(kCoreThreads, 1)
    core_down_kernel(float* parts, const float* h, const int32_t* active, const int32_t* total,
                     Gathered<float, bf16> f) {
  constexpr int kTokens = kCoreTokens<kCols>, kWidth = 32, kStride = kWidth + 4;
  LTE_SHARED(float, part[kCoreWarps][kTokens * kStride]);
  let_next_begin();
  await_inputs();
  const int G = static_cast<int>(f.G), N = static_cast<int>(f.N), tiles = *total * (G / kCoreRows);
  const int splits = static_cast<int>(gridDim.y), grain = (tiles + splits - 1) / splits;
  const int begin = static_cast<int>(blockIdx.y) * grain;
  const int end = begin + grain < tiles ? begin + grain : tiles;
  const int warp = warp_of_thread(), g = lane_of_thread() / 4, t = lane_of_thread() % 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCoreCols;
  const int64_t d = first + warp / kCoreGroup * 64 + g * 8;
  const bf16* down = f.down + (d < f.D ? d : 0);  // columns beyond the last: nobody's sums
  float sum[8][4] = {};
#pragma unroll 1
  for (int i = begin + warp % kCoreGroup * 2; i < end; i += kCoreGroup * 2) {
    if (i + 1 < end) {
      add_tiles<2, kCols>(sum, down, h, active, G, f.D, i);
    } else {
      add_tiles<1, kCols>(sum, down, h, active, G, f.D, i);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // four columns of each eight
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 2 * kCols; ++k) {
      Pack<float> four;
#pragma unroll
      for (int j = 0; j < 4; ++j) four.at[j] = sum[half * 4 + j][k];
      store16(&part[warp][(g + k / 2 * 8) * kStride + (t * 2 + k % 2) * 4], four);
    }
    __syncthreads();
    for (int i = thread_rank(); i < 2 * kTokens * kWidth; i += kCoreThreads) {
      const int group = i / (kTokens * kWidth), n = i / kWidth % kTokens, c = i % kWidth;
      const int64_t column = first + group * 64 + c / 4 * 8 + half * 4 + c % 4;
      if (n >= N || column >= f.D) continue;
      float all = 0;
#pragma unroll
      for (int w = 0; w < kCoreGroup; ++w) all += part[group * kCoreGroup + w][n * kStride + c];
      if constexpr (kAtomic) {
        if (all != 0.0f) atomicAdd(&parts[n * f.D + column], all);
      } else {
        parts[(static_cast<int64_t>(blockIdx.y) * N + n) * f.D + column] = all;
      }
    }
  }
}

}  // namespace lte
