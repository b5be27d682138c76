// How many neurons every layer keeps of what a static pruner scored, and which.
#pragma once

#include "methods/prune_scores.h"

namespace lte {

// The `kept` highest of a layer, ascending by number; of equal ones the first.
std::vector<int> highest(const std::vector<double>& score, size_t kept);

// How many of each layer lie above one threshold on scores, standardised by layer where layers are
// not on one scale; at least one a layer, `kept_in_all` in all.
std::vector<size_t> global_counts(const LayerScores&, size_t kept_in_all, bool standardise);

}  // namespace lte
