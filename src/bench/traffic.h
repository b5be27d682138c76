// What a call must read and compute, counted from shapes and from the gates that were open, and how
// long that takes at least at given ceilings: the ideal of a speed-up.
#pragma once

#include "bench/ceilings.h"
#include "model/cost.h"

namespace lte {

struct Traffic {
  double bytes = 0, flops = 0;
  DType weights = DType::f32;  // whose products the FLOPs are of
};

// One layer's FFN of F neurons and its router over `tokens` rows, biases and activations left out. active:
// share of (token, neuron) computed; loaded: share of neurons that at least one token wants.
//   bytes = size (matrices D F loaded + router),  flops = 2 tokens (matrices D F active + router)
Traffic ffn_traffic(const ModelConfig&, const FfnPlan&, double active, double loaded,
                    int64_t tokens, DType weights = DType::f32);

// A forward of a whole model: cost_of of one token, and for more of them the weights once, keys and
// values once a sequence, FLOPs for all. `active` and `loaded` are by layer.
Traffic model_traffic(const ModelConfig&, const Plan&, std::span<const double> active,
                      std::span<const double> loaded, double context, int64_t sequences,
                      int64_t tokens_each, DType weights = DType::f32);

// FLOP/s that the call's products reach at most.
double product_rate(const Traffic&, const Ceilings&);
// Seconds at least: bytes at the stream's rate or FLOPs at the product's, whichever takes longer.
double bound_seconds(const Traffic&, const Ceilings&);

}  // namespace lte
