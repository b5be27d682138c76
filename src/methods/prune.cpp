// Structured pruning of FFN neurons, by magnitude and by Wanda-sp (as in the code of FLAP, An et
// al., AAAI 2024). The matrices really shrink. With steps, the pruned model is trained on.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "methods/methods.h"
#include "model/batches.h"

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
                                        int64_t tokens) {
  const Params p = apply_order(in.dense, plan);
  const int64_t T = std::min(in.seq, p.cfg.max_seq), B = 8;
  State state = make_state(p, plan, B, T, T, Keep::all_layers);
  std::vector<int32_t> inputs(static_cast<size_t>(B * T)), targets(inputs.size());
  Tensor view = shape(DType::i32, {B * T});
  view.data = inputs.data();
  std::vector<double> sum(static_cast<size_t>(p.cfg.ffn));
  for (int64_t batch = 0; batch < std::max<int64_t>(1, tokens / (B * T)); ++batch) {
    for (int64_t row = 0; row < B; ++row) {
      const Window w = train_window(in.train, static_cast<int>(T), hash64(in.seed, 0xca1),
                                    static_cast<uint64_t>(batch), static_cast<uint64_t>(row));
      fill_row(in.train, w, row, T, inputs, targets);
    }
    forward(in.backend, p, plan, view, {B, T, 0}, {Gate::hard, Exec::masked}, state);
    const Tensor& act = state.layer[i].act;
    for (int64_t n = 0; n < act.rows(); ++n) {
      for (int64_t j = 0; j < act.cols(); ++j) {
        const double a = act.as<float>()[n * act.cols() + j];
        sum[static_cast<size_t>(j)] += a * a;
      }
    }
  }
  return sum;
}

std::vector<double> neuron_scores(const FitInput& in, const Plan& plan, size_t i, bool wanda,
                                  int64_t tokens) {
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
  const std::vector<double> squares = squared_activations(in, plan, i, tokens);
  for (size_t j = 0; j < score.size(); ++j) score[j] *= std::sqrt(squares[j]);
  return score;
}

Fitted fit_prune(const FitInput& in, const Knobs& k) {
  const bool wanda = get_choice(k, "score", kScores) == "wanda";
  const auto kept = static_cast<size_t>(std::max(
      1.0, std::round(get_number(k, "active", 0, 1) * static_cast<double>(in.dense.cfg.ffn))));
  const int64_t tokens = get_whole(k, "calibration", 1, 1 << 24);
  Plan plan = dense_plan(in.dense.cfg);
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const std::vector<double> score = neuron_scores(in, plan, i, wanda, tokens);
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
  if (wanda) f.calibration_tokens = tokens;
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
