// A plan says which FFN neurons a method computes, as data: the one forward interprets any plan.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/config.h"

namespace lte {

// A method's settings by name; see methods/knobs.h for the checked access.
using Knobs = std::map<std::string, std::string>;

// linear: z = x W' [+ b];  two_layer: z = inner(x W0') W' [+ b];
// activation: no router, the scores are measured on the layer's own activations, which are computed
// in full (oracles); gate: the same on |act(x Wg)| alone, before up and down (gated FFN; CATS).
enum class RouterKind : uint8_t { none, linear, two_layer, activation, gate };
// How z becomes scores. kept_softmax: the scores are z, and the gates of the selected experts are
// the softmax of their scores (Shazeer et al., 2017) where all other gates are 0 or 1.
enum class Squash : uint8_t { sigmoid, softmax, absolute, none, kept_softmax };
// What the router reads: the FFN's own input; the residual stream; the FFN's input at length 1; the
// FFN input of the layer below (look-ahead; the first layer reads its own).
enum class RouterInput : uint8_t { normed, residual, unit, ahead };
enum class Inner : uint8_t { none, relu, tanh };

struct FfnPlan {
  int group = 0;           // neurons in an expert; 0: the whole FFN
  std::vector<int> order;  // which neurons are kept, in storage order; empty: all, as they are
  RouterKind router = RouterKind::none;
  bool router_bias = false;
  RouterInput input = RouterInput::normed;
  Rule rule = Rule::all;
  double cut = 0.5;  // the threshold, k of top_k, the share of cumulative or relative_max
  int width = 0;     // hidden units of a two-layer router
  Inner inner = Inner::none;
  Squash squash = Squash::sigmoid;
  Measure measure = Measure::magnitude;  // of activation
  bool weighted = false;                 // measures count w[j] = ||down[j]||
  double in_cut = -1;                    // FFN inputs of at most this magnitude are 0; < 0: off
  bool scaled = false;                   // open hard gates weigh their expert by its score
  bool down_bias = false;                // the layer has a down bias even where the family has none
};

struct Plan {
  std::string method = "dense";
  Knobs knobs;
  std::vector<FfnPlan> layer;

  bool routed() const { return !layer.empty() && layer[0].router != RouterKind::none; }
};

inline Plan dense_plan(const ModelConfig& c) {
  return {
      .method = "dense", .knobs = {}, .layer = std::vector<FfnPlan>(static_cast<size_t>(c.layers))};
}

// Neurons of a layer after its plan, and its experts.
inline int64_t kept_neurons(const ModelConfig& c, const FfnPlan& p) {
  return p.order.empty() ? c.ffn : static_cast<int64_t>(p.order.size());
}
inline int64_t experts(const ModelConfig& c, const FfnPlan& p) {
  return p.group == 0 ? 1 : kept_neurons(c, p) / p.group;
}

// Throws Error unless every layer has valid, distinct neurons and whole experts.
void check_plan(const ModelConfig&, const Plan&);

}  // namespace lte
