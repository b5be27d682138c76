// Products of floats whose factors are rounded to bf16 on the way, summed in f32 by the processor's own dot
// products of pairs (avx512_bf16): the loops of cpu_fused.cpp, with the inner dimension in pairs.
#include <bit>

#include "core/cpu_fused.h"

namespace lte::fused {

#if defined(__AVX512BF16__) && defined(__AVX512F__)
namespace {

constexpr int64_t kDepth = 512, kPairs = kDepth / 2;  // inner dimension of a block
constexpr int64_t kBlockRows = 128;
constexpr int kWidth = 32;  // columns of a panel: two registers of sums

// Two neighbours along the inner dimension, the first in the lower half. Rounds to nearest, ties to even;
// NaN stays NaN.
inline uint32_t rounded(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  const uint32_t up = u + 0x7fff + (u >> 16 & 1);
  return (u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : up;
}
inline uint32_t pair(float first, float second) {
  return rounded(first) >> 16 | (rounded(second) & 0xffff0000);
}

// to[p, c] = (from[2p, c], from[2p+1, c]) for `count` columns, rows being ld apart; or with the inner
// dimension along the rows of `from`, from[c, 2p] and from[c, 2p+1]. Pairs beyond `inner` end in 0.
void pack_pairs(uint32_t* to, int64_t width, const float* from, int64_t ld, bool along,
                int64_t inner, int64_t count) {
  const int64_t whole = inner / 2;
  for (int64_t p = 0; p < (inner + 1) / 2; ++p, to += width) {
    if (along) {
      for (int64_t c = 0; c < count; ++c)
        to[c] = pair(from[c * ld + 2 * p], p < whole ? from[c * ld + 2 * p + 1] : 0);
    } else {
      const float* first = from + 2 * p * ld;
      if (p < whole) {
        for (int64_t c = 0; c < count; ++c) to[c] = pair(first[c], first[ld + c]);
      } else {
        for (int64_t c = 0; c < count; ++c) to[c] = pair(first[c], 0);
      }
    }
    for (int64_t c = count; c < width; ++c) to[c] = 0;
  }
}

// out[kRows, cols] (+)= a b: pairs a[i, p] at a[i * row + p * step], a panel b[p, kWidth].
template <int kRows>
void tile_of_pairs(int64_t rows, int64_t cols, float* out, int64_t ldo, const uint32_t* a,
                   int64_t row, int64_t step, const uint32_t* b, int64_t pairs, bool add) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return tile_of_pairs<kRows - 1>(rows, cols, out, ldo, a, row, step, b, pairs, add);
  }
  __m512 sum[kRows][2];
  for (auto& s : sum) s[0] = s[1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p, a += step, b += kWidth) {
    const auto low = (__m512bh)_mm512_loadu_si512(b), high = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * row]));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], left, low);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], left, high);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int64_t left = std::clamp<int64_t>(cols - j * 16, 0, 16);
      const auto mask = static_cast<__mmask16>((1u << left) - 1);
      float* o = out + i * ldo + j * 16;
      if (add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(mask, o));
      _mm512_mask_storeu_ps(o, mask, sum[i][j]);
    }
  }
}

// Rows [r, r + rows) of the left factor over [k, k + depth): [tile][pair][kTileRows] where it is transposed,
// else [row][kPairs + 16].
void pack_left(uint32_t* to, const float* a, bool ta, int64_t lda, int64_t r, int64_t rows,
               int64_t k, int64_t depth) {
  const int64_t pairs = (depth + 1) / 2;
  if (ta) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      pack_pairs(to + i * pairs, kTileRows, a + k * lda + r + i, lda, false, depth,
                 std::min<int64_t>(kTileRows, rows - i));
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = a + (r + i) * lda + k;
    uint32_t* row = to + i * (kPairs + 16);
    for (int64_t p = 0; p < depth / 2; ++p) row[p] = pair(from[2 * p], from[2 * p + 1]);
    if (depth % 2) row[pairs - 1] = pair(from[depth - 1], 0);
  }
}

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (out.dtype != DType::f32) return product<double>(ctx, out, a, ta, b, tb, kAdd);
  const int64_t rows = out.rows(), cols = out.cols(), inner = ta ? a.rows() : a.cols();
  LTE_CHECK((ta ? a.cols() : a.rows()) == rows && (tb ? b.rows() : b.cols()) == cols &&
                (tb ? b.cols() : b.rows()) == inner,
            "gemm: shapes do not fit");
  float *const o = out.as<float>(), *const x = a.as<float>(), *const w = b.as<float>();
  if (inner == 0 && !kAdd) std::fill_n(o, rows * cols, 0.f);
  if (inner == 0 || rows == 0) return;
  const int64_t panels = (cols + kWidth - 1) / kWidth, lda = a.cols(), ldb = b.cols();
  const int64_t all = (inner + 1) / 2;
  CpuCtx& c = cpu(ctx);
  uint32_t* packed = c.workspace<uint32_t>(c.pool.size(), panels * all * kWidth);
  for_pieces(ctx, panels, std::max<int64_t>(1, 16384 / (inner * kWidth)),
             [&](int64_t begin, int64_t end, int) {
               for (int64_t p = begin; p < end; ++p) {
                 pack_pairs(packed + p * all * kWidth, kWidth,
                            w + (tb ? p * kWidth * ldb : p * kWidth), ldb, tb, inner,
                            std::min<int64_t>(kWidth, cols - p * kWidth));
               }
             });
  const int64_t grain = std::clamp<int64_t>(rows / 128 * 16, 16, kBlockRows);
  for_pieces(ctx, rows, grain, [&](int64_t begin, int64_t end, int thread) {
    auto* left = c.workspace<uint32_t>(thread, kBlockRows * (kPairs + 16));
    for (int64_t k = 0; k < inner; k += kDepth) {
      const int64_t depth = std::min(kDepth, inner - k), pairs = (depth + 1) / 2;
      pack_left(left, x, ta, lda, begin, end - begin, k, depth);
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t i = begin; i < end; i += kTileRows) {
          const uint32_t* at = left + (i - begin) * (ta ? pairs : kPairs + 16);
          tile_of_pairs<kTileRows>(end - i, cols - p * kWidth, o + i * cols + p * kWidth, cols, at,
                                   ta ? 1 : kPairs + 16, ta ? kTileRows : 1,
                                   packed + (p * all + k / 2) * kWidth, pairs, kAdd || k > 0);
        }
      }
    }
  });
}

void patch(Ops& ops) {
  ops.gemm = gemm<false>, ops.gemm_add = gemm<true>, ops.linear = nullptr;
  ops.ffn_train = nullptr, ops.ffn_train_backward_add = nullptr;  // they do not round
}

}  // namespace

void (*const kBf16Patch)(Ops&) = patch;
#else
void (*const kBf16Patch)(Ops&) = nullptr;
#endif

}  // namespace lte::fused
