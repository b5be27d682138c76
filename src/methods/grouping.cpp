#include "methods/grouping.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/threads.h"
#include "methods/aligned.h"
#include "methods/cluster.h"

namespace lte {
namespace {

constexpr const char* kConstructions[] = {"kmeans", "coactivation", "random", "contiguous"};

// For every layer, the sum over tokens of |a_i| |a_j|: for ReLU the paper's edge weight, which the released
// code caps at 1 for every 8 tokens, and its extension to soft activations.
std::vector<std::vector<float>> coactivation(const FitInput& in, int64_t tokens, int64_t& seen) {
  const auto F = static_cast<int64_t>(in.dense.cfg.ffn);
  const Memory where = in.backend.memory;
  std::vector<Floats> sums(in.dense.layer.size(), Floats(where, static_cast<size_t>(F * F)));
  Floats absolute(where);
  seen += calibrate(in, in.dense, dense_plan(in.dense.cfg), tokens, [&](const State& s) {
    for (size_t i = 0; i < sums.size(); ++i) {
      const Tensor& act = s.layer[i].act;
      const Tensor a = view(absolute, {act.rows(), F}), sum = view(sums[i], {F, F});
      std::copy_n(act.as<float>(), act.size(), absolute.begin());
      in.backend.ops.absolute(*in.backend.ctx, a);
      in.backend.ops.gemm_add(*in.backend.ctx, sum, a, true, a, false);
      in.backend.finish();
    }
  });
  std::vector<std::vector<float>> together;
  for (const Floats& s : sums) together.emplace_back(s.begin(), s.end());
  return together;
}

}  // namespace

int group_of(const FitInput& in, const Knobs& k) {
  const auto group = static_cast<int>(get_whole(k, "group", 1, 1 << 20));
  LTE_CHECK(
      in.dense.cfg.ffn % group == 0,
      fmt::format("knob group={}: wants a divisor of the FFN width {}", group, in.dense.cfg.ffn));
  return group;
}

std::string construction_of(const Knobs& k) {
  return get_choice(k, "construction", kConstructions);
}

Plan grouped_plan(const FitInput& in, const std::string& construction, int group, int64_t tokens,
                  int64_t& seen) {
  get_choice({{"construction", construction}}, "construction", kConstructions);
  const ModelConfig& c = in.dense.cfg;
  Plan plan = dense_plan(c);
  std::vector<std::vector<float>> together;
  if (construction == "coactivation") together = coactivation(in, tokens, seen);
  for_each_piece(in.backend.threads, static_cast<int64_t>(plan.layer.size()), [&](int64_t layer) {
    const auto i = static_cast<size_t>(layer);
    FfnPlan& f = plan.layer[i];
    const LayerParams& l = in.dense.layer[i];
    const uint64_t seed = hash64(in.seed, 0xc1, i);
    f.group = group;
    if (construction == "kmeans") {
      f.order = balanced_kmeans(c.gated ? l.gate_w : l.up_w, group, seed);
    } else if (construction == "coactivation") {
      f.order = balanced_partition(together[i], c.ffn, group, seed);
    } else {
      f.order.resize(static_cast<size_t>(c.ffn));
      std::iota(f.order.begin(), f.order.end(), 0);
      Rng rng(seed);
      if (construction == "random") shuffle(f.order, rng);
    }
  });
  return plan;
}

Plan grouped_plan(const FitInput& in, const Knobs& k, int64_t& seen) {
  return grouped_plan(in, k.at("construction"), group_of(in, k),
                      get_whole(k, "calibration", 1, 1 << 24), seen);
}

Plan routed_plan(const FitInput& in, const Knobs& k, bool bias, double tau, int64_t& seen) {
  const RouterInput input = router_input(k);
  Plan plan = grouped_plan(in, k, seen);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::linear, f.router_bias = bias, f.input = input;
    f.rule = Rule::threshold, f.cut = tau;
  }
  return plan;
}

Plan top_k_plan(const FitInput& in, const Knobs& k, Squash squash, int64_t& seen) {
  const double active = get_active(k);
  Plan plan = grouped_plan(in, k, seen);
  for (FfnPlan& f : plan.layer) {
    f.router = RouterKind::linear, f.squash = squash;
    f.rule = Rule::top_k, f.cut = kept_experts(in.dense.cfg, f, active);
  }
  return plan;
}

double kept_experts(const ModelConfig& c, const FfnPlan& f, double active) {
  const auto E = static_cast<double>(experts(c, f));
  const double kept = std::round(active * E);
  LTE_CHECK(kept >= 1,
            fmt::format("active={:g} is less than one of {:.0f} experts: wants a smaller "
                        "`group`, or at least {:.3g}",
                        active, E, 1 / E));
  return kept;
}

}  // namespace lte
