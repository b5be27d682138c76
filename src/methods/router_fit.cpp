#include "methods/router_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/threads.h"
#include "methods/in_order.h"

namespace lte {
namespace {

// z[n,E] = input w' + b for the given rows.
void logits_of(const Contributions& c, std::span<const int64_t> rows, const float* w,
               const float* b, std::vector<float>& z) {
  const auto E = static_cast<size_t>(c.E), D = static_cast<size_t>(c.D);
  const std::vector<float> columns = transposed(w, c.E, c.D);
  z.resize(rows.size() * E);
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy_n(b, E, &z[r * E]);
    add_products(&z[r * E], &c.input[static_cast<size_t>(rows[r]) * D], columns.data(), c.D, c.E);
  }
}

constexpr int64_t kBatch = 256;

struct Adam {
  std::vector<float> m, v;
  explicit Adam(size_t n) : m(n), v(n) {}
  void step(float* p, const std::vector<float>& g, double lr, int t) {
    const double c1 = 1 - std::pow(0.9, t), c2 = 1 - std::pow(0.999, t);
    for (size_t i = 0; i < g.size(); ++i) {
      m[i] = 0.9f * m[i] + 0.1f * g[i];
      v[i] = 0.999f * v[i] + 0.001f * g[i] * g[i];
      p[i] -= static_cast<float>(lr * (m[i] / c1) / (std::sqrt(v[i] / c2) + 1e-8));
    }
  }
};

void fit_one(const Contributions& c, double labelled, double active, int steps, double lr, Rng& rng,
             float* w, float* b) {
  const float limit = quantile(c.output, labelled);
  const auto weights = static_cast<size_t>(c.E * c.D), biases = static_cast<size_t>(c.E);
  Adam adam_w(weights), adam_b(biases);
  std::fill(w, w + weights, 0.f), std::fill(b, b + biases, 0.f);
  std::vector<float> z, gw(weights), gb(biases);
  std::vector<int64_t> rows(kBatch);
  for (int t = 1; t <= steps; ++t) {
    for (int64_t& r : rows) r = static_cast<int64_t>(rng.below(static_cast<uint64_t>(c.n)));
    logits_of(c, rows, w, b, z);
    std::fill(gw.begin(), gw.end(), 0.f), std::fill(gb.begin(), gb.end(), 0.f);
    for (size_t r = 0; r < rows.size(); ++r) {
      const float* x = &c.input[static_cast<size_t>(rows[r] * c.D)];
      for (int64_t e = 0; e < c.E; ++e) {
        const float label = c.output[static_cast<size_t>(rows[r] * c.E + e)] > limit ? 1.f : 0.f;
        const float p = 1 / (1 + std::exp(-z[r * biases + static_cast<size_t>(e)]));
        const float d = (p - label) / kBatch;
        gb[static_cast<size_t>(e)] += d;
        for (int64_t i = 0; i < c.D; ++i) gw[static_cast<size_t>(e * c.D + i)] += d * x[i];
      }
    }
    adam_w.step(w, gw, lr, t), adam_b.step(b, gb, lr, t);
  }
  std::vector<int64_t> all(static_cast<size_t>(c.n));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  logits_of(c, all, w, b, z);
  const float shift = quantile(z, active);
  for (int64_t e = 0; shift > -1e29f && e < c.E; ++e) b[e] -= shift;
}

}  // namespace

double fit_routers(Params& p, const Plan& plan, std::span<const Contributions> seen,
                   double labelled, double active, int steps, double lr, uint64_t seed,
                   int threads) {
  double flops = 0;
  for (const Contributions& c : seen)
    flops += 6.0 * kBatch * steps * static_cast<double>(c.D * c.E);
  for_each_piece(threads, static_cast<int64_t>(seen.size()), [&](int64_t layer) {
    const auto i = static_cast<size_t>(layer);
    LTE_CHECK(plan.layer[i].router_bias, "fit_routers: wants routers with a bias");
    Rng rng(hash64(seed, 0xf17, i));
    fit_one(seen[i], labelled, active, steps, lr, rng, p.layer[i].router_w.as<float>(),
            p.layer[i].router_b.as<float>());
  });
  return flops;
}

}  // namespace lte
