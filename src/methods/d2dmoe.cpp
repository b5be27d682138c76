// D2DMoE (Szatkowski et al., NeurIPS 2024): activations are made sparse first, then split into small
// experts whose output norms a router regresses; the number of experts follows from the prediction.
#include "core/rng.h"
#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps in all; 0: none"},
    {"before", "1",
     "share of the steps that the dense model is trained on with the sparsity loss before routers "
     "are "
     "fitted; 1 (paper): all; the rest is trained under the frozen routers, the rule then "
     "calibrated "
     "again"},
    {"active", "0.25", "mean fraction of experts that the rule is calibrated to on training text"},
    {"rule", "relative_max",
     "relative_max: predicted norms of at least a share of the largest; cumulative: the largest up "
     "to "
     "a share of the sum"},
    {"hoyer", "0.3",
     "weight of the squared Hoyer sparsity of the activations over the FFN's width, between "
     "1/width and "
     "1; the paper's 5e-4 without that division is 8 at its width of 16384. For GPT-2 the paper "
     "takes L1 "
     "of ReLU or of clamped pre-activations"},
    {"group", "4", "neurons in an expert; the paper uses 4 for GPT-2"},
    kConstruction,
    {"width", "32", "hidden units of the router; the paper uses 128 of 768"},
    {"calibration", "131072", "training tokens that routers are fitted on"},
    {"epochs", "30", "passes of the routers' training over them"},
    {"router_lr", "3e-3", "learning rate of the routers (paper: 3e-3 to 5e-3)"},
};
constexpr const char* kRules[] = {"relative_max", "cumulative"};

Fitted fit_d2dmoe(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  const int group = group_of(in, k);
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  const auto width = static_cast<int>(get_whole(k, "width", 1, 1 << 16));
  const bool cumulative = get_choice(k, "rule", kRules) == "cumulative";
  const std::string construction = construction_of(k);
  const PredictorSpec spec{.loss = PredictorLoss::square,
                           .lr = get_number(k, "router_lr", 0, 10),
                           .epochs = static_cast<int>(get_whole(k, "epochs", 1, 10000))};
  Fitted dense{.params = clone(in.dense), .plan = dense_plan(in.dense.cfg), .histograms = {}};
  const int64_t steps = get_whole(k, "steps", 0, 1'000'000'000);
  const auto before =
      static_cast<int64_t>(get_number(k, "before", 0, 1) * static_cast<double>(steps));
  TrainSpec s = without_teacher(training(in, k, before));
  s.terms.hoyer = get_number(k, "hoyer", 0, 1e6) / in.dense.cfg.ffn;
  run_stage(in, dense, s, "train");
  const FitInput tuned = with_dense(in, dense.params);
  int64_t looked = 0;
  Plan plan = grouped_plan(tuned, construction, group, tokens, looked);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::two_layer, f.inner = Inner::relu, f.squash = Squash::absolute;
    f.width = width;
    f.rule = cumulative ? Rule::cumulative : Rule::relative_max;
  }
  Fitted f{.params = apply_order(dense.params, plan), .plan = plan, .histograms = {}};
  f.train_tokens = dense.train_tokens, f.train_flops = dense.train_flops;
  init_predictors(f.params, f.plan, in.seed);
  const Observed seen = observe(tuned, f.params, f.plan, tokens, Contribution::output_norm);
  f.calibration_tokens = looked + seen.tokens;
  const std::vector<PredictorSpec> specs(seen.layer.size(), spec);
  f.train_flops +=
      train_predictors(in.backend, f.params, f.plan, seen.layer, specs, in.seed, 0xd2d);
  f.calibration_tokens += calibrate_cut(tuned, f.params, f.plan, active, false);
  if (before < steps) {
    TrainSpec after = training(in, k, steps - before);
    after.first += static_cast<uint64_t>(before);
    run_stage(tuned, f, after, "adapt");
    f.calibration_tokens += calibrate_cut(tuned, f.params, f.plan, active, false);
  }
  judge_predictors(tuned, f, Contribution::output_norm, {});
  return f;
}

}  // namespace

const Method kD2dmoe = {
    .name = "d2dmoe",
    .fit = fit_d2dmoe,
    .knobs = kKnobs,
    .source = "Szatkowski et al., NeurIPS 2024, arXiv 2310.04361",
    .about = "sparsity loss, routers that regress norms, dynamic number of experts"};

}  // namespace lte
