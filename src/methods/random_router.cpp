// A control of LTE's paper: routers that stay as they were drawn, and a model that is trained under them.
#include "methods/grouping.h"
#include "methods/predictor.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps; the routers stay as they are"},
    {"active", "0.25", "fraction of experts selected for every token"},
    {"group", "32", "neurons in an expert"},
    kConstruction,
    looks_at("16384"),
};

Fitted fit_random(const FitInput& in, const Knobs& k) {
  int64_t seen = 0;
  const Plan plan = top_k_plan(in, k, Squash::none, seen);
  Fitted f{.params = apply_order(in.dense, plan), .plan = plan, .histograms = {}};
  f.calibration_tokens = seen;
  init_predictors(f.params, f.plan, in.seed);
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  return f;
}

}  // namespace

const Method kRandomRouter = {.name = "random-router",
                              .fit = fit_random,
                              .knobs = kKnobs,
                              .source = "control of LTE's paper",
                              .about = "frozen random routers, top-k, the model trained on"};

}  // namespace lte
