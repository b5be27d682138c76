// What the files of the fused variant share: vectors of the widest registers that this build may use,
// and the product that all its kernels are made of. Written for AVX-512; narrower builds are right too.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>

#include "core/cpu.h"

namespace lte::fused {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A register of Ts. Loads and stores through a pointer to it may be unaligned.
template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T loose __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::loose*>(p);
}
template <class T>
void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::loose*>(p) = v;
}

// for_ranges through one compiled copy of fn for any number of threads: a copy inlined for one thread may
// contract other products into fused multiply-adds than the copy for many, which gives other bits.
template <class Fn>
void for_pieces(Ctx& ctx, int64_t n, int64_t grain, Fn&& fn) {
  using F = std::remove_reference_t<Fn>;
  void (*volatile only)(F&, int64_t, int64_t, int) = [](F& f, int64_t begin, int64_t end,
                                                        int thread) { f(begin, end, thread); };
  const auto call = only;
  for_ranges(ctx, n, grain,
             [&](int64_t begin, int64_t end, int thread) { call(fn, begin, end, thread); });
}

constexpr int kTileRows = 8;  // of a register tile
template <class T>
constexpr int kTileCols = 2 * kLanes<T>;

// sum = a b over `depth`, kVecs vectors of columns: a[i, k] at a[i * row + k * step], b[k, j] at
// b[k * ldb + j], readable in whole vectors.
template <class T, int kRows, int kVecs>
[[gnu::always_inline]] inline void tile_sums(Vec<T> (&sum)[kRows][kVecs], const T* a, int64_t row,
                                             int64_t step, const T* b, int64_t ldb, int64_t depth) {
#pragma GCC unroll 8
  for (auto& r : sum) {
#pragma GCC unroll 2
    for (auto& s : r) s = Vec<T>{};
  }
  for (int64_t k = 0; k < depth; ++k, a += step, b += ldb) {
    Vec<T> right[kVecs];
    for (int j = 0; j < kVecs; ++j) right[j] = load(b + j * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const T left = a[i * row];
      for (int j = 0; j < kVecs; ++j) sum[i][j] += right[j] * left;
    }
  }
}

// out[kRows, cols] (+)= a b, and += bias to every row unless it is null; cols <= kVecs vectors, a and b as in
// tile_sums.
template <class T, int kRows, int kVecs>
void tile(int64_t cols, T* out, int64_t ldo, const T* a, int64_t row, int64_t step, const T* b,
          int64_t ldb, int64_t depth, bool add, const T* bias = nullptr) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows][kVecs];
  tile_sums<T, kRows, kVecs>(sum, a, row, step, b, ldb, depth);
  const bool whole = cols == kVecs * L;
  if (whole && bias) {
    Vec<T> more[kVecs];
    for (int j = 0; j < kVecs; ++j) more[j] = load(bias + j * L);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) {
        T* o = out + i * ldo + j * L;
        store<T>(o, (add ? load(o) + sum[i][j] : sum[i][j]) + more[j]);
      }
    }
    return;
  }
  if (whole) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) {
        T* o = out + i * ldo + j * L;
        store<T>(o, add ? load(o) + sum[i][j] : sum[i][j]);
      }
    }
    return;
  }
  alignas(64) T edge[kVecs * L];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVecs; ++j) store<T>(edge + j * L, sum[i][j]);
    T* o = out + i * ldo;
    for (int64_t c = 0; c < cols; ++c) {
      o[c] = add ? o[c] + edge[c] : edge[c];
      if (bias) o[c] += bias[c];
    }
  }
}

// The same for min(rows, kRows) rows and at most two vectors of columns.
template <class T, int kRows>
void tile_rows(int64_t rows, int64_t cols, T* out, int64_t ldo, const T* a, int64_t row,
               int64_t step, const T* b, int64_t ldb, int64_t depth, bool add,
               const T* bias = nullptr) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return tile_rows<T, kRows - 1>(rows, cols, out, ldo, a, row, step, b, ldb, depth, add, bias);
  }
  if (cols > kLanes<T>) {
    tile<T, kRows, 2>(cols, out, ldo, a, row, step, b, ldb, depth, add, bias);
  } else {
    tile<T, kRows, 1>(cols, out, ldo, a, row, step, b, ldb, depth, add, bias);
  }
}

// The same for any number of rows and columns, on one thread.
template <class T>
void block_product(int64_t rows, int64_t cols, T* out, int64_t ldo, const T* a, int64_t row,
                   int64_t step, const T* b, int64_t ldb, int64_t depth, bool add) {
  for (int64_t j = 0; j < cols; j += kTileCols<T>) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      tile_rows<T, kTileRows>(rows - i, std::min<int64_t>(kTileCols<T>, cols - j),
                              out + i * ldo + j, ldo, a + i * row, row, step, b + j, ldb, depth,
                              add);
    }
  }
}

// Lanes of a that have the bit kStep change places with those of b that do not.
template <class T, int kStep, size_t... I>
void exchange(Vec<T>& a, Vec<T>& b, std::index_sequence<I...>) {
  constexpr size_t L = sizeof...(I), S = kStep;
  const Vec<T> low = __builtin_shufflevector(a, b, (I & S ? L + I - S : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? L + I : I + S)...);
  a = low;
}
template <class T, int kStep = 1>
[[gnu::always_inline]] inline void transpose_lanes(Vec<T> (&v)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (kStep < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (!(i & kStep)) exchange<T, kStep>(v[i], v[i + kStep], std::make_index_sequence<L>());
    }
    transpose_lanes<T, 2 * kStep>(v);
  }
}

// to[c, i] = from[i, c], i < rows, c < cols, with rows ldt and ldf apart.
template <class T>
void transpose(T* to, int64_t ldt, const T* from, int64_t ldf, int64_t rows, int64_t cols) {
  constexpr int L = kLanes<T>;
  int64_t done = 0;  // columns
  for (; rows % L == 0 && done + L <= cols; done += L) {
    for (int64_t i = 0; i < rows; i += L) {
      Vec<T> v[L];
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) v[k] = load(from + (i + k) * ldf + done);
      transpose_lanes<T>(v);
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) store<T>(to + (done + k) * ldt + i, v[k]);
    }
  }
  for (int64_t c = done; c < cols; ++c) {
    for (int64_t i = 0; i < rows; ++i) to[c * ldt + i] = from[i * ldf + c];
  }
}

// Panel p of b, or of its transpose, as [inner, kTileCols], columns beyond the last one 0.
template <class T>
void pack_panel(T* to, const T* b, bool tb, int64_t ldb, int64_t inner, int64_t cols, int64_t p) {
  constexpr int W = kTileCols<T>;
  const int64_t first = p * W, width = std::min<int64_t>(W, cols - first);
  if (width < W) std::fill_n(to, inner * W, T(0));
  if (!tb) {
    for (int64_t k = 0; k < inner; ++k)
      std::memcpy(to + k * W, b + k * ldb + first, static_cast<size_t>(width) * sizeof(T));
    return;
  }
  transpose(to, W, b + first * ldb, ldb, width, inner);
}

// Lane by lane a where it is larger (less) than b, else b: one instruction, which compilers do not find. With a mask, for GCC 12
// warns of the register that the plain form leaves undefined.
inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_maskz_max_ps(0xffff, __m512(a), __m512(b)));
#else
  return a > b ? a : b;
#endif
}
inline Vec<float> lesser(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_maskz_min_ps(0xffff, __m512(a), __m512(b)));
#else
  return a < b ? a : b;
#endif
}
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return a > b ? a : b; }

// exp(x). Floats: x is clamped to [-87, 88]; x = n ln 2 + r, a Taylor polynomial of degree 7 in r,
// |r| <= ln 2 / 2 (its rest is below 6e-9), times 2^n: relative error below 2.4e-7 (2 units in the last place).
inline Vec<float> exp_of(Vec<float> x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  x = lesser(Vec<float>{} + 88.0f, larger(Vec<float>{} - 87.0f, x));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec<float> shifted = x * 1.44269504088896341f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  Vec<float> p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints scale = (reinterpret_cast<Ints>(shifted) << 23) + 0x3f800000;  // the bits of 2^n
  return p * reinterpret_cast<Vec<float>>(scale);
}
inline Vec<double> exp_of(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// At most n lanes; the others are 0, or stay as they are.
template <class T>
Vec<T> load_some(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
  Vec<T> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
void store_some(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) return store<T>(p, v);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// gelu(x) = x s(2 u), u = sqrt(2/pi) (x + 0.044715 x^3); silu(x) = x s(x); s the logistic function.
// With t = exp(-z) and s = 1 / (1 + t), 1 - s = t s without cancellation.
template <class T>
struct Curve {
  Vec<T> value, slope;
};
template <class T>
[[gnu::always_inline]] inline Curve<T> curve(Vec<T> x, bool gelu) {
  constexpr T kScale = T(2 * 0.7978845608028654), kCubic = T(0.044715);
  const Vec<T> square = x * x;
  const Vec<T> z = gelu ? kScale * x * (T(1) + kCubic * square) : x;
  const Vec<T> dz = gelu ? kScale * (T(1) + 3 * kCubic * square) : Vec<T>{} + T(1);
  const Vec<T> t = exp_of(z < T(-80) ? Vec<T>{} + T(80) : -z);
  const Vec<T> s = T(1) / (T(1) + t);
  return {x * s, s + x * s * (t * s) * dz};
}

// Over the lanes, in a fixed order.
template <class T>
T sum_of(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps(__m512(v));
#endif
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}
template <class T>
T largest_of(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_max_ps(__m512(v));
#endif
  T most = v[0];
  for (int i = 1; i < kLanes<T>; ++i) most = std::max<T>(most, v[i]);
  return most;
}

// out = a b, or += where `add`, then + bias to every row if there is one, for the entries gemm, gemm_add and linear (inner
// dimension > 0). Every element is one chain of fused multiply-adds over the inner dimension in blocks of a fixed length: its bits
// do not depend on the cut.
template <class T>
void product(Ctx&, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add, Tensor bias = {});

void patch_attention(Ops&);  // cpu_fused_attention.cpp
void patch_elements(Ops&);   // cpu_fused_elements.cpp
// Products of floats rounded to bf16, summed in f32; null where the build's processor has no such
// instruction (cpu_fused_bf16.cpp).
extern void (*const kBf16Patch)(Ops&);

}  // namespace lte::fused
