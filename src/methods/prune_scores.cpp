#include "methods/prune_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rng.h"
#include "model/batches.h"

namespace lte {
namespace {

// Batches of training text with what a forward and a backward need.
struct Batches {
  const FitInput& in;
  int64_t B, T;
  std::vector<int32_t> inputs, targets;
  Tensor x, y;

  Batches(const FitInput& input, int64_t rows, int64_t length)
      : in(input), B(rows), T(length), inputs(static_cast<size_t>(B * T)), targets(inputs.size()) {
    x = y = shape(DType::i32, {B * T});
    x.data = inputs.data(), y.data = targets.data();
  }
  // Fills the batch of that number; returns how many targets count.
  int64_t draw(uint64_t stream, uint64_t number) {
    int64_t counted = 0;
    for (int64_t row = 0; row < B; ++row) {
      const Window w =
          train_window(in.train, static_cast<int>(T), stream, number, static_cast<uint64_t>(row));
      counted += fill_row(in.train, w, row, T, inputs, targets);
    }
    return counted;
  }
};

int64_t length_of(const FitInput& in) {
  return std::min<int64_t>(
      {in.seq, in.dense.cfg.max_seq, static_cast<int64_t>(in.train.tokens.size()) - 1});
}

// Hard concrete: s = sigmoid((logit(u) + a) / beta), z = clamp(1.2 s - 0.1, 0, 1).
constexpr double kBeta = 2.0 / 3, kLow = -0.1, kHigh = 1.1;
double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
// Probability that z > 0.
double open_probability(double a) { return sigmoid(a - kBeta * std::log(-kLow / kHigh)); }

struct Adam {
  std::vector<double> m, v;
  explicit Adam(size_t n) : m(n), v(n) {}
  double step(size_t i, double g, double lr, int64_t t) {
    m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.999 * v[i] + 0.001 * g * g;
    return lr * (m[i] / (1 - std::pow(0.9, t))) /
           (std::sqrt(v[i] / (1 - std::pow(0.999, t))) + 1e-8);
  }
};

// The constraint on one set of layers: l1 (s - t) + l2 (s - t)^2, maximised by l1 and l2.
struct Constraint {
  std::vector<size_t> layers;
  double l1 = 0, l2 = 0;
};

}  // namespace

ActivationStats activation_stats(const FitInput& in, const Plan& plan, size_t i, int64_t tokens,
                                 int64_t& seen) {
  ActivationStats s;
  std::vector<double> below;  // sum of squared deviations
  double n = 0;
  seen += calibrate(in, apply_order(in.dense, plan), plan, tokens, [&](const State& state) {
    const Tensor& act = state.layer[i].act;
    const auto F = static_cast<size_t>(act.cols());
    s.mean.resize(F), s.square.resize(F), below.resize(F);
    for (int64_t r = 0; r < act.rows(); ++r) {
      ++n;
      for (size_t j = 0; j < F; ++j) {
        const double a = act.as<float>()[r * act.cols() + static_cast<int64_t>(j)];
        const double off = a - s.mean[j];
        s.mean[j] += off / n, below[j] += off * (a - s.mean[j]), s.square[j] += a * a;
      }
    }
  });
  s.variance = below;
  for (double& v : s.variance) v /= n;
  return s;
}

LayerScores taylor_scores(const FitInput& in, int64_t tokens, int64_t& seen) {
  const Plan plan = dense_plan(in.dense.cfg);
  const int64_t T = length_of(in), B = 8, batches = std::max<int64_t>(1, tokens / (B * T));
  Batches data(in, B, T);
  State state = make_state(in.dense, plan, B, T, T, Keep::all_layers);
  Gradients grads = make_gradients(in.dense, plan, state);
  in.backend.ops.fill(*in.backend.ctx, grads.d.flat(), 0);
  const Run run{.gate = Gate::hard, .exec = Exec::masked};
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t counted = data.draw(hash64(in.seed, 0x7a710), static_cast<uint64_t>(b));
    forward(in.backend, in.dense, plan, data.x, {B, T, 0}, run, state);
    backward(in.backend, in.dense, plan, data.x, data.y, {B, T, 0}, run, {},
             1.0 / static_cast<double>(counted * batches), {}, state, grads);
  }
  in.backend.finish();
  seen += batches * B * T;
  LayerScores all;
  for (size_t i = 0; i < in.dense.layer.size(); ++i) {
    const LayerParams &w = in.dense.layer[i], &d = grads.d.layer[i];
    std::vector<double> score(static_cast<size_t>(w.up_w.rows()));
    const std::pair<Tensor, Tensor> pairs[] = {
        {w.gate_w, d.gate_w}, {w.up_w, d.up_w}, {w.down_w, d.down_w}};
    for (const auto& [p, g] : pairs) {
      for (int64_t k = 0; p && k < p.size(); ++k) {
        score[static_cast<size_t>(k / p.cols())] +=
            std::abs(static_cast<double>(p.as<float>()[k]) * g.as<float>()[k]);
      }
    }
    all.push_back(std::move(score));
  }
  return all;
}

LearntMask learn_mask(const FitInput& in, TrainSpec train, const MaskSpec& spec) {
  train.steps = spec.steps;
  // Soft gates of single neurons whose scores are the routers' biases: the sampled mask.
  Plan plan = dense_plan(in.dense.cfg);
  for (FfnPlan& f : plan.layer) {
    f.group = 1, f.router = RouterKind::linear, f.router_bias = true, f.squash = Squash::none;
  }
  Params p = apply_order(in.dense, plan);
  const int64_t T = trained_seq(train, in.train), B = train.batch;
  Batches data(in, B, T);
  State state = make_state(p, plan, B, T, T, Keep::all_layers);
  Gradients grads = make_gradients(p, plan, state);
  Params m = make_params(p.cfg, plan, DType::f32, p.memory.where), v = clone(m);
  const size_t L = p.layer.size(), F = static_cast<size_t>(in.dense.cfg.ffn);
  LayerScores logits(L, std::vector<double>(F, 2));
  std::vector<Adam> adam(L, Adam(F));
  std::vector<Constraint> constraints(spec.global ? 1 : L);
  for (size_t i = 0; i < L; ++i) constraints[spec.global ? 0 : i].layers.push_back(i);
  const Run run{.gate = Gate::soft, .exec = Exec::masked};
  const LossTerms terms{.train_routers = true};
  std::vector<double> slope(L * F);
  for (int64_t step = 0; step < spec.steps; ++step) {
    in.backend.finish();  // the step before, whose parameters are written next
    for (size_t i = 0; i < L; ++i) {
      Rng rng(hash64(in.seed, 0xa5c, i, static_cast<uint64_t>(step)));
      for (size_t j = 0; j < F; ++j) {
        const double u = std::clamp(rng.uniform(), 1e-6, 1 - 1e-6);
        const double s = sigmoid((std::log(u / (1 - u)) + logits[i][j]) / kBeta);
        const double z = s * (kHigh - kLow) + kLow;
        p.layer[i].router_b.as<float>()[j] = static_cast<float>(std::clamp(z, 0.0, 1.0));
        slope[i * F + j] = z > 0 && z < 1 ? (kHigh - kLow) * s * (1 - s) / kBeta : 0;
      }
    }
    const int64_t counted = data.draw(train.seed, train.first + static_cast<uint64_t>(step));
    in.backend.ops.fill(*in.backend.ctx, grads.d.flat(), 0);
    forward(in.backend, p, plan, data.x, {B, T, 0}, run, state);
    backward(in.backend, p, plan, data.x, data.y, {B, T, 0}, run, terms,
             1.0 / static_cast<double>(counted), {}, state, grads);
    in.backend.finish();
    const double progress = static_cast<double>(step) / static_cast<double>(spec.steps);
    const double wanted = (1 - spec.active) * std::min(1.0, progress / 0.5);
    for (Constraint& c : constraints) {
      double open = 0;
      for (size_t i : c.layers) {
        for (double a : logits[i]) open += open_probability(a);
      }
      const double count = static_cast<double>(c.layers.size() * F),
                   off = 1 - open / count - wanted;
      for (size_t i : c.layers) {
        for (size_t j = 0; j < F; ++j) {
          const double q = open_probability(logits[i][j]);
          const double g = grads.d.layer[i].router_b.as<float>()[j] * slope[i * F + j] -
                           (c.l1 + 2 * c.l2 * off) * q * (1 - q) / count;
          logits[i][j] = std::clamp(logits[i][j] - adam[i].step(j, g, spec.lr, step + 1),
                                    std::log(0.01), std::log(100.0));
        }
      }
      c.l1 += spec.lr * off, c.l2 += spec.lr * off * off;
    }
    for (LayerParams& l : grads.d.layer) {
      for (const Tensor& t : {l.router_w, l.router_b}) in.backend.ops.fill(*in.backend.ctx, t, 0);
    }
    adamw_step(in.backend, p, grads, m, v, train, step, false);
  }
  in.backend.finish();
  LearntMask learnt{.logits = std::move(logits), .params = clone(in.dense)};
  std::vector<Tensor> trained;
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    if (!info.router) trained.push_back(t);
  });
  size_t next = 0;
  visit_params(learnt.params, [&](Tensor& t, const ParamInfo&) {
    std::memcpy(t.data, trained[next++].data, t.bytes());
  });
  return learnt;
}

}  // namespace lte
