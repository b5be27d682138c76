// TEAL (Liu et al., 2024): thresholds on the inputs of the FFN's matrices, from calibration text.
#include <algorithm>
#include <cmath>

#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps of the dense model before thresholds are set; 0: as published"},
    {"active", "0.5", "fraction of the FFN's inputs and of its neurons that is kept"},
    {"calibration", "16384",
     "training tokens that thresholds are taken from, as exact quantiles of |x| (published: from a "
     "histogram)"},
};

// Zeroes what is small of the inputs of up, gate and down, by one magnitude threshold a matrix input,
// the same fraction everywhere (the paper's uniform form; attention is left as it is).
Fitted fit_teal(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  Fitted dense{.params = clone(in.dense), .plan = dense_plan(in.dense.cfg), .histograms = {}};
  run_stage(in, dense, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  std::vector<std::vector<float>> inputs(dense.params.layer.size()), acts(inputs.size());
  const auto magnitudes = [](std::vector<float>& to, const Tensor& t) {
    for (int64_t i = 0; i < t.size(); ++i) to.push_back(std::abs(t.as<float>()[i]));
  };
  const int64_t seen = calibrate(in, dense.params, dense.plan, tokens, [&](const State& s) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      magnitudes(inputs[i], s.layer[i].norm2), magnitudes(acts[i], s.layer[i].act);
    }
  });
  Plan plan = dense.plan;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    FfnPlan& f = plan.layer[i];
    f.group = 1, f.router = RouterKind::activation, f.rule = Rule::threshold;
    f.cut = std::max(0.f, quantile(std::move(acts[i]), active));
    f.in_cut = std::max(0.f, quantile(std::move(inputs[i]), active));
  }
  Fitted f{.params = apply_order(dense.params, plan), .plan = plan, .histograms = {}};
  f.train_tokens = dense.train_tokens, f.train_flops = dense.train_flops;
  f.calibration_tokens = seen;
  return f;
}

}  // namespace

const Method kTeal = {
    .name = "teal",
    .fit = fit_teal,
    .knobs = kKnobs,
    .source = "Liu et al., 2024, arXiv 2408.14690",
    .about =
        "training-free: drops small inputs of every FFN matrix; never trained under "
        "its thresholds"};

}  // namespace lte
