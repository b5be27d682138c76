// The one forward and its backward: training, accuracy and latency all go through here.
#pragma once

#include <vector>

#include "model/params.h"

namespace lte {

enum class Gate : uint8_t { soft, hard };  // soft: scores scale their experts; hard: 0 or 1
// masked: compute all and zero; gathered: skip; trained: skip, and keep what the backward pass reads, in layers
// whose gates are inputs to it (trains_gathered), the others being masked.
enum class Exec : uint8_t { masked, gathered, trained };
enum class Keep : uint8_t { one_layer, all_layers };

struct Run {
  Gate gate = Gate::hard;
  Exec exec = Exec::gathered;
  double noise = 0;  // standard deviation of what is added to the routers' z, drawn from `seed`
  uint64_t seed = 0;
};

// Activations of one layer; N = B T rows.
struct LayerState {
  Tensor x;                     // [N,D] input of the layer, the residual stream
  Tensor norm1, stats1;         // [N,D] [N,2]
  Tensor qkv, probs, attended;  // [N,(H+2K)C] [B,H,T,T] or [B,H,T] (all_layers only) [N,HC]
  Tensor mid;                   // [N,D] residual after attention
  Tensor norm2, stats2;         // [N,D] [N,2]
  Tensor up, gate, act,
      hidden;    // [N,F] hidden is act after the gates; trained: PackedRows, no hidden
  Tensor delta;  // [N,D] what attention, then the FFN, adds
  Tensor unit;   // [N,D] what routers read
  Tensor large;  // [N,D] the FFN's input without what is small
  // Not overwritten by the next layer, whatever Keep says:
  Tensor scores, gates, index, count;  // [N,E] [N,E] [E,N] [E]
  Tensor inner;                        // [N,R] hidden units of a router, which may look ahead
  Tensor kept;                         // [N] share of `large` that is not 0
  Tensor k, v;                         // [B,K,S,C] the key-value cache
};

struct State {
  int64_t B = 0, T = 0, S = 0;  // the largest chunk, and the length of the cache
  Keep keep = Keep::one_layer;
  std::vector<LayerState> layer;
  Tensor x_out, norm, stats, logits, losses;  // [N,D] [N,D] [N,2] [N,V] [N]
  Arena memory;
};

// How a backend likes what training keeps: row sums [B,H,T] of attention in place of its probabilities
// (Ops::keeps_row_sums), and f32, or bf16 (Ops::kept_type) for norm1, qkv, attended, the cache, the last norm, logits
// [N, V up to a multiple of 8] and, in layers without a router or sparse inputs, norm2, up, gate and act. Models of f64 keep f64.
struct Kept {
  bool row_sums = false;
  DType type = DType::f32;
};
Kept kept_by(const Backend&, const ModelConfig&);

// Memory for chunks of up to T tokens of B sequences and a cache of S.
State make_state(const Params&, const Plan&, int64_t B, int64_t T, int64_t S, Keep, Kept = {});

// Computes the logits of a chunk: tokens[N] (i32, sequence-major) at positions pos .. pos+T. Keys
// and values of positions below pos must be in the cache. Never allocates model memory, never reads
// back. Where chunk.at is given, pos + *at + T must not exceed S, which is not checked.
void forward(Backend&, const Params&, const Plan&, Tensor tokens, Chunk, Run, State&);

// The FFN of one layer, norm, router, gate and compaction included: s.mid -> s.delta. What forward
// runs, for suites that time this part alone. The rows of `s` must be those of the chunk (see
// rows_of). `looked_ahead`: the layer below has written the scores already.
void ffn_layer(Backend&, const ModelConfig&, const LayerParams&, const FfnPlan&, Run, LayerState& s,
               bool looked_ahead = false);

// What the backward pass adds to the task loss. Means over N tokens, L layers and E experts.
struct LossTerms {
  double eta = 0, lambda = 0;                      // efficiency and separability
  double tau = 0.5, sep_eps = 1e-3, sep_clip = 0;  // see GateLoss
  bool train_routers = false;                      // else routers get no gradient
  bool straight_through = false;                   // hard gates pass the gradient of their score
  double hoyer = 0;    // weight of Hoyer's squared sparsity of the activations, mean over layers
  double distill = 0;  // task loss = (1 - distill) cross-entropy + distill KL(teacher || model)
};
// Whether a layer with such a plan runs gathered under Exec::trained: a router chooses, whose scores do not weigh
// what is chosen but for constants.
bool trains_gathered(const FfnPlan&);
// Whether that is so for any layer, the backend has the kernels, and nothing reaches the routers or wants the
// activations of closed experts.
bool can_train_gathered(const Backend&, const Plan&, Gate, const LossTerms&);

// Sums over tokens and experts, by layer: see Ops::gate_loss_add.
struct GateSums {
  double square = 0, separation = 0, above = 0;
  double hoyer = 0;  // mean over tokens; 0 where its weight is 0
};

struct Gradients {
  Params d;  // same shape as the parameters
  Tensor dlogits, dx, dnorm, dattended, dqkv, dact, dup, dgates;
  // Written by backward: the run's gate, and [L,7] (f64) Ops::gate_loss_add of the scores, the same
  // of the gates, and the sum of Ops::hoyer_add.
  Gate gate;
  Tensor sums;
  Tensor norm;  // [1] (f64) sum of squares, written by adamw_step
  Arena memory;
};
Gradients make_gradients(const Params&, const Plan&, const State&);
// What the last backward summed in that layer, once the backend has finished.
GateSums gate_sums(const Gradients&, size_t layer);

// Adds the gradient of  weight * sum(task losses) + regularisers  to grads.d, after a masked forward over
// whole prompts with Keep::all_layers, or a trained one where can_train_gathered. losses of the state are written. targets < 0 do
// not count. teacher[N,V], the logits to distil from, may be absent. Throws Error where a gradient by
// routers is wanted that is not known: they must be linear and read the layer's own input as it is,
// and the scores of kept_softmax cannot be regularised.
void backward(Backend&, const Params&, const Plan&, Tensor tokens, Tensor targets, Chunk, Run,
              const LossTerms&, double weight, Tensor teacher, State&, Gradients&);

}  // namespace lte
