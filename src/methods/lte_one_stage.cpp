// LTE in one stage, our answer to the complaint that two stages complicate training: hard gates in
// the forward pass, so that the model never sees a soft FFN; a straight-through gradient for the
// scores (Bengio et al., 2013); routers warm-started from which experts contribute; and the
// efficiency weight eta steered so that the active fraction is the one that was asked for.
#include <algorithm>
#include <functional>

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
    {"start", "0",
     "active fraction of the warm-started routers, from where steering begins; 0: that of active"},
    {"ramp", "0.5", "share of the steps in which the wanted fraction falls from start to active"},
    {"rate", "0.5", "how fast eta follows the difference to the wanted fraction"},
    {"lambda", "0", "weight of the separability loss, which hard gates do not need"},
    {"sep_eps", "0.01", "epsilon of the separability loss"},
    {"warm_tokens", "16384", "training tokens that routers are warm-started on; 0: random routers"},
    {"warm_steps", "200", "steps of the warm start's logistic regression"},
    {"router_std", "0.02", "standard deviation of router weights without a warm start"},
    {"router_input", "normed", "what routers read: normed (the FFN's input) or residual"},
    {"calibrate", "1",
     "1: after training, the threshold is moved so that the validation split has the wanted "
     "fraction"},
    {"distill", "0", "share of the task loss that is KL to the dense model's prediction"},
};

// One threshold for all layers: the quantile of the scores of validation tokens that leaves the
// wanted share above. Steering follows training batches, whose mix of tokens may be another.
double calibrated_cut(const FitInput& in, const Fitted& f, double active) {
  std::vector<float> scores;
  const std::vector<Window> windows =
      test_windows(in.valid, std::min(in.seq, f.params.cfg.max_seq), 64);
  each_window(in.backend, f.params, f.plan, in.valid, windows, Gate::hard, [&](const State& s) {
    for (const LayerState& l : s.layer)
      scores.insert(scores.end(), l.scores.as<float>(), l.scores.as<float>() + l.scores.size());
  });
  const auto above = static_cast<std::ptrdiff_t>(active * static_cast<double>(scores.size()));
  if (scores.empty() || above >= static_cast<std::ptrdiff_t>(scores.size())) return 0.5;
  std::nth_element(scores.begin(), scores.begin() + above, scores.end(), std::greater<>());
  return scores[static_cast<size_t>(above)];
}

constexpr const char* kInputs[] = {"normed", "residual"};

Fitted fit_one_stage(const FitInput& in, const Knobs& k) {
  const double active = get_number(k, "active", 0, 1);
  const double start = k.at("start") == "0" ? active : get_number(k, "start", 0, 1);
  const RouterInput input = get_choice(k, "router_input", kInputs) == "normed"
                                ? RouterInput::normed
                                : RouterInput::residual;
  Plan plan = routed_plan(in.dense, static_cast<int>(get_whole(k, "group", 1, 1 << 20)), true,
                          input, Rule::threshold, 0.5, in.seed);
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  init_routers(f.params, get_number(k, "router_std", 0, 100), 0, in.seed);
  const int64_t warm = get_whole(k, "warm_tokens", 0, 1 << 24);
  if (warm > 0) {
    const Observed seen = observe(in, f.params, plan, warm);
    fit_routers(f.params, plan, seen.layer, start,
                static_cast<int>(get_whole(k, "warm_steps", 1, 1 << 20)), 0.01, in.seed);
    f.calibration_tokens = seen.tokens;
  }
  add_histogram(in, f, Gate::hard, "before");

  TrainSpec s = training(in, k, get_whole(k, "steps", 1, 1'000'000'000));
  s.terms = {.lambda = get_number(k, "lambda", 0, 1e6),
             .sep_eps = get_number(k, "sep_eps", 1e-12, 1),
             .train_routers = true,
             .straight_through = true,
             .distill = get_number(k, "distill", 0, 1)};
  s.steer_to = active, s.steer_from = start;
  s.steer_ramp = get_number(k, "ramp", 0, 1), s.steer_rate = get_number(k, "rate", 0, 1e6);
  if (s.terms.distill > 0) s.teacher = &in.dense;
  run_stage(in, f, s, "train");
  if (get_whole(k, "calibrate", 0, 1) == 1) {
    const double cut = calibrated_cut(in, f, active);
    for (FfnPlan& layer : f.plan.layer) layer.cut = cut;
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
