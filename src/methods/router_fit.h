// What a router can be fitted on before training: inputs and how much each expert contributes.
#pragma once

#include <vector>

#include "methods/methods.h"

namespace lte {

// One layer's observations of n tokens, with all experts on.
struct Contributions {
  std::vector<float> input;   // [n,D] what the router reads
  std::vector<float> output;  // [n,E] norm of every expert's output
  int64_t n = 0, D = 0, E = 0;
};

struct Observed {
  std::vector<Contributions> layer;
  int64_t tokens = 0;  // looked at
};
// Runs the model with every gate open over `tokens` training tokens. The parameters are in plan
// order.
Observed observe(const FitInput&, const Params&, const Plan&, int64_t tokens);

// Logistic regression, by Adam, of "is among the share `active` of the largest outputs of this
// layer" on the router's input; then one shift of all biases, so that the share of open gates is
// `active`. Writes weight and bias of every router.
void fit_routers(Params&, const Plan&, std::span<const Contributions>, double active, int steps,
                 double lr, uint64_t seed);

}  // namespace lte
