// CATS (Lee et al., COLM 2024): thresholds on the gate of a gated FFN, which is computed in full.
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0",
     "training steps under the thresholds, of all weights (paper: about 1 %); 0: as published "
     "without fine-tuning"},
    {"active", "0.25", "fraction of neurons whose gate is above the layer's threshold"},
};

// Keeps neuron j where |act(x Wg)_j| is above the layer's percentile on training text.
Fitted fit_cats(const FitInput& in, const Knobs& k) {
  LTE_CHECK(in.dense.cfg.gated,
            "cats: wants a gated FFN (the LLaMA family); it thresholds the gate");
  const double active = get_active(k);
  Plan plan = dense_plan(in.dense.cfg);
  for (FfnPlan& f : plan.layer) {
    f.group = 1, f.router = RouterKind::gate, f.rule = Rule::threshold, f.cut = 0;
  }
  Fitted f{.params = clone(in.dense), .plan = plan, .histograms = {}};
  f.params = apply_order(in.dense, plan);
  f.calibration_tokens = calibrate_cut(in, f.params, f.plan, active, true);
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  if (f.train_tokens > 0) {
    f.calibration_tokens += calibrate_cut(in, f.params, f.plan, active, true);
  }
  return f;
}

}  // namespace

const Method kCats = {.name = "cats",
                      .fit = fit_cats,
                      .knobs = kKnobs,
                      .source = "Lee et al., COLM 2024, arXiv 2404.08763",
                      .about = "gated FFNs only: thresholds the gate, skips up and down",
                      .gated_only = true};

}  // namespace lte
