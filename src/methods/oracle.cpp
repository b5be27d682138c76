// What bounds the others: an oracle that sees the activations before it chooses.
#include "methods/grouping.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "training steps under the oracle's gates"},
    {"active", "0.25", "fraction of experts kept for every token and layer"},
    {"group", "1", "neurons in an expert"},
    kConstruction,
    {"by", "magnitude", "magnitude: sum |a|; contribution: sum |a| ||down row||"},
    looks_at("16384"),
};
constexpr const char* kBy[] = {"magnitude", "contribution"};

Fitted fit_oracle(const FitInput& in, const Knobs& k) {
  const double active = get_active(k);
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

}  // namespace

const Method kOracle = {
    .name = "oracle",
    .fit = fit_oracle,
    .knobs = kKnobs,
    .source = "keep-large-activations, and its contribution-weighted form",
    .about = "upper bound: sees all activations, keeps the largest, saves little"};

}  // namespace lte
