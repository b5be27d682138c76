// Text generation: a prompt in one chunk, then one token at a time through the key-value cache.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/forward.h"

namespace lte {

struct Generated {
  std::vector<int32_t> tokens;  // without the prompt, without `stop`
  double active = 1;            // mean active fraction over prompt and generated tokens
  int64_t prompt = 0;           // tokens of the prompt that were read
  bool full = false;            // ended because the context was full
};

// Stops after `most` tokens, at `stop` (below 0: none), or where the model's max_seq is reached. A
// prompt of max_seq tokens or more keeps its end: with room for `most`, but half of the context at least.
// `each` sees every token as it is drawn. A token is drawn where the next step reads it: with neither
// `stop` nor `each` the host waits for the last alone. Steps are one graph where the backend has graphs.
Generated generate(Backend&, const Params&, const Plan&, std::span<const int32_t> prompt, int most,
                   int32_t stop, const Sampling&, const std::function<void(int32_t)>& each = {});

}  // namespace lte
