// Matrix products with weights of bf16, and of few tokens with any weights, by the kernels of
// cpu_simd.h. All other products are oneDNN's where the variant stands on it, else Eigen's.
#include "core/cpu_simd.h"

#include "core/cpu_simd_work.h"

namespace lte {
namespace simd {

Shared::Shared(Ctx& ctx, int64_t tokens, Rows w, int64_t pieces, int64_t extra_floats)
    : rows(w), N(tokens) {
  const auto room = [](int64_t pointers) { return (2 * pointers + 15) / 16 * 16; };
  const int64_t vectors = N + pieces * N, list = room(N) + room(pieces * N);
  float* at =
      cpu(ctx).workspace<float>(cpu(ctx).pool.size(), list + vectors * w.stride() + extra_floats);
  x = reinterpret_cast<const float**>(at), y = reinterpret_cast<float**>(at + room(N));
  at += list;
  for (int64_t n = 0; n < N; ++n) x[n] = at + n * w.stride();
  for (int64_t i = 0; i < pieces * N; ++i) y[i] = at + (N + i) * w.stride();
  extra = at + vectors * w.stride();
}

void Shared::pack(Ctx& ctx, Tensor from) {
  const int64_t D = rows.width, P = rows.plane();
  for_ranges(ctx, N, row_grain(D), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* source = from.as<float>() + n * D;
      auto* to = const_cast<float*>(x[n]);
      if (!rows.bf16) {
        std::copy(source, source + D, to);
      } else {
        for (int64_t i = 0; i < D / 2; ++i) to[i] = source[2 * i], to[P + i] = source[2 * i + 1];
        if (D % 2) to[D / 2] = source[D - 1];
        std::fill(to + P + D / 2, to + 2 * P, 0.f);
      }
      std::fill(to + rows.words(), to + P, 0.f);
    }
  });
}

float* const* Shared::clear(int64_t piece) const {
  std::fill_n(y[piece * N], N * rows.stride(), 0.f);
  return y + piece * N;
}

void Shared::reduce(Ctx& ctx, Tensor out, int64_t pieces, bool add) const {
  const int64_t D = rows.width, W = rows.words(), step = rows.bf16 ? 2 : 1,
                blocks = (W + 511) / 512;
  for_ranges(ctx, N * blocks, std::max<int64_t>(1, 64 / pieces), [&](int64_t b, int64_t e, int) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t n = i / blocks, begin = i % blocks * 512, end = std::min(W, begin + 512);
      float* o = out.as<float>() + n * D;
      for (int64_t half = 0; half < step; ++half) {
        float* sum = y[n] + half * rows.plane();
        for (int64_t p = 1; p < pieces; ++p) {
          const float* part = y[p * N + n] + half * rows.plane();
          for (int64_t j = begin; j < end; ++j) sum[j] += part[j];
        }
        const int64_t stop = std::min(end, (D - half + step - 1) / step);
        for (int64_t j = begin; j < stop; ++j) {
          o[j * step + half] = add ? o[j * step + half] + sum[j] : sum[j];
        }
      }
    }
  });
}

}  // namespace simd

namespace {

constexpr int64_t kFewTokens = 16;

void check_product(Tensor out, Tensor x, Tensor w, int64_t inner, int64_t width) {
  LTE_CHECK(x.cols() == inner && out.rows() == x.rows() && out.cols() == width,
            "gemm: shapes do not fit");
  LTE_CHECK(out.dtype == DType::f32 && x.dtype == DType::f32,
            std::string("gemm: the second factor is of ") + name_of(w.dtype) +
                ", so the others must be of F32");
}

// What a row costs, in bytes: its own, or its arithmetic at some 8 floats a byte's time.
int64_t cost_of(const simd::Rows& w, int64_t N) { return w.bytes() + N * w.width / 2; }

// out[N,M] = x[N,D] w[M,D]', or += ; cut by rows of w.
void times_rows(Ctx& ctx, Tensor out, Tensor x, Tensor w, bool add) {
  check_product(out, x, w, w.cols(), w.rows());
  const int64_t N = x.rows(), M = w.rows();
  const simd::Rows rows = simd::rows_of(w);
  simd::Shared s(ctx, N, rows, 0);
  s.pack(ctx, x);
  constexpr int64_t kBlock = 32;  // rows that stay near while all tokens pass
  const int64_t pieces = simd::count_pieces(M, cost_of(rows, N), 128);
  const bool alone = cpu(ctx).pool.size() == 1;  // then this thread reads the next piece too
  simd::for_pieces(ctx, M, pieces, [&](int64_t begin, int64_t end, int thread, int64_t) {
    float* part = add ? cpu(ctx).workspace<float>(thread, N * kBlock) : nullptr;
    for (int64_t r = begin; r < end; r += kBlock) {
      const int64_t n = std::min(kBlock, end - r);
      float* o = out.as<float>() + r;
      const void* next = r + n < (alone ? M : end) ? rows.from(r + n).data : nullptr;
      simd::dots(add ? part : o, add ? n : M, rows.from(r), n, s.x, N, next);
      for (int64_t i = 0; add && i < N * n; ++i) o[i / n * M + i % n] += part[i];
    }
  });
}

// out[N,D] = h[N,M] w[M,D], or += : few tokens cut by rows of w, each piece with sums of its own; many
// by columns.
void sum_rows(Ctx& ctx, Tensor out, Tensor h, Tensor w, bool add) {
  check_product(out, h, w, w.rows(), w.cols());
  const int64_t N = h.rows(), M = w.rows();
  const simd::Rows rows = simd::rows_of(w);
  const bool few = N <= kFewTokens;
  const int64_t items = few ? M : rows.blocks(), cost = cost_of(rows, N) * M / items;
  const int64_t pieces = simd::count_pieces(items, cost, few ? 16 : 64), sums = few ? pieces : 1;
  simd::Shared s(ctx, N, rows, sums);
  if (!few) s.clear(0);
  simd::for_pieces(ctx, items, pieces, [&](int64_t begin, int64_t end, int, int64_t piece) {
    const float* a = h.as<float>();
    if (few) {
      simd::add_rows(s.clear(piece), N, a + begin, M, rows.from(begin), end - begin, 0,
                     rows.words());
      return;
    }
    for (int64_t r = 0; r < M; r += 32) {
      simd::add_rows(s.y, N, a + r, M, rows.from(r), std::min<int64_t>(32, M - r), 64 * begin,
                     std::min(64 * end, rows.words()));
    }
  });
  s.reduce(ctx, out, sums, add);
}

template <bool kOnednn, bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  const bool half = b.dtype == DType::bf16;
  if (!ta && (half || (b.dtype == DType::f32 && a.rows() <= kFewTokens))) {
    return tb ? times_rows(ctx, out, a, b, kAdd) : sum_rows(ctx, out, a, b, kAdd);
  }
  if constexpr (kOnednn) {
    Ops below{};
    kOnednnPatch(below);
    (kAdd ? below.gemm_add : below.gemm)(ctx, out, a, ta, b, tb);
  } else {
    eigen_gemm(ctx, out, a, ta, b, tb, kAdd);
  }
}

template <bool kOnednn>
void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act) {
  simd::ffn_gathered(ctx, out, x, gates, index, count, known, up, up_bias, gate_w, down, act,
                     kOnednn);
}

void patch(Ops& ops) {
  Ops plain{}, onednn{};
  fill_linear(plain);
  if (kOnednnPatch) kOnednnPatch(onednn);
  LTE_CHECK(
      ops.gemm == plain.gemm || (onednn.gemm && ops.gemm == onednn.gemm),
      "variant 'simd' stands on Eigen's or oneDNN's products only: cpu+simd, cpu+onednn+simd");
  const bool below = ops.gemm == onednn.gemm;
  ops.gemm = below ? gemm<true, false> : gemm<false, false>;
  ops.gemm_add = below ? gemm<true, true> : gemm<false, true>;
  ops.ffn_gathered = below ? ffn_gathered<true> : ffn_gathered<false>;
}

}  // namespace

void (*const kSimdPatch)(Ops&) = patch;

}  // namespace lte
