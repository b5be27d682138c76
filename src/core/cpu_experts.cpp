// Router scores, gates, compaction and the gathered feed-forward layer on the CPU.
#include <array>

#include "core/cpu.h"

namespace lte {

template <class T>
void activate_block(T* out, const T* pre, const T* up, int64_t size, Act kind);  // cpu_ffn.cpp

namespace {

void sigmoid(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() {
    for_ranges(ctx, x.size(), 32768, [&](int64_t begin, int64_t end, int) {
      VecMap<T> v(x.as<T>() + begin, end - begin);
      v = T(1) / (T(1) + (-v).exp());
    });
  });
}

void sigmoid_backward(Ctx& ctx, Tensor dz, Tensor dscore, Tensor score) {
  with_type(dz, [&]<class T>() {
    for_ranges(ctx, dz.size(), 32768, [&](int64_t begin, int64_t end, int) {
      const int64_t size = end - begin;
      const VecMap<T> d(dscore.as<T>() + begin, size), g(score.as<T>() + begin, size);
      VecMap<T>(dz.as<T>() + begin, size) = d * g * (T(1) - g);
    });
  });
}

template <class T>
void gate_top_k(T* gates, const T* scores, int64_t E, int64_t k) {
  std::fill(gates, gates + E, T(0));
  for (int64_t picked = 0; picked < std::min(k, E); ++picked) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; ++e) {
      if (gates[e] == T(0) && (best < 0 || scores[e] > scores[best])) best = e;
    }
    gates[best] = T(1);
  }
}

void gate(Ctx& ctx, Tensor gates, Tensor scores, Rule rule, double cut) {
  with_type(gates, [&]<class T>() {
    const int64_t E = scores.cols();
    const T limit = static_cast<T>(cut);
    for_ranges(ctx, scores.rows(), row_grain(E), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        const T* s = scores.as<T>() + n * E;
        T* g = gates.as<T>() + n * E;
        if (rule == Rule::all) std::fill(g, g + E, T(1));
        if (rule == Rule::threshold) {
          for (int64_t e = 0; e < E; ++e) g[e] = s[e] > limit ? T(1) : T(0);
        }
        if (rule == Rule::top_k) gate_top_k(g, s, E, static_cast<int64_t>(cut));
      }
    });
  });
}

void scale_experts(Ctx& ctx, Tensor out, Tensor a, Tensor gates) {
  const int64_t E = gates.cols(), G = a.cols() / E;
  with_type(out, [&]<class T>() {
    for_ranges(ctx, gates.size(), row_grain(G), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const T g = gates.as<T>()[i];
        VecMap<T> o(out.as<T>() + i * G, G);
        if (g == T(0)) {
          o.setZero();  // not a product: 0 times infinity is not 0
        } else {
          o = VecMap<T>(a.as<T>() + i * G, G) * g;
        }
      }
    });
  });
}

void scale_experts_backward(Ctx& ctx, Tensor da, Tensor dgates, Tensor dout, Tensor a,
                            Tensor gates) {
  const int64_t E = gates.cols(), G = a.cols() / E;
  with_type(da, [&]<class T>() {
    for_ranges(ctx, gates.size(), row_grain(G), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const VecMap<T> d(dout.as<T>() + i * G, G), x(a.as<T>() + i * G, G);
        dgates.as<T>()[i] = (d * x).sum();
        VecMap<T>(da.as<T>() + i * G, G) = d * gates.as<T>()[i];
      }
    });
  });
}

// d/dG of G^2 is 2 G; d/dG of 1 / ((G - tau)^2 + eps) is -2 (G - tau) / ((G - tau)^2 + eps)^2.
void gate_loss_add(Ctx& ctx, Tensor dscores, Tensor sums, Tensor scores, GateLoss loss) {
  with_type(scores, [&]<class T>() {
    const int64_t grain = 32768, pieces = (scores.size() + grain - 1) / grain;
    std::vector<std::array<double, 3>> part(static_cast<size_t>(pieces));
    for_ranges(ctx, scores.size(), grain, [&](int64_t begin, int64_t end, int) {
      auto& [square, separation, above] = part[static_cast<size_t>(begin / grain)];
      square = separation = above = 0;
      for (int64_t i = begin; i < end; ++i) {
        const double g = scores.as<T>()[i], off = g - loss.tau;
        const double term = 1 / (off * off + loss.eps);
        const bool clipped = loss.clip > 0 && term > loss.clip;
        square += g * g, separation += clipped ? loss.clip : term, above += off > 0;
        if (!dscores) continue;
        double d = loss.efficiency * 2 * g;
        if (!clipped && loss.separability != 0) d -= loss.separability * 2 * off * term * term;
        dscores.as<T>()[i] += static_cast<T>(d);
      }
    });
    double* total = sums.as<double>();
    total[0] = total[1] = total[2] = 0;
    for (const auto& p : part) {
      for (size_t k = 0; k < 3; ++k) total[k] += p[k];
    }
  });
}

void route(Ctx&, Tensor index, Tensor count, Tensor gates) {
  const int64_t N = gates.rows(), E = gates.cols();
  int32_t *list = index.as<int32_t>(), *size = count.as<int32_t>();
  std::fill(size, size + E, 0);
  with_type(gates, [&]<class T>() {
    const T* g = gates.as<T>();
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t e = 0; e < E; ++e) {
        if (g[n * E + e] != T(0)) list[e * N + size[e]++] = static_cast<int32_t>(n);
      }
    }
  });
}

template <class T>
struct Gathered {
  MatMap<T> out, x, gates, up, down;
  T *gate_w, *up_bias;  // null where absent
  Act act;
  int64_t D, G;

  int64_t work_size(int64_t tokens) const { return tokens * (2 * D + 3 * G); }

  // Adds expert e's output for `tokens` (n of them, rows of x) to y, whose rows are n - first.
  void expert_add(int64_t e, const int32_t* tokens, int64_t n, MatMap<T> y, int64_t first,
                  T* work) const {
    auto in = matrix(work, n, D, D), part = matrix(work + n * D, n, D, D);
    auto u = matrix(work + 2 * n * D, n, G, G), g = matrix(u.data() + n * G, n, G, G);
    auto h = matrix(g.data() + n * G, n, G, G);
    const auto rows = [&](T* w) { return matrix(w + e * G * D, G, D, D); };
    for (int64_t i = 0; i < n; ++i) in.row(i) = x.row(tokens[i]);
    u.noalias() = in * rows(const_cast<T*>(up.data())).transpose();
    if (up_bias) u.rowwise() += RowMap<T>(up_bias + e * G, G);
    if (gate_w) {
      g.noalias() = in * rows(gate_w).transpose();
      activate_block<T>(h.data(), g.data(), u.data(), n * G, act);
    } else {
      activate_block<T>(h.data(), u.data(), nullptr, n * G, act);
    }
    for (int64_t i = 0; i < n; ++i) h.row(i) *= gates(tokens[i], e);
    part.noalias() = h * rows(const_cast<T*>(down.data()));
    for (int64_t i = 0; i < n; ++i) y.row(tokens[i] - first) += part.row(i);
  }
};

// One token: experts that are neighbours in memory are one block of rows, read front to back. Adds
// the sum over experts [e, stop) to y[D].
template <class T>
void run_add(const Gathered<T>& f, int64_t e, int64_t stop, T* y, T* work) {
  const int64_t n = (stop - e) * f.G, first = e * f.G * f.D;
  Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, 1>> u(work, n), g(work + n, n), h(work + 2 * n, n);
  const Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>> x(f.x.data(), f.D);
  const auto rows = [&](const T* w) { return matrix(const_cast<T*>(w) + first, n, f.D, f.D); };
  u.noalias() = rows(f.up.data()) * x;
  if (f.up_bias) u += Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, 1>>(f.up_bias + e * f.G, n);
  if (f.gate_w) g.noalias() = rows(f.gate_w) * x;
  activate_block<T>(h.data(), f.gate_w ? g.data() : u.data(), f.gate_w ? u.data() : nullptr, n,
                    f.act);
  for (int64_t i = e; i < stop; ++i) h.segment((i - e) * f.G, f.G) *= f.gates(0, i);
  Eigen::Map<Eigen::Matrix<T, 1, Eigen::Dynamic>>(y, f.D).noalias() +=
      h.transpose() * rows(f.down.data());
}

constexpr int64_t kFewTokens = 16, kTokenRange = 64, kMostPieces = 16;

// Few tokens: cut by selected experts; every piece sums into rows of its own, added up in order.
template <class T>
void gathered_by_expert(Ctx& ctx, const Gathered<T>& f, Tensor index, Tensor count) {
  const int64_t N = f.x.rows(), E = count.size();
  const auto room = static_cast<int64_t>(Arena::padded(static_cast<size_t>(E) * 4) / sizeof(T));
  T* sums = ctx.workspace<T>(ctx.pool.size(), room + kMostPieces * N * f.D);
  auto* active = reinterpret_cast<int32_t*>(sums);  // the selected experts, then the pieces' sums
  sums += room;
  int64_t selected = 0;
  for (int64_t e = 0; e < E; ++e) {
    if (count.as<int32_t>()[e] > 0) active[selected++] = static_cast<int32_t>(e);
  }
  const int64_t grain =
      std::max({int64_t{1}, (selected + kMostPieces - 1) / kMostPieces, 32768 / (2 * f.G * f.D)});
  const int64_t pieces = (selected + grain - 1) / grain, part = N * f.D;
  for_ranges(ctx, selected, grain, [&](int64_t begin, int64_t end, int thread) {
    auto y = matrix(sums + begin / grain * part, N, f.D, f.D);
    y.setZero();
    T* work = ctx.workspace<T>(thread, std::max(f.work_size(N), 3 * (end - begin) * f.G));
    for (int64_t i = begin; i < end; ++i) {
      const int32_t e = active[i];
      if (N == 1) {
        const int64_t from = i;
        while (i + 1 < end && active[i + 1] == active[i] + 1) ++i;
        run_add(f, e, e + i - from + 1, y.data(), work);
        continue;
      }
      f.expert_add(e, index.as<int32_t>() + e * N, count.as<int32_t>()[e], y, 0, work);
    }
  });
  MatMap<T> out = f.out;
  out.setZero();
  for (int64_t i = 0; i < pieces; ++i) out += matrix(sums + i * part, N, f.D, f.D);
}

// Many tokens: cut by ranges of tokens; every piece walks over all experts.
template <class T>
void gathered_by_token(Ctx& ctx, const Gathered<T>& f, Tensor index, Tensor count) {
  const int64_t N = f.x.rows(), E = count.size();
  for_ranges(ctx, N, kTokenRange, [&](int64_t begin, int64_t end, int thread) {
    auto y = matrix(const_cast<T*>(f.out.data()) + begin * f.D, end - begin, f.D, f.D);
    y.setZero();
    T* work = ctx.workspace<T>(thread, f.work_size(end - begin));
    for (int64_t e = 0; e < E; ++e) {
      const int32_t *list = index.as<int32_t>() + e * N, *stop = list + count.as<int32_t>()[e];
      const int32_t* from = std::lower_bound(list, stop, begin);
      const int32_t* to = std::lower_bound(from, stop, end);
      if (from != to) f.expert_add(e, from, to - from, y, begin, work);
    }
  });
}

void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act) {
  with_type(out, [&]<class T>() {
    const Gathered<T> f{.out = matrix<T>(out),
                        .x = matrix<T>(x),
                        .gates = matrix<T>(gates),
                        .up = matrix<T>(up),
                        .down = matrix<T>(down),
                        .gate_w = gate_w ? gate_w.as<T>() : nullptr,
                        .up_bias = up_bias ? up_bias.as<T>() : nullptr,
                        .act = act,
                        .D = x.cols(),
                        .G = up.rows() / gates.cols()};
    if (x.rows() <= kFewTokens) {
      gathered_by_expert<T>(ctx, f, index, count);
    } else {
      gathered_by_token<T>(ctx, f, index, count);
    }
  });
}

}  // namespace

void fill_experts(Ops& ops) {
  ops.sigmoid = sigmoid;
  ops.sigmoid_backward = sigmoid_backward;
  ops.gate = gate;
  ops.scale_experts = scale_experts;
  ops.scale_experts_backward = scale_experts_backward;
  ops.gate_loss_add = gate_loss_add;
  ops.route = route;
  ops.ffn_gathered = ffn_gathered;
}

}  // namespace lte
