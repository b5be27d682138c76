// What bounds and controls the others: oracles that see the activations before they choose, the
// exact sparsity of a ReLU model, and CATS, which sees half of them.
#include <cmath>

#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kOracleKnobs[] = {
    {"steps", "0", "training steps under the oracle's gates"},
    {"active", "0.25", "fraction of experts kept for every token and layer"},
    {"group", "1", "neurons in an expert"},
    kConstruction,
    {"by", "magnitude", "magnitude: sum |a|; contribution: sum |a| ||down row||"},
    {"calibration", "16384", "training tokens that coactivation looks at"},
};
constexpr const char* kBy[] = {"magnitude", "contribution"};

Fitted fit_oracle(const FitInput& in, const Knobs& k) {
  const double active = get_number(k, "active", 0, 1);
  const int group = group_of(in, k);
  int64_t seen = 0;
  const std::string construction = construction_of(k);
  Plan plan = grouped_plan(in, group > 1 ? construction : "contiguous", group,
                           get_whole(k, "calibration", 1, 1 << 24), seen);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::activation;
    f.weighted = get_choice(k, "by", kBy) == "contribution";
    f.rule = Rule::top_k, f.cut = kept_experts(in.dense.cfg, f, active);
  }
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  return f;
}

constexpr KnobRow kCatsKnobs[] = {
    {"steps", "0", "training steps under the thresholds; 0: as published without fine-tuning"},
    {"active", "0.25", "fraction of neurons whose gate is above the layer's threshold"},
};

// Keeps neuron j where |act(x Wg)_j| is above the layer's percentile on training text.
Fitted fit_cats(const FitInput& in, const Knobs& k) {
  LTE_CHECK(in.dense.cfg.gated,
            "cats: wants a gated FFN (the LLaMA family); it thresholds the gate");
  const double active = get_number(k, "active", 0, 1);
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

constexpr KnobRow kTealKnobs[] = {
    {"steps", "0", "training steps of the dense model before thresholds are set; 0: as published"},
    {"active", "0.5", "fraction of the FFN's inputs and of its neurons that is kept"},
    {"calibration", "16384", "training tokens that thresholds are taken from"},
};

// Zeroes what is small of the inputs of up, gate and down, by one magnitude threshold a matrix input,
// the same fraction everywhere (the paper's uniform form; attention is left as it is).
Fitted fit_teal(const FitInput& in, const Knobs& k) {
  const double active = get_number(k, "active", 0, 1);
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

constexpr KnobRow kReluKnobs[] = {
    {"steps", "600", "training steps after the activation is swapped"},
};

// The activation becomes ReLU; neurons whose activation is 0 are skipped, which changes nothing.
Fitted fit_relu(const FitInput& in, const Knobs& k) {
  Params swapped = clone(in.dense);
  std::string& name = swapped.cfg.name;
  name += name.find(':') == name.npos ? ":act=relu" : ",act=relu";
  swapped.cfg.act = Act::relu;
  Plan plan = dense_plan(swapped.cfg);
  Fitted f{.params = std::move(swapped), .plan = plan, .histograms = {}};
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  for (FfnPlan& l : f.plan.layer) {
    l.group = 1, l.rule = Rule::threshold, l.cut = 0;
    l.router = f.params.cfg.gated ? RouterKind::gate : RouterKind::activation;
  }
  f.params = apply_order(f.params, f.plan);
  return f;
}

}  // namespace

const Method kOracle = {
    .name = "oracle",
    .fit = fit_oracle,
    .knobs = kOracleKnobs,
    .source = "keep-large-activations, and its contribution-weighted form",
    .about = "upper bound: sees all activations, keeps the largest, saves little"};
const Method kCats = {.name = "cats",
                      .fit = fit_cats,
                      .knobs = kCatsKnobs,
                      .source = "Lee et al., COLM 2024, arXiv 2404.08763",
                      .about = "gated FFNs only: thresholds the gate, skips up and down",
                      .gated_only = true};
const Method kTeal = {
    .name = "teal",
    .fit = fit_teal,
    .knobs = kTealKnobs,
    .source = "Liu et al., 2024, arXiv 2408.14690",
    .about =
        "training-free: drops small inputs of every FFN matrix; never trained under "
        "its thresholds"};
const Method kRelu = {.name = "relu",
                      .fit = fit_relu,
                      .knobs = kReluKnobs,
                      .source = "control, after Mirzadeh et al., 2023, arXiv 2310.04564",
                      .about = "the activation swapped for ReLU and trained on; skips exact zeros"};

}  // namespace lte
