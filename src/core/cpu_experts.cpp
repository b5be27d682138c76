// Router scores, gates, compaction and the losses on them on the CPU.
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/cpu.h"
#include "core/rng.h"

namespace lte {

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

// The experts of one token by falling score, ties by number; NaN is lowest. Only the first `k` of
// the list are in place.
template <class T>
void best_first(int32_t* order, const T* scores, int64_t E, int64_t k) {
  const auto value = [&](int32_t e) {
    return scores[e] == scores[e] ? scores[e] : -std::numeric_limits<T>::infinity();
  };
  std::iota(order, order + E, 0);
  std::partial_sort(order, order + k, order + E, [&](int32_t a, int32_t b) {
    return value(a) > value(b) || (value(a) == value(b) && a < b);
  });
}

template <class T>
void gate_top_k(T* gates, const T* scores, int64_t E, int64_t k, int32_t* order) {
  best_first(order, scores, E, k);
  std::fill(gates, gates + E, T(0));
  for (int64_t i = 0; i < k; ++i) gates[order[i]] = T(1);
}

// The same for floats, some times faster: one whole number holds a score, so that the highest is the
// smallest, and below it the expert.
void gate_top_k(float* gates, const float* scores, int64_t E, int64_t k, uint64_t* keys) {
  for (int64_t e = 0; e < E; ++e) {
    const float s = scores[e] == scores[e] ? scores[e] : -std::numeric_limits<float>::infinity();
    const auto bits = std::bit_cast<uint32_t>(s == 0 ? 0.f : s);
    const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    keys[e] = static_cast<uint64_t>(~rising) << 32 | static_cast<uint64_t>(e);
  }
  std::fill(gates, gates + E, 0.f);
  if (k < E) std::nth_element(keys, keys + k, keys + E);
  for (int64_t i = 0; i < k; ++i) gates[keys[i] & 0xffffffffu] = 1;
}

template <class T>
void gate_cumulative(T* gates, const T* scores, int64_t E, double share, int32_t* order) {
  best_first(order, scores, E, E);
  double all = 0, sum = 0;
  for (int64_t e = 0; e < E; ++e) all += static_cast<double>(scores[e]);
  std::fill(gates, gates + E, T(0));
  for (int64_t i = 0; i < E && (i == 0 || sum < share * all); ++i) {
    gates[order[i]] = T(1), sum += static_cast<double>(scores[order[i]]);
  }
}

void gate(Ctx& ctx, Tensor gates, Tensor scores, Rule rule, double cut) {
  with_type(gates, [&]<class T>() {
    const int64_t E = scores.cols();
    const T limit = static_cast<T>(cut);
    for_ranges(ctx, scores.rows(), row_grain(E), [&](int64_t begin, int64_t end, int thread) {
      auto* order = cpu(ctx).workspace<int32_t>(thread, E);
      for (int64_t n = begin; n < end; ++n) {
        const T* s = scores.as<T>() + n * E;
        T* g = gates.as<T>() + n * E;
        if (rule == Rule::all) std::fill(g, g + E, T(1));
        if (rule == Rule::threshold) {
          for (int64_t e = 0; e < E; ++e) g[e] = s[e] > limit ? T(1) : T(0);
        }
        if (rule == Rule::top_k) {
          const int64_t k = std::clamp<int64_t>(static_cast<int64_t>(cut), 0, E);
          if constexpr (std::is_same_v<T, float>) {
            gate_top_k(g, s, E, k, cpu(ctx).workspace<uint64_t>(thread, E));
          } else {
            gate_top_k(g, s, E, k, order);
          }
        }
        if (rule == Rule::cumulative) gate_cumulative(g, s, E, cut, order);
        if (rule == Rule::relative_max) {
          const T least = limit * *std::max_element(s, s + E);
          for (int64_t e = 0; e < E; ++e) g[e] = s[e] >= least ? T(1) : T(0);
        }
      }
    });
  });
}

void softmax(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() {
    const int64_t E = x.cols();
    for_ranges(ctx, x.rows(), row_grain(E), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        VecMap<T> row(x.as<T>() + n * E, E);
        row = (row - row.maxCoeff()).exp();
        row /= row.sum();
      }
    });
  });
}

void absolute(Ctx& ctx, Tensor x) {
  with_type(x, [&]<class T>() {
    for_ranges(ctx, x.size(), 32768, [&](int64_t begin, int64_t end, int) {
      VecMap<T> v(x.as<T>() + begin, end - begin);
      v = v.abs();
    });
  });
}

void unit_rows(Ctx& ctx, Tensor out, Tensor x) {
  with_type(x, [&]<class T>() {
    const int64_t D = x.cols();
    for_ranges(ctx, x.rows(), row_grain(D), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        const VecMap<T> row(x.as<T>() + n * D, D);
        const T length = std::sqrt(row.square().sum());
        VecMap<T>(out.as<T>() + n * D, D) = row * (length > T(0) ? T(1) / length : T(0));
      }
    });
  });
}

void noise_add(Ctx& ctx, Tensor x, double std, uint64_t seed) {
  with_type(x, [&]<class T>() {
    for_ranges(ctx, x.size(), 8192, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        Rng rng(hash64(seed, 0x2015e, static_cast<uint64_t>(i)));
        x.as<T>()[i] += static_cast<T>(std * rng.normal());
      }
    });
  });
}

void measure(Ctx& ctx, Tensor scores, Tensor a, Tensor down, Measure how) {
  const int64_t E = scores.cols(), F = a.cols(), G = F / E;
  with_type(scores, [&]<class T>() {
    T* w = cpu(ctx).workspace<T>(cpu(ctx).pool.size(), F);
    for (int64_t j = 0; j < F; ++j) {
      w[j] = down ? std::sqrt(VecMap<T>(down.as<T>() + j * down.cols(), down.cols()).square().sum())
                  : T(1);
    }
    for_ranges(ctx, scores.rows(), row_grain(F), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t e = 0; e < E; ++e) {
          const T* v = a.as<T>() + n * F + e * G;
          T sum = 0;
          for (int64_t j = 0; j < G; ++j) {
            const T worth = v[j] * w[e * G + j];
            if (how == Measure::magnitude) sum += std::abs(worth);
            if (how == Measure::norm) sum += worth * worth;
            if (how == Measure::positive) sum += std::max(worth, T(0));
          }
          scores.as<T>()[n * E + e] = how == Measure::norm ? std::sqrt(sum) : sum;
        }
      }
    });
  });
}

void gate_softmax(Ctx& ctx, Tensor gates, Tensor scores) {
  const int64_t E = gates.cols();
  with_type(gates, [&]<class T>() {
    for_ranges(ctx, gates.rows(), row_grain(E), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        T* g = gates.as<T>() + n * E;
        const T* s = scores.as<T>() + n * E;
        T most = -std::numeric_limits<T>::infinity(), sum = 0;
        for (int64_t e = 0; e < E; ++e) most = g[e] != T(0) ? std::max(most, s[e]) : most;
        for (int64_t e = 0; e < E; ++e) {
          g[e] = g[e] != T(0) ? std::exp(s[e] - most) : T(0);
          sum += g[e];
        }
        for (int64_t e = 0; e < E; ++e) g[e] = g[e] == T(0) ? T(0) : g[e] / sum;  // NaN stays NaN
      }
    });
  });
}

void gate_softmax_backward(Ctx& ctx, Tensor dz, Tensor dgates, Tensor gates) {
  const int64_t E = gates.cols();
  with_type(gates, [&]<class T>() {
    for_ranges(ctx, gates.rows(), row_grain(E), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        const VecMap<T> g(gates.as<T>() + n * E, E), d(dgates.as<T>() + n * E, E);
        const T mean = (g * d).sum();
        VecMap<T>(dz.as<T>() + n * E, E) = g * (d - mean);
      }
    });
  });
}

void scale_experts(Ctx& ctx, Tensor out, Tensor a, Tensor gates) {
  const int64_t E = gates.cols(), G = a.cols() / E;
  with_type(out, [&]<class T>() {
    for_ranges(ctx, gates.size(), row_grain(G), [&](int64_t begin, int64_t end, int) {
      if (G == 1) {  // single neurons: whole rows at once
        const VecMap<T> g(gates.as<T>() + begin, end - begin), x(a.as<T>() + begin, end - begin);
        VecMap<T>(out.as<T>() + begin, end - begin) = (g == T(0)).select(T(0), x * g);
        return;
      }
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
      if (G == 1) {
        const int64_t size = end - begin;
        const VecMap<T> d(dout.as<T>() + begin, size), x(a.as<T>() + begin, size);
        VecMap<T>(dgates.as<T>() + begin, size) = d * x;
        VecMap<T>(da.as<T>() + begin, size) = d * VecMap<T>(gates.as<T>() + begin, size);
        return;
      }
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

// d/da of S^2 / Q, with S = sum |a| and Q = sum a^2: 2 S sign(a) / Q - 2 S^2 a / Q^2.
void hoyer_add(Ctx& ctx, Tensor da, Tensor sum, Tensor a, double weight) {
  const int64_t N = a.rows(), F = a.cols();
  with_type(a, [&]<class T>() {
    const int64_t grain = row_grain(F);
    std::vector<double> part(static_cast<size_t>((N + grain - 1) / grain));
    for_ranges(ctx, N, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        const VecMap<T> x(a.as<T>() + n * F, F);
        const auto S = static_cast<double>(x.abs().sum()),
                   Q = static_cast<double>(x.square().sum());
        part[static_cast<size_t>(begin / grain)] += Q > 0 ? S * S / Q : 1;
        if (!(Q > 0)) continue;
        const double scale = weight / static_cast<double>(N);
        VecMap<T>(da.as<T>() + n * F, F) += x.sign() * static_cast<T>(scale * 2 * S / Q) -
                                            x * static_cast<T>(scale * 2 * S * S / (Q * Q));
      }
    });
    *sum.as<double>() = 0;
    for (double p : part) *sum.as<double>() += p / static_cast<double>(N);
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

}  // namespace

void fill_experts(Ops& ops) {
  ops.sigmoid = sigmoid;
  ops.sigmoid_backward = sigmoid_backward;
  ops.softmax = softmax;
  ops.absolute = absolute;
  ops.unit_rows = unit_rows;
  ops.noise_add = noise_add;
  ops.measure = measure;
  ops.gate_softmax = gate_softmax;
  ops.gate_softmax_backward = gate_softmax_backward;
  ops.gate = gate;
  ops.scale_experts = scale_experts;
  ops.scale_experts_backward = scale_experts_backward;
  ops.gate_loss_add = gate_loss_add;
  ops.route = route;
  ops.hoyer_add = hoyer_add;
}

}  // namespace lte
