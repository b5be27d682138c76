#include "methods/predictor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "core/threads.h"
#include "methods/predictor_loss.h"

namespace lte {
namespace {

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

  // Targets of the loaded rows; nothing may be enqueued.
  void set_targets(int64_t rows) { lte::set_targets(first_rows(target, rows), spec); }

  // Writes dz for the loaded rows.
  double loss(int64_t rows) {
    be.finish();
    return predictor_loss(be, first_rows(dz, rows), first_rows(z, rows), first_rows(target, rows),
                          spec.loss);
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

double train_predictors(const Backend& be, Params& p, const Plan& plan,
                        std::span<const Contributions> seen, std::span<const PredictorSpec> specs,
                        uint64_t seed, uint64_t salt) {
  std::vector<double> flops(seen.size());
  const int side_by_side = be.device ? be.threads : 1;
  for_each_piece(side_by_side, static_cast<int64_t>(seen.size()), [&](int64_t layer) {
    const auto i = static_cast<size_t>(layer);
    Backend on = on_host(be, 1);
    flops[i] =
        train_predictor(on, p.layer[i], plan.layer[i], seen[i], specs[i], hash64(seed, salt, i));
  });
  return std::accumulate(flops.begin(), flops.end(), 0.0);
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

}  // namespace lte
