// A control: the exact sparsity of a model whose activation is swapped for ReLU.
#include "methods/methods.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "600", "training steps after the activation is swapped"},
};

// The activation becomes ReLU; neurons whose activation is 0 are skipped, which changes nothing.
Fitted fit_relu(const FitInput& in, const Knobs& k) {
  Params swapped = clone(in.dense);
  std::string& name = swapped.cfg.name;
  name += name.find(':') == name.npos ? ":act=relu" : ",act=relu";
  swapped.cfg.act = Act::relu;
  Plan plan = dense_plan(swapped.cfg);
  Fitted f{.params = std::move(swapped), .plan = plan, .histograms = {}};
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  for (FfnPlan& l : f.plan.layer) {
    l.group = 1, l.rule = Rule::threshold, l.cut = 0;
    l.router = f.params.cfg.gated ? RouterKind::gate : RouterKind::activation;
  }
  f.params = apply_order(f.params, f.plan);
  return f;
}

}  // namespace

const Method kRelu = {.name = "relu",
                      .fit = fit_relu,
                      .knobs = kKnobs,
                      .source = "control, after Mirzadeh et al., 2023, arXiv 2310.04564",
                      .about = "the activation swapped for ReLU and trained on; skips exact zeros"};

}  // namespace lte
