// What a run's recall, precision and density were counted from, or would be on another dataset.
#pragma once

#include <string>

#include "bench/run_folder.h"

namespace lte {

// Writes layerI.open and layerI.matters, [tokens, experts] of 0 and 1, for every layer's predictor, on windows of the
// dataset's training text: of the run's own dataset, those that run.json's figures are from. Throws Error where the
// method has no trained predictors, or not one a layer.
void save_labels(const std::string& path, Backend&, const LoadedRun&, const Dataset&);

}  // namespace lte
