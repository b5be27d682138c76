// Gathered training on the CPU: the feed-forward layer, forward and backward, over every expert's own
// tokens. Work goes in two phases. By experts: an expert's tokens are copied side by side, block by block, for
// the products by its rows and for its gradients. By ranges of tokens: the experts' shares of a token are
// added up in the experts' order, straight into its row. The pieces depend on the shapes alone.
#include "core/cpu_fused.h"

namespace lte {

namespace fused {
namespace {

constexpr int64_t kRange = 256;             // tokens of a piece of the second phase
constexpr int64_t kBlockBytes = 128 << 10;  // of an expert's tokens, side by side

// An expert's tokens, and the first of its rows among the packed ones.
struct Own {
  const int32_t* tokens;
  int64_t count, first;
};

template <class T>
struct Layer {
  const T *x, *gates, *up, *up_bias, *gate_w, *down;  // up_bias and gate_w may be null
  int64_t N, D, E, G;
  Act act;
  std::vector<Own> own;

  Layer(Tensor in, const ExpertLists& lists, const FfnWeights& w, Act kind)
      : x(in.as<T>()),
        gates(lists.gates.as<T>()),
        up(w.up.as<T>()),
        up_bias(w.up_bias ? w.up_bias.as<T>() : nullptr),
        gate_w(w.gate_w ? w.gate_w.as<T>() : nullptr),
        down(w.down.as<T>()),
        N(in.rows()),
        D(in.cols()),
        E(lists.gates.cols()),
        G(w.down.rows() / E),
        act(kind) {
    int64_t first = 0;
    for (int64_t e = 0; e < E; ++e) {
      const int64_t count = lists.count.as<int32_t>()[e];
      own.push_back({lists.index.as<int32_t>() + e * N, count, first});
      first += count;
    }
  }

  // A copied row of D: whole vectors, and not a multiple of a page, whose lines would meet in few sets.
  int64_t stride() const {
    return (D + kTileCols<T> - 1) / kTileCols<T> * kTileCols<T> + kLanes<T>;
  }
  int64_t block() const {
    const auto rows = kBlockBytes / static_cast<int64_t>(sizeof(T)) / stride();
    return std::clamp<int64_t>(rows / kTileRows * kTileRows, kTileRows, 256);
  }
  int64_t panels() const { return (G + kTileCols<T> - 1) / kTileCols<T>; }
};

// Up to kTileCols neighbouring neurons of an expert: a piece of the first phase.
struct Neurons {
  int64_t expert, panel, first, width;  // first: in the expert
};

// Calls fn(own, neurons, thread) for all neurons of experts that have tokens.
template <class T, class Fn>
void for_neurons(Ctx& ctx, const Layer<T>& l, Fn&& fn) {
  const int64_t P = l.panels();
  for_pieces(ctx, l.E * P, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % P * kTileCols<T>;
      const Neurons n{i / P, i % P, first, std::min<int64_t>(kTileCols<T>, l.G - first)};
      const Own& own = l.own[static_cast<size_t>(n.expert)];
      if (own.count > 0) fn(own, n, thread);
    }
  });
}

template <class T>
void gather(T* to, int64_t stride, const T* rows, int64_t D, const int32_t* tokens, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(to + i * stride, rows + tokens[i] * D, static_cast<size_t>(D) * sizeof(T));
}

// value = act(pre), and where they are given slope = act'(pre), and value times up.
template <class T>
void curve_row(T* value, T* slope, const T* pre, const T* up, int64_t width, Act kind) {
  if (kind != Act::gelu_tanh && kind != Act::silu) {
    if (slope) return curve_block<T>(value, slope, pre, width, kind);
    return activate_block<T>(value, pre, up, width, kind);
  }
  for (int64_t j = 0; j < width; j += kLanes<T>) {
    const Curve<T> c = curve<T>(load_some(pre + j, width - j), kind == Act::gelu_tanh);
    store_some<T>(value + j, up ? c.value * load_some(up + j, width - j) : c.value, width - j);
    if (slope) store_some<T>(slope + j, c.slope, width - j);
  }
}

template <class T>
struct Kept {
  T *up, *gate, *act;

  explicit Kept(const PackedRows& r)
      : up(r.up.as<T>()),
        gate(r.gate ? r.gate.as<T>() : nullptr),
        act(r.act ? r.act.as<T>() : nullptr) {}
};

// The kept rows of some neurons of an expert.
template <class T>
void keep_rows(const Layer<T>& l, const Kept<T>& kept, const Own& own, const Neurons& ns, T* work) {
  constexpr int W = kTileCols<T>;
  const int64_t stride = l.stride(), most = l.block();
  T *wt = work, *gt = wt + l.D * W, *xs = gt + l.D * W;
  pack_panel(wt, l.up + ns.expert * l.G * l.D, true, l.D, l.D, l.G, ns.panel);
  if (l.gate_w) pack_panel(gt, l.gate_w + ns.expert * l.G * l.D, true, l.D, l.D, l.G, ns.panel);
  const T* bias = l.up_bias ? l.up_bias + ns.expert * l.G + ns.first : nullptr;
  for (int64_t i = 0; i < own.count; i += most) {
    const int64_t n = std::min(most, own.count - i), at = (own.first + i) * l.G + ns.first;
    T *u = kept.up + at, *g = l.gate_w ? kept.gate + at : nullptr, *a = kept.act + at;
    gather(xs, stride, l.x, l.D, own.tokens + i, n);
    block_product<T>(n, ns.width, u, l.G, xs, stride, 1, wt, W, l.D, false);
    if (g) block_product<T>(n, ns.width, g, l.G, xs, stride, 1, gt, W, l.D, false);
    for (int64_t r = 0; r < n * l.G; r += l.G) {
      if (bias) {
        for (int64_t j = 0; j < ns.width; ++j) u[r + j] += bias[j];
      }
      curve_row<T>(a + r, nullptr, g ? g + r : u + r, g ? u + r : nullptr, ns.width, l.act);
    }
  }
}

// Panels of w's rows for `add_up`, of experts that have tokens: [E][panel of columns][G][kTileCols].
template <class T>
const T* pack_rows(Ctx& ctx, const Layer<T>& l, const T* w) {
  constexpr int W = kTileCols<T>;
  const int64_t panels = (l.D + W - 1) / W, size = l.G * W;
  CpuCtx& c = cpu(ctx);
  T* packed = c.workspace<T>(c.pool.size(), l.E * panels * size);
  for_pieces(ctx, l.E, std::max<int64_t>(1, 32768 / (l.G * l.D)),
             [&](int64_t begin, int64_t end, int) {
               for (int64_t e = begin; e < end; ++e) {
                 if (l.own[static_cast<size_t>(e)].count == 0) continue;
                 for (int64_t p = 0; p < panels; ++p) {
                   pack_panel(packed + (e * panels + p) * size, w + e * l.G * l.D, false, l.D, l.G,
                              l.D, p);
                 }
               }
             });
  return packed;
}

// out[tokens[i], cols] += scale[i] * (a b)[i] for kRows rows a of G; scale is null for 1.
template <class T, int kRows, int kVecs>
void add_tile(const int32_t* tokens, int64_t cols, T* out, int64_t ldo, const T* scale, int64_t lds,
              const T* a, const T* b, int64_t G) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows][kVecs];
  tile_sums<T, kRows, kVecs>(sum, a, G, 1, b, kTileCols<T>, G);
  for (int i = 0; i < kRows; ++i) {
    T* o = out + tokens[i] * ldo;
    const T g = scale ? scale[tokens[i] * lds] : T(1);
    for (int j = 0; j < kVecs; ++j) {
      const int64_t left = cols - j * L;
      store_some<T>(o + j * L, load_some(o + j * L, left) + sum[i][j] * g, left);
    }
  }
}
template <class T, int kRows>
void add_tile_rows(int64_t rows, const int32_t* tokens, int64_t cols, T* out, int64_t ldo,
                   const T* scale, int64_t lds, const T* a, const T* b, int64_t G) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return add_tile_rows<T, kRows - 1>(rows, tokens, cols, out, ldo, scale, lds, a, b, G);
  }
  if (cols > kLanes<T>) {
    add_tile<T, kRows, 2>(tokens, cols, out, ldo, scale, lds, a, b, G);
  } else {
    add_tile<T, kRows, 1>(tokens, cols, out, ldo, scale, lds, a, b, G);
  }
}

// out[n,:] += sum over experts e of n, in order, of its row times w's rows of e, times its gate if `scaled`.
template <class T>
void add_up(Ctx& ctx, const Layer<T>& l, T* out, const T* rows, const T* w, bool scaled) {
  constexpr int W = kTileCols<T>;
  const T* packed = pack_rows(ctx, l, w);
  const int64_t panels = (l.D + W - 1) / W;
  for_pieces(ctx, l.N, kRange, [&](int64_t begin, int64_t end, int) {
    for (int64_t e = 0; e < l.E; ++e) {
      const Own& own = l.own[static_cast<size_t>(e)];
      const int32_t* from = std::lower_bound(own.tokens, own.tokens + own.count, begin);
      const int32_t* to = std::lower_bound(from, own.tokens + own.count, end);
      const T* a = rows + (own.first + (from - own.tokens)) * l.G;
      for (int64_t p = 0; p < panels && from != to; ++p) {
        const T* b = packed + (e * panels + p) * l.G * W;
        for (int64_t i = 0; i < to - from; i += kTileRows) {
          add_tile_rows<T, kTileRows>(to - from - i, from + i, std::min<int64_t>(W, l.D - p * W),
                                      out + p * W, l.D, scaled ? l.gates + e : nullptr, l.E,
                                      a + i * l.G, b, l.G);
        }
      }
    }
  });
}

// Gradients by the kept rows of n tokens, from dh[n, kTileCols] by what goes into `down`, and h: gate times act.
template <class T>
void row_gradients(const Layer<T>& l, const Kept<T>& d, const Kept<T>& kept, const int32_t* tokens,
                   int64_t n, int64_t at, const Neurons& ns, const T* dh, T* h) {
  constexpr int W = kTileCols<T>;
  alignas(64) T value[W], slope[W];
  for (int64_t i = 0; i < n; ++i, at += l.G, dh += W, h += W) {
    const T g = l.gates[tokens[i] * l.E + ns.expert];
    const T* up = l.gate_w ? kept.up + at : nullptr;
    curve_row<T>(value, slope, (up ? kept.gate : kept.up) + at, nullptr, ns.width, l.act);
    T *dup = d.up + at, *dgate = up ? d.gate + at : nullptr;
    for (int64_t j = 0; j < ns.width; ++j) {
      h[j] = g * kept.act[at + j];
      const T da = g * dh[j];
      dup[j] = up ? da * value[j] : da * slope[j];
      if (up) dgate[j] = da * up[j] * slope[j];
    }
  }
}

template <class T>
struct Grads {
  T *up, *up_bias, *gate_w, *down;
};

// Everything but dx of some neurons of an expert.
template <class T>
void neuron_gradients_add(const Layer<T>& l, const Grads<T>& d, const Kept<T>& dkept, const T* dout,
                          const Kept<T>& kept, const Own& own, const Neurons& ns, T* work) {
  constexpr int W = kTileCols<T>;
  const int64_t stride = l.stride(), most = l.block(), D = l.D;
  const int64_t row = ns.expert * l.G + ns.first;  // of the weights
  T *dt = work, *xs = dt + D * W, *dh = xs + most * stride, *h = dh + most * W;
  pack_panel(dt, l.down + ns.expert * l.G * D, true, D, D, l.G, ns.panel);
  for (int64_t i = 0; i < own.count; i += most) {
    const int64_t n = std::min(most, own.count - i), at = (own.first + i) * l.G + ns.first;
    const int32_t* tokens = own.tokens + i;
    gather(xs, stride, dout, D, tokens, n);
    block_product<T>(n, ns.width, dh, W, xs, stride, 1, dt, W, D, false);
    row_gradients(l, dkept, kept, tokens, n, at, ns, dh, h);
    block_product<T>(ns.width, D, d.down + row * D, D, h, 1, W, xs, stride, n, true);
    gather(xs, stride, l.x, D, tokens, n);
    const T* dup = dkept.up + at;
    block_product<T>(ns.width, D, d.up + row * D, D, dup, 1, l.G, xs, stride, n, true);
    if (l.gate_w) {
      block_product<T>(ns.width, D, d.gate_w + row * D, D, dkept.gate + at, 1, l.G, xs, stride, n,
                       true);
    }
    for (int64_t r = 0; d.up_bias && r < n; ++r) {
      for (int64_t j = 0; j < ns.width; ++j) d.up_bias[row + j] += dup[r * l.G + j];
    }
  }
}

void ffn_train(Ctx& ctx, Tensor out, PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w,
               Act act) {
  with_type(out, [&]<class T>() {
    const Layer<T> l(x, lists, w, act);
    const Kept<T> rows(kept);
    const int64_t size = 2 * l.D * kTileCols<T> + l.block() * l.stride();
    for_neurons(ctx, l, [&](const Own& own, const Neurons& ns, int thread) {
      keep_rows(l, rows, own, ns, cpu(ctx).workspace<T>(thread, size));
    });
    T* o = out.as<T>();
    for_pieces(ctx, out.size(), 65536,
               [&](int64_t begin, int64_t end, int) { std::fill(o + begin, o + end, T(0)); });
    add_up<T>(ctx, l, o, rows.act, l.down, true);
  });
}

void ffn_train_backward_add(Ctx& ctx, Tensor dx, FfnWeights d, PackedRows dkept, Tensor dout,
                            PackedRows kept, Tensor x, ExpertLists lists, FfnWeights w, Act act) {
  with_type(dx, [&]<class T>() {
    const Layer<T> l(x, lists, w, act);
    const Kept<T> rows(kept), drows(dkept);
    const Grads<T> grads{d.up.as<T>(), d.up_bias ? d.up_bias.as<T>() : nullptr,
                         d.gate_w ? d.gate_w.as<T>() : nullptr, d.down.as<T>()};
    const int64_t size = l.D * kTileCols<T> + l.block() * (l.stride() + 2 * kTileCols<T>);
    for_neurons(ctx, l, [&](const Own& own, const Neurons& ns, int thread) {
      neuron_gradients_add(l, grads, drows, dout.as<T>(), rows, own, ns,
                           cpu(ctx).workspace<T>(thread, size));
    });
    add_up<T>(ctx, l, dx.as<T>(), drows.up, l.up, false);
    if (l.gate_w) add_up<T>(ctx, l, dx.as<T>(), drows.gate, l.gate_w, false);
  });
}

}  // namespace
}  // namespace fused

void fill_gathered_training(Ops& ops) {
  ops.ffn_train = fused::ffn_train;
  ops.ffn_train_backward_add = fused::ffn_train_backward_add;
}

}  // namespace lte
