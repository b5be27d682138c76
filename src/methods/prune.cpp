// Structured pruning of FFN neurons, by magnitude and by Wanda-sp (as in the code of FLAP, An et
// al., AAAI 2024). The matrices really shrink. With steps, the pruned model is trained on.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "methods/methods.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps after pruning; 0: as published"},
    {"active", "0.5", "fraction of neurons that is kept in every layer"},
    {"score", "wanda",
     "magnitude: norm of the neuron's down row; wanda: mean |down row| x rms activation"},
    {"calibration", "16384", "training tokens that Wanda-sp looks at"},
};

constexpr const char* kScores[] = {"magnitude", "wanda"};

// Sum of squares of every neuron's activation of layer i, over calibration tokens; layers below are
// already pruned.
std::vector<double> squared_activations(const FitInput& in, const Plan& plan, size_t i,
                                        int64_t tokens, int64_t& seen) {
  std::vector<double> sum(static_cast<size_t>(in.dense.cfg.ffn));
  seen += calibrate(in, apply_order(in.dense, plan), plan, tokens, [&](const State& state) {
    const Tensor& act = state.layer[i].act;
    for (int64_t n = 0; n < act.rows(); ++n) {
      for (int64_t k = 0; k < act.cols(); ++k) {
        const double a = act.as<float>()[n * act.cols() + k];
        sum[static_cast<size_t>(k)] += a * a;
      }
    }
  });
  return sum;
}

std::vector<double> neuron_scores(const FitInput& in, const Plan& plan, size_t i, bool wanda,
                                  int64_t tokens, int64_t& seen) {
  const Tensor& down = in.dense.layer[i].down_w;
  std::vector<double> score(static_cast<size_t>(down.rows()));
  for (size_t j = 0; j < score.size(); ++j) {
    const float* row = down.as<float>() + static_cast<int64_t>(j) * down.cols();
    double absolute = 0, square = 0;
    for (int64_t d = 0; d < down.cols(); ++d)
      absolute += std::abs(row[d]), square += row[d] * row[d];
    score[j] = wanda ? absolute / static_cast<double>(down.cols()) : std::sqrt(square);
  }
  if (!wanda) return score;
  const std::vector<double> squares = squared_activations(in, plan, i, tokens, seen);
  for (size_t j = 0; j < score.size(); ++j) score[j] *= std::sqrt(squares[j]);
  return score;
}

Fitted fit_prune(const FitInput& in, const Knobs& k) {
  const bool wanda = get_choice(k, "score", kScores) == "wanda";
  const auto kept = static_cast<size_t>(
      std::round(get_number(k, "active", 0, 1) * static_cast<double>(in.dense.cfg.ffn)));
  LTE_CHECK(kept > 0, "knob active=" + k.at("active") + ": would keep no neuron");
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  int64_t seen = 0;
  Plan plan = dense_plan(in.dense.cfg);
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const std::vector<double> score = neuron_scores(in, plan, i, wanda, tokens, seen);
    std::vector<int> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return score[static_cast<size_t>(a)] > score[static_cast<size_t>(b)];
    });
    order.resize(kept);
    std::sort(order.begin(), order.end());
    plan.layer[i].order = std::move(order);
  }
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  return f;
}

}  // namespace

const Method kPrune = {
    .name = "prune",
    .fit = fit_prune,
    .knobs = kKnobs,
    .source = "magnitude; Wanda-sp: Sun et al., 2024, in the form of An et al., 2024",
    .about = "static: removes the lowest-scored neurons of every layer for good"};

}  // namespace lte
