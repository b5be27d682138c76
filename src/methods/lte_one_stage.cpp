// LTE in one stage, our answer to the complaint that two stages complicate training: hard gates in
// the forward pass, so that the model never sees a soft FFN; a straight-through gradient for the
// scores (Bengio et al., 2013); routers warm-started from which experts contribute; the efficiency
// weight eta, at least 0, steered so that the active fraction stays at the one that was asked for;
// and at the end one shift of the routers' biases that brings it there on training text.
#include <algorithm>
#include <cmath>
#include <functional>

#include "methods/grouping.h"
#include "methods/methods.h"
#include "methods/router_fit.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps"},
    {"active", "0.25", "wanted fraction of active neurons"},
    {"group", "32", "neurons in an expert"},
    kConstruction,
    looks_at("131072"),
    {"start", "0",
     "active fraction of the warm-started routers, from where steering begins; 0: that of active"},
    {"ramp", "0.5", "share of the steps in which the wanted fraction falls from start to active"},
    {"rate", "0.5", "how fast eta follows the difference to the wanted fraction"},
    {"scaled", "0",
     "1: the score of an open gate weighs its expert, as in the paper's soft stage; 0: it counts "
     "as 1, "
     "as in its hard stage"},
    {"noise", "0", "standard deviation of noise on the routers' logits while training"},
    {"lambda", "0", "weight of the separability loss, which hard gates do not need"},
    {"sep_eps", "0.01", "epsilon of the separability loss"},
    {"warm_tokens", "16384", "training tokens that routers are warm-started on; 0: random routers"},
    {"warm_steps", "200", "steps of the warm start's logistic regression"},
    {"label_share", "1",
     "part of the wanted fraction that the warm start's labels name: below 1 it ranks by the "
     "largest"},
    {"router_std", "0.02", "standard deviation of router weights without a warm start"},
    {"router_input", "normed", "what routers read: normed (the FFN's input) or residual"},
    {"adapt", "0",
     "share of the steps, the last, in which the routers are frozen and only the task loss is "
     "left, as in "
     "the paper's stage 2"},
    {"calibrate", "1",
     "1: after training, one shift of all router biases gives training text the wanted fraction"},
};

// Shifts the biases of all routers by one number, so that the wanted share of scores is above the
// threshold over training text, cut as text is scored: steering follows training batches, which mix
// tokens otherwise. Returns how many tokens it looked at.
int64_t shift_biases(const FitInput& in, Fitted& f, double active) {
  std::vector<float> scores;
  int64_t tokens = 0;
  const std::vector<Window> windows =
      test_windows(in.train, std::min(in.seq, f.params.cfg.max_seq), 64);
  each_window(in.backend, f.params, f.plan, in.train, windows, Gate::hard, [&](const State& s) {
    tokens += s.T;
    for (const LayerState& l : s.layer) {
      scores.insert(scores.end(), l.scores.as<float>(), l.scores.as<float>() + l.scores.size());
    }
  });
  const auto above = static_cast<std::ptrdiff_t>(active * static_cast<double>(scores.size()));
  double shift = 30;  // all open
  if (above < static_cast<std::ptrdiff_t>(scores.size())) {
    std::nth_element(scores.begin(), scores.begin() + above, scores.end(), std::greater<>());
    const double g = std::clamp<double>(scores[static_cast<size_t>(above)], 1e-12, 1 - 1e-7);
    shift = -std::log(g / (1 - g));
  }
  for (LayerParams& l : f.params.layer) {
    float* b = l.router_b.as<float>();
    for (int64_t e = 0; e < l.router_b.size(); ++e) b[e] += static_cast<float>(shift);
  }
  return tokens;
}

Fitted fit_one_stage(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  const double asked = get_number(k, "start", 0, 1), start = asked == 0 ? active : asked;
  int64_t looked = 0;
  Plan plan = routed_plan(in, k, true, 0.5, looked);
  for (FfnPlan& l : plan.layer) l.scaled = get_whole(k, "scaled", 0, 1) == 1;
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = looked;
  init_routers(f.params, get_number(k, "router_std", 0, 100), 0, in.seed);
  const int64_t warm = get_whole(k, "warm_tokens", 0, 1 << 24);
  const double labelled = start * get_number(k, "label_share", 0.001, 1);
  const auto warm_steps = static_cast<int>(get_whole(k, "warm_steps", 1, 1 << 20));
  const bool calibrates = get_whole(k, "calibrate", 0, 1) == 1;
  if (warm > 0) {
    const Observed seen = observe(in, f.params, plan, warm, Contribution::output_norm);
    f.train_flops += fit_routers(f.params, plan, seen.layer, labelled, start, warm_steps, 0.01,
                                 in.seed, in.backend.threads);
    f.calibration_tokens += seen.tokens;
  }
  add_histogram(in, f, Gate::hard, "before");

  TrainSpec s = training(in, k, get_whole(k, "steps", 1, 1'000'000'000));
  s.terms.lambda = get_number(k, "lambda", 0, 1e6);
  s.terms.sep_eps = get_number(k, "sep_eps", 1e-12, 1);
  s.terms.train_routers = s.terms.straight_through = true;
  s.steer_to = active, s.steer_from = start;
  s.noise = get_number(k, "noise", 0, 1e6);
  s.adapt = get_number(k, "adapt", 0, 1);
  s.steer_ramp = get_number(k, "ramp", 0, 1), s.steer_rate = get_number(k, "rate", 0, 1e6);
  run_stage(in, f, s, "train");
  for (int look = 0; calibrates && look < 2; ++look) {  // the second under the first one's gates
    f.calibration_tokens += shift_biases(in, f, active);
  }
  add_histogram(in, f, Gate::hard, "train");
  return f;
}

}  // namespace

const Method kLteOneStage = {
    .name = "lte-one-stage",
    .fit = fit_one_stage,
    .knobs = kKnobs,
    .source = "this suite, after Zheng et al., 2024",
    .about = "one stage: hard gates, straight-through, warm start, steered eta"};

}  // namespace lte
