// The feed-forward layer over every expert's own tokens: many tokens at once on tensor cores, and gathered
// training, forward and backward.
#include "grouped.h"

namespace lte {
namespace {

// Pieces of one workspace, each at a multiple of 16 bytes. Made twice by the same calls: first to count.
struct Pieces {
  char* base = nullptr;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return piece;
  }
};

// What all products over the experts of a layer share.
template <class S>
struct Grouped {
  int32_t *first, *bounds;  // [E] [ranges + 1, E]
  Lists l;
  int64_t D;
  bool wide, wide_rows;

  // Of the rows of D numbers at `rows`, and of all rows of G.
  Grouped(Pieces& p, const int32_t* index, const int32_t* count, int64_t N, int64_t D_, int64_t E,
          int64_t G, std::initializer_list<const void*> rows)
      : first(p.take<int32_t>(E)),
        bounds(p.take<int32_t>((pieces(N, kJoinRange) + 1) * E)),
        l{index, count, first, N, E, G},
        D(D_),
        wide(D_ % Pack<S>::kSize == 0 && std::all_of(rows.begin(), rows.end(), aligned16<void>)),
        wide_rows(G % Pack<S>::kSize == 0) {
    LTE_CHECK(N * E < (int64_t{1} << 31), "too many tokens and experts for one call");
  }

  void prepare(Ctx& ctx) const {
    launch(first_rows_kernel, 1, kWarp, 0, cuda(ctx).stream, first, l.count, l.E);
    each(ctx, (pieces(l.N, kJoinRange) + 1) * l.E,
         RangeBounds{bounds, l.index, l.count, l.N, l.E, kJoinRange});
  }
  template <int kMats, class X, class W, class F>
  void pair_rows(Ctx& ctx, const X* x, const W* w0, const W* w1, F finish) const {
    const dim3 grid(tiles(l.N, kPairRows), tiles(l.E, 1), tiles(l.G, kPairCols));
    launch(pair_rows_kernel<kMats, S, X, W, F>, grid, kPairThreads, 0, cuda(ctx).stream, l, x, w0,
           w1, D, wide, finish);
  }
  template <bool kAdd, class R, class W>
  void join_pairs(Ctx& ctx, SumOf<S>* out, const R* rows, const W* w, const SumOf<S>* gates) const {
    const dim3 grid(tiles(D, kJoinCols), tiles(l.N, kJoinRange));
    launch(join_pairs_kernel<kAdd, S, R, W>, grid, kJoinThreads, kJoinShared<S>, cuda(ctx).stream,
           out, l, bounds, rows, w, gates, D, wide, wide_rows && aligned16(rows));
  }
  template <class R, class X>
  void add_outer(Ctx& ctx, SumOf<S>* dw, const R* rows, const X* x) const {
    const dim3 grid(tiles(D, kOuterCols), tiles(l.E, 1), tiles(l.G, kOuterRows));
    launch(add_outer_kernel<S, R, X>, grid, kOuterThreads, 0, cuda(ctx).stream, dw, l, rows, x, D,
           wide, wide_rows && aligned16(rows));
  }
  static unsigned tiles(int64_t n, int64_t size) { return static_cast<unsigned>(pieces(n, size)); }
};

// The numbers as S: a rounded copy at `place`, or they themselves.
template <class S, class T>
const S* as_factors(Ctx& ctx, S* place, const T* x, int64_t count) {
  if constexpr (std::is_same_v<S, T>) {
    return x;
  } else {
    round_to_bf16(ctx, place, x, count);
    return place;
  }
}
template <class S, class T>
constexpr int kCopies = std::is_same_v<S, T> ? 0 : 1;

// == Many tokens

// h[row, j], before the gate.
struct Hidden {
  bf16* h;
  Gathered<float, bf16> f;
  __device__ void operator()(int64_t e, int64_t n, int64_t row, int64_t j, float u, float g) const {
    h[row * f.G + j] = from_float<bf16>(f.hidden(n, e * f.G + j, u, g));
  }
};

// == Training

template <class T>
struct Kept {
  T *up, *gate, *act;
  explicit Kept(const PackedRows& r) : up(ptr<T>(r.up)), gate(ptr<T>(r.gate)), act(ptr<T>(r.act)) {}
};

template <class T>
struct KeepRows {
  Kept<T> kept;
  const T* up_bias;
  bool gated;
  int64_t G;
  Act act;
  __device__ void operator()(int64_t e, int64_t, int64_t row, int64_t j, T u, T g) const {
    const int64_t at = row * G + j;
    if (up_bias) u += up_bias[e * G + j];
    kept.up[at] = u;
    if (gated) kept.gate[at] = g;
    kept.act[at] = gated ? act_value(act, g) * u : act_value(act, u);
  }
};

template <class S>
void ffn_train(Ctx& ctx, Tensor out, PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w,
               Act act) {
  using T = SumOf<S>;
  const int64_t N = x.rows(), D = x.cols(), E = lists.gates.cols(), G = w.down.rows() / E;
  if (N == 0) return;
  const auto plan = [&](Pieces p, S*& xs) {
    Grouped<S> g(p, ptr<int32_t>(lists.index), ptr<int32_t>(lists.count), N, D, E, G,
                 {x.data, w.up.data, w.gate_w.data, w.down.data});
    xs = p.take<S>(kCopies<S, T> * N * D);
    return std::pair(g, p.used);
  };
  S* xs = nullptr;
  char* base = cuda(ctx).workspace<char>(static_cast<int64_t>(plan({}, xs).second));
  const Grouped<S> g = plan({base}, xs).first;
  g.prepare(ctx);
  const S* in = as_factors(ctx, xs, ptr<T>(x), N * D);
  const KeepRows<T> keep{Kept<T>(kept), ptr<T>(w.up_bias), static_cast<bool>(w.gate_w), G, act};
  if (w.gate_w) {
    g.template pair_rows<2>(ctx, in, ptr<T>(w.up), ptr<T>(w.gate_w), keep);
  } else {
    g.template pair_rows<1>(ctx, in, ptr<T>(w.up), ptr<T>(w.gate_w), keep);
  }
  g.template join_pairs<false>(ctx, ptr<T>(out), ptr<T>(kept.act), ptr<T>(w.down),
                               ptr<T>(lists.gates));
}

// From dh, the gradient by what goes into `down`: those by the kept rows, and h: gate times act.
template <class T>
struct RowGradients {
  Kept<T> d, kept;
  T* h;
  const T* gates;
  bool gated;
  int64_t E, G;
  Act act;
  __device__ void operator()(int64_t e, int64_t n, int64_t row, int64_t j, T dh, T) const {
    const int64_t at = row * G + j;
    const T g = gates[n * E + e], da = g * dh;
    h[at] = g * kept.act[at];
    if (gated) {
      d.up[at] = da * act_value(act, kept.gate[at]);
      d.gate[at] = da * kept.up[at] * act_slope(act, kept.gate[at]);
    } else {
      d.up[at] = da * act_slope(act, kept.up[at]);
    }
  }
};

// db[e G + j] += the sum over the expert's rows of rows[., j].
template <class T>
struct AddRows {
  T* db;
  const T* rows;
  Lists l;
  __device__ void operator()(int64_t i) const {
    const int64_t e = i / l.G;
    const T* from = rows + l.first[e] * l.G + i % l.G;
    T sum = 0;
    for (int r = 0; r < l.count[e]; ++r) sum += from[r * l.G];
    if (l.count[e] > 0) db[i] += sum;
  }
};

template <class S>
void ffn_train_backward_add(Ctx& ctx, Tensor dx, FfnWeights d, PackedRows dkept, Tensor dout,
                            PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w, Act act) {
  using T = SumOf<S>;
  const int64_t N = x.rows(), D = x.cols(), E = lists.gates.cols(), F = w.down.rows(), G = F / E;
  if (N == 0) return;
  struct Space {
    T* h;
    S *x, *dout;
  } space;
  const auto plan = [&](Pieces p) {
    Grouped<S> g(p, ptr<int32_t>(lists.index), ptr<int32_t>(lists.count), N, D, E, G,
                 {x.data, dout.data, w.up.data, w.gate_w.data, w.down.data});
    const int64_t copied = kCopies<S, T> * N * D;
    space = {p.take<T>(N * F), p.take<S>(copied), p.take<S>(copied)};
    return std::pair(g, p.used);
  };
  char* base = cuda(ctx).workspace<char>(static_cast<int64_t>(plan({}).second));
  const Grouped<S> g = plan({base}).first;
  g.prepare(ctx);
  const S* in = as_factors(ctx, space.x, ptr<T>(x), N * D);
  const S* from = as_factors(ctx, space.dout, ptr<T>(dout), N * D);
  const Kept<T> rows(kept), drows(dkept);
  const bool gated = static_cast<bool>(w.gate_w);
  const T* none = nullptr;
  g.template pair_rows<1>(
      ctx, from, ptr<const T>(w.down), none,
      RowGradients<T>{drows, rows, space.h, ptr<T>(lists.gates), gated, E, G, act});
  g.add_outer(ctx, ptr<T>(d.down), space.h, from);
  g.add_outer(ctx, ptr<T>(d.up), drows.up, in);
  if (gated) g.add_outer(ctx, ptr<T>(d.gate_w), drows.gate, in);
  if (d.up_bias) each(ctx, F, AddRows<T>{ptr<T>(d.up_bias), drows.up, g.l});
  g.template join_pairs<true>(ctx, ptr<T>(dx), drows.up, ptr<T>(w.up), none);
  if (gated) g.template join_pairs<true>(ctx, ptr<T>(dx), drows.gate, ptr<T>(w.gate_w), none);
}

// Factors of floats as they are, or rounded to bf16; of doubles as they are.
template <class Single>
void train(Ctx& ctx, Tensor out, PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w,
           Act act) {
  const auto run = out.dtype == DType::f64 ? ffn_train<double> : ffn_train<Single>;
  run(ctx, out, kept, x, lists, w, act);
}
template <class Single>
void train_backward_add(Ctx& ctx, Tensor dx, FfnWeights d, PackedRows dkept, Tensor dout,
                        PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w, Act act) {
  const auto run =
      dx.dtype == DType::f64 ? ffn_train_backward_add<double> : ffn_train_backward_add<Single>;
  run(ctx, dx, d, dkept, dout, kept, x, lists, w, act);
}

void patch_bf16(Ops& ops) {
  round_cuda_products(ops);
  round_cuda_attention(ops);
  ops.norm_route_linear = nullptr;
  ops.route_linear = nullptr;  // a router's products are rounded as those of many tokens are
  ops.ffn_train = train<bf16>;
  ops.ffn_train_backward_add = train_backward_add<bf16>;
}

}  // namespace

extern void (*const kCudaBf16)(Ops&);
void (*const kCudaBf16)(Ops&) = patch_bf16;

bool fits_grouped(const Gathered<float, bf16>& f) {
  return f.vector && f.G % Pack<bf16>::kSize == 0;
}

void grouped_tokens(Ctx& ctx, float* out, const Gathered<float, bf16>& f) {
  bf16 *h = nullptr, *x = nullptr;
  const auto plan = [&](Pieces p) {
    Grouped<bf16> g(p, f.index, f.count, f.N, f.D, f.E, f.G, {f.up, f.gate_w, f.down});
    x = p.take<bf16>(f.up ? f.N * f.D : 0), h = p.take<bf16>(f.N * f.E * f.G);
    return std::pair(g, p.used);
  };
  char* base = cuda(ctx).workspace<char>(static_cast<int64_t>(plan({}).second));
  const Grouped<bf16> g = plan({base}).first;
  g.prepare(ctx);
  if (f.up) as_factors(ctx, x, f.x, f.N * f.D);
  if (f.gate_w) {
    g.pair_rows<2>(ctx, x, f.up, f.gate_w, Hidden{h, f});
  } else {
    g.pair_rows<1>(ctx, x, f.up, f.gate_w, Hidden{h, f});
  }
  g.join_pairs<false>(ctx, out, h, f.down, f.gates);
}

void fill_cuda_grouped(Ops& ops) {
  ops.ffn_train = train<float>;
  ops.ffn_train_backward_add = train_backward_add<float>;
}

}  // namespace lte
