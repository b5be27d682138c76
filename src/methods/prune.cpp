// Structured pruning of FFN neurons as a family: how neurons are scored, how layers share what is
// kept, and whether the mean of what is removed stays as a bias. The matrices really shrink. With
// steps, the pruned model is trained on.
#include <cmath>

#include "core/rng.h"
#include "methods/allocation.h"
#include "methods/prune_scores.h"
#include "model/cost.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps in all; 0: pruned, not trained on"},
    {"active", "0.5", "fraction of neurons that is kept"},
    {"score", "wanda",
     "magnitude: norm of the neuron's down row; wanda: mean |down row| x rms activation; flap: "
     "variance of the activation (true; released code: of an aliased mean) x squared norm of the "
     "down row; taylor: |weight x gradient|; mask: learnt hard-concrete gates; random"},
    {"allocation", "auto",
     "uniform: the same fraction in every layer (LLM-Pruner spares the first and last); global: "
     "one threshold on scores standardised by layer; auto: global for flap, else uniform, as "
     "published"},
    {"compensate", "auto",
     "1: what pruned neurons contribute on average is added to the bias; auto: for flap, as "
     "published"},
    {"calibration", "16384", "training tokens that scores look at"},
    {"mask_steps", "400",
     "steps, out of `steps` if there are any, in which mask and model are trained together, not "
     "distilled; logits begin at 2 (Sheared LLaMA: 5) without jitter (ours), the wanted sparsity "
     "is reached after half of them (theirs: a fifth)"},
    {"mask_lr", "0.1",
     "learning rate of the mask and of its multipliers, which take plain ascent (ours); Sheared "
     "LLaMA: 1"},
};

constexpr const char* kScores[] = {"magnitude", "wanda", "flap", "taylor", "mask", "random"};
constexpr const char* kAllocations[] = {"auto", "uniform", "global"};
constexpr const char* kSwitch[] = {"auto", "0", "1"};

// Scores from the down rows, and for wanda and flap from the activations.
std::vector<double> row_scores(const Tensor& down, const std::string& score,
                               const ActivationStats& stats) {
  std::vector<double> out(static_cast<size_t>(down.rows()));
  for (size_t j = 0; j < out.size(); ++j) {
    const float* row = down.as<float>() + static_cast<int64_t>(j) * down.cols();
    double absolute = 0, square = 0;
    for (int64_t d = 0; d < down.cols(); ++d)
      absolute += std::abs(row[d]), square += row[d] * row[d];
    out[j] = std::sqrt(square);
    if (score == "wanda")
      out[j] = absolute / static_cast<double>(down.cols()) * std::sqrt(stats.square[j]);
    if (score == "flap") out[j] = stats.variance[j] * square;
  }
  return out;
}

struct Pruning {
  const FitInput& in;
  std::string score;
  bool global;
  int64_t calibration;
  int64_t seen = 0;
  Plan plan = dense_plan(in.dense.cfg);
  std::vector<ActivationStats> stats = std::vector<ActivationStats>(plan.layer.size());

  bool looks() const { return score == "wanda" || score == "flap"; }

  // Layer by layer, each seeing the layers below as pruned already.
  void uniform(size_t kept, const LayerScores& known) {
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      if (looks()) stats[i] = activation_stats(in, plan, i, calibration, seen);
      plan.layer[i].order = highest(
          known.empty() ? row_scores(in.dense.layer[i].down_w, score, stats[i]) : known[i], kept);
    }
  }
  // All layers scored on the dense model, then one threshold.
  void globally(size_t kept_in_all, LayerScores known) {
    for (size_t i = 0; known.size() < plan.layer.size(); ++i) {
      if (looks()) stats[i] = activation_stats(in, plan, i, calibration, seen);
      known.push_back(row_scores(in.dense.layer[i].down_w, score, stats[i]));
    }
    const std::vector<size_t> counts = global_counts(known, kept_in_all, score != "mask");
    for (size_t i = 0; i < counts.size(); ++i) plan.layer[i].order = highest(known[i], counts[i]);
  }

  // down_b += sum over removed j of mean(a_j) down[j,:]                     (FLAP's baseline bias)
  void compensate(Params& p) {
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      if (stats[i].mean.empty()) {
        stats[i] = activation_stats(in, dense_plan(in.dense.cfg), i, calibration, seen);
      }
      std::vector<bool> kept(stats[i].mean.size());
      for (int j : plan.layer[i].order) kept[static_cast<size_t>(j)] = true;
      const Tensor& down = in.dense.layer[i].down_w;
      for (int64_t j = 0; j < down.rows(); ++j) {
        if (kept[static_cast<size_t>(j)]) continue;
        for (int64_t d = 0; d < down.cols(); ++d) {
          p.layer[i].down_b.as<float>()[d] += static_cast<float>(
              stats[i].mean[static_cast<size_t>(j)] * down.as<float>()[j * down.cols() + d]);
        }
      }
    }
  }
};

LayerScores random_scores(const FitInput& in) {
  LayerScores all;
  for (size_t i = 0; i < in.dense.layer.size(); ++i) {
    Rng rng(hash64(in.seed, 0x9a4d, i));
    all.emplace_back();
    for (int j = 0; j < in.dense.cfg.ffn; ++j) all.back().push_back(rng.uniform());
  }
  return all;
}

Fitted fit_prune(const FitInput& in, const Knobs& k) {
  const std::string allocation = get_choice(k, "allocation", kAllocations);
  const std::string compensate = get_choice(k, "compensate", kSwitch);
  Pruning p{.in = in,
            .score = get_choice(k, "score", kScores),
            .global = false,
            .calibration = get_whole(k, "calibration", 1, 1 << 24)};
  LTE_CHECK(compensate != "1" || p.score != "mask",
            "knob compensate=1: not with score=mask, which trains the model while it looks");
  p.global = allocation == "global" || (allocation == "auto" && p.score == "flap");
  const double active = get_active(k), F = in.dense.cfg.ffn;
  const auto kept = static_cast<size_t>(std::round(active * F));
  LTE_CHECK(kept > 0, "knob active=" + k.at("active") + ": would keep no neuron");
  const int64_t steps = get_whole(k, "steps", 0, 1'000'000'000);
  TrainSpec train = training(in, k, steps);
  const MaskSpec mask{.steps = get_whole(k, "mask_steps", 1, 1'000'000'000),
                      .lr = get_number(k, "mask_lr", 0, 100),
                      .active = active,
                      .global = p.global};

  LayerScores known;
  Params trained;  // by the mask's stage
  Fitted f{.params = {}, .plan = {}, .histograms = {}};
  if (p.score == "taylor") {
    known = taylor_scores(in, p.calibration, p.seen);
    f.train_flops += static_cast<double>(p.seen) * 2 /
                     3 *  // its backward; fit() counts the forward
                     train_flops(in.dense.cfg, p.plan, in.seq, false);
  }
  if (p.score == "random") known = random_scores(in);
  if (p.score == "mask") {
    LTE_CHECK(steps == 0 || mask.steps < steps, "knob mask_steps: not fewer than steps");
    LearntMask learnt = learn_mask(in, train, mask);
    known = std::move(learnt.logits), trained = std::move(learnt.params);
    TrainSpec used = train;
    used.steps = mask.steps;
    f.train_tokens = trained_tokens(used, in.train);
    f.train_flops =
        static_cast<double>(f.train_tokens) *
        train_flops(in.dense.cfg, p.plan, static_cast<int>(trained_seq(used, in.train)), false);
    if (steps > 0) train.steps -= mask.steps, train.first += static_cast<uint64_t>(mask.steps);
  }
  if (p.global) {
    p.globally(
        static_cast<size_t>(std::round(active * F * static_cast<double>(in.dense.cfg.layers))),
        known);
  } else {
    p.uniform(kept, known);
  }
  const bool bias = compensate == "1" || (compensate == "auto" && p.score == "flap");
  for (FfnPlan& l : p.plan.layer) l.down_bias = bias;
  f.plan = p.plan, f.params = apply_order(p.score == "mask" ? trained : in.dense, p.plan);
  if (bias) p.compensate(f.params);
  f.calibration_tokens = p.seen;
  run_stage(in, f, train, "train");
  return f;
}

}  // namespace

const Method kPrune = {
    .name = "prune",
    .fit = fit_prune,
    .knobs = kKnobs,
    .source =
        "magnitude; Wanda-sp and FLAP: An et al., 2024; Taylor: Ma et al., 2023; mask: Xia et al., "
        "2024",
    .about = "static: removes the lowest-scored neurons for good"};

}  // namespace lte
