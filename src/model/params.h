// Every number that is trained, in one block of memory, and the one list of what they are.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/plan.h"

namespace lte {

struct LayerParams {
  Tensor norm1_w, norm1_b;    // [D]
  Tensor qkv_w, qkv_b;        // [(H+2K)C, D]: queries, keys, values
  Tensor proj_w, proj_b;      // [D, HC]
  Tensor norm2_w, norm2_b;    // [D]
  Tensor router_in;           // [R, D], two-layer routers only
  Tensor router_w, router_b;  // [E, D] or [E, R]; [E]
  Tensor gate_w;              // [F, D], gated FFN only
  Tensor up_w, up_b;          // [F, D] [F]: row j is neuron j
  Tensor down_w, down_b;      // [F, D] [D]: row j is what neuron j adds
  Tensor up_t, gate_t;        // [D, F] transposed copies for sparse inputs; not trained
};

// What activations, caches and vectors are of where matrices are of `matrices`.
constexpr DType activation_type(DType matrices) {
  return matrices == DType::bf16 ? DType::f32 : matrices;
}

struct Params {
  ModelConfig cfg;
  DType dtype = DType::f32;  // of the matrices; norms and biases are of activation_type(dtype)
  Tensor wte, wpe;           // [V, D] [P, D]
  std::vector<LayerParams> layer;
  Tensor norm_w, norm_b, head_w;  // [D] [D] [V, D]
  Arena memory;

  // The whole block as one tensor: what AdamW moments, norms and checkpoints see. Not of bf16.
  Tensor flat() const {
    Tensor t = shape(dtype, {static_cast<int64_t>(memory.used / size_of(dtype))});
    t.data = memory.base();
    return t;
  }
  const Tensor& head() const { return head_w ? head_w : wte; }
};

struct ParamInfo {
  std::string name;       // "layers.0.ffn.up.weight"
  double init_std = 0;    // normal(0, init_std); 0 with init_one false: zeros
  bool init_one = false;  // ones
  bool decay = false;     // weight decay applies
  bool router = false;    // belongs to a router
};

// THE list of parameters. Calls f on every tensor that the configuration has, in storage order.
void visit_params(Params&, const std::function<void(Tensor&, const ParamInfo&)>& f);

// Memory of the right shape, zero-filled. `plan` gives kept neurons and routers. What is made from
// parameters (copies, states, gradients) lies in their memory.
Params make_params(const ModelConfig&, const Plan&, DType = DType::f32, Memory = {});
Params clone(const Params&);
Params clone(const Params&, Memory);  // into another memory, such as a backend's
// The same model with matrices rounded to bf16, for running only: half the bytes of a decode step. Wants
// floats, and a backend that has kernels for it (cpu+simd, cuda).
Params to_bf16(const Params&);
// GPT-2 initialisation: normal(0, 0.02), output projections over sqrt(2 layers); the router's scale
// is set by the method. Every tensor draws from a stream of its own, named by `seed` and its place.
void init_params(Params&, uint64_t seed);
// Copies every tensor that both have under one name and one shape.
void copy_matching(Params& to, const Params& from);
int64_t count_params(const Params&);

// Makes the transposed copies, where the plan has them, from the weights.
void refresh_transposed(Params&);

// Lays the FFN weights out in the plan's order, once: pruning really shrinks them, grouping makes
// the neurons of an expert neighbours. Routers come out as zeros. The source must be in the
// original order.
Params apply_order(const Params&, const Plan&);

}  // namespace lte
