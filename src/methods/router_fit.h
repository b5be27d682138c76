// The warm start of the routers of lte-one-stage.
#pragma once

#include <span>

#include "methods/predictor.h"

namespace lte {

// Logistic regression, by Adam, of "is among the share `labelled` of the largest outputs of this
// layer" on the router's input; then one shift of all biases, so that the share of open gates is
// `active`. Writes weight and bias of every router; returns the FLOPs of the products.
double fit_routers(Params&, const Plan&, std::span<const Contributions>, double labelled,
                   double active, int steps, double lr, uint64_t seed, int threads);

}  // namespace lte
