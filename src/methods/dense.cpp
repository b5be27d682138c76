// The control: the model as trained, or trained on for as many tokens as the other methods get.
#include "methods/methods.h"

namespace lte {
namespace {

constexpr KnobRow kKnobs[] = {
    {"steps", "0", "further training steps; 0: the model as it is"},
};

Fitted fit_dense(const FitInput& in, const Knobs& k) {
  Fitted f{.params = clone(in.dense), .plan = dense_plan(in.dense.cfg), .histograms = {}};
  run_stage(in, f, training(in, k, get_whole(k, "steps", 0, 1'000'000'000)), "train");
  return f;
}

}  // namespace

const Method kDense = {.name = "dense",
                       .fit = fit_dense,
                       .knobs = kKnobs,
                       .source = "control",
                       .about = "all neurons; with steps, the equal-budget control"};

}  // namespace lte
