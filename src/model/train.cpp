#include "model/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/rng.h"
#include "core/statistics.h"
#include "model/batches.h"

namespace lte {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
  return std::chrono::duration<double>(Clock::now() - t).count();
}

Tensor view(std::vector<int32_t>& v) {
  Tensor t = shape(DType::i32, {static_cast<int64_t>(v.size())});
  t.data = v.data();
  return t;
}

// A few fixed windows whose gates are looked at after every step.
struct Probe {
  static constexpr int64_t kWindows = 2;
  std::vector<int32_t> tokens, targets;
  Chunk chunk;
  std::optional<State> state;
  std::vector<uint8_t> sides;

  Probe(const Params& p, const Plan& plan, const TokenSet& set, int seq) {
    const std::vector<Window> windows = test_windows(set, seq, kWindows);
    if (windows.empty() || !plan.routed()) return;
    int64_t T = 0;
    for (const Window& w : windows) T = std::max<int64_t>(T, w.length);
    chunk = {.B = static_cast<int64_t>(windows.size()), .T = T, .pos = 0};
    tokens.resize(static_cast<size_t>(chunk.B * T)), targets.resize(tokens.size());
    for (size_t i = 0; i < windows.size(); ++i) {
      fill_row(set, windows[i], static_cast<int64_t>(i), T, tokens, targets);
    }
    state = make_state(p, plan, chunk.B, T, T, Keep::one_layer);
  }

  // Share of (token, expert) whose score is on another side of tau than at the last call.
  double crossings(Backend& be, const Params& p, const Plan& plan, Gate gate, double tau) {
    if (!state) return 0;
    forward(be, p, plan, view(tokens), chunk, {gate, Exec::masked}, *state);
    be.finish();
    std::vector<uint8_t> now;
    for (const LayerState& l : state->layer) {
      for (int64_t i = 0; i < l.scores.size(); ++i) now.push_back(l.scores.as<float>()[i] > tau);
    }
    int64_t changed = 0;
    for (size_t i = 0; i < sides.size(); ++i) changed += sides[i] != now[i];
    const bool first = sides.empty();
    sides = std::move(now);
    return first ? 0 : static_cast<double>(changed) / static_cast<double>(sides.size());
  }
};

// How the steps of a stage are run: as wanted, or as was faster.
struct ExecChoice {
  TrainExec wanted;
  std::vector<double> masked = {}, gathered = {};  // seconds of measured steps
  double gain = 0;

  Exec next(bool able) const {
    if (!able || wanted == TrainExec::masked) return Exec::masked;
    const bool faster = gain > 0 ? gain > 1 : gathered.size() < masked.size();
    return wanted == TrainExec::gathered || faster ? Exec::trained : Exec::masked;
  }
  void took(Exec exec, double seconds) {
    (exec == Exec::trained ? gathered : masked).push_back(seconds);
    const auto middle = [](const std::vector<double>& s) {  // without the first
      return median_of({s.begin() + 1, s.end()});
    };
    if (gathered.size() > kMeasuredSteps) gain = middle(masked) / middle(gathered);
  }
};

// What one step needs beside the parameters; made once a stage.
struct Stage {
  Backend& be;
  Params& p;
  const Plan& plan;
  const TokenSet& set;
  const TrainSpec& spec;
  Chunk chunk;
  State state;
  Gradients grads;
  std::optional<State> teacher;
  std::optional<Plan> teacher_plan;
  std::vector<int32_t> tokens, targets;  // of all micro-batches

  // Draws the batch of a step; returns the number of targets.
  int64_t draw(int64_t step) {
    const int64_t rows = chunk.B * spec.accum;
    int64_t counted = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const Window w =
          train_window(set, static_cast<int>(chunk.T), spec.seed,
                       spec.first + static_cast<uint64_t>(step), static_cast<uint64_t>(r));
      counted += fill_row(set, w, r, chunk.T, tokens, targets);
    }
    return counted;
  }

  Tensor micro(std::vector<int32_t>& all, int64_t a) const {
    Tensor t = shape(DType::i32, {chunk.B * chunk.T});
    t.data = all.data() + a * chunk.B * chunk.T;
    return t;
  }

  // Gradients of one batch; fills the sums of the log.
  void gradients(int64_t counted, LossTerms terms, StepLog& log) {
    const uint64_t draw_seed =
        hash64(spec.seed, 0x2015e, spec.first + static_cast<uint64_t>(log.step));
    const Run run{.gate = spec.gate, .exec = log.exec, .noise = spec.noise, .seed = draw_seed};
    terms.eta /= spec.accum, terms.lambda /= spec.accum, terms.hoyer /= spec.accum;
    be.ops.fill(*be.ctx, grads.d.flat(), 0);
    double loss = 0, experts = 0, square = 0, separation = 0, above = 0;
    for (int64_t a = 0; a < spec.accum; ++a) {
      const Tensor in = micro(tokens, a), want = micro(targets, a);
      forward(be, p, plan, in, chunk, run, state);
      if (teacher) forward(be, *spec.teacher, *teacher_plan, in, chunk, run, *teacher);
      backward(be, p, plan, in, want, chunk, run, terms, 1.0 / static_cast<double>(counted),
               teacher ? teacher->logits : Tensor{}, state, grads);
      be.finish();
      for (int64_t n = 0; n < state.losses.size(); ++n) loss += state.losses.as<float>()[n];
      const size_t layers = state.layer.size();
      for (size_t i = 0; plan.routed() && i < layers; ++i) {
        const GateSums sums = gate_sums(grads, i);
        const auto size = static_cast<double>(state.layer[i].scores.size());
        const double share =
            1 / static_cast<double>(layers * static_cast<size_t>(spec.accum)) / size;
        square += sums.square * share;
        separation += sums.separation * share;
        above += sums.above * share;
        experts += size;
      }
    }
    log.loss = loss / static_cast<double>(counted);
    if (experts > 0) log.efficiency = square, log.separability = separation, log.active = above;
  }
};

Stage make_stage(Backend& be, Params& p, const Plan& plan, const TokenSet& set,
                 const TrainSpec& spec) {
  const int64_t B = spec.batch;
  const int64_t T = trained_seq(spec, set);
  LTE_CHECK(T >= 1 && B >= 1, "training wants at least one sequence of one token");
  LTE_CHECK(T <= p.cfg.max_seq,
            fmt::format("training: sequences of {} are longer than the model's max_seq {}", T,
                        p.cfg.max_seq));
  Kept kept = kept_by(be, p.cfg);
  if (spec.terms.hoyer > 0) kept.type = DType::f32;  // which is summed over numbers of f32
  State state = make_state(p, plan, B, T, T, Keep::all_layers, kept);
  Gradients grads = make_gradients(p, plan, state);
  Stage s{.be = be,
          .p = p,
          .plan = plan,
          .set = set,
          .spec = spec,
          .chunk = {B, T, 0},
          .state = std::move(state),
          .grads = std::move(grads),
          .teacher = {},
          .teacher_plan = {},
          .tokens = {},
          .targets = {}};
  s.tokens.resize(static_cast<size_t>(B * T * spec.accum)), s.targets.resize(s.tokens.size());
  if (spec.teacher) {
    s.teacher_plan = dense_plan(spec.teacher->cfg);
    s.teacher = make_state(*spec.teacher, *s.teacher_plan, B, T, T, Keep::one_layer);
  }
  return s;
}

double ramp(double share, double value, double progress) {
  return share > 0 && progress < share ? value * progress / share : value;
}

double steered(const TrainSpec& s, double eta, double active, double progress) {
  const double way = s.steer_ramp > 0 ? std::min(1.0, progress / s.steer_ramp) : 1;
  const double wanted = s.steer_from + way * (s.steer_to - s.steer_from);
  return std::max(0.0, eta + s.steer_rate * (active - wanted));
}

}  // namespace

int64_t trained_seq(const TrainSpec& spec, const TokenSet& set) {
  return std::min<int64_t>(spec.seq, static_cast<int64_t>(set.tokens.size()) - 1);
}

int64_t trained_tokens(const TrainSpec& spec, const TokenSet& set) {
  return spec.steps * spec.batch * spec.accum * trained_seq(spec, set);
}

double learning_rate(const TrainSpec& s, int64_t step) {
  const double warm = std::max(1.0, s.warmup * static_cast<double>(s.steps));
  const double at = static_cast<double>(step) + 1;
  if (at <= warm) return s.lr * at / warm;
  const double way = (at - warm) / std::max(1.0, static_cast<double>(s.steps) - warm);
  return s.lr * (s.min_lr + (1 - s.min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * way)));
}

double adamw_step(Backend& be, Params& p, Gradients& g, Params& m, Params& v, const TrainSpec& spec,
                  int64_t step, bool routers) {
  be.ops.sum_squares(*be.ctx, g.norm, g.d.flat());
  be.finish();
  const double norm = std::sqrt(*g.norm.as<double>());
  LTE_CHECK(std::isfinite(norm),
            fmt::format("training: the gradient is not finite at step {}", step));
  AdamW a{.lr = learning_rate(spec, step),
          .beta1 = spec.beta1,
          .beta2 = spec.beta2,
          .eps = spec.adam_eps,
          .decay = 0,
          .grad_scale = spec.clip > 0 && norm > spec.clip ? spec.clip / norm : 1,
          .step = step + 1};
  std::vector<Tensor> gs, ms, vs;
  visit_params(g.d, [&](Tensor& t, const ParamInfo&) { gs.push_back(t); });
  visit_params(m, [&](Tensor& t, const ParamInfo&) { ms.push_back(t); });
  visit_params(v, [&](Tensor& t, const ParamInfo&) { vs.push_back(t); });
  size_t i = 0;
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    a.decay = info.decay ? spec.decay : 0;
    if (!info.router || routers) be.ops.adamw(*be.ctx, t, gs[i], ms[i], vs[i], a);
    ++i;
  });
  return norm;
}

void train(Backend& be, Params& params, const Plan& plan, const TokenSet& set,
           const TokenSet& probe_set, const TrainSpec& spec, const TrainHooks& hooks) {
  Stage stage = make_stage(be, params, plan, set, spec);
  Params m = make_params(params.cfg, plan, DType::f32, params.memory.where),
         v = make_params(params.cfg, plan, DType::f32, params.memory.where);
  const bool steers = spec.steer_to >= 0;
  int64_t step = 0;
  double eta = steers ? 0 : spec.terms.eta;
  const TrainState position{.params = params, .m = m, .v = v, .step = step, .eta = eta};
  if (hooks.restore) hooks.restore(position);
  Probe probe(params, plan, probe_set, static_cast<int>(stage.chunk.T));
  probe.crossings(be, params, plan, spec.gate, spec.terms.tau);
  ExecChoice choice{.wanted = spec.exec};
  auto saved = Clock::now();
  while (step < spec.steps) {
    const auto start = Clock::now();
    const double progress = static_cast<double>(step) / static_cast<double>(spec.steps);
    StepLog log{.step = step + 1, .steps = spec.steps};
    LossTerms terms = spec.terms;
    terms.eta = steers ? eta : ramp(spec.eta_ramp, eta, progress);
    terms.lambda = ramp(spec.sep_ramp, terms.lambda, progress);
    if (spec.adapt > 0 && progress >= 1 - spec.adapt) {
      terms.train_routers = terms.straight_through = false;
      terms.eta = terms.lambda = 0;
    }
    const int64_t counted = stage.draw(step);
    LTE_CHECK(counted > 0, "training: a batch has no scored token");
    const bool able = can_train_gathered(be, plan, spec.gate, terms);
    log.exec = choice.next(able);
    const auto begun = Clock::now();
    stage.gradients(counted, terms, log);
    const bool measures = able && spec.exec == TrainExec::measured && choice.gain == 0;
    if (measures) choice.took(log.exec, seconds_since(begun));
    log.gathered_gain = choice.gain;
    log.grad_norm = adamw_step(be, params, stage.grads, m, v, spec, step, terms.train_routers);
    be.finish();
    log.crossings = probe.crossings(be, params, plan, spec.gate, terms.tau);
    log.eta = terms.eta, log.lambda = terms.lambda, log.lr = learning_rate(spec, step);
    if (steers && terms.train_routers) eta = steered(spec, eta, log.active, progress);
    ++step;
    log.seconds = seconds_since(start);
    log.tokens_per_s = static_cast<double>(stage.tokens.size()) / log.seconds;
    if (hooks.log) hooks.log(log);
    if (hooks.save && step < spec.steps && seconds_since(saved) > hooks.save_seconds) {
      hooks.save(position);
      saved = Clock::now();
    }
  }
  if (hooks.save) hooks.save(position);
}

}  // namespace lte
