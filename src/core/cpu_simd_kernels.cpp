// The loops of cpu_simd.h, compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/cpu_simd_kernels.cpp"
// AVX-512, AVX2 and a portable path are enough. Vectors of unknown length cannot lie in arrays.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/cpu_simd.h"

HWY_BEFORE_NAMESPACE();
namespace lte::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using U = hn::ScalableTag<uint32_t>;
using V = hn::Vec<F>;

constexpr int64_t kLanes = HWY_LANES(float);
// Tokens that share the rows in registers: 4 rows times so many sums, the rows, and one factor.
constexpr int kTokens = HWY_TARGET == HWY_AVX3 ? 6 : 3;
// So few tokens wait for memory; more wait for arithmetic.
constexpr int kAlong = HWY_TARGET == HWY_AVX3 ? 4 : 2;

template <bool kHalf>
struct Pair {  // the floats of one vector of words
  V v[kHalf ? 2 : 1];
};
template <bool kHalf>
HWY_INLINE Pair<kHalf> split(hn::Vec<U> word) {
  if constexpr (kHalf) {
    return {{hn::BitCast(F(), hn::ShiftLeft<16>(word)),
             hn::BitCast(F(), hn::And(word, hn::Set(U(), 0xffff0000u)))}};
  } else {
    return {{hn::BitCast(F(), word)}};
  }
}
template <bool kHalf>
HWY_INLINE Pair<kHalf> load(const uint8_t* p) {
  if constexpr (kLanes == 1) {  // a row of an odd number of bf16 begins anywhere
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return split<kHalf>(hn::Set(U(), word));
  } else {
    return split<kHalf>(hn::BitCast(U(), hn::LoadU(hn::ScalableTag<uint8_t>(), p)));
  }
}
// The last words of a row: nothing beyond it is read.
template <bool kHalf>
HWY_INLINE Pair<kHalf> load_some(const uint8_t* p, int64_t bytes) {
  HWY_ALIGN uint32_t words[HWY_LANES(uint32_t)] = {};
  std::memcpy(words, p, static_cast<size_t>(bytes));
  return split<kHalf>(hn::Load(U(), words));
}

// Rows that are asked for before they are read. Into the second cache: the first one holds x and the
// sums, and rows asked for into it push each other out (measured: slower than not asking).
constexpr int64_t kAhead = 8;
// One token on rows of bf16 takes one row after the other, 256 bytes at once, of which one line is asked
// for, the first of such a block in memory: the processor, which sees a single stream, brings the others.
// Eight rows side by side, whose sums share the loads of x, were slower (0.80 to 0.85 of the stream's rate).
template <bool kHalf, int N>
constexpr bool kStream = N == 1 && kHalf;
constexpr int64_t kBlockBytes = 256, kBlockAhead = 4;   // rows
constexpr int kBlock = std::min<int>(16, 64 / kLanes);  // vectors

struct Span {
  const uint8_t *data, *next;
  int64_t rows, bytes, words, plane;  // bytes, words, plane: of a row
  Span(const Rows& w, int64_t rows, const void* next)
      : data(static_cast<const uint8_t*>(w.data)),
        next(static_cast<const uint8_t*>(next)),
        rows(rows),
        bytes(w.bytes()),
        words(w.words()),
        plane(w.plane()) {}
  // The rows to ask for while R rows from `row` on are read: where none are known, those themselves.
  const uint8_t* ahead(int64_t row, int R, int64_t by = kAhead) const {
    if (row + by + R <= rows) return data + (row + by) * bytes;
    return next && row + by >= rows ? next + (row + by - rows) * bytes : data + row * bytes;
  }
  const uint8_t* block_ahead(int64_t row) const {
    const uint8_t* p = ahead(row, 1, kBlockAhead);
    return p - reinterpret_cast<uintptr_t>(p) % kBlockBytes;
  }
};
HWY_INLINE void ask_for(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// R rows times N tokens; kUnroll independent sums of each, so that additions do not wait.
template <bool kHalf, int R, int N, int kUnroll>
HWY_INLINE void dot_tile(float* out, int64_t ld, const Span& w, int64_t row,
                         const float* const* x) {
  const F f;
  const uint8_t *p = w.data + row * w.bytes,
                *ahead = kStream<kHalf, N> ? w.block_ahead(row) : w.ahead(row, R);
  V sum[kUnroll][R][N];
  for (int k = 0; k < kUnroll; ++k) {
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) sum[k][r][n] = hn::Zero(f);
    }
  }
  const auto step = [&](int k, int64_t i, auto&& load_row) HWY_ATTR {
    Pair<kHalf> a[R];
    for (int r = 0; r < R; ++r) {
      if (kStream<kHalf, N> ? k == 0 : N <= kAlong) ask_for(ahead + r * w.bytes + 4 * i);
      a[r] = load_row(p + r * w.bytes + 4 * i);
    }
    for (int n = 0; n < N; ++n) {
      for (int h = 0; h < (kHalf ? 2 : 1); ++h) {
        const V b = hn::Load(f, x[n] + h * w.plane + i);
        for (int r = 0; r < R; ++r) sum[k][r][n] = hn::MulAdd(a[r].v[h], b, sum[k][r][n]);
      }
    }
  };
  const auto whole = [](const uint8_t* q) HWY_ATTR { return load<kHalf>(q); };
  const int64_t full = w.bytes / (4 * kLanes) * kLanes;  // words that fill vectors
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= full; i += kUnroll * kLanes) {
    for (int k = 0; k < kUnroll; ++k) step(k, i + k * kLanes, whole);
  }
  for (; i < full; i += kLanes) step(0, i, whole);
  if (i < w.words) {
    step(0, i, [&](const uint8_t* q) HWY_ATTR { return load_some<kHalf>(q, w.bytes - 4 * i); });
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      V all = sum[0][r][n];
      for (int k = 1; k < kUnroll; ++k) all = hn::Add(all, sum[k][r][n]);
      out[n * ld + row + r] = hn::GetLane(hn::SumOfLanes(f, all));
    }
  }
}

// Calls tile with N = tokens, at most kTokens, as a constant.
template <int N, class Tile>
HWY_INLINE void with_tokens(int64_t tokens, Tile&& tile) {
  if constexpr (N > 1) {
    if (tokens < N) return with_tokens<N - 1>(tokens, tile);
  }
  tile(std::integral_constant<int, N>());
}

// Several rows at once: a token's vector is loaded once for them, and does not push itself and them out
// of the nearest cache.
template <int N>
constexpr int kRows = std::min(8u, std::bit_floor(4u * kTokens / N));  // divides experts of 32
constexpr int64_t kRowBlock = 32;    // rows that stay near while all tokens pass
constexpr int64_t kWordBlock = 512;  // words of a row that do, with the sums that they are added to

template <bool kHalf, int N>
void dots_of(float* out, int64_t ld, const Span& w, int64_t r, int64_t rows,
             const float* const* x) {
  if constexpr (!kStream<kHalf, N>) {
    for (; r + kRows<N> <= rows; r += kRows<N>) dot_tile<kHalf, kRows<N>, N, 1>(out, ld, w, r, x);
  }
  constexpr int kUnroll = kStream<kHalf, N> ? kBlock : N == 1 ? 8 : 2;
  for (; r < rows; ++r) dot_tile<kHalf, 1, N, kUnroll>(out, ld, w, r, x);
}

template <bool kHalf>
void dots_as(float* out, int64_t ld, const Span& w, const float* const* x, int64_t tokens) {
  const int64_t rows = w.rows;
  const int64_t block = tokens > kTokens ? kRowBlock : rows;
  for (int64_t r = 0; r < rows; r += block) {
    for (int64_t n = 0; n < tokens; n += kTokens) {
      with_tokens<kTokens>(std::min<int64_t>(tokens - n, kTokens), [&](auto N) HWY_ATTR {
        dots_of<kHalf, N()>(out + n * ld, ld, w, r, std::min(rows, r + block), x + n);
      });
    }
  }
}

template <bool kHalf, int R, int N>
HWY_INLINE void add_tile(float* const* y, const float* h, int64_t ld, const Span& w, int64_t row,
                         int64_t begin, int64_t end) {
  const F f;
  const uint8_t *p = w.data + row * w.bytes, *ahead = w.ahead(row, R);
  V scale[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) scale[r][n] = hn::Set(f, h[n * ld + row + r]);
  }
  const auto step = [&](int64_t i, auto&& load_row) HWY_ATTR {
    Pair<kHalf> a[R];
    for (int r = 0; r < R; ++r) {
      ask_for(ahead + r * w.bytes + 4 * i);
      a[r] = load_row(p + r * w.bytes + 4 * i);
    }
    for (int n = 0; n < N; ++n) {
      for (int k = 0; k < (kHalf ? 2 : 1); ++k) {
        float* to = y[n] + k * w.plane + i;
        V sum = hn::Load(f, to);
        for (int r = 0; r < R; ++r) sum = hn::MulAdd(a[r].v[k], scale[r][n], sum);
        hn::Store(sum, f, to);
      }
    }
  };
  const auto whole = [](const uint8_t* q) HWY_ATTR { return load<kHalf>(q); };
  const int64_t full = std::min(end, w.bytes / (4 * kLanes) * kLanes);
  int64_t i = begin;
  for (; i < full; i += kLanes) step(i, whole);
  if (i < end) {
    step(i, [&](const uint8_t* q) HWY_ATTR { return load_some<kHalf>(q, w.bytes - 4 * i); });
  }
}

// One row of bf16 to the sums of one token.
HWY_INLINE void add_row(float* y, float h, const Span& w, int64_t row, int64_t begin, int64_t end) {
  const F f;
  const uint8_t *p = w.data + row * w.bytes, *ahead = w.block_ahead(row);
  const int64_t plane = w.plane;
  const V scale = hn::Set(f, h);
  const auto step = [&](int64_t i, auto wide, auto&& load_row) HWY_ATTR {
    V sum[wide()][2];
    float* to = y + i;
    ask_for(ahead + 4 * i);
    for (int c = 0; c < wide(); ++c) {
      for (int k = 0; k < 2; ++k) sum[c][k] = hn::Load(f, to + k * plane + c * kLanes);
    }
    for (int c = 0; c < wide(); ++c) {
      const Pair<true> a = load_row(p + 4 * (i + c * kLanes));
      for (int k = 0; k < 2; ++k) sum[c][k] = hn::MulAdd(a.v[k], scale, sum[c][k]);
    }
    for (int c = 0; c < wide(); ++c) {
      for (int k = 0; k < 2; ++k) hn::Store(sum[c][k], f, to + k * plane + c * kLanes);
    }
  };
  const auto whole = [](const uint8_t* q) HWY_ATTR { return load<true>(q); };
  const std::integral_constant<int, 1> one;
  const int64_t full = std::min(end, w.bytes / (4 * kLanes) * kLanes);
  int64_t i = begin;
  for (; i + kBlock * kLanes <= full; i += kBlock * kLanes) {
    step(i, std::integral_constant<int, kBlock>(), whole);
  }
  for (; i < full; i += kLanes) step(i, one, whole);
  if (i < end) {
    step(i, one, [&](const uint8_t* q) HWY_ATTR { return load_some<true>(q, w.bytes - 4 * i); });
  }
}

// As add_tile with the sums of N tokens over kWide vectors of words in registers while rows pass.
template <bool kHalf, int N, int kWide, class Load>
HWY_INLINE void add_strip(float* const* y, const float* h, int64_t ld, const Span& w, int64_t row,
                          int64_t stop, int64_t i, Load&& load_row) {
  const F f;
  constexpr int kPlanes = kHalf ? 2 : 1;
  V sum[N][kWide][kPlanes];
  const auto each = [&](auto&& fn) HWY_ATTR {
    for (int n = 0; n < N; ++n) {
      for (int c = 0; c < kWide; ++c) {
        for (int k = 0; k < kPlanes; ++k) fn(sum[n][c][k], y[n] + k * w.plane + i + c * kLanes);
      }
    }
  };
  each([&](V& v, const float* at) HWY_ATTR { v = hn::Load(f, at); });
  for (int64_t r = row; r < stop; ++r) {
    Pair<kHalf> a[kWide];
    for (int c = 0; c < kWide; ++c) {
      const uint8_t* p = w.data + r * w.bytes + 4 * (i + c * kLanes);
      hwy::Prefetch(p + 8 * kWide * kLanes);  // two strips ahead: no stream runs across rows
      a[c] = load_row(p);
    }
    for (int n = 0; n < N; ++n) {
      const V scale = hn::Set(f, h[n * ld + r]);
      for (int c = 0; c < kWide; ++c) {
        for (int k = 0; k < kPlanes; ++k) sum[n][c][k] = hn::MulAdd(a[c].v[k], scale, sum[n][c][k]);
      }
    }
  }
  each([&](V& v, float* at) HWY_ATTR { hn::Store(v, f, at); });
}

// Rows of few tokens are read along.
template <bool kHalf, int N>
void add_rows_of(float* const* y, const float* h, int64_t ld, const Span& w, int64_t r,
                 int64_t rows, int64_t begin, int64_t end) {
  if constexpr (kStream<kHalf, N>) {
    for (; r < rows; ++r) add_row(y[0], h[r], w, r, begin, end);
  } else if constexpr (N <= kAlong) {
    constexpr int R = N == 1 ? 8 : 4;
    for (; r + R <= rows; r += R) add_tile<kHalf, R, N>(y, h, ld, w, r, begin, end);
    for (; r < rows; ++r) add_tile<kHalf, 1, N>(y, h, ld, w, r, begin, end);
  } else {
    constexpr int kWide = kHalf ? 2 : 4;
    const int64_t full = std::min(end, w.bytes / (4 * kLanes) * kLanes);
    const auto whole = [](const uint8_t* q) HWY_ATTR { return load<kHalf>(q); };
    int64_t i = begin;
    for (; i + kWide * kLanes <= full; i += kWide * kLanes) {
      add_strip<kHalf, N, kWide>(y, h, ld, w, r, rows, i, whole);
    }
    for (; i < full; i += kLanes) add_strip<kHalf, N, 1>(y, h, ld, w, r, rows, i, whole);
    if (i < end) {
      add_strip<kHalf, N, 1>(y, h, ld, w, r, rows, i, [&](const uint8_t* q) HWY_ATTR {
        return load_some<kHalf>(q, w.bytes - 4 * i);
      });
    }
  }
}

template <bool kHalf>
void add_rows_as(float* const* y, int64_t tokens, const float* h, int64_t ld, const Span& w,
                 int64_t begin, int64_t end) {
  const int64_t rows = w.rows;
  const bool few = tokens <= kAlong;  // all of a row at a time, one row after the other
  const int64_t width = few ? end : kWordBlock, block = few ? rows : kRowBlock;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t last = std::min(rows, first + block);
    for (int64_t b = begin; b < end; b += width) {
      const int64_t stop = std::min(end, b + width);
      for (int64_t n = 0; n < tokens; n += kTokens) {
        with_tokens<kTokens>(std::min<int64_t>(tokens - n, kTokens), [&](auto N) HWY_ATTR {
          add_rows_of<kHalf, N()>(y + n, h + n * ld, ld, w, first, last, b, stop);
        });
      }
    }
  }
}

void dots_here(float* out, int64_t ld, Rows w, int64_t rows, const float* const* x, int64_t tokens,
               const void* next) {
  (w.bf16 ? dots_as<true> : dots_as<false>)(out, ld, Span(w, rows, next), x, tokens);
}
void add_rows_here(float* const* y, int64_t tokens, const float* h, int64_t ld, const Rows& w,
                   int64_t rows, int64_t begin, int64_t end, const void* next) {
  (w.bf16 ? add_rows_as<true> : add_rows_as<false>)(y, tokens, h, ld, Span(w, rows, next), begin,
                                                    end);
}

}  // namespace HWY_NAMESPACE
}  // namespace lte::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lte::simd {

HWY_EXPORT(dots_here);
HWY_EXPORT(add_rows_here);

void dots(float* out, int64_t ld, Rows w, int64_t rows, const float* const* x, int64_t tokens,
          const void* next) {
  HWY_DYNAMIC_DISPATCH(dots_here)(out, ld, w, rows, x, tokens, next);
}

void add_rows(float* const* y, int64_t tokens, const float* h, int64_t ld, Rows w, int64_t rows,
              int64_t begin, int64_t end, const void* next) {
  HWY_DYNAMIC_DISPATCH(add_rows_here)(y, tokens, h, ld, w, rows, begin, end, next);
}

std::vector<std::string> targets() {
  use_target("");
  std::vector<std::string> names;
  for (const int64_t t : hwy::SupportedAndGeneratedTargets())
    names.emplace_back(hwy::TargetName(t));
  return names;
}

void use_target(std::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  for (const int64_t t : hwy::SupportedAndGeneratedTargets()) {
    if (name == hwy::TargetName(t)) hwy::SetSupportedTargetsForTest(t);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace lte::simd
#endif
