// LTE in one stage, our answer to the complaint that two stages complicate training: hard gates in
// the forward pass, so that the model never sees a soft FFN; a straight-through gradient for the
// scores (Bengio et al., 2013); routers warm-started from which experts contribute; and the
// efficiency weight eta steered so that the active fraction is the one that was asked for.
#include "methods/methods.h"
#include "methods/router_fit.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps"},
    {"active", "0.25", "wanted fraction of active neurons"},
    {"group", "32", "neurons in an expert"},
    {"start", "0",
     "active fraction of the warm-started routers, from where steering begins; 0: that of active"},
    {"ramp", "0.5", "share of the steps in which the wanted fraction falls from start to active"},
    {"rate", "0.1", "how fast eta follows the difference to the wanted fraction"},
    {"lambda", "0", "weight of the separability loss, which hard gates do not need"},
    {"sep_eps", "0.01", "epsilon of the separability loss"},
    {"warm_tokens", "16384", "training tokens that routers are warm-started on; 0: random routers"},
    {"warm_steps", "200", "steps of the warm start's logistic regression"},
    {"router_std", "0.02", "standard deviation of router weights without a warm start"},
    {"router_input", "normed", "what routers read: normed (the FFN's input) or residual"},
    {"distill", "0", "share of the task loss that is KL to the dense model's prediction"},
};

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
