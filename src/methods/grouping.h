// How the neurons of a layer are grouped into experts, by name: the knob `construction`.
#pragma once

#include "methods/methods.h"

namespace lte {

inline constexpr KnobRow kConstruction = {
    "construction", "kmeans",
    "kmeans: balanced, on the first matrix; coactivation: balanced cut of the graph of neurons "
    "that "
    "are active together; random: shuffled; contiguous: as they lie"};

// A plan of experts of `group` neurons without routers. Adds the tokens it looks at to `seen`.
Plan grouped_plan(const FitInput&, const std::string& construction, int group, int64_t tokens,
                  int64_t& seen);

inline constexpr KnobRow kLooks = {"calibration", "131072",
                                   "training tokens that coactivation looks at"};

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
