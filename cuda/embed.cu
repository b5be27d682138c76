// Embedding tables: gather forward; backward in the order of the tokens, without atomics.
#include "context.h"

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

// One block a row n of dout. The first row of every token adds all rows of that token in order; the
// others leave: no two blocks write one row of the table.
template <class T>
__global__ void tokens_backward_kernel(T* dwte, const T* dout, const int32_t* token, int64_t N,
                                       int64_t D) {
  const int64_t n = blockIdx.x;
  const int32_t own = token[n];
  int seen = 0;
  for (int64_t m = threadIdx.x; m < n; m += blockDim.x) seen |= token[m] == own;
  if (__syncthreads_or(seen)) return;
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    T sum = dwte[own * D + d];
    for (int64_t m = n; m < N; ++m) {
      if (token[m] == own) sum += dout[m * D + d];
    }
    dwte[own * D + d] = sum;
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
    launch_rows(ctx, tokens_backward_kernel<T>, N, D, ptr<T>(dwte), ptr<T>(dout), token, N, D);
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
