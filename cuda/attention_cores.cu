// Causal attention on tensor cores: which kernels of attention_cores.h and attention_cores_backward.h do it, from which
// rows of bf16.
#include "attention_backward.h"
#include "attention_cores_backward.h"

namespace lte {
namespace {

// Calls f.template operator()<kC, kM>() for the width of tiles that holds C columns, and for tiles of 64 kM rows: high
// ones where `heads` heads have enough of them for all multiprocessors. Sums do not depend on it.
template <class F>
void with_core_tiles(CudaCtx& c, const Chunk& chunk, int64_t heads, int64_t C, F&& f) {
  if (C > 64) return f.template operator()<128, 1>();
  const int64_t tiles = pieces(chunk.T, kAttendRows<2>) * heads * chunk.B;
  tiles < 2 * c.multiprocessors ? f.template operator()<64, 1>() : f.template operator()<64, 2>();
}

// to[outer, inner, kC]: rows of C numbers, `stride` apart by outer, as bf16 with zeros from column C on.
template <class X>
struct CoreCopy {
  bf16* to;
  const X* from;
  int64_t stride, inner;
  int C, kC;
  __device__ void operator()(int64_t i) const {  // i over pieces of 16 bytes
    const int pieces = kC / Pack<bf16>::kSize, c = static_cast<int>(i % pieces) * Pack<bf16>::kSize;
    const int64_t row = i / pieces;
    const X* x = from + row / inner * stride + row % inner * C + c;
    Pack<bf16> pack;
#pragma unroll
    for (int j = 0; j < Pack<bf16>::kSize; ++j)
      pack.at[j] = from_float<bf16>(c + j < C ? to_float(x[j]) : 0.0f);
    store16(to + row * kC + c, pack);
  }
};

template <class X>
struct CoreCopies {
  CoreCopy<X> part[4];
  int64_t count[4] = {};  // of pieces of each
  __device__ void operator()(int64_t i) const {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if (i >= 0 && i < count[p]) part[p](i);
      i -= count[p];
    }
  }
};

// What the kernels read: tensors of bf16 as they lie, where they can; else copies.
template <class X>
struct CoreSource {
  Tensor qkv, k, v, dout;  // dout: of a backward pass
  Chunk chunk;
  HeadShape s;
  int64_t kC = s.C <= 64 ? 64 : kMostKeptColumns;
  int64_t N = chunk.B * chunk.T, heads = chunk.B * s.K;
  int64_t reach = chunk.at ? k.dim[2] : chunk.pos + chunk.T;  // positions that are read

  bool copied() const {
    return !std::is_same_v<X, bf16> || s.C % Pack<bf16>::kSize != 0 ||
           !aligned16(ptr<X>(qkv), ptr<X>(k), ptr<X>(v), ptr<X>(dout));
  }
  int64_t queries() const { return N * s.H * kC; }
  int64_t keys() const { return heads * reach * kC; }
  // Of copies, in bf16.
  int64_t size() const { return copied() ? queries() * (dout ? 2 : 1) + 2 * keys() : 0; }

  // `copies`: size() numbers, which are then written.
  CoreBack inputs(Ctx& ctx, bf16* copies) const {
    const auto n = [](int64_t x) { return static_cast<int>(x); };
    const float scale = 1 / std::sqrt(static_cast<float>(s.C));
    CoreBack f{.in = {.q = ptr<bf16>(qkv),
                      .k = ptr<bf16>(k),
                      .v = ptr<bf16>(v),
                      .S = k.dim[2],
                      .pos = Position(chunk),
                      .width = n(qkv.cols()),
                      .T_ = n(chunk.T),
                      .H = n(s.H),
                      .K = n(s.K),
                      .C = n(s.C),
                      .scale = scale,
                      .power_scale = scale * kLog2E},
               .dout = ptr<bf16>(dout),
               .log_sums = nullptr,
               .delta = nullptr,
               .dout_width = n(s.H * s.C)};
    if (!copied()) return f;
    const int64_t cache = k.dim[2] * s.C;
    constexpr int64_t kPiece = Pack<bf16>::kSize;
    bf16 *to_q = copies + 2 * keys(), *to_d = to_q + queries();
    const auto copy = [&](bf16* to, const Tensor& x, int64_t stride, int64_t inner) {
      return CoreCopy<X>{to, ptr<X>(x), stride, inner, n(s.C), n(kC)};
    };
    const CoreCopies<X> all{
        {copy(copies, k, cache, reach), copy(copies + keys(), v, cache, reach),
         copy(to_q, qkv, qkv.cols(), s.H), copy(to_d, dout, s.H * s.C, s.H)},
        {keys() / kPiece, keys() / kPiece, queries() / kPiece, dout ? queries() / kPiece : 0}};
    each(ctx, size() / kPiece, all);
    f.in.k = copies, f.in.v = copies + keys(), f.in.q = to_q, f.dout = to_d;
    f.in.S = reach, f.in.C = n(kC), f.in.width = f.dout_width = n(s.H * kC);
    return f;
  }
};

template <class X>
void attend(Ctx& ctx, Tensor out, Tensor log_sums, Tensor qkv, Tensor k, Tensor v, Chunk chunk,
            HeadShape s) {
  CudaCtx& c = cuda(ctx);
  const CoreSource<X> source{qkv, k, v, {}, chunk, s};
  const CoreIn in = source.inputs(ctx, c.workspace<bf16>(source.size())).in;
  with_core_tiles(c, chunk, s.H, s.C, [&]<int kC, int kM>() {
    constexpr int kRows = kAttendRows<kM>;
    launch_early(attention_core_kernel<kC, kM, X>, attention_grid(chunk, s.H, kRows),
                 kAttendThreads, core_shared<kC>(kRows, 0), c.stream, ptr<X>(out),
                 ptr<float>(log_sums), in, static_cast<int>(s.C));
  });
}

template <class X>
void attend_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k, Tensor v,
                     Tensor log_sums, Chunk chunk, HeadShape s) {
  CudaCtx& c = cuda(ctx);
  const CoreSource<X> source{qkv, k, v, dout, chunk, s};
  auto* copies = c.workspace<bf16>(source.size() + 2 * log_sums.size());
  auto* delta = reinterpret_cast<float*>(copies + source.size());
  row_deltas<X>(ctx, delta, dout, out, chunk, s);
  CoreBack f = source.inputs(ctx, copies);
  f.log_sums = ptr<float>(log_sums), f.delta = delta;
  const int C = static_cast<int>(s.C);
  with_core_tiles(c, chunk, s.H, s.C, [&]<int kC, int kM>() {
    constexpr int kRows = kAttendRows<kM>;
    launch_early(attention_core_dq_kernel<kC, kM, X>, attention_grid(chunk, s.H, kRows),
                 kAttendThreads, core_shared<kC>(2 * kRows, 0), c.stream, ptr<X>(dqkv), dqkv.cols(),
                 f, C);
  });
  with_core_tiles(c, chunk, s.K, s.C, [&]<int kC, int kM>() {
    constexpr int kRows = kAttendRows<kM>;
    launch_early(attention_core_dkv_kernel<kC, kM, X>, attention_grid(chunk, s.K, kRows),
                 kAttendThreads, core_shared<kC>(2 * kRows, 4), c.stream, ptr<X>(dqkv), dqkv.cols(),
                 f, C);
  });
}

}  // namespace

void core_attention(Ctx& ctx, Tensor out, Tensor log_sums, Tensor qkv, Tensor k, Tensor v,
                    Chunk chunk, HeadShape s) {
  const auto of_type = out.dtype == DType::bf16 ? attend<bf16> : attend<float>;
  of_type(ctx, out, log_sums, qkv, k, v, chunk, s);
}

void core_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k, Tensor v,
                   Tensor log_sums, Chunk chunk, HeadShape s) {
  const auto of_type = dqkv.dtype == DType::bf16 ? attend_backward<bf16> : attend_backward<float>;
  of_type(ctx, dqkv, dout, out, qkv, k, v, log_sums, chunk, s);
}

}  // namespace lte
