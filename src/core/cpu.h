// What the files of the CPU backend share. Eigen does the arithmetic.
#pragma once

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "core/ops.h"
#include "core/threads.h"

namespace lte {

struct CpuCtx : Ctx {
  ThreadPool pool;
  std::vector<std::vector<std::byte>> scratch;  // one a thread and one for all, grown on first use

  explicit CpuCtx(int threads) : pool(threads), scratch(static_cast<size_t>(pool.size()) + 1) {}

  template <class T>
  T* workspace(int thread, int64_t count) {
    auto& block = scratch[static_cast<size_t>(thread)];
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    if (block.size() < bytes) block.resize(bytes);
    auto address = reinterpret_cast<uintptr_t>(block.data());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }
};

inline CpuCtx& cpu(Ctx& ctx) { return static_cast<CpuCtx&>(ctx); }

template <class T>
using Mat = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using MatMap = Eigen::Map<Mat<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class T>
using VecMap = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
template <class T>
using RowMap = Eigen::Map<Eigen::Matrix<T, 1, Eigen::Dynamic>>;

template <class T>
MatMap<T> matrix(T* data, int64_t rows, int64_t cols, int64_t stride) {
  return MatMap<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
template <class T>
MatMap<T> matrix(const Tensor& t) {
  return matrix(t.as<T>(), t.rows(), t.cols(), t.cols());
}

// Calls f.template operator()<float> or <double>.
template <class F>
void with_type(const Tensor& t, F&& f) {
  if (t.dtype == DType::f64) {
    f.template operator()<double>();
  } else {
    LTE_CHECK(t.dtype == DType::f32, "an operation was given integers where it wants numbers");
    f.template operator()<float>();
  }
}

// The chunk with its position known.
inline Chunk placed(Chunk c) {
  if (c.at) c.pos += *c.at, c.at = nullptr;
  return c;
}

// Cuts [0, n) into ranges of `grain` and runs fn(begin, end, thread) on each. The cut depends on n
// and grain only.
template <class Fn>
void for_ranges(Ctx& c, int64_t n, int64_t grain, Fn&& fn) {
  const int64_t pieces = (n + grain - 1) / grain;
  cpu(c).pool.run(
      pieces, [&](int64_t i, int thread) { fn(i * grain, std::min(n, (i + 1) * grain), thread); });
}
// A grain that makes a piece of about 32k elements, so that small work stays on one thread.
inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cols));
}

// Sums over rows are cut by columns. A piece's part of a row lies too far from its part of the next for the
// processor to see what comes: it is told so some rows ahead.
constexpr int64_t kColumns = 128, kRowsAhead = 16;
template <class T>
void look_ahead(const MatMap<T>& m, int64_t row, int64_t begin, int64_t end) {
  const T* p = m.data() + (row + kRowsAhead) * m.outerStride();
  for (int64_t c = begin; c < end; c += 64 / sizeof(T)) __builtin_prefetch(p + c);
}

// Checks the shapes of out = a b, each transposed or not, cuts the longer side of out into pieces by the
// shape alone, and runs tile(first row, rows, first column, columns, thread) on each.
template <class F>
void for_gemm_tiles(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb, F&& tile) {
  constexpr int64_t kPieceFlops = 2'000'000;  // least work of one piece: some ten microseconds
  constexpr int64_t kMostPieces = 16;
  const int64_t rows = out.rows(), cols = out.cols(), inner = ta ? a.rows() : a.cols();
  LTE_CHECK((ta ? a.cols() : a.rows()) == rows && (tb ? b.rows() : b.cols()) == cols &&
                (tb ? b.cols() : b.rows()) == inner,
            "gemm: shapes do not fit");
  const bool by_rows = rows >= cols;
  const int64_t side = by_rows ? rows : cols;
  // Every piece packs the shared factor for itself: few and large pieces, but enough for 16 threads.
  const int64_t wanted = std::clamp<int64_t>(2 * rows * cols * inner / kPieceFlops, 1, kMostPieces);
  const int64_t grain = ((side + wanted - 1) / wanted + 15) / 16 * 16;
  for_ranges(ctx, side, grain, [&](int64_t begin, int64_t end, int thread) {
    if (by_rows) {
      tile(begin, end - begin, 0, cols, thread);
    } else {
      tile(0, rows, begin, end - begin, thread);
    }
  });
}

// out = act(pre), or act(pre) up; value = act(pre), slope = act'(pre). On the calling thread (cpu_ffn.cpp).
template <class T>
void activate_block(T* out, const T* pre, const T* up, int64_t size, Act kind);
template <class T>
void curve_block(T* value, T* slope, const T* pre, int64_t size, Act kind);

void fill_linear(Ops&);             // cpu_linear.cpp
void fill_norm(Ops&);               // cpu_norm.cpp
void fill_attention(Ops&);          // cpu_attention.cpp
void fill_ffn(Ops&);                // cpu_ffn.cpp
void fill_experts(Ops&);            // cpu_experts.cpp
void fill_gathered(Ops&);           // cpu_gathered.cpp
void fill_gathered_training(Ops&);  // cpu_gathered_train.cpp
void fill_sample(Ops&);             // cpu_sample.cpp
void fill_loss(Ops&);               // cpu_loss.cpp

// out = a b, or += where `add`: what `gemm` and `gemm_add` are without a variant.
void eigen_gemm(Ctx&, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add);
// Matrix products of floats by oneDNN; null where the build has none (cpu_onednn.cpp, or
// cpu_onednn_none.cpp).
extern void (*const kOnednnPatch)(Ops&);
// Attention that writes whole matrices of probabilities: what other kernels leave to it.
void plain_attention(Ctx&, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk,
                     HeadShape);
void plain_attention_backward(Ctx&, Tensor dqkv, Tensor dout, Tensor qkv, Tensor k, Tensor v,
                              Tensor probs, Chunk, HeadShape);
void patch_fused(Ops&);  // cpu_fused.cpp
// Few tokens and gathered experts at the memory's speed, weights of floats or bf16; null where the
// build has no Highway (cpu_simd.cpp, or cpu_simd_none.cpp).
extern void (*const kSimdPatch)(Ops&);

}  // namespace lte
