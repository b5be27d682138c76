#include "bench/synthetic.h"

#include <algorithm>

#include "core/rng.h"

namespace lte {
namespace {

// The value that the share 1 - density of the scores does not exceed.
double quantile(const Tensor& scores, double density) {
  std::vector<float> v(scores.as<float>(), scores.as<float>() + scores.size());
  const auto at =
      v.begin() + static_cast<std::ptrdiff_t>((1 - density) * static_cast<double>(v.size() - 1));
  std::nth_element(v.begin(), at, v.end());
  return *at;
}

}  // namespace

std::vector<int32_t> random_tokens(int64_t n, int vocab) {
  std::vector<int32_t> v;
  Rng rng(11);
  while (static_cast<int64_t>(v.size()) < n) {
    v.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  }
  return v;
}

Plan with_density(Backend& be, const Params& params, Plan plan, double density) {
  for (FfnPlan& p : plan.layer) p.cut = -1;
  if (density >= 1) return plan;
  const int64_t T = std::min<int64_t>(64, params.cfg.max_seq);
  State state = make_state(params, plan, 1, T, T, Keep::one_layer);
  std::vector<int32_t> words = random_tokens(T, params.cfg.vocab);
  Tensor tokens = shape(DType::i32, {T});
  tokens.data = words.data();
  // Once with all experts on, once with the first thresholds: later layers see what they will see.
  for (int round = 0; round < 2; ++round) {
    forward(be, params, plan, tokens, {1, T, 0}, {Gate::hard, Exec::masked}, state);
    be.finish();
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      plan.layer[i].cut = quantile(state.layer[i].scores, density);
    }
  }
  return plan;
}

Open open_gates(const Plan& plan, const State& s, int64_t rows) {
  Open open;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    if (plan.layer[i].router == RouterKind::none) {
      open.active.push_back(1), open.loaded.push_back(1);
      continue;
    }
    const Tensor& gates = s.layer[i].gates;
    const int64_t E = gates.cols();
    std::vector<bool> wanted(static_cast<size_t>(E));
    int64_t on = 0;
    for (int64_t k = 0; k < rows * E; ++k) {
      if (gates.as<float>()[k] != 0) ++on, wanted[static_cast<size_t>(k % E)] = true;
    }
    open.active.push_back(static_cast<double>(on) / static_cast<double>(rows * E));
    open.loaded.push_back(static_cast<double>(std::count(wanted.begin(), wanted.end(), true)) /
                          static_cast<double>(E));
  }
  return open;
}

}  // namespace lte
