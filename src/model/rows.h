// A layer's activations cut to the rows of a chunk that is smaller than the state was made for.
#pragma once

#include "model/forward.h"

namespace lte {

inline LayerState rows_of(const LayerState& full, Chunk chunk) {
  LayerState s = full;
  const int64_t N = chunk.B * chunk.T;
  for (Tensor* t :
       {&s.x, &s.norm1, &s.stats1, &s.qkv, &s.attended, &s.mid, &s.norm2, &s.stats2, &s.up, &s.gate,
        &s.act, &s.hidden, &s.delta, &s.scores, &s.gates, &s.unit, &s.inner, &s.large, &s.kept}) {
    if (*t) *t = first_rows(*t, N);
  }
  if (s.index) s.index.dim[1] = N;
  if (s.probs) s.probs.dim[0] = chunk.B, s.probs.dim[2] = chunk.T;
  if (s.probs.rank == 4) s.probs.dim[3] = chunk.pos + chunk.T;
  return s;
}

// A layer's operands as gathered training takes them.
inline ExpertLists expert_lists(const LayerState& s) { return {s.gates, s.index, s.count}; }
inline FfnWeights ffn_weights(const LayerParams& w) {
  return {.up = w.up_w, .up_bias = w.up_b, .gate_w = w.gate_w, .down = w.down_w};
}
inline PackedRows packed_rows(const LayerState& s) {
  return {.up = s.up, .gate = s.gate, .act = s.act};
}

}  // namespace lte
