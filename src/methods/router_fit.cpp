#include "methods/router_fit.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "model/batches.h"

namespace lte {
namespace {

float quantile(std::vector<float> values, double share_above) {
  const auto keep =
      static_cast<size_t>(std::clamp(share_above, 0.0, 1.0) * static_cast<double>(values.size()));
  if (keep >= values.size()) return -1e30f;
  std::nth_element(values.begin(), values.end() - static_cast<std::ptrdiff_t>(keep) - 1,
                   values.end());
  return values[values.size() - keep - 1];
}

// z[n,E] = input w' + b for the given rows.
void logits_of(const Contributions& c, std::span<const int64_t> rows, const float* w,
               const float* b, std::vector<float>& z) {
  z.resize(rows.size() * static_cast<size_t>(c.E));
  for (size_t r = 0; r < rows.size(); ++r) {
    const float* x = &c.input[static_cast<size_t>(rows[r] * c.D)];
    for (int64_t e = 0; e < c.E; ++e) {
      float sum = b[e];
      for (int64_t d = 0; d < c.D; ++d) sum += x[d] * w[e * c.D + d];
      z[r * static_cast<size_t>(c.E) + static_cast<size_t>(e)] = sum;
    }
  }
}

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

void fit_one(const Contributions& c, double active, int steps, double lr, Rng& rng, float* w,
             float* b) {
  const float limit = quantile(c.output, active);
  constexpr int64_t kBatch = 256;
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

std::vector<Contributions> observe(const FitInput& in, const Params& p, const Plan& plan,
                                   int64_t tokens) {
  Plan open = plan;
  for (FfnPlan& f : open.layer) f.rule = Rule::all;
  const int64_t T = std::min(in.seq, p.cfg.max_seq), B = 8, D = p.cfg.dim;
  const int64_t batches = std::max<int64_t>(1, tokens / (B * T));
  State state = make_state(p, open, B, T, T, Keep::all_layers);
  std::vector<Contributions> seen(p.layer.size());
  std::vector<int32_t> in_tokens(static_cast<size_t>(B * T)), targets(in_tokens.size());
  Tensor input = shape(DType::i32, {B * T});
  input.data = in_tokens.data();
  Tensor part = shape(DType::f32, {B * T, D});
  Arena memory;
  memory.reserve(Arena::padded(part.bytes()));
  memory.carve(part);
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t row = 0; row < B; ++row) {
      const Window w = train_window(in.train, static_cast<int>(T), hash64(in.seed, 0x0b5),
                                    static_cast<uint64_t>(batch), static_cast<uint64_t>(row));
      fill_row(in.train, w, row, T, in_tokens, targets);
    }
    forward(in.backend, p, open, input, {B, T, 0}, {Gate::hard, Exec::masked}, state);
    for (size_t i = 0; i < seen.size(); ++i) {
      Contributions& c = seen[i];
      const LayerState& s = state.layer[i];
      const int64_t N = B * T, F = s.act.cols(), G = plan.layer[i].group;
      c.D = D, c.E = F / G;
      const Tensor& x = plan.layer[i].input == RouterInput::normed ? s.norm2 : s.mid;
      c.input.insert(c.input.end(), x.as<float>(), x.as<float>() + N * D);
      c.output.resize(static_cast<size_t>((c.n + N) * c.E));
      std::vector<float> block(static_cast<size_t>(N * G));
      for (int64_t e = 0; e < c.E; ++e) {
        for (int64_t n = 0; n < N; ++n)
          std::copy_n(s.act.as<float>() + n * F + e * G, G, &block[static_cast<size_t>(n * G)]);
        Tensor a = shape(DType::f32, {N, G}), w = shape(DType::f32, {G, D});
        a.data = block.data(), w.data = p.layer[i].down_w.as<float>() + e * G * D;
        in.backend.ops.gemm(*in.backend.ctx, part, a, false, w, false);
        for (int64_t n = 0; n < N; ++n) {
          const float* y = part.as<float>() + n * D;
          float square = 0;
          for (int64_t d = 0; d < D; ++d) square += y[d] * y[d];
          c.output[static_cast<size_t>((c.n + n) * c.E + e)] = std::sqrt(square);
        }
      }
      c.n += N;
    }
  }
  return seen;
}

void fit_routers(Params& p, const Plan& plan, std::span<const Contributions> seen, double active,
                 int steps, double lr, uint64_t seed) {
  for (size_t i = 0; i < seen.size(); ++i) {
    LTE_CHECK(plan.layer[i].router_bias, "fit_routers: wants routers with a bias");
    Rng rng(hash64(seed, 0xf17, i));
    fit_one(seen[i], active, steps, lr, rng, p.layer[i].router_w.as<float>(),
            p.layer[i].router_b.as<float>());
  }
}

}  // namespace lte
