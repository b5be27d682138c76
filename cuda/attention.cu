// Rotary positions, key-value cache and causal attention. With stored probabilities (training):
// batched products by cuBLAS around a softmax of rows. Without: the kernels of attention.h, and with the rows'
// sums kept (training of variant fused) those of attention_backward.h; of variant bf16, and of tensors of bf16,
// those of attention_cores.h.
#include "attention_backward.h"
#include "attention_cores.h"

namespace lte {
namespace {

// A block turns up to kRopeHeads heads of one row: the angles of its position are found once, in double.
// Grid (rows, groups of heads); shared memory for two numbers a pair.
constexpr int kRopeHeads = 8;
template <class T>
__global__ void rope_kernel(T* x, int64_t width, int heads, int half, int64_t T_, Position pos,
                            double theta, bool inverse) {
  using Sum = SumOf<T>;
  Sum *c = dynamic_shared<Sum>(), *s = c + half;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t n = blockIdx.x;
  let_next_begin();
  double turn = pow(theta, -static_cast<double>(thread) / static_cast<double>(half));
  await_inputs();
  for (int j = thread; j < half; j += threads) {
    if (j != thread) turn = pow(theta, -static_cast<double>(j) / static_cast<double>(half));
    const double angle = static_cast<double>(pos + n % T_) * turn;
    c[j] = static_cast<Sum>(cos(angle));
    s[j] = static_cast<Sum>(inverse ? -sin(angle) : sin(angle));
  }
  __syncthreads();
  const int first = static_cast<int>(blockIdx.y) * kRopeHeads;
  const int count = heads - first < kRopeHeads ? heads - first : kRopeHeads;
  T* from = x + n * width + static_cast<int64_t>(first) * 2 * half;
  for (int i = thread; i < count * half; i += threads) {
    const int j = i % half;
    T* head = from + i / half * 2 * half;
    const Sum one = to_float(head[j]), two = to_float(head[j + half]);
    head[j] = rounded<T>(one * c[j] - two * s[j]);
    head[j + half] = rounded<T>(one * s[j] + two * c[j]);
  }
}

void rope(Ctx& ctx, Tensor x, Chunk chunk, int64_t heads, int64_t C, double theta, bool inverse) {
  const int64_t half = C / 2;
  if (chunk.B * chunk.T * heads * half == 0) return;
  with_kept(x, [&]<class, class T>() {
    const dim3 grid(static_cast<unsigned>(chunk.B * chunk.T),
                    static_cast<unsigned>(pieces(heads, kRopeHeads)));
    launch_early(rope_kernel<T>, grid, row_threads(std::min<int64_t>(heads, kRopeHeads) * half),
                 static_cast<size_t>(2 * half) * sizeof(SumOf<T>), cuda(ctx).stream, ptr<T>(x),
                 x.cols(), static_cast<int>(heads), static_cast<int>(half), chunk.T,
                 Position(chunk), theta, inverse);
  });
}

template <class T>
struct StoreKv {
  T *k, *v;
  const T* qkv;
  int64_t width, S, T_, H, K, C;
  Position pos;
  template <int n>
  __device__ void operator()(int64_t i) const {  // i over [B,T,K,C]; C a multiple of n
    const int64_t row = i / (K * C), head = i / C % K, c = i % C;
    const int64_t to = ((row / T_ * K + head) * S + pos + row % T_) * C + c;
    const T* from = qkv + row * width + (H + head) * C + c;
    const Few<n, T> key = load_few<n>(from), value = load_few<n>(from + K * C);
    store_few(k + to, key), store_few(v + to, value);
  }
};

void store_kv(Ctx& ctx, Tensor k, Tensor v, Tensor qkv, Chunk chunk, HeadShape s) {
  LTE_CHECK(chunk.pos + chunk.T <= k.dim[2], "store_kv: the key-value cache is full");
  LTE_CHECK(k.dtype == qkv.dtype && v.dtype == qkv.dtype, "store_kv was given two types");
  with_kept(k, [&]<class, class T>() {
    each_few<T>(ctx, chunk.B * chunk.T * s.K * s.C,
                s.C % Pack<T>::kSize == 0 && aligned16(ptr<T>(k), ptr<T>(v), ptr<T>(qkv)),
                StoreKv<T>{ptr<T>(k), ptr<T>(v), ptr<T>(qkv), qkv.cols(), k.dim[2], chunk.T, s.H,
                           s.K, s.C, Position(chunk)});
  });
}

// A batch of row-major products out = alpha op(a) op(b) + beta out, one a key-value head.
struct Side {
  const void* data;
  int64_t stride, batch;  // of rows, of the batch, in elements
  bool transposed;
};
template <class T>
void batched(CudaCtx& c, T* out, int64_t stride, int64_t batch, int64_t rows, int64_t cols,
             int64_t inner, const Side& a, const Side& b, T alpha, T beta, int64_t count) {
  const auto op = [](const Side& s) { return s.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const auto n = [](int64_t v) { return static_cast<int>(v); };
  cublasStatus_t status;
  if constexpr (sizeof(T) == 8) {
    status = cublasDgemmStridedBatched(c.blas, op(b), op(a), n(cols), n(rows), n(inner), &alpha,
                                       static_cast<const T*>(b.data), n(b.stride), b.batch,
                                       static_cast<const T*>(a.data), n(a.stride), a.batch, &beta,
                                       out, n(stride), batch, n(count));
  } else {
    status = cublasSgemmStridedBatched(c.blas, op(b), op(a), n(cols), n(rows), n(inner), &alpha,
                                       static_cast<const T*>(b.data), n(b.stride), b.batch,
                                       static_cast<const T*>(a.data), n(a.stride), a.batch, &beta,
                                       out, n(stride), batch, n(count));
  }
  check_blas(status, "a batched product");
}

// The row of probabilities that a block works on: blockIdx.x = (b H + h) T + t.
template <class T>
__global__ void causal_softmax_kernel(T* probs, int64_t T_, int64_t pos) {
  const int64_t reach = pos + T_, length = pos + blockIdx.x % T_ + 1;
  T* row = probs + blockIdx.x * reach;
  T top = kLowest<T>, sum = 0;
  for (int64_t j = threadIdx.x; j < length; j += blockDim.x) top = max_of(top, row[j]);
  top = block_max(top);
  for (int64_t j = threadIdx.x; j < length; j += blockDim.x) sum += exp_of(row[j] - top);
  sum = block_sum(sum);
  for (int64_t j = threadIdx.x; j < reach; j += blockDim.x) {
    row[j] = j < length ? exp_of(row[j] - top) / sum : T(0);
  }
}

// ds = scale p (dp - sum over j of p dp), in place of dp; the same rows.
template <class T>
__global__ void softmax_backward_kernel(T* dp, const T* probs, int64_t reach, T scale) {
  const T* p = probs + blockIdx.x * reach;
  T* d = dp + blockIdx.x * reach;
  T sum = 0;
  for (int64_t j = threadIdx.x; j < reach; j += blockDim.x) sum += p[j] * d[j];
  sum = block_sum(sum);
  for (int64_t j = threadIdx.x; j < reach; j += blockDim.x) d[j] = p[j] * (d[j] - sum) * scale;
}

template <class T>
void stored_attention(Ctx& ctx, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v,
                      Chunk chunk, HeadShape s) {
  LTE_CHECK(!chunk.at, "attention: stored probabilities want a position that is known");
  CudaCtx& c = cuda(ctx);
  const int64_t S = k.dim[2], reach = chunk.pos + chunk.T, width = qkv.cols(), group = s.H / s.K;
  const int64_t tile = chunk.T * reach;
  const T scale = T(1) / std::sqrt(static_cast<T>(s.C));
  for (int64_t b = 0; b < chunk.B; ++b) {
    for (int64_t g = 0; g < group; ++g) {
      const Side q{ptr<T>(qkv) + b * chunk.T * width + g * s.C, width, group * s.C, false};
      const Side keys{ptr<T>(k) + b * s.K * S * s.C, s.C, S * s.C, true};
      batched<T>(c, ptr<T>(probs) + (b * s.H + g) * tile, reach, group * tile, chunk.T, reach, s.C,
                 q, keys, scale, T(0), s.K);
    }
  }
  launch_rows(ctx, causal_softmax_kernel<T>, chunk.B * s.H * chunk.T, reach, ptr<T>(probs), chunk.T,
              chunk.pos);
  for (int64_t b = 0; b < chunk.B; ++b) {
    for (int64_t g = 0; g < group; ++g) {
      const Side p{ptr<T>(probs) + (b * s.H + g) * tile, reach, group * tile, false};
      const Side values{ptr<T>(v) + b * s.K * S * s.C, s.C, S * s.C, false};
      batched<T>(c, ptr<T>(out) + b * chunk.T * s.H * s.C + g * s.C, s.H * s.C, group * s.C,
                 chunk.T, s.C, reach, p, values, T(1), T(0), s.K);
    }
  }
}

constexpr int64_t kFewQueries = 8;  // up to here queries are cut by pieces of the cache

template <class T>
AttentionIn<T> attention_in(Tensor qkv, Tensor k, Tensor v, Chunk chunk, HeadShape s) {
  return {.qkv = ptr<T>(qkv),
          .k = ptr<T>(k),
          .v = ptr<T>(v),
          .width = qkv.cols(),
          .S = k.dim[2],
          .T_ = chunk.T,
          .pos = Position(chunk),
          .H = static_cast<int>(s.H),
          .K = static_cast<int>(s.K),
          .C = static_cast<int>(s.C),
          .scale = T(1) / std::sqrt(static_cast<T>(s.C))};
}

// The cut follows from the cache's length, not from the position: the same launch for every token.
template <bool kOwn, class T>
void attend_by_pieces(CudaCtx& c, T* out, const AttentionIn<T>& in, int64_t N, OwnToken<T> own) {
  const int64_t C = in.C, grain = std::max<int64_t>(256, pieces(in.S, 32));
  const int64_t count = pieces(in.S, grain);
  T* parts = count > 1 ? c.workspace<T>(N * in.H * count * (C + 2)) : nullptr;
  LTE_CHECK(C <= 8 * kWarp, "attention: heads of more than 256 columns");
  const auto piece = C <= kWarp       ? attention_piece_kernel<1, kOwn, T>
                     : C <= 2 * kWarp ? attention_piece_kernel<2, kOwn, T>
                     : C <= 4 * kWarp ? attention_piece_kernel<4, kOwn, T>
                                      : attention_piece_kernel<8, kOwn, T>;
  const auto H = static_cast<unsigned>(in.H), rows = static_cast<unsigned>(N);
  const int64_t shared = kPieceWarps * (C + 2) + (kOwn ? 3 * C : 0);
  launch_early(piece, dim3(static_cast<unsigned>(count), H, rows), kPieceWarps * kWarp,
               static_cast<size_t>(shared) * sizeof(T), c.stream, out, parts, in, grain, own);
  if (count == 1) return;
  launch_early(attention_join_kernel<T>, dim3(H, rows), row_threads(C), 0, c.stream, out, parts,
               static_cast<int>(count), in.C);
}

void attend_token(Ctx& ctx, Tensor out, Tensor qkv, Tensor k, Tensor v, Chunk chunk, HeadShape s,
                  double theta) {
  LTE_CHECK(chunk.T == 1, "attend_token: wants chunks of one token");
  LTE_CHECK(chunk.pos < k.dim[2], "attend_token: the key-value cache is full");
  with_type(out, [&]<class T>() {
    attend_by_pieces<true>(cuda(ctx), ptr<T>(out), attention_in<T>(qkv, k, v, chunk, s), chunk.B,
                           OwnToken<T>{ptr<T>(k), ptr<T>(v), theta});
  });
}

template <class T>
void online_attention(Ctx& ctx, Tensor out, Tensor log_sums, Tensor qkv, Tensor k, Tensor v,
                      Chunk chunk, HeadShape s) {
  const AttentionIn<T> in = attention_in<T>(qkv, k, v, chunk, s);
  if (log_sums || chunk.T > kFewQueries) {
    const dim3 grid = attention_grid(chunk, s.H, kTileQ);
    const size_t shared = static_cast<size_t>(attention_tile_size(s.C)) * sizeof(T);
    launch(attention_tile_kernel<T>, grid, kTileThreads, shared, cuda(ctx).stream, ptr<T>(out),
           ptr<T>(log_sums), in);
    return;
  }
  attend_by_pieces<false>(cuda(ctx), ptr<T>(out), in, chunk.B * chunk.T, OwnToken<T>{});
}

// Whether the kernels on tensor cores do it: of bf16 all, of floats whole prompts where factors are rounded.
bool on_cores(bool rounds, const Tensor& t, const HeadShape& s) {
  LTE_CHECK(t.dtype != DType::bf16 || s.C <= kMostKeptColumns,
            "attention of bf16: heads of more than 128 columns");
  return t.dtype == DType::bf16 || (rounds && t.dtype == DType::f32 && s.C <= kMostKeptColumns);
}

template <bool kCores>
void attention(Ctx& ctx, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk chunk,
               HeadShape s) {
  const bool stored = probs && probs.rank == 4;
  if (out.dtype == DType::bf16) {
    LTE_CHECK(!stored, "attention of bf16 stores no probabilities");
    LTE_CHECK(qkv.dtype == out.dtype && k.dtype == out.dtype && v.dtype == out.dtype,
              "attention was given two types");
  }
  if (!stored && on_cores(kCores && (probs || chunk.T > kFewQueries), out, s)) {
    return core_attention(ctx, out, probs, qkv, k, v, chunk, s);
  }
  with_type(out, [&]<class T>() {
    stored ? stored_attention<T>(ctx, out, probs, qkv, k, v, chunk, s)
           : online_attention<T>(ctx, out, probs, qkv, k, v, chunk, s);
  });
}

template <class T>
void online_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k, Tensor v,
                     Tensor log_sums, Chunk chunk, HeadShape s) {
  CudaCtx& c = cuda(ctx);
  T* delta = c.workspace<T>(log_sums.size());
  row_deltas<T>(ctx, delta, dout, out, chunk, s);
  const AttentionBack<T> f{.in = attention_in<T>(qkv, k, v, chunk, s),
                           .dout = ptr<T>(dout),
                           .log_sums = ptr<T>(log_sums),
                           .delta = delta,
                           .dqkv = ptr<T>(dqkv)};
  const auto shared = [&](int sums) {
    return static_cast<size_t>(back_shared<T>(f.in.C, sums)) * sizeof(T);
  };
  launch(attention_dq_kernel<T>, attention_grid(chunk, s.H, kBackTile), kBackThreads, shared(1),
         c.stream, f);
  launch(attention_dkv_kernel<T>, attention_grid(chunk, s.K, kBackTile), kBackThreads, shared(2),
         c.stream, f);
}

// With P the probabilities and dP = dO V':  dV = P' dO;  dS = P (dP - rowsum(P dP));
// dQ = dS K / sqrt(C);  dK = dS' Q / sqrt(C), summed over the query heads of a key-value head.
template <bool kCores>
void attention_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k,
                        Tensor v, Tensor probs, Chunk chunk, HeadShape s) {
  LTE_CHECK(chunk.pos == 0, "attention_backward: wants a whole prompt");
  if (probs.rank == 3) {
    if (dqkv.dtype == DType::bf16) {
      for (const Tensor& t : {dout, out, qkv, k, v})
        LTE_CHECK(t.dtype == DType::bf16, "attention_backward was given two types");
    }
    if (!on_cores(kCores, dqkv, s)) {
      return with_type(dqkv, [&]<class T>() {
        online_backward<T>(ctx, dqkv, dout, out, qkv, k, v, probs, chunk, s);
      });
    }
    return core_backward(ctx, dqkv, dout, out, qkv, k, v, probs, chunk, s);
  }
  CudaCtx& c = cuda(ctx);
  const int64_t S = k.dim[2], T_ = chunk.T, width = qkv.cols(), group = s.H / s.K, HC = s.H * s.C;
  const int64_t tile = T_ * T_, C = s.C, K = s.K;
  with_type(dqkv, [&]<class T>() {
    const T scale = T(1) / std::sqrt(static_cast<T>(C));
    T* dp = c.workspace<T>(s.H * tile);  // of one sequence
    for (int64_t b = 0; b < chunk.B; ++b) {
      const T *keys = ptr<T>(k) + b * K * S * C, *values = ptr<T>(v) + b * K * S * C;
      const T *d = ptr<T>(dout) + b * T_ * HC, *p = ptr<T>(probs) + b * s.H * tile;
      const T* q = ptr<T>(qkv) + b * T_ * width;
      T* to = ptr<T>(dqkv) + b * T_ * width;
      for (int64_t g = 0; g < group; ++g) {
        batched<T>(c, dp + g * tile, T_, group * tile, T_, T_, C, {d + g * C, HC, group * C, false},
                   {values, C, S * C, true}, T(1), T(0), K);
      }
      launch_rows(ctx, softmax_backward_kernel<T>, s.H * T_, T_, dp, p, T_, scale);
      for (int64_t g = 0; g < group; ++g) {
        const T beta = g > 0 ? T(1) : T(0);
        const Side ds{dp + g * tile, T_, group * tile, false};
        const Side ds_t{dp + g * tile, T_, group * tile, true};
        batched<T>(c, to + g * C, width, group * C, T_, C, T_, ds, {keys, C, S * C, false}, T(1),
                   T(0), K);
        batched<T>(c, to + HC, width, C, T_, C, T_, ds_t, {q + g * C, width, group * C, false},
                   T(1), beta, K);
        batched<T>(c, to + HC + K * C, width, C, T_, C, T_, {p + g * tile, T_, group * tile, true},
                   {d + g * C, HC, group * C, false}, T(1), beta, K);
      }
    }
  });
}

void patch_fused(Ops& ops) {
  ops.keeps_row_sums = [](Ctx&) { return true; };
}

}  // namespace

extern void (*const kCudaFused)(Ops&);
void (*const kCudaFused)(Ops&) = patch_fused;

void round_cuda_attention(Ops& ops) {
  ops.attention = attention<true>;
  ops.attention_backward = attention_backward<true>;
}

void fill_cuda_attention(Ops& ops) {
  ops.rope = rope;
  ops.store_kv = store_kv;
  ops.keeps_row_sums = [](Ctx&) { return false; };
  ops.kept_type = [](Ctx&) { return DType::f32; };
  ops.attention = attention<false>;
  ops.attend_token = attend_token;
  ops.attention_backward = attention_backward<false>;
}

}  // namespace lte
