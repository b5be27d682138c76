// MoEfication (Zhang et al., Findings of ACL 2022): neurons grouped into experts, and a fixed number
// of them selected for every token by an oracle, by similarity, or by a trained predictor.
#include <cmath>

#include "core/rng.h"
#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps after the conversion, routers frozen; 0: as published"},
    {"active", "0.25", "fraction of experts selected for every token; the paper uses 0.2"},
    {"group", "32", "neurons in an expert"},
    kConstruction,
    {"selection", "mlp",
     "mlp: trained predictor; similarity: distance to the experts' centres; oracle: by the "
     "activations themselves"},
    {"score", "auto",
     "what an expert is worth. positive (paper): sum of positive activations, for ReLU; output: "
     "the length of its output, our extension to others after D2DMoE, for an oracle the length of "
     "activations times down rows; norm: the length of its activations; auto: positive for "
     "ungated ReLU, else output"},
    {"calibration", "131072", "training tokens that construction and predictor look at"},
    {"epochs", "30", "passes of the predictor's training over them; the paper's code uses 30"},
    {"router_lr", "0.01", "learning rate of the predictor; the paper's code uses 0.01"},
};
constexpr const char* kSelections[] = {"mlp", "similarity", "oracle"};
constexpr const char* kScores[] = {"auto", "positive", "output", "norm"};

// Mean of the normalised first-matrix rows of every expert, in plan order: [E,D].
std::vector<float> centres(const LayerParams& l, const FfnPlan& f) {
  const Tensor& rows = l.gate_w ? l.gate_w : l.up_w;
  const int64_t F = rows.rows(), D = rows.cols();
  std::vector<float> out(static_cast<size_t>(F / f.group * D));
  for (int64_t j = 0; j < F; ++j) {
    const float* row = rows.as<float>() + j * D;
    double square = 0;
    for (int64_t d = 0; d < D; ++d) square += row[d] * row[d];
    const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) / f.group : 0);
    for (int64_t d = 0; d < D; ++d) out[static_cast<size_t>(j / f.group * D + d)] += scale * row[d];
  }
  return out;
}

// Ranks experts by -||x - c||^2 = 2 x c - ||c||^2 - 1 for x of length 1: a linear router.
void fill_similarity(LayerParams& l, const FfnPlan& f) {
  const std::vector<float> c = centres(l, f);
  const int64_t E = l.router_w.rows(), D = l.router_w.cols();
  std::copy(c.begin(), c.end(), l.router_w.as<float>());
  for (int64_t e = 0; e < E; ++e) {
    double square = 0;
    for (int64_t d = 0; d < D; ++d) square += std::pow(c[static_cast<size_t>(e * D + d)], 2);
    l.router_b.as<float>()[e] = static_cast<float>(-0.5 * square);
  }
}

// First layer: the centres; second: the identity; then BCE to the share of the batch's largest score.
void train_mlp(const FitInput& in, Fitted& f, const PredictorSpec& spec, int64_t tokens,
               Contribution worth) {
  const Observed seen = observe(in, f.params, f.plan, tokens, worth);
  f.calibration_tokens += seen.tokens;
  for (size_t i = 0; i < f.params.layer.size(); ++i) {
    LayerParams& l = f.params.layer[i];
    const std::vector<float> c = centres(l, f.plan.layer[i]);
    std::copy(c.begin(), c.end(), l.router_in.as<float>());
    for (int64_t e = 0; e < l.router_w.rows(); ++e)
      l.router_w.as<float>()[e * l.router_w.cols() + e] = 1;
  }
  const std::vector<PredictorSpec> specs(seen.layer.size(), spec);
  f.train_flops +=
      train_predictors(in.backend, f.params, f.plan, seen.layer, specs, in.seed, 0x30e);
}

Fitted fit_moefication(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
  const std::string selection = get_choice(k, "selection", kSelections);
  const std::string score = get_choice(k, "score", kScores);
  const bool zeros = in.dense.cfg.act == Act::relu && !in.dense.cfg.gated;
  const bool positive = score == "positive" || (score == "auto" && zeros);
  const bool output = score == "output" || (score == "auto" && !zeros);
  const Contribution worth = output ? Contribution::output_norm : Contribution::measured;
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  const TrainSpec train = training(in, k, get_whole(k, "steps", 0, 1'000'000'000));
  const PredictorSpec spec{.loss = PredictorLoss::logistic,
                           .lr = get_number(k, "router_lr", 0, 10),
                           .batch = 512,
                           .epochs = static_cast<int>(get_whole(k, "epochs", 1, 10000)),
                           .active = active};
  int64_t seen = 0;
  Plan plan = grouped_plan(in, k, seen);
  for (FfnPlan& f : plan.layer) {
    f.rule = Rule::top_k, f.cut = kept_experts(in.dense.cfg, f, active);
    f.measure = positive ? Measure::positive : Measure::norm;
    f.weighted = output;
    f.router = RouterKind::activation;
    if (selection == "oracle") continue;
    f.input = RouterInput::unit, f.squash = Squash::none;
    f.router = selection == "mlp" ? RouterKind::two_layer : RouterKind::linear;
    f.router_bias = selection == "similarity";
    f.inner = Inner::tanh, f.width = static_cast<int>(experts(in.dense.cfg, f));
  }
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  if (selection == "mlp") train_mlp(in, f, spec, tokens, worth);
  for (size_t i = 0; selection == "similarity" && i < f.params.layer.size(); ++i) {
    fill_similarity(f.params.layer[i], f.plan.layer[i]);
  }
  run_stage(in, f, train, "train");
  if (selection != "oracle") judge_predictors(in, f, worth, {});
  return f;
}

}  // namespace

const Method kMoefication = {
    .name = "moefication",
    .fit = fit_moefication,
    .knobs = kKnobs,
    .source = "Zhang et al., Findings of ACL 2022, arXiv 2110.01786",
    .about = "experts by clustering, a fixed number of them selected for every token"};

}  // namespace lte
