// The gathered feed-forward layer on the CPU: only selected experts, or inputs, are read.
#include "core/cpu.h"

namespace lte {

namespace {

template <class T>
struct Gathered {
  MatMap<T> out, x, gates, up, down;
  T *known, *gate_w, *up_bias;  // null where absent; known is [N,F]
  bool has_up;
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
    if (!has_up) {
      for (int64_t i = 0; i < n; ++i) h.row(i) = RowMap<T>(known_at(tokens[i], e), G);
      finish_add(e, tokens, n, y, first, h, part);
      return;
    }
    for (int64_t i = 0; i < n; ++i) in.row(i) = x.row(tokens[i]);
    u.noalias() = in * rows(const_cast<T*>(up.data())).transpose();
    if (up_bias) u.rowwise() += RowMap<T>(up_bias + e * G, G);
    if (known) {
      for (int64_t i = 0; i < n; ++i) {
        h.row(i) = u.row(i).cwiseProduct(RowMap<T>(known_at(tokens[i], e), G));
      }
    } else if (gate_w) {
      g.noalias() = in * rows(gate_w).transpose();
      activate_block<T>(h.data(), g.data(), u.data(), n * G, act);
    } else {
      activate_block<T>(h.data(), u.data(), nullptr, n * G, act);
    }
    finish_add(e, tokens, n, y, first, h, part);
  }

  T* known_at(int64_t n, int64_t e) const { return known + (n * gates.cols() + e) * G; }

  // The gates and the down product of h[n,G].
  void finish_add(int64_t e, const int32_t* tokens, int64_t n, MatMap<T> y, int64_t first,
                  MatMap<T> h, MatMap<T> part) const {
    for (int64_t i = 0; i < n; ++i) h.row(i) *= gates(tokens[i], e);
    part.noalias() = h * matrix(const_cast<T*>(down.data()) + e * G * D, G, D, D);
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
  if (f.known) h = Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, 1>>(f.known + e * f.G, n);
  if (f.has_up) {
    u.noalias() = rows(f.up.data()) * x;
    if (f.up_bias) u += Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, 1>>(f.up_bias + e * f.G, n);
    if (f.known) {
      h = h.cwiseProduct(u);
    } else {
      if (f.gate_w) g.noalias() = rows(f.gate_w) * x;
      activate_block<T>(h.data(), f.gate_w ? g.data() : u.data(), f.gate_w ? u.data() : nullptr, n,
                        f.act);
    }
  }
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
  T* sums = cpu(ctx).workspace<T>(cpu(ctx).pool.size(), room + kMostPieces * N * f.D);
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
    T* work = cpu(ctx).workspace<T>(thread, std::max(f.work_size(N), 3 * (end - begin) * f.G));
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
    T* work = cpu(ctx).workspace<T>(thread, f.work_size(end - begin));
    for (int64_t e = 0; e < E; ++e) {
      const int32_t *list = index.as<int32_t>() + e * N, *stop = list + count.as<int32_t>()[e];
      const int32_t* from = std::lower_bound(list, stop, begin);
      const int32_t* to = std::lower_bound(from, stop, end);
      if (from != to) f.expert_add(e, from, to - from, y, begin, work);
    }
  });
}

void ffn_gathered(Ctx& ctx, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                  Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act act) {
  with_type(out, [&]<class T>() {
    const Gathered<T> f{.out = matrix<T>(out),
                        .x = matrix<T>(x),
                        .gates = matrix<T>(gates),
                        .up = matrix<T>(up ? up : down),
                        .down = matrix<T>(down),
                        .known = known ? known.as<T>() : nullptr,
                        .gate_w = gate_w ? gate_w.as<T>() : nullptr,
                        .up_bias = up_bias ? up_bias.as<T>() : nullptr,
                        .has_up = static_cast<bool>(up),
                        .act = act,
                        .D = x.cols(),
                        .G = down.rows() / gates.cols()};
    if (x.rows() <= kFewTokens) {
      gathered_by_expert<T>(ctx, f, index, count);
    } else {
      gathered_by_token<T>(ctx, f, index, count);
    }
  });
}

void keep_large(Ctx& ctx, Tensor out, Tensor kept, Tensor x, double cut) {
  const int64_t D = x.cols();
  with_type(x, [&]<class T>() {
    for_ranges(ctx, x.rows(), row_grain(D), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        int64_t count = 0;
        for (int64_t j = n * D; j < (n + 1) * D; ++j) {
          const T v = x.as<T>()[j];
          out.as<T>()[j] = std::abs(v) > static_cast<T>(cut) ? v : T(0);
          count += out.as<T>()[j] != T(0);
        }
        kept.as<T>()[n] = static_cast<T>(count) / static_cast<T>(D);
      }
    });
  });
}

// Cut by columns, so that few tokens give work to all threads; every sum runs over j in order.
void gemm_sparse(Ctx& ctx, Tensor out, Tensor x, Tensor wt) {
  const int64_t D = x.cols(), F = wt.cols();
  with_type(x, [&]<class T>() {
    for_ranges(ctx, F, 512, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = 0; n < x.rows(); ++n) {
        VecMap<T> o(out.as<T>() + n * F + begin, end - begin);
        o.setZero();
        for (int64_t j = 0; j < D; ++j) {
          const T v = x.as<T>()[n * D + j];
          if (v != T(0)) o += v * VecMap<T>(wt.as<T>() + j * F + begin, end - begin);
        }
      }
    });
  });
}

}  // namespace

void fill_gathered(Ops& ops) {
  ops.ffn_gathered = ffn_gathered;
  ops.keep_large = keep_large;
  ops.gemm_sparse = gemm_sparse;
}

}  // namespace lte
