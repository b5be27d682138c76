// A synthetic text on which the capacity of the FFN binds: 64 dialects over one alphabet of 64
// symbols. In each dialect every symbol has its own four successors, with probabilities 0.4, 0.3,
// 0.2 and 0.1; a sequence is the dialect's name and 119 symbols. The entropy of the source is
// known, and so is the loss that the source itself has on the test split.
#pragma once

#include <string>

#include "data/dataset.h"

namespace lte {

// 50,000 / 500 / 1,000 sequences, always the same. The name and the first symbol are not scored.
// `tokenizer` must be "chars": the floor is counted in symbols.
Dataset load_dialects(const std::string& name, const std::string& tokenizer, const DataPaths&);

}  // namespace lte
