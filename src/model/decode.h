// Decoding, one token of each sequence at a time, as work that is the same for every position: what
// changes lies in the backend's memory, so that a backend with graphs takes one launch a step.
#pragma once

#include "model/forward.h"

namespace lte {

// Work that is enqueued many times over, always with the same tensors and numbers.
struct Repeat {
  int64_t times = 0;
  std::shared_ptr<void> graph = {};  // null where the backend has none, and before the second time
};
// Enqueues the work, by calling it the first time; from the second on as a graph, where the backend can.
void repeat(Backend&, Repeat&, const std::function<void()>& work);

// A step of B sequences over tokens that the host chooses. The model, plan and state of all calls must be one.
struct DecodeStep {
  Tensor list;  // [1 + B] position and tokens
  Arena memory;
  Repeat again = {};
};
DecodeStep make_decode_step(const Backend&, int64_t B);
// The logits of tokens[B] at position pos: forward over a chunk of one token a sequence.
void decode(Backend&, const Params&, const Plan&, std::span<const int32_t> tokens, int64_t pos, Run,
            State&, DecodeStep&);

}  // namespace lte
