// What LTE's paper argues against: noisy top-k softmax routing (Shazeer et al., 2017).
#include "methods/grouping.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps of model and routers together"},
    {"active", "0.25",
     "fraction of experts selected for every token; with one expert its weight is always 1, and "
     "routers "
     "learn nothing"},
    {"group", "32", "neurons in an expert"},
    kConstruction,
    {"noise", "0.3",
     "standard deviation of the noise on the logits while training; fixed, where the "
     "original learns it"},
    {"router_std", "0.02", "standard deviation of initial router weights"},
    looks_at("16384"),
};

// Outputs are weighted by the softmax over the kept logits, so that routers get a gradient.
Fitted fit_noisy(const FitInput& in, const Knobs& k) {
  int64_t seen = 0;
  const Plan plan = top_k_plan(in, k, Squash::kept_softmax, seen);
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  init_routers(f.params, get_number(k, "router_std", 0, 100), 0, in.seed);
  TrainSpec s = training(in, k, get_whole(k, "steps", 0, 1'000'000'000));
  s.terms.train_routers = true;
  s.noise = get_number(k, "noise", 0, 1e6);
  run_stage(in, f, s, "train");
  return f;
}

}  // namespace

const Method kNoisyTopK = {
    .name = "noisy-top-k",
    .fit = fit_noisy,
    .knobs = kKnobs,
    .source = "Shazeer et al., 2017, as LTE's paper uses it",
    .about = "softmax over the kept experts weighs their outputs; no balance loss"};

}  // namespace lte
