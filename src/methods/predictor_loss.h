// The losses of predictors, over [rows,E]. Nothing that writes these tensors may be enqueued.
#pragma once

#include "methods/predictor.h"

namespace lte {

// Outputs become what the loss compares with.
void set_targets(Tensor target, const PredictorSpec&);

// dz = the gradient of the mean loss; returns that loss, or 0 for the kinds whose epochs are chosen by
// something else.
double predictor_loss(Backend&, Tensor dz, Tensor z, Tensor target, PredictorLoss);

}  // namespace lte
