// Embedding tables: gather forward; backward in the order of the tokens, without atomics.
#include "place.h"

namespace lte {
namespace {

template <class T, class W>
struct Embed {
  T* out;
  const int32_t* token;
  const W *wte, *wpe;
  int64_t D, T_;
  Position pos;
  __device__ void operator()(int64_t i) const {
    const int64_t n = i / D, d = i % D;
    T x = to_float(wte[token[n] * D + d]);
    if (wpe) x += to_float(wpe[(pos + n % T_) * D + d]);
    out[i] = x;
  }
};

void embed(Ctx& ctx, Tensor out, Tensor tokens, Tensor wte, Tensor wpe, Chunk chunk) {
  const int32_t* token = device_list(cuda(ctx), tokens);
  with_types(out, wte, [&]<class T, class W>() {
    each(ctx, out.size(),
         Embed<T, W>{ptr<T>(out), token, ptr<W>(wte), ptr<W>(wpe), out.cols(), chunk.T,
                     Position(chunk)});
  });
}

constexpr int kScan = 8, kMost = 256;  // tokens that a thread looks at in turn; threads of a block

// One block a row n of dout. The first row of every token adds all rows of that token in order; the
// others leave: no two blocks write one row of the table. A block looks at kScan tokens a thread at a
// time, and lists those that are its own before their rows are added.
template <class T, int kFew>
__global__ void tokens_backward_kernel(T* dwte, const T* dout, const int32_t* token, int64_t N,
                                       int64_t D) {
  LTE_SHARED(int, list[kScan * kMost]);
  const int64_t n = blockIdx.x, step = blockDim.x;
  const int32_t own = token[n];
  const auto matches = [&](int64_t first, int64_t stop) {
    unsigned mine = 0;
#pragma unroll
    for (int k = 0; k < kScan; ++k) {
      const int64_t m = first + k * step + threadIdx.x;
      if (m < stop && token[m] == own) mine |= 1u << k;
    }
    return mine;
  };
  for (int64_t first = 0; first < n; first += kScan * step) {
    if (__syncthreads_or(matches(first, n) != 0)) return;
  }
  T* sums = dwte + own * D;
  for (int64_t first = n; first < N; first += kScan * step) {
    const unsigned mine = matches(first, N);
    if (!__syncthreads_or(mine != 0)) continue;
    int count = 0;
    for (int k = 0; k < kScan; ++k) {
      const bool yes = mine >> k & 1;
      const Place place = block_place(yes);
      if (yes) list[count + place.before] = k * blockDim.x + threadIdx.x;
      count += place.all;
    }
    __syncthreads();
    for (int64_t d = threadIdx.x * kFew; d < D; d += step * kFew) {
      Few<kFew, T> sum = load_few<kFew>(sums + d);
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const Few<kFew, T> row = load_few<kFew>(dout + (first + list[i]) * D + d);
        for (int j = 0; j < kFew; ++j) sum.at[j] += row.at[j];
      }
      store_few(sums + d, sum);
    }
  }
}

template <class T>
struct PositionsBackward {
  T* dwpe;
  const T* dout;
  int64_t D, B, T_, pos;
  __device__ void operator()(int64_t i) const {  // i = t D + d
    T sum = dwpe[pos * D + i];
    for (int64_t b = 0; b < B; ++b) sum += dout[b * T_ * D + i];
    dwpe[pos * D + i] = sum;
  }
};

void embed_backward_add(Ctx& ctx, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens,
                        Chunk chunk) {
  const int32_t* token = device_list(cuda(ctx), tokens);
  const int64_t N = dout.rows(), D = dout.cols();
  with_type(dout, [&]<class T>() {
    constexpr int kFew = Pack<T>::kSize;
    const bool vector = D % kFew == 0 && aligned16(dwte.data, dout.data);
    launch_rows(ctx, vector ? tokens_backward_kernel<T, kFew> : tokens_backward_kernel<T, 1>, N, D,
                ptr<T>(dwte), ptr<T>(dout), token, N, D);
    if (!dwpe) return;
    each(ctx, chunk.T * D,
         PositionsBackward<T>{ptr<T>(dwpe), ptr<T>(dout), D, chunk.B, chunk.T, chunk.pos});
  });
}

}  // namespace

void fill_cuda_embed(Ops& ops) {
  ops.embed = embed;
  ops.embed_backward_add = embed_backward_add;
}

}  // namespace lte
