// Learn To be Efficient (Zheng et al., NeurIPS 2024): experts by balanced k-means, sigmoid routers;
// stage 1 with soft gates, efficiency and separability losses; stage 2 with frozen routers, hard
// gates and the task loss alone.
#include "methods/grouping.h"
#include "methods/methods.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps of both stages together"},
    {"split", "0.5", "share of the steps that stage 1 gets"},
    {"group", "32", "neurons in an expert; the paper uses 32"},
    kConstruction,
    looks_at("131072"),
    {"eta", "0.5", "weight of the efficiency loss: larger is sparser"},
    {"lambda", "0.5", "weight of the separability loss; the paper uses 0.5"},
    {"tau", "0.5", "threshold of the gates; the paper uses 0.5"},
    {"sep_eps", "1e-3",
     "epsilon in 1/((G-tau)^2 + epsilon); the paper has none, and its loss is unbounded"},
    {"sep_clip", "0",
     "largest separability term of one score, without gradient beyond; 0 (paper): none"},
    {"sep_ramp", "0", "share of stage 1 over which lambda grows from 0; 0 (paper): constant"},
    {"eta_ramp", "0", "share of stage 1 over which eta grows from 0; 0 (paper): constant"},
    {"router_bias", "none", "initial bias of the routers; none (paper): routers have no bias"},
    {"router_std", "0.02", "standard deviation of initial router weights; the paper does not say"},
    {"router_input", "normed", "what routers read: normed (the FFN's input) or residual"},
    {"lr2", "1", "learning rate of stage 2 as a multiple of lr"},
};

Fitted fit_lte(const FitInput& in, const Knobs& k) {
  const int64_t steps = get_whole(k, "steps", 2, 1'000'000'000);
  const auto first = std::max<int64_t>(
      1, static_cast<int64_t>(get_number(k, "split", 0, 1) * static_cast<double>(steps)));
  const bool bias = k.at("router_bias") != "none";
  const double tau = get_number(k, "tau", 0, 1), lr2 = get_number(k, "lr2", 0, 100);
  int64_t seen = 0;
  const Plan plan = routed_plan(in, k, bias, tau, seen);
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  init_routers(f.params, get_number(k, "router_std", 0, 100),
               bias ? get_number(k, "router_bias", -100, 100) : 0, in.seed);
  add_histogram(in, f, Gate::soft, "before");

  TrainSpec one = training(in, k, first);
  one.gate = Gate::soft;
  one.terms.eta = get_number(k, "eta", 0, 1e6);
  one.terms.lambda = get_number(k, "lambda", 0, 1e6);
  one.terms.tau = tau;
  one.terms.sep_eps = get_number(k, "sep_eps", 1e-12, 1);
  one.terms.sep_clip = get_number(k, "sep_clip", 0, 1e12);
  one.terms.train_routers = true;
  one.sep_ramp = get_number(k, "sep_ramp", 0, 1);
  one.eta_ramp = get_number(k, "eta_ramp", 0, 1);
  run_stage(in, f, one, "stage1");
  add_histogram(in, f, Gate::soft, "stage1");

  TrainSpec two = training(in, k, steps - first);
  two.first += static_cast<uint64_t>(first);
  two.lr *= lr2;
  two.terms.tau = tau, two.terms.sep_eps = one.terms.sep_eps,
  two.terms.sep_clip = one.terms.sep_clip;
  run_stage(in, f, two, "stage2");
  add_histogram(in, f, Gate::hard, "stage2");
  return f;
}

}  // namespace

const Method kLte = {
    .name = "lte",
    .fit = fit_lte,
    .knobs = kKnobs,
    .source = "Zheng et al., NeurIPS 2024, arXiv 2402.06126",
    .about = "two stages: soft gates with regularisers, then frozen routers and hard gates"};

}  // namespace lte
