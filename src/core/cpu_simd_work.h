// What the operations on the kernels of cpu_simd.h share: vectors in planes, sums by piece, and cuts by
// the shape of the work.
#pragma once

#include "core/cpu.h"
#include "core/cpu_simd.h"

namespace lte::simd {

inline Rows rows_of(const Tensor& w) {
  const bool half = w.dtype == DType::bf16;
  return {half ? static_cast<const void*>(w.as<Bf16>()) : w.as<float>(), half, w.cols()};
}

// Pieces of n items of `bytes` each, by the shape alone. One piece is some microseconds at the least, so
// that small work stays on one thread.
inline int64_t count_pieces(int64_t n, int64_t bytes, int64_t most) {
  constexpr int64_t kLeastBytes = 131072;
  return std::clamp<int64_t>(n * bytes / kLeastBytes, 1, std::max<int64_t>(1, std::min(n, most)));
}
// Runs fn(begin, end, thread, piece) on ranges of as equal length as can be.
template <class Fn>
void for_pieces(Ctx& ctx, int64_t n, int64_t pieces, Fn&& fn) {
  cpu(ctx).pool.run(
      pieces, [&](int64_t i, int thread) { fn(n * i / pieces, n * (i + 1) / pieces, thread, i); });
}

// Memory of one call, in the workspace that all threads share: the inputs x[N,D] in planes, `pieces`
// sums of the same shape, and `extra` floats. Lives until the next call.
struct Shared {
  Rows rows;
  int64_t N;
  const float** x;  // [N]
  float** y;        // [pieces * N]
  float* extra;

  Shared(Ctx& ctx, int64_t tokens, Rows w, int64_t pieces, int64_t extra_floats = 0);
  void pack(Ctx&, Tensor from);  // fills x
  // The sums of a piece, zeroed.
  float* const* clear(int64_t piece) const;
  // out[N,D] = the sums of all pieces, in order, or +=
  void reduce(Ctx&, Tensor out, int64_t pieces, bool add) const;
};

// Ops::ffn_gathered; on_onednn: many tokens may go through oneDNN's products of all neurons.
void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act,
                  bool on_onednn);

}  // namespace lte::simd
