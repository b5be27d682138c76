// The gathered feed-forward layer by the kernels of cpu_simd.h: rows of selected experts, of floats or
// bf16, each read front to back.
#include <cmath>

#include "core/cpu_simd_work.h"

namespace lte {

namespace simd {
namespace {

struct Layer {
  Rows up, gate_w, down;  // up and gate_w: data null where absent
  const float *gates, *known, *up_bias;
  const int32_t *index, *count;
  int64_t N, E, G;
  Act act;

  const float* known_at(int64_t n, int64_t j) const { return known + n * E * G + j; }
};

// h[i, 0..rows) of tokens list[i], the gates multiplied in, for the neurons [j, j + rows). x[i] are the
// tokens in planes; `work` has room for two more of h. The rows of down come next.
void hidden_of(const Layer& f, int64_t j, int64_t rows, const int32_t* list, int64_t n,
               const float* const* x, float* h, float* work) {
  const int64_t size = n * rows;
  float *u = work, *g = work + size;
  if (f.up.data) {
    const Rows up = f.up.from(j);
    if (f.gate_w.data && !f.known) dots(g, rows, f.gate_w.from(j), rows, x, n, up.data);
    dots(u, rows, up, rows, x, n, f.down.from(j).data);
    for (int64_t i = 0; f.up_bias && i < n; ++i) {
      for (int64_t r = 0; r < rows; ++r) u[i * rows + r] += f.up_bias[j + r];
    }
  }
  if (f.known) {
    for (int64_t i = 0; i < n; ++i) {
      const float* known = f.known_at(list[i], j);
      for (int64_t r = 0; r < rows; ++r) {
        h[i * rows + r] = f.up.data ? known[r] * u[i * rows + r] : known[r];
      }
    }
  } else {
    activate_block<float>(h, f.gate_w.data ? g : u, f.gate_w.data ? u : nullptr, size, f.act);
  }
  for (int64_t i = 0; i < n; ++i) {
    const float* gate = f.gates + list[i] * f.E;
    for (int64_t r = 0, e = j / f.G; r < rows; ++e) {
      const int64_t stop = std::min(rows, (e + 1) * f.G - j);
      if (gate[e] == 1) r = stop;
      for (; r < stop; ++r) h[i * rows + r] *= gate[e];
    }
  }
}

// What is read first of the i-th selected neuron.
const void* first_row(const Layer& f, const int32_t* active, int64_t i) {
  const Rows& first = f.gate_w.data && !f.known ? f.gate_w : f.up.data ? f.up : f.down;
  return first.from(active[i / f.G] * f.G + i % f.G).data;
}

// Few tokens: the neurons of the selected experts are cut into pieces of one length, wherever an expert
// ends; every piece sums into rows of its own. Experts that are neighbours in memory and have all tokens are one
// run of rows.
void few_tokens(Ctx& ctx, const Layer& f, Tensor out, Tensor x) {
  const int64_t N = f.N, matrices = 1 + (f.up.data ? 1 : 0) + (f.gate_w.data ? 1 : 0);
  int64_t selected = 0;
  for (int64_t e = 0; e < f.E; ++e) selected += f.count[e] > 0;
  const int64_t neurons = selected * f.G;
  constexpr int64_t kUnit = 8;  // rows that the kernels read at once
  const int64_t units = (neurons + kUnit - 1) / kUnit;
  const int64_t pieces = count_pieces(units, kUnit * matrices * f.down.bytes(), 16);
  Shared s(ctx, N, f.down, pieces, f.E);
  auto* active = reinterpret_cast<int32_t*>(s.extra);
  for (int64_t e = 0, i = 0; e < f.E; ++e) {
    if (f.count[e] > 0) active[i++] = static_cast<int32_t>(e);
  }
  s.pack(ctx, x);
  for_pieces(ctx, units, pieces, [&](int64_t begin, int64_t end, int thread, int64_t piece) {
    begin *= kUnit, end = std::min(end * kUnit, neurons);
    float* const* y = s.clear(piece);
    constexpr int64_t kMostRows = 512;  // of one run, so that h stays small
    float* h = cpu(ctx).workspace<float>(thread, N * (3 * kMostRows + 4));
    auto** xs = reinterpret_cast<const float**>(h + 3 * N * kMostRows);
    auto** ys = const_cast<float**>(xs + N);
    while (begin < end) {
      const int64_t at = begin / f.G, e = active[at], j = e * f.G + begin % f.G;
      int64_t stop = at + 1;  // experts [at, stop) are one run
      while (f.count[e] == N && stop < selected && active[stop] == active[stop - 1] + 1 &&
             f.count[active[stop]] == N)
        ++stop;
      const int64_t rows = std::min({end, stop * f.G, begin + kMostRows}) - begin;
      const int32_t* list = f.index + e * N;
      const int64_t n = f.count[e];
      for (int64_t i = 0; i < n; ++i) xs[i] = s.x[list[i]], ys[i] = y[list[i]];
      hidden_of(f, j, rows, list, n, xs, h, h + n * rows);
      begin += rows;
      const void* next = begin < end ? first_row(f, active, begin) : nullptr;
      add_rows(ys, n, h, rows, f.down.from(j), rows, 0, f.down.words(), next);
    }
  });
  s.reduce(ctx, out, pieces, false);
}

// Many tokens, a range at a time: first h of every (token, expert) that is selected, cut by experts;
// then the sums, cut by columns, so that every sum runs over the experts in order.
void many_tokens(Ctx& ctx, const Layer& f, Tensor out, Tensor x) {
  constexpr int64_t kRange = 256;
  struct Part {  // an expert's tokens within the range
    const int32_t* list;
    int64_t n, h;  // h: where its block begins
  };
  std::vector<Part> parts(static_cast<size_t>(f.E));
  const int64_t D = f.down.width;
  for (int64_t first = 0; first < f.N; first += kRange) {
    const int64_t T = std::min(kRange, f.N - first);
    int64_t size = 0;
    for (int64_t e = 0; e < f.E; ++e) {
      const int32_t *list = f.index + e * f.N, *stop = list + f.count[e];
      const int32_t* from = std::lower_bound(list, stop, first);
      const int64_t n = std::lower_bound(from, stop, first + T) - from;
      parts[static_cast<size_t>(e)] = {from, n, size};
      size += n * f.G;
    }
    Shared s(ctx, T, f.down, 1, size);
    const Tensor in = some_rows(x, first, T), to = some_rows(out, first, T);
    s.pack(ctx, in);
    s.clear(0);
    const int64_t cost = std::max<int64_t>(1, size / f.E * D);
    for_pieces(ctx, f.E, count_pieces(f.E, cost, 64),
               [&](int64_t b, int64_t e, int thread, int64_t) {
                 auto** xs = cpu(ctx).workspace<const float*>(thread, T * (1 + f.G));
                 auto* work = reinterpret_cast<float*>(xs + T);
                 for (; b < e; ++b) {
                   const auto& [list, n, h] = parts[static_cast<size_t>(b)];
                   for (int64_t i = 0; i < n; ++i) xs[i] = s.x[list[i] - first];
                   if (n > 0) hidden_of(f, b * f.G, f.G, list, n, xs, s.extra + h, work);
                 }
               });
    const int64_t blocks = f.down.blocks();
    for_pieces(ctx, blocks, count_pieces(blocks, size * 256, 32),
               [&](int64_t b, int64_t e, int thread, int64_t) {
                 auto** ys = cpu(ctx).workspace<float*>(thread, T);
                 for (int64_t k = 0; k < f.E; ++k) {
                   const auto& [list, n, h] = parts[static_cast<size_t>(k)];
                   for (int64_t i = 0; i < n; ++i) ys[i] = s.y[list[i] - first];
                   if (n == 0) continue;
                   add_rows(ys, n, s.extra + h, f.G, f.down.from(k * f.G), f.G, 64 * b,
                            std::min(64 * e, f.down.words()));
                 }
               });
    s.reduce(ctx, to, 1, false);
  }
}

// A stated model of when all neurons through oneDNN are cheaper than the selected ones through these
// kernels, in multiply-adds: gathered tokens come in tiles of six, and a library's product is faster
// the more tokens share its packed weights. Measured at 1024 x 4096 (GELU, all active, one thread, oneDNN
// 2.6 against these kernels): 1.03 times at 64 tokens, 1.25 at 256, 1.48 at 1024. By the counts alone,
// so that the bits do not depend on the clock; only where every expert is read anyhow.
bool dense_is_cheaper(const Layer& f) {
  if (f.down.bf16 || f.known) return false;
  constexpr int64_t kTile = 6;
  int64_t work = 0;
  for (int64_t e = 0; e < f.E; ++e) {
    if (f.count[e] == 0) return false;
    work += (f.count[e] + kTile - 1) / kTile * kTile;
  }
  const double gain = 1.03 + 0.11 * std::log2(static_cast<double>(f.N) / 64);
  return static_cast<double>(work) * gain > static_cast<double>(f.N * f.E);
}

// The same layer with all neurons, a range of tokens at a time, by oneDNN's products.
void all_neurons(Ctx& ctx, const Layer& f, Tensor out, Tensor x, Tensor up, Tensor gate_w,
                 Tensor down) {
  constexpr int64_t kRange = 1024;  // a library packs the weights again for each
  Ops product{};
  kOnednnPatch(product);
  const int64_t F = f.E * f.G, most = std::min(kRange, f.N);
  float* work = cpu(ctx).workspace<float>(cpu(ctx).pool.size(), (gate_w ? 2 : 1) * most * F);
  for (int64_t first = 0; first < f.N; first += kRange) {
    const int64_t T = std::min(kRange, f.N - first);
    const auto view = [](float* data, int64_t rows, int64_t cols) {
      Tensor t = shape(DType::f32, {rows, cols});
      t.data = data;
      return t;
    };
    const Tensor in = some_rows(x, first, T), u = view(work, T, F), g = view(work + most * F, T, F),
                 o = some_rows(out, first, T);
    product.gemm(ctx, u, in, false, up, true);
    if (gate_w) product.gemm(ctx, g, in, false, gate_w, true);
    for_ranges(ctx, T, row_grain(F), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        float *a = u.as<float>() + n * F, *h = gate_w ? g.as<float>() + n * F : a;
        for (int64_t j = 0; f.up_bias && j < F; ++j) a[j] += f.up_bias[j];
        activate_block<float>(h, h, gate_w ? a : nullptr, F, f.act);
        const float* gate = f.gates + (first + n) * f.E;
        for (int64_t e = 0; e < f.E; ++e) {
          if (gate[e] == 1) continue;
          for (float* v = h + e * f.G; v < h + (e + 1) * f.G; ++v)
            *v = gate[e] == 0 ? 0 : *v * gate[e];
        }
      }
    });
    product.gemm(ctx, o, gate_w ? g : u, false, down, false);
  }
}

constexpr int64_t kFewTokens = 16;

void gathered_f64(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act) {
  Ops plain{};
  fill_gathered(plain);
  plain.ffn_gathered(ctx, out, x, gates, index, count, known, up, up_bias, gate_w, down, act);
}

}  // namespace

void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act,
                  bool on_onednn) {
  if (out.dtype == DType::f64) {
    return gathered_f64(ctx, out, x, gates, index, count, known, up, up_bias, gate_w, down, act);
  }
  LTE_CHECK((!up || up.dtype == down.dtype) && (!gate_w || gate_w.dtype == down.dtype),
            "ffn_gathered: the weights are not of one type");
  const Layer f{.up = up ? rows_of(up) : Rows{},
                .gate_w = gate_w ? rows_of(gate_w) : Rows{},
                .down = rows_of(down),
                .gates = gates.as<float>(),
                .known = known ? known.as<float>() : nullptr,
                .up_bias = up_bias ? up_bias.as<float>() : nullptr,
                .index = index.as<int32_t>(),
                .count = count.as<int32_t>(),
                .N = x.rows(),
                .E = count.size(),
                .G = down.rows() / gates.cols(),
                .act = act};
  if (f.N <= kFewTokens) return few_tokens(ctx, f, out, x);
  if (on_onednn && dense_is_cheaper(f)) return all_neurons(ctx, f, out, x, up, gate_w, down);
  many_tokens(ctx, f, out, x);
}

}  // namespace simd
}  // namespace lte
