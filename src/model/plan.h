// A plan says which FFN neurons a method computes, as data: the one forward interprets any plan.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/config.h"

namespace lte {

// A method's settings by name; see methods/knobs.h for the checked access.
using Knobs = std::map<std::string, std::string>;

enum class RouterKind : uint8_t { none, linear };  // linear: score = sigmoid(x W' [+ b])
enum class RouterInput : uint8_t {
  normed,
  residual
};  // the FFN's own input, or the residual stream

struct FfnPlan {
  int group = 0;           // neurons in an expert; 0: the whole FFN
  std::vector<int> order;  // which neurons are kept, in storage order; empty: all, as they are
  RouterKind router = RouterKind::none;
  bool router_bias = false;
  RouterInput input = RouterInput::normed;
  Rule rule = Rule::all;
  double cut = 0.5;  // the threshold, or k of top_k
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
