// What a token costs, counted from the shapes: FLOPs by two conventions, and bytes of decode.
#pragma once

#include <span>

#include "model/params.h"

namespace lte {

struct Cost {
  double flops_paper = 0;  // 2 x multiply-adds of the blocks' linear layers and of every router
  double flops_full = 0;   // and attention scores and values, and the head
  double bytes = 0;  // read by one decode step at batch 1: weights, keys and values, activations
};

// `active_layer` is the active fraction of each layer, against the dense model's neurons (with sparse
// inputs: weights); `context` the mean number of positions attended to; `inputs` the share of FFN inputs
// that is kept, used where they are sparse; `weights` the type of the matrices.
Cost cost_of(const ModelConfig&, const Plan&, std::span<const double> active_layer, double context,
             std::span<const double> inputs = {}, DType weights = DType::f32);

// FLOPs of training on one token (forward and twice that backward), full convention. Masked
// training computes every kept neuron. A teacher adds its forward.
double train_flops(const ModelConfig&, const Plan&, int seq, bool teacher);

}  // namespace lte
