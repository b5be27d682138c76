// In the manner of PrunePath (arXiv 2605.28283): a softmax over experts, and as many as hold a share of it.
#include "core/rng.h"
#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps under the frozen routers"},
    {"active", "0.25", "mean fraction of experts that the share is calibrated to on training text"},
    {"group", "32", "neurons in an expert"},
    kConstruction,
    {"calibration", "131072", "training tokens that routers are fitted on"},
    {"epochs", "20", "passes of the routers' training over them; our choice"},
    {"router_lr", "0.01", "learning rate of the routers; our choice"},
};

// The rule is published (softmax, smallest prefix whose mass reaches a share); how its routers are
// trained is not. Ours: cross-entropy to each expert's share of the output norms, then training of the
// model under frozen routers, then the share calibrated again.
Fitted fit_path(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  int64_t seen_tokens = 0;
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  Plan plan = grouped_plan(in, k, seen_tokens);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::linear, f.router_bias = true, f.squash = Squash::softmax;
    f.rule = Rule::cumulative, f.cut = active;
  }
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  init_predictors(f.params, f.plan, in.seed);
  const Observed seen = observe(in, f.params, f.plan, tokens, Contribution::output_norm);
  f.calibration_tokens = seen_tokens + seen.tokens;
  const PredictorSpec spec{.loss = PredictorLoss::softmax,
                           .lr = get_number(k, "router_lr", 0, 10),
                           .epochs = static_cast<int>(get_whole(k, "epochs", 1, 10000))};
  const std::vector<PredictorSpec> specs(seen.layer.size(), spec);
  f.train_flops +=
      train_predictors(in.backend, f.params, f.plan, seen.layer, specs, in.seed, 0x9a7b);
  f.calibration_tokens += calibrate_cut(in, f.params, f.plan, active, false);
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  if (f.train_tokens > 0)
    f.calibration_tokens += calibrate_cut(in, f.params, f.plan, active, false);
  judge_predictors(in, f, Contribution::output_norm, {});
  return f;
}

}  // namespace

const Method kPrunePath = {
    .name = "prune-path",
    .fit = fit_path,
    .knobs = kKnobs,
    .source = "selection rule: arXiv 2605.28283; training of routers: ours",
    .about = "softmax routers, frozen (ours), experts up to a share of the mass"};

}  // namespace lte
