#include "methods/predictor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "methods/aligned.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte {
namespace {

// Norms of the outputs of all experts, expert by expert: [N,E] appended.
void append_output_norms(Backend& be, const LayerParams& w, const FfnPlan& plan,
                         const LayerState& s, Contributions& c) {
  const int64_t N = s.act.rows(), F = s.act.cols(), G = plan.group, D = s.mid.cols();
  c.output.resize(static_cast<size_t>((c.n + N) * c.E));
  Floats block(be.memory), output(be.memory);
  Tensor act = view(block, {N, G}), y = view(output, {N, D}), down = shape(DType::f32, {G, D});
  for (int64_t e = 0; e < c.E; ++e) {
    for (int64_t n = 0; n < N; ++n) {
      std::copy_n(s.act.as<float>() + n * F + e * G, G, &block[static_cast<size_t>(n * G)]);
    }
    down.data = w.down_w.as<float>() + e * G * D;
    be.ops.gemm(*be.ctx, y, act, false, down, false);
    be.finish();
    for (int64_t n = 0; n < N; ++n) {
      const float* row = &output[static_cast<size_t>(n * D)];
      c.output[static_cast<size_t>((c.n + n) * c.E + e)] =
          std::sqrt(std::inner_product(row, row + D, row, 0.f));
    }
  }
}

void append_measured(Backend& be, const LayerParams& w, const FfnPlan& plan, const LayerState& s,
                     Contributions& c) {
  Floats memory(be.memory);
  const Tensor scores = view(memory, {s.act.rows(), c.E});
  be.ops.measure(*be.ctx, scores, s.act, plan.weighted ? w.down_w : Tensor{}, plan.measure);
  be.finish();
  c.output.insert(c.output.end(), memory.begin(), memory.end());
}

void append_input(Backend& be, const FfnPlan& plan, const LayerState& s, const LayerState& below,
                  Contributions& c) {
  Tensor x = plan.input == RouterInput::residual ? s.mid
             : plan.input == RouterInput::ahead  ? below.norm2
                                                 : s.norm2;
  Floats memory(be.memory);
  if (plan.input == RouterInput::unit) {
    const Tensor unit = view(memory, {x.rows(), x.cols()});
    be.ops.unit_rows(*be.ctx, unit, x);
    be.finish();
    x = unit;
  }
  c.input.insert(c.input.end(), x.as<float>(), x.as<float>() + x.size());
}

// A router of one layer and the memory to train it in batches of `rows`.
struct Trainee {
  Backend& be;
  LayerParams& w;
  const FfnPlan& plan;
  const Contributions& data;
  const PredictorSpec& spec;
  bool two = plan.router == RouterKind::two_layer;
  int64_t D = data.D, E = data.E, R = plan.width;
  std::vector<Floats> memory = std::vector<Floats>(6, Floats(be.memory));
  Tensor x, target, inner, z, dz, dinner;
  struct Part {
    Tensor p;
    Floats g, m, v;
  };
  std::vector<Part> parts;

  void prepare(int64_t rows) {
    x = view(memory[0], {rows, D}), target = view(memory[1], {rows, E});
    z = view(memory[2], {rows, E}), dz = view(memory[3], {rows, E});
    if (two) inner = view(memory[4], {rows, R}), dinner = view(memory[5], {rows, R});
    for (const Tensor& p : {w.router_in, w.router_w, w.router_b}) {
      const auto n = p ? static_cast<size_t>(p.size()) : 0;
      const Floats none(be.memory, n);
      parts.push_back({p, none, none, none});
    }
  }
  Tensor like(size_t part, Floats& memory_of) {
    Tensor t = parts[part].p;
    t.data = memory_of.data();
    return t;
  }

  // Waits for the step before, whose inputs it overwrites.
  void load(std::span<const int64_t> rows) {
    be.finish();
    for (size_t r = 0; r < rows.size(); ++r) {
      std::copy_n(&data.input[static_cast<size_t>(rows[r] * D)], D,
                  x.as<float>() + static_cast<int64_t>(r) * D);
      std::copy_n(&data.output[static_cast<size_t>(rows[r] * E)], E,
                  target.as<float>() + static_cast<int64_t>(r) * E);
    }
  }

  // z of the first `rows` loaded rows.
  void run(int64_t rows) {
    const Tensor in = first_rows(x, rows), out = first_rows(z, rows);
    Tensor from = in;
    if (two) {
      from = first_rows(inner, rows);
      be.ops.gemm(*be.ctx, from, in, false, w.router_in, true);
      if (plan.inner != Inner::none) be.ops.activate(*be.ctx, from, from, {}, inner_act());
    }
    be.ops.gemm(*be.ctx, out, from, false, w.router_w, true);
    if (w.router_b) be.ops.bias_add(*be.ctx, out, w.router_b);
  }
  Act inner_act() const { return plan.inner == Inner::relu ? Act::relu : Act::tanh; }

  // Targets of the loaded rows from their outputs; nothing may be enqueued.
  void set_targets(int64_t rows) {
    const auto size = static_cast<size_t>(rows * E);
    float* t = target.as<float>();
    if (spec.loss == PredictorLoss::weighted) {
      for (size_t i = 0; i < size; ++i) t[i] = t[i] > static_cast<float>(spec.label) ? 1.f : 0.f;
    } else if (spec.loss == PredictorLoss::logistic) {
      const float most = std::max(1e-12f, *std::max_element(t, t + size));
      for (size_t i = 0; i < size; ++i) t[i] /= most;
    } else if (spec.loss == PredictorLoss::softmax) {
      for (int64_t r = 0; r < rows; ++r) {
        float* row = t + r * E;
        const float sum = std::max(1e-12f, std::accumulate(row, row + E, 0.f));
        for (int64_t e = 0; e < E; ++e) row[e] /= sum;
      }
    }
  }

  // Writes dz for the loaded rows; returns the mean loss of those kinds whose merit it is.
  double loss(int64_t rows) {
    const auto size = static_cast<size_t>(rows * E);
    be.finish();
    const float *t = target.as<float>(), *s = z.as<float>();
    float* d = dz.as<float>();
    const float mean =
        static_cast<float>(std::accumulate(t, t + size, 0.0) / static_cast<double>(size));
    double sum = 0;
    std::copy_n(s, size, d);
    if (spec.loss == PredictorLoss::softmax) {
      be.ops.softmax(*be.ctx, first_rows(dz, rows));
      be.finish();
      for (size_t i = 0; i < size; ++i) {
        sum -= t[i] * std::log(std::max(1e-30f, d[i]));
        d[i] = (d[i] - t[i]) / static_cast<float>(rows);
      }
      return sum / static_cast<double>(rows);
    }
    if (spec.loss != PredictorLoss::square) {
      const bool weighted = spec.loss == PredictorLoss::weighted;
      const float scale = 1 / static_cast<float>(size);
      be.ops.sigmoid(*be.ctx, first_rows(dz, rows));
      be.finish();
      for (size_t i = 0; i < size; ++i) {
        const float weight = weighted ? t[i] + (1 - t[i]) * (mean + 0.005f) : 1;
        d[i] = weight * (d[i] - t[i]) * scale;
      }
      return 0;
    }
    for (size_t i = 0; i < size; ++i) {
      const double off = std::abs(static_cast<double>(s[i])) - t[i];
      sum += off * off;
      d[i] = static_cast<float>(2 * off * (s[i] < 0 ? -1 : 1)) / static_cast<float>(size);
    }
    return sum / static_cast<double>(size);
  }

  // One AdamW step from dz.
  void step(int64_t rows, int64_t number) {
    const Tensor d = first_rows(dz, rows), in = first_rows(x, rows);
    const Tensor from = two ? first_rows(inner, rows) : in;
    be.ops.gemm(*be.ctx, like(1, parts[1].g), d, true, from, false);
    if (w.router_b) {
      be.ops.fill(*be.ctx, like(2, parts[2].g), 0);
      be.ops.bias_backward_add(*be.ctx, like(2, parts[2].g), d);
    }
    if (two) {
      const Tensor di = first_rows(dinner, rows);
      be.ops.gemm(*be.ctx, di, d, false, w.router_w, false);
      be.finish();
      for (int64_t i = 0; plan.inner != Inner::none && i < di.size(); ++i) {
        const float h = from.as<float>()[i];  // after the activation: its slope is known from it
        di.as<float>()[i] *= plan.inner == Inner::relu ? (h > 0 ? 1.f : 0.f) : 1 - h * h;
      }
      be.ops.gemm(*be.ctx, like(0, parts[0].g), di, true, in, false);
    }
    const AdamW a{.lr = spec.lr,
                  .beta1 = 0.9,
                  .beta2 = 0.999,
                  .eps = 1e-8,
                  .decay = spec.decay,
                  .grad_scale = 1,
                  .step = number};
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].p) continue;
      be.ops.adamw(*be.ctx, parts[i].p, like(i, parts[i].g), like(i, parts[i].m),
                   like(i, parts[i].v), a);
    }
  }

  // What chooses the epoch, higher is better, over the given rows.
  double merit(std::span<const int64_t> rows) {
    double hit = 0, all = 0, lost = 0, batches = 0;
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(x.rows())) {
      const auto batch =
          rows.subspan(at, std::min(rows.size() - at, static_cast<size_t>(x.rows())));
      const auto n = static_cast<int64_t>(batch.size());
      load(batch), run(n);
      be.finish();
      if (spec.loss == PredictorLoss::weighted) {
        for (int64_t i = 0; i < n * E; ++i) {
          const bool yes = target.as<float>()[i] > static_cast<float>(spec.label);
          all += yes, hit += yes && z.as<float>()[i] >= 0;
        }
      } else if (spec.loss == PredictorLoss::logistic) {
        const auto k = std::max<int64_t>(1, std::llround(spec.active * static_cast<double>(E)));
        const Tensor gates = first_rows(dz, n);
        be.ops.gate(*be.ctx, gates, first_rows(z, n), Rule::top_k, static_cast<double>(k));
        be.finish();
        for (int64_t i = 0; i < n * E; ++i) {
          all += target.as<float>()[i], hit += target.as<float>()[i] * gates.as<float>()[i];
        }
      } else {
        set_targets(n);
        lost += loss(n), ++batches;
      }
    }
    if (batches > 0) return -lost / batches;
    return all > 0 ? hit / all : 1;
  }
};

}  // namespace

Observed observe(const FitInput& in, const Params& p, const Plan& plan, int64_t tokens,
                 Contribution what) {
  // A dense forward: every gate open, whatever the routers say.
  Plan open = plan;
  for (FfnPlan& f : open.layer) {
    f.rule = Rule::all;
    if (f.router == RouterKind::gate) f.router = RouterKind::activation;
    if (f.squash == Squash::kept_softmax) f.squash = Squash::none;
  }
  Observed seen{.layer = std::vector<Contributions>(p.layer.size())};
  seen.tokens = calibrate(in, p, open, tokens, [&](const State& state) {
    for (size_t i = 0; i < p.layer.size(); ++i) {
      Contributions& c = seen.layer[i];
      const FfnPlan& f = plan.layer[i];
      const LayerState& s = state.layer[i];
      c.D = s.mid.cols(), c.E = s.act.cols() / f.group;
      append_input(in.backend, f, s, state.layer[i > 0 ? i - 1 : 0], c);
      if (what == Contribution::output_norm) {
        append_output_norms(in.backend, p.layer[i], f, s, c);
      } else {
        append_measured(in.backend, p.layer[i], f, s, c);
      }
      c.n += s.act.rows();
    }
  });
  return seen;
}

double train_predictor(Backend& be, LayerParams& w, const FfnPlan& plan, const Contributions& data,
                       const PredictorSpec& spec, uint64_t seed) {
  Rng rng(seed);
  std::vector<int64_t> rows(static_cast<size_t>(data.n));
  std::iota(rows.begin(), rows.end(), 0);
  shuffle(rows, rng);
  const size_t held = std::clamp<size_t>(
      static_cast<size_t>(spec.held_out * static_cast<double>(rows.size())), 1, rows.size() - 1);
  const std::vector<int64_t> valid(rows.end() - static_cast<std::ptrdiff_t>(held), rows.end());
  rows.resize(rows.size() - held);
  Trainee t{.be = be,
            .w = w,
            .plan = plan,
            .data = data,
            .spec = spec,
            .x = {},
            .target = {},
            .inner = {},
            .z = {},
            .dz = {},
            .dinner = {},
            .parts = {}};
  t.prepare(spec.batch);
  std::vector<std::vector<float>> best;
  double best_merit = -std::numeric_limits<double>::infinity();
  int64_t number = 0, epochs = 0;
  const double enough =
      spec.loss == PredictorLoss::weighted ? 0.99 : 2;  // recall, as Deja Vu stops
  for (int without = 0; epochs < spec.epochs && without < spec.patience && best_merit <= enough;
       ++epochs) {
    shuffle(rows, rng);
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(spec.batch)) {
      const size_t n = std::min(rows.size() - at, static_cast<size_t>(spec.batch));
      t.load(std::span(rows).subspan(at, n)), t.set_targets(static_cast<int64_t>(n));
      t.run(static_cast<int64_t>(n));
      t.loss(static_cast<int64_t>(n)), t.step(static_cast<int64_t>(n), ++number);
    }
    const double merit = t.merit(valid);
    ++without;
    if (!(merit > best_merit)) continue;
    best_merit = merit, without = 0;
    best.clear();
    for (const auto& part : t.parts) {
      const float* p = part.p ? part.p.as<float>() : nullptr;
      best.emplace_back(p, p + part.g.size());
    }
  }
  be.finish();
  LTE_CHECK(!best.empty(), "the predictor's validation figure is not finite");
  for (size_t i = 0; i < best.size(); ++i) {
    if (t.parts[i].p) std::copy(best[i].begin(), best[i].end(), t.parts[i].p.as<float>());
  }
  const double macs =
      t.two ? static_cast<double>(t.R * (t.D + t.E)) : static_cast<double>(t.D * t.E);
  return 6 * macs * static_cast<double>(rows.size()) * static_cast<double>(epochs);
}

float quantile(std::vector<float> values, double share_above) {
  const auto keep =
      static_cast<size_t>(std::clamp(share_above, 0.0, 1.0) * static_cast<double>(values.size()));
  if (keep >= values.size()) return -1e30f;
  std::nth_element(values.begin(), values.end() - static_cast<std::ptrdiff_t>(keep) - 1,
                   values.end());
  return values[values.size() - keep - 1];
}

void init_predictors(Params& p, const Plan& plan, uint64_t seed) {
  for (size_t i = 0; i < p.layer.size(); ++i) {
    Rng rng(hash64(seed, 0x9ced, i));
    for (const Tensor& t : {p.layer[i].router_in, p.layer[i].router_w}) {
      const double std = t ? 1 / std::sqrt(static_cast<double>(t.cols())) : 0;
      for (int64_t k = 0; t && k < t.size(); ++k) {
        t.as<float>()[k] = static_cast<float>(std * rng.normal());
      }
    }
    LTE_CHECK(
        plan.layer[i].router == RouterKind::linear || plan.layer[i].router == RouterKind::two_layer,
        "init_predictors: a layer has no router");
  }
}

namespace {

// Share of the experts that the rule opens with this cut.
double opened(Backend& be, Floats& scores, int64_t E, Rule rule, double cut) {
  Floats memory(be.memory);
  const Tensor gates = view(memory, {static_cast<int64_t>(scores.size()) / E, E});
  Tensor s = gates;
  s.data = scores.data();
  be.ops.gate(*be.ctx, gates, s, rule, cut);
  be.finish();
  return static_cast<double>(std::count(memory.begin(), memory.end(), 1.f)) /
         static_cast<double>(memory.size());
}

// The cut at which the rule opens the share `active`.
double find_cut(Backend& be, const std::vector<float>& seen, int64_t E, Rule rule, double active) {
  if (rule == Rule::threshold) return quantile(seen, active);
  Floats scores(be.memory, seen.size());
  std::copy(seen.begin(), seen.end(), scores.begin());
  double low = 0, high = 1;  // more is opened as cumulative rises, and as relative_max falls
  for (int i = 0; i < 40; ++i) {
    const double cut = 0.5 * (low + high);
    const bool enough = opened(be, scores, E, rule, cut) >= active;
    (enough == (rule == Rule::cumulative) ? high : low) = cut;
  }
  return 0.5 * (low + high);
}

}  // namespace

int64_t calibrate_cut(const FitInput& in, const Params& p, Plan& plan, double active,
                      bool by_layer) {
  const std::vector<Window> windows = test_windows(in.train, std::min(in.seq, p.cfg.max_seq), 32);
  const auto E = [&](size_t i) { return experts(p.cfg, plan.layer[i]); };
  int64_t tokens = 0;
  // A layer's scores follow from the gates below it: a second look, under the first one's cuts.
  for (int look = 0; look < 2; ++look) {
    std::vector<std::vector<float>> scores(plan.layer.size());
    each_window(in.backend, p, plan, in.train, windows, Gate::hard, [&](const State& s) {
      tokens += s.T;
      for (size_t i = 0; i < scores.size(); ++i) {
        const Tensor& t = s.layer[i].scores;
        scores[i].insert(scores[i].end(), t.as<float>(), t.as<float>() + t.size());
      }
    });
    if (by_layer) {
      for (size_t i = 0; i < scores.size(); ++i) {
        FfnPlan& f = plan.layer[i];
        f.cut = find_cut(in.backend, scores[i], E(i), f.rule, active);
      }
      continue;
    }
    std::vector<float> all;
    for (size_t i = 0; i < scores.size(); ++i) {
      LTE_CHECK(E(i) == E(0), "calibrate_cut: layers have different numbers of experts");
      all.insert(all.end(), scores[i].begin(), scores[i].end());
    }
    const double cut = find_cut(in.backend, all, E(0), plan.layer[0].rule, active);
    for (FfnPlan& f : plan.layer) f.cut = cut;
  }
  return tokens;
}

}  // namespace lte
