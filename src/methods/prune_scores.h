// How much every FFN neuron is worth to a static pruner.
#pragma once

#include <vector>

#include "methods/methods.h"

namespace lte {

using LayerScores = std::vector<std::vector<double>>;  // [layer][neuron]

// Mean and variance (two passes' worth, by Welford) and sum of squares of every neuron's activation.
struct ActivationStats {
  std::vector<double> mean, variance, square;
};

// Of layer i, over calibration tokens, the layers below pruned by `plan`; adds to `seen`.
ActivationStats activation_stats(const FitInput&, const Plan& plan, size_t i, int64_t tokens,
                                 int64_t& seen);

// First-order Taylor: over gate row, up row and down row of the neuron, sum |w dL/dw| with the gradient
// of the mean loss over calibration tokens (Ma et al., 2023, "param_first").
LayerScores taylor_scores(const FitInput&, int64_t tokens, int64_t& seen);

// A hard-concrete mask over neurons (Louizos et al., 2018) learnt together with the model under a
// Lagrangian that brings the expected kept share to `active`, in every layer or (global) over all (Xia et
// al., 2024). Logits begin at 2, theirs at 5: a short search has to move them. `train` says how the
// model is trained meanwhile, over spec.steps.
struct MaskSpec {
  int64_t steps = 400;
  double lr = 0.1, active = 0.5;
  bool global = false;
};
struct LearntMask {
  LayerScores logits;
  Params params;  // the model, in its original order
};
LearntMask learn_mask(const FitInput&, TrainSpec train, const MaskSpec&);

}  // namespace lte
