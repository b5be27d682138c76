// Token sequences as plain data: what training draws from and what scoring walks over.
#pragma once

#include <cstdint>
#include <vector>

namespace lte {

// One split of a dataset.
struct TokenSet {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> scored;  // scored[i]: token i counts as a target; empty: all do
  std::vector<int64_t> starts;  // where documents begin, ascending; empty: one continuous stream
};

// `length` predictions: tokens[start .. start+length) are the inputs, one further each the targets.
struct Window {
  int64_t start;
  int32_t length;
};

}  // namespace lte
