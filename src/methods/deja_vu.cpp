// Deja Vu (Liu et al., ICML 2023): a low-rank predictor in every layer says which neurons will be
// active; only those are computed.
#include <algorithm>

#include "core/rng.h"
#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps in all; 0: as published"},
    {"before", "0",
     "share of the steps that the dense model is trained on for before predictors are fitted (1: "
     "the "
     "paper's protocol on a fine-tuned model); the rest is trained under the frozen predictors"},
    {"active", "0.25", "fraction of neurons computed for every token"},
    {"selection", "top_k",
     "top_k (as released): a fixed number; threshold: on the predictor's output, calibrated by "
     "layer to "
     "`active` on training text"},
    {"group", "1", "1 (paper): single neurons; 32: blocks of k-means clusters"},
    {"rank", "16", "hidden units of the predictor; the paper uses 1000 of 12288"},
    {"label", "auto",
     "a neuron counts as active above this magnitude, a block above this sum of magnitudes; auto: "
     "in an ungated FFN 0 for "
     "single neurons of ReLU (paper), else what the share `active` of all exceeds"},
    {"label_share", "1",
     "below 1: that part of `active` exceeds it, also of ReLU; the predictor then ranks by what "
     "is large, not by what is computed"},
    {"look_ahead", "0", "1: predictors read the FFN input of the layer below, to hide their time"},
    {"calibration", "131072",
     "training tokens that predictors are fitted on; the paper uses 400,000"},
    {"epochs", "20", "most passes over them; stops after 5 without better recall (paper)"},
    {"router_lr", "1e-3", "learning rate of the predictor's AdamW, weight decay 0.01 (paper)"},
};
constexpr const char* kSelections[] = {"top_k", "threshold"};

constexpr double kAuto = -1;

// What a neuron counts as active above: `value`, or (kAuto) what the share `part * active` of all exceeds.
struct Label {
  double value, active, part;
};
double label_of(const FitInput& in, const Label& l, const Contributions& c) {
  if (l.value != kAuto) return l.value;
  const bool zeros =
      in.dense.cfg.act == Act::relu && !in.dense.cfg.gated && c.E == in.dense.cfg.ffn;
  return zeros && l.part == 1 ? 0 : quantile(c.output, l.part * l.active);
}

// Returns every layer's label.
std::vector<double> fit_predictors(const FitInput& in, Fitted& f, const PredictorSpec& spec,
                                   int64_t tokens, const Label& label) {
  const Observed seen = observe(in, f.params, f.plan, tokens, Contribution::measured);
  f.calibration_tokens += seen.tokens;
  init_predictors(f.params, f.plan, in.seed);
  std::vector<double> labels;
  std::vector<PredictorSpec> specs(seen.layer.size(), spec);
  for (size_t i = 0; i < seen.layer.size(); ++i)
    labels.push_back(specs[i].label = label_of(in, label, seen.layer[i]));
  f.train_flops +=
      train_predictors(in.backend, f.params, f.plan, seen.layer, specs, in.seed, 0xdeb);
  if (f.plan.layer[0].rule == Rule::threshold) {
    f.calibration_tokens += calibrate_cut(in, f.params, f.plan, label.active, true);
  }
  return labels;
}

Fitted fit_deja_vu(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  const int group = group_of(in, k);
  const int64_t steps = get_whole(k, "steps", 0, 1'000'000'000);
  const auto before =
      static_cast<int64_t>(get_number(k, "before", 0, 1) * static_cast<double>(steps));
  const bool top_k = get_choice(k, "selection", kSelections) == "top_k";
  const bool ahead = get_whole(k, "look_ahead", 0, 1) == 1;
  const auto rank = static_cast<int>(get_whole(k, "rank", 1, 1 << 16));
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  const Label label{.value = k.at("label") == "auto" ? kAuto : get_number(k, "label", 0, 1e9),
                    .active = active,
                    .part = get_number(k, "label_share", 0.001, 1)};
  const PredictorSpec spec{.loss = PredictorLoss::weighted,
                           .lr = get_number(k, "router_lr", 0, 10),
                           .decay = 0.01,
                           .batch = 1024,
                           .epochs = static_cast<int>(get_whole(k, "epochs", 1, 10000)),
                           .held_out = 0.05,
                           .patience = 5};

  Fitted dense{.params = clone(in.dense), .plan = dense_plan(in.dense.cfg), .histograms = {}};
  run_stage(in, dense, without_teacher(training(in, k, before)), "before");
  int64_t none = 0;
  const FitInput tuned = with_dense(in, dense.params);
  Plan plan = grouped_plan(tuned, group > 1 ? "kmeans" : "contiguous", group, 0, none);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::two_layer;
    f.width = rank;
    f.input = ahead ? RouterInput::ahead : RouterInput::normed;
    f.rule = top_k ? Rule::top_k : Rule::threshold;
    f.squash = Squash::none;
    f.cut = top_k ? kept_experts(in.dense.cfg, f, active) : 0;
  }
  Fitted f{.params = apply_order(dense.params, plan), .plan = plan, .histograms = {}};
  f.train_tokens = dense.train_tokens, f.train_flops = dense.train_flops;
  const std::vector<double> labels = fit_predictors(tuned, f, spec, tokens, label);
  TrainSpec after = training(in, k, steps - before);
  after.first += static_cast<uint64_t>(before);
  run_stage(in, f, after, "train");
  if (!top_k && after.steps > 0)
    f.calibration_tokens += calibrate_cut(tuned, f.params, f.plan, active, true);
  judge_predictors(tuned, f, Contribution::measured, labels);
  return f;
}

}  // namespace

const Method kDejaVu = {
    .name = "deja-vu",
    .fit = fit_deja_vu,
    .knobs = kKnobs,
    .source = "Liu et al., ICML 2023, arXiv 2310.17157",
    .about = "low-rank predictors of active neurons, trained on the frozen model"};

}  // namespace lte
