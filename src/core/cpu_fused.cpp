// Matrix products of the fused variant, after Goto and van de Geijn (2008): the right factor is packed
// once, by all threads, into panels of kTileCols columns; a piece of work is a range of rows of the left
// factor, taken in blocks that stay in L2, against panels that stay in L1.
#include "core/cpu_fused.h"

#include <cstring>

namespace lte::fused {
namespace {

constexpr int64_t kDepth = 256;      // inner dimension of a block
constexpr int64_t kBlockRows = 128;  // rows of the left factor in a block

// Rows [r, r + rows) of the left factor, depth [k, k + depth), in the order that tiles read.
template <class T>
struct Left {
  const T* at;
  int64_t row, step, next;  // strides: of a row, along the depth, of the next kTileRows rows
};
template <class T>
Left<T> left_block(T* memory, const T* a, bool ta, int64_t lda, int64_t r, int64_t rows, int64_t k,
                   int64_t depth) {
  if (ta) {  // [tile][depth][kTileRows]
    for (int64_t d = 0; d < depth; ++d) {
      const T* from = a + (k + d) * lda + r;
      int64_t i = 0;
      for (; i + kTileRows <= rows; i += kTileRows)
        std::memcpy(memory + i * depth + d * kTileRows, from + i, kTileRows * sizeof(T));
      for (int64_t j = i; j < rows; ++j) memory[i * depth + d * kTileRows + j - i] = from[j];
    }
    return {memory, 1, kTileRows, depth * kTileRows};
  }
  if (lda % 512 != 0) return {a + r * lda + k, lda, 1, kTileRows * lda};
  // Rows a page apart would meet in the same sets of the cache.
  const int64_t stride = kDepth + 16;
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(memory + i * stride, a + (r + i) * lda + k, static_cast<size_t>(depth) * sizeof(T));
  return {memory, stride, 1, kTileRows * stride};
}

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  with_type(out, [&]<class T>() { product<T>(ctx, out, a, ta, b, tb, kAdd); });
}
void linear(Ctx& ctx, Tensor out, Tensor x, Tensor w, bool tw, Tensor b) {
  with_type(out, [&]<class T>() { product<T>(ctx, out, x, false, w, tw, false, b); });
}

// Where oneDNN stands below: its products, but for those of many tokens by the transpose of long rows; there its
// packing costs a quarter of the time (64 x 256 and 256 x 1024 weights, AVX-512).
bool is_own(Tensor a, bool ta, Tensor b, bool tb) {
  constexpr int64_t kManyTokens = 64, kLongRow = 256;
  return !ta && tb && a.rows() >= kManyTokens && b.cols() >= kLongRow;
}
template <bool kAdd>
void gemm_of_two(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  if (is_own(a, ta, b, tb)) return gemm<kAdd>(ctx, out, a, ta, b, tb);
  Ops onednn{};
  kOnednnPatch(onednn);
  (kAdd ? onednn.gemm_add : onednn.gemm)(ctx, out, a, ta, b, tb);
}
void linear_of_two(Ctx& ctx, Tensor out, Tensor x, Tensor w, bool tw, Tensor b) {
  if (is_own(x, false, w, tw)) return linear(ctx, out, x, w, tw, b);
  gemm_of_two<false>(ctx, out, x, false, w, tw);
  Ops plain{};
  fill_linear(plain);
  plain.bias_add(ctx, out, b);
}

}  // namespace

template <class T>
void product(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add, Tensor bias) {
  const int64_t rows = out.rows(), cols = out.cols(), inner = ta ? a.rows() : a.cols();
  LTE_CHECK((ta ? a.cols() : a.rows()) == rows && (tb ? b.rows() : b.cols()) == cols &&
                (tb ? b.cols() : b.rows()) == inner,
            "gemm: shapes do not fit");
  constexpr int W = kTileCols<T>;
  T *const o = out.as<T>(), *const x = a.as<T>(), *const w = b.as<T>();
  if (inner == 0 && !add) std::fill_n(o, rows * cols, T(0));
  if (inner == 0 || rows == 0) return;
  const int64_t panels = (cols + W - 1) / W, lda = a.cols(), ldb = b.cols();
  CpuCtx& c = cpu(ctx);
  T* packed = c.workspace<T>(c.pool.size(), panels * inner * W);
  const int64_t panel_grain = std::max<int64_t>(1, 16384 / (inner * W));
  for_pieces(ctx, panels, panel_grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel(packed + p * inner * W, w, tb, ldb, inner, cols, p);
  });
  // Eight pieces or more, of whole cache lines of a transposed factor, at most one block each.
  const int64_t grain = std::clamp<int64_t>(rows / 128 * 16, 16, kBlockRows);
  for_pieces(ctx, rows, grain, [&](int64_t begin, int64_t end, int thread) {
    T* memory = c.workspace<T>(thread, (kBlockRows + kTileRows) * (kDepth + 16));
    for (int64_t k = 0; k < inner; k += kDepth) {
      const int64_t depth = std::min(kDepth, inner - k);
      const Left<T> left = left_block(memory, x, ta, lda, begin, end - begin, k, depth);
      for (int64_t p = 0; p < panels; ++p) {
        const T* right = packed + p * inner * W + k * W;
        const T* last = bias && k + depth == inner ? bias.as<T>() + p * W : nullptr;
        for (int64_t i = begin; i < end; i += kTileRows) {
          tile_rows<T, kTileRows>(end - i, std::min<int64_t>(W, cols - p * W), o + i * cols + p * W,
                                  cols, left.at + (i - begin) / kTileRows * left.next, left.row,
                                  left.step, right, W, depth, add || k > 0, last);
        }
      }
    }
  });
}
template void product<float>(Ctx&, Tensor, Tensor, bool, Tensor, bool, bool, Tensor);
template void product<double>(Ctx&, Tensor, Tensor, bool, Tensor, bool, bool, Tensor);

}  // namespace lte::fused

void lte::patch_fused(Ops& ops) {
  Ops eigen{}, onednn{};
  fill_linear(eigen);
  if (kOnednnPatch) kOnednnPatch(onednn);
  if (ops.gemm == eigen.gemm) {
    ops.gemm = fused::gemm<false>;
    ops.gemm_add = fused::gemm<true>;
    ops.linear = fused::linear;
  } else if (onednn.gemm && ops.gemm == onednn.gemm) {
    ops.gemm = fused::gemm_of_two<false>;
    ops.gemm_add = fused::gemm_of_two<true>;
    ops.linear = fused::linear_of_two;
  }  // other products stay
  fused::patch_attention(ops);
  fused::patch_elements(ops);
}
