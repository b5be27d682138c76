// Causal attention that never holds more of the score matrix than a few rows, forward and backward, after
// Dao et al., 2022 (FlashAttention): the forward pass keeps log(sum of exp) of every row, the backward
// pass computes the probabilities again. One piece of work is one query head of one sequence forward, one
// key-value head of one sequence backward.
#include <limits>

#include "core/cpu_fused.h"

namespace lte::fused {
namespace {

constexpr int64_t kBackRows = 32;  // queries of a block in the backward pass

template <class T>
int64_t whole_vectors(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}
// Columns of a block of scores over n positions: whole panels, and rows not a page apart.
template <class T>
int64_t score_stride(int64_t n) {
  return (n + kTileCols<T> - 1) / kTileCols<T> * kTileCols<T> + kLanes<T>;
}

// Rows of C values that can be read in whole vectors: the tensor's own, or a copy with zeros at the end.
template <class T>
struct Rows {
  const T* at;
  int64_t stride;
};
template <class T>
Rows<T> padded(T*& memory, const T* from, int64_t stride, int64_t n, int64_t C) {
  if (C % kLanes<T> == 0) return {from, stride};
  const int64_t width = whole_vectors<T>(C);
  T* to = memory;
  memory += n * width;
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(from + i * stride, C, to + i * width);
    std::fill_n(to + i * width + C, width - C, T(0));
  }
  return {to, width};
}

// n rows of C values as panels [C][kTileCols] of their transpose; columns beyond n are 0.
template <class T>
T* transposed(T*& memory, const T* from, int64_t n, int64_t C) {
  constexpr int W = kTileCols<T>;
  T* to = memory;
  const int64_t panels = (n + W - 1) / W;
  memory += panels * W * C;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t rows = std::min<int64_t>(W, n - p * W);
    T* panel = to + p * W * C;
    if (rows < W) std::fill_n(panel, W * C, T(0));
    transpose<T>(panel, W, from + p * W * C, C, rows, C);
  }
  return to;
}

// scores[rows, whole vectors that reach `length`] = a panels, a rows of C values.
template <class T>
void scores_of(T* scores, int64_t lds, const T* a, int64_t lda, int64_t rows, const T* panels,
               int64_t C, int64_t length) {
  constexpr int W = kTileCols<T>;
  for (int64_t first = 0; first < length; first += W) {
    const int64_t cols = length - first > kLanes<T> ? W : kLanes<T>;
    tile_rows<T, kTileRows>(rows, cols, scores + first, lds, a, lda, 1, panels + first * C, W, C,
                            false);
  }
}

// x where its lane is below `length`, else other.
template <class T>
Vec<T> below(int64_t length, Vec<T> x, T other) {
  Vec<T> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = static_cast<T>(i);
  return lane < static_cast<T>(length) ? x : Vec<T>{} + other;
}

// Row of scores -> probabilities over its first `length` positions, 0 up to `end`; returns
// log(sum of exp(scale score)). The row's last vector may hang over.
template <class T>
T softmax_row(T* row, int64_t length, int64_t end, T scale) {
  constexpr int L = kLanes<T>;
  const int64_t last = (length - 1) / L * L;  // of the vector in which the row ends
  constexpr T kLeast = -std::numeric_limits<T>::infinity();
  Vec<T> top = below(length - last, load(row + last), kLeast);
  for (int64_t i = 0; i < last; i += L) top = larger(load(row + i), top);
  const T most = largest_of<T>(top);
  const auto share_of = [&](int64_t i) { return exp_of((load(row + i) - most) * scale); };
  Vec<T> sums{};
  for (int64_t i = 0; i < last; i += L) {
    const Vec<T> p = share_of(i);
    store<T>(row + i, p), sums += p;
  }
  const Vec<T> rest = below(length - last, share_of(last), T(0));
  const T sum = sum_of<T>(sums + rest), share = T(1) / sum;
  for (int64_t i = 0; i < last; i += L) store<T>(row + i, load(row + i) * share);
  store<T>(row + last, rest * share);
  for (int64_t i = last + L; i < end; ++i) row[i] = 0;
  return most * scale + std::log(sum);
}

void attention(Ctx& ctx, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk chunk,
               HeadShape s) {
  if (probs.rank == 4 || (!probs && chunk.T < kTileRows))
    return plain_attention(ctx, out, probs, qkv, k, v, chunk, s);
  chunk = placed(chunk);
  const int64_t S = k.dim[2], reach = chunk.pos + chunk.T, width = qkv.cols(), C = s.C;
  with_type(out, [&]<class T>() {
    const T scale = T(1) / std::sqrt(static_cast<T>(C));
    const int64_t lds = score_stride<T>(reach), padded_C = whole_vectors<T>(C);
    const auto one_head = [&](int64_t i, int thread) {
      const int64_t b = i / s.H, h = i % s.H, kv = (b * s.K + h * s.K / s.H) * S * C;
      T* memory = cpu(ctx).workspace<T>(thread, kTileRows * lds + (lds + kLanes<T>)*padded_C * 2);
      T* scores = memory;
      memory += kTileRows * lds;
      const T* keys = transposed(memory, k.as<T>() + kv, reach, C);
      const Rows<T> values = padded(memory, v.as<T>() + kv, C, reach, C);
      for (int64_t t = 0; t < chunk.T; t += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, chunk.T - t), end = chunk.pos + t + rows;
        const T* q = qkv.as<T>() + (b * chunk.T + t) * width + h * C;
        scores_of(scores, lds, q, width, rows, keys, C, end);
        for (int64_t r = 0; r < rows; ++r) {
          const T sum = softmax_row(scores + r * lds, chunk.pos + t + r + 1, end, scale);
          if (probs) probs.as<T>()[i * chunk.T + t + r] = sum;
        }
        T* o = out.as<T>() + (b * chunk.T + t) * s.H * C + h * C;
        block_product<T>(rows, C, o, s.H * C, scores, lds, 1, values.at, values.stride, end, false);
      }
    };
    const int64_t grain = std::max<int64_t>(1, 16384 / (chunk.T * reach));
    for_pieces(ctx, chunk.B * s.H, grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) one_head(i, thread);
    });
  });
}

// Scores and dP = dO V' of one row -> probabilities P and dS = P (dP - rowsum(P dP)) / sqrt(C), both 0
// from `length` up to `end`, and in the rest of the row's last vector.
template <class T>
void backward_row(T* p, T* dp, int64_t length, int64_t end, T scale, T log_sum) {
  constexpr int L = kLanes<T>;
  const int64_t last = (length - 1) / L * L;
  const auto share_of = [&](int64_t i) { return exp_of(load(p + i) * scale - log_sum); };
  Vec<T> sums{};
  for (int64_t i = 0; i < last; i += L) {
    const Vec<T> share = share_of(i);
    store<T>(p + i, share), sums += share * load(dp + i);
  }
  store<T>(p + last, below(length - last, share_of(last), T(0)));
  const T mean = sum_of<T>(sums + load(p + last) * load(dp + last));
  for (int64_t i = 0; i <= last; i += L)
    store<T>(dp + i, load(p + i) * (load(dp + i) - mean) * scale);
  for (int64_t i = last + L; i < end; ++i) p[i] = dp[i] = 0;
}

// What one key-value head and the query heads that share it read and write.
template <class T>
struct Head {
  Rows<T> keys;                // [T,C]
  const T *keys_t, *values_t;  // panels of their transposes
  T *p, *ds;                   // [kBackRows, lds]
  T* free;                     // memory for padded rows
  int64_t lds, C;
  T scale;
};

// Adds the part of queries [t, t + rows) to dq, dk and dv; the first block of all writes dk and dv.
template <class T>
void backward_block(const Head<T>& h, int64_t t, int64_t rows, const T* q, int64_t ldq, const T* d,
                    int64_t ldd, const T* log_sums, T* dq, T* dk, T* dv, bool add) {
  const int64_t C = h.C;
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const int64_t n = std::min<int64_t>(kTileRows, rows - r), reach = t + r + n;
    scores_of(h.p + r * h.lds, h.lds, q + r * ldq, ldq, n, h.keys_t, C, reach);
    scores_of(h.ds + r * h.lds, h.lds, d + r * ldd, ldd, n, h.values_t, C, reach);
    for (int64_t j = 0; j < n; ++j) {
      backward_row(h.p + (r + j) * h.lds, h.ds + (r + j) * h.lds, t + r + j + 1, reach, h.scale,
                   log_sums[r + j]);
    }
    block_product<T>(n, C, dq + r * ldq, ldq, h.ds + r * h.lds, h.lds, 1, h.keys.at, h.keys.stride,
                     reach, false);
  }
  T* memory = h.free;
  const Rows<T> q_rows = padded(memory, q, ldq, rows, C), d_rows = padded(memory, d, ldd, rows, C);
  // Of positions [j, j + n) by the queries from `first` on: those before do not look at them.
  const auto add_keys = [&](int64_t j, int64_t n, int64_t first) {
    block_product<T>(n, C, dk + j * ldq, ldq, h.ds + first * h.lds + j, 1, h.lds,
                     q_rows.at + first * q_rows.stride, q_rows.stride, rows - first, add);
    block_product<T>(n, C, dv + j * ldq, ldq, h.p + first * h.lds + j, 1, h.lds,
                     d_rows.at + first * d_rows.stride, d_rows.stride, rows - first, add);
  };
  add_keys(0, t, 0);
  for (int64_t r = 0; r < rows; r += kTileRows)
    add_keys(t + r, std::min<int64_t>(kTileRows, rows - r), r);
}

void attention_backward(Ctx& ctx, Tensor dqkv, Tensor dout, Tensor, Tensor qkv, Tensor k, Tensor v,
                        Tensor probs, Chunk chunk, HeadShape s) {
  if (probs.rank == 4) return plain_attention_backward(ctx, dqkv, dout, qkv, k, v, probs, chunk, s);
  LTE_CHECK(chunk.pos == 0, "attention_backward: wants a whole prompt");
  const int64_t S = k.dim[2], T_ = chunk.T, width = qkv.cols(), group = s.H / s.K, C = s.C;
  with_type(dqkv, [&]<class T>() {
    const int64_t lds = score_stride<T>(T_), padded_C = whole_vectors<T>(C);
    for_pieces(ctx, chunk.B * s.K, 1, [&](int64_t i, int64_t, int thread) {
      const int64_t b = i / s.K, kv = i % s.K, row = b * T_ * width;
      T* memory = cpu(ctx).workspace<T>(
          thread, 2 * kBackRows * lds + (3 * (lds + kLanes<T>)+2 * kBackRows) * padded_C);
      Head<T> head{.keys = {},
                   .keys_t = {},
                   .values_t = {},
                   .p = memory,
                   .ds = memory + kBackRows * lds,
                   .free = {},
                   .lds = lds,
                   .C = C,
                   .scale = T(1) / std::sqrt(static_cast<T>(C))};
      memory += 2 * kBackRows * lds;
      head.keys = padded(memory, k.as<T>() + i * S * C, C, T_, C);
      head.keys_t = transposed(memory, k.as<T>() + i * S * C, T_, C);
      head.values_t = transposed(memory, v.as<T>() + i * S * C, T_, C);
      head.free = memory;
      T* dk = dqkv.as<T>() + row + (s.H + kv) * C;
      T* dv = dk + s.K * C;
      bool add = false;
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        // The last block reaches all positions, so that it may write where the others add.
        for (int64_t t = (T_ - 1) / kBackRows * kBackRows; t >= 0; t -= kBackRows) {
          const int64_t at = row + t * width + h * C;
          backward_block<T>(head, t, std::min(kBackRows, T_ - t), qkv.as<T>() + at, width,
                            dout.as<T>() + (b * T_ + t) * s.H * C + h * C, s.H * C,
                            probs.as<T>() + (b * s.H + h) * T_ + t, dqkv.as<T>() + at, dk, dv, add);
          add = true;
        }
      }
    });
  });
}

}  // namespace

void patch_attention(Ops& ops) {
  ops.attention = attention;
  ops.attention_backward = attention_backward;
  ops.keeps_row_sums = [](Ctx&) { return true; };
}

}  // namespace lte::fused
