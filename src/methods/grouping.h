// How the neurons of a layer are grouped into experts, by name: the knob `construction`.
#pragma once

#include "methods/methods.h"

namespace lte {

inline constexpr KnobRow kConstruction = {
    "construction", "kmeans",
    "kmeans: balanced, on the first matrix; coactivation: balanced cut of the graph of neurons "
    "that are active "
    "together, its edges summed without the released code's cap of 1 for every 8 tokens and cut by "
    "exchanges in "
    "place of METIS; random: shuffled; contiguous: as they lie"};

// The knob `calibration` of a method that looks at text for its construction alone.
constexpr KnobRow looks_at(const char* tokens) {
  return {"calibration", tokens, "training tokens that coactivation looks at"};
}

// A plan of experts of `group` neurons without routers. Adds the tokens it looks at to `seen`.
Plan grouped_plan(const FitInput&, const std::string& construction, int group, int64_t tokens,
                  int64_t& seen);
// The same from the knobs construction, group and calibration.
Plan grouped_plan(const FitInput&, const Knobs&, int64_t& seen);

// From the knobs construction, group, calibration and router_input: experts with linear routers, open above the score
// `tau`. Adds the tokens it looks at to `seen`.
Plan routed_plan(const FitInput&, const Knobs&, bool bias, double tau, int64_t& seen);

// k of top_k for an active fraction, at least one expert.
double kept_experts(const ModelConfig&, const FfnPlan&, double active);

// From the knobs construction, group, calibration and active: experts of which linear routers without a bias
// select a fixed number. Adds the tokens it looks at to `seen`.
Plan top_k_plan(const FitInput&, const Knobs&, Squash, int64_t& seen);

// The knob `construction`, checked.
std::string construction_of(const Knobs&);

// The knob `group`, checked against the FFN's width.
int group_of(const FitInput&, const Knobs&);

}  // namespace lte
