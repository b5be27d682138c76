// Pre-norm decoder: x += attention(norm(x)); x += ffn(norm(x)); logits = norm(x) head'.
#include "model/forward.h"

#include <algorithm>

#include "core/rng.h"
#include "model/rows.h"

namespace lte {
namespace {

void linear(Backend& be, Tensor out, Tensor x, const Tensor& w, const Tensor& b, bool tw = true) {
  if (b && be.ops.linear) return be.ops.linear(*be.ctx, out, x, w, tw, b);
  be.ops.gemm(*be.ctx, out, x, false, w, tw);
  if (b) be.ops.bias_add(*be.ctx, out, b);
}

// sum = a + b, and out = norm(sum); nothing for an n that is empty.
void add_norm(Backend& be, const AddNorm& n) {
  if (!n.out) return;
  if (be.ops.add_norm)
    return be.ops.add_norm(*be.ctx, n.out, n.stats, n.sum, n.a, n.b, n.w, n.bias, n.eps);
  be.ops.add(*be.ctx, n.sum, n.a, n.b);
  be.ops.norm(*be.ctx, n.out, n.stats, n.sum, n.w, n.bias, n.eps);
}

// s.delta of s.norm1.
void attention_layer(Backend& be, const ModelConfig& c, const LayerParams& w, Chunk chunk,
                     LayerState& s) {
  const Ops& op = be.ops;
  linear(be, s.qkv, s.norm1, w.qkv_w, w.qkv_b);
  if (op.attend_token && chunk.T == 1 && !s.probs && s.qkv.dtype != DType::bf16) {
    op.attend_token(*be.ctx, s.attended, s.qkv, s.k, s.v, chunk, c.head_shape(),
                    c.rope ? c.rope_theta : 0);
    return linear(be, s.delta, s.attended, w.proj_w, w.proj_b);
  }
  if (c.rope) {
    op.rope(*be.ctx, s.qkv, chunk, c.heads + c.kv_heads, c.head_dim(), c.rope_theta, false);
  }
  op.store_kv(*be.ctx, s.k, s.v, s.qkv, chunk, c.head_shape());
  op.attention(*be.ctx, s.attended, s.probs, s.qkv, s.k, s.v, chunk, c.head_shape());
  linear(be, s.delta, s.attended, w.proj_w, w.proj_b);
}

// What the layer's router reads: of the FFN input `norm2`, or of the residual stream.
Tensor router_input(Backend& be, const FfnPlan& plan, Tensor norm2, LayerState& s) {
  if (plan.input == RouterInput::residual) return s.mid;
  if (plan.input != RouterInput::unit) return norm2;
  be.ops.unit_rows(*be.ctx, s.unit, norm2);
  return s.unit;
}

// z and scores of a linear or two-layer router that reads `input`.
void score_layer(Backend& be, const LayerParams& w, const FfnPlan& plan, Run run, Tensor input,
                 LayerState& s) {
  const Ops& op = be.ops;
  if (plan.router == RouterKind::two_layer) {
    op.gemm(*be.ctx, s.inner, input, false, w.router_in, true);
    if (plan.inner != Inner::none) {
      op.activate(*be.ctx, s.inner, s.inner, {}, plan.inner == Inner::relu ? Act::relu : Act::tanh);
    }
    input = s.inner;
  }
  linear(be, s.scores, input, w.router_w, w.router_b);
  if (run.noise > 0) op.noise_add(*be.ctx, s.scores, run.noise, run.seed);
  if (plan.squash == Squash::sigmoid) op.sigmoid(*be.ctx, s.scores);
  if (plan.squash == Squash::softmax) op.softmax(*be.ctx, s.scores);
  if (plan.squash == Squash::absolute) op.absolute(*be.ctx, s.scores);
}

// Gates of a routed layer whose scores are known; the compaction too where execution skips.
void gate_layer(Backend& be, const FfnPlan& plan, Run run, LayerState& s) {
  if (run.gate == Gate::hard) be.ops.gate(*be.ctx, s.gates, s.scores, plan.rule, plan.cut);
  if (plan.scaled && run.gate == Gate::hard) {
    be.ops.scale_experts(*be.ctx, s.gates, s.gates, s.scores);  // experts of one "neuron", the gate
  }
  if (plan.squash == Squash::kept_softmax) be.ops.gate_softmax(*be.ctx, s.gates, s.scores);
  if (run.exec == Exec::gathered || (run.exec == Exec::trained && trains_gathered(plan)))
    be.ops.route(*be.ctx, s.index, s.count, s.gates);
}

// Scores, gates and lists of a layer with a router, and s.norm2, which `in` makes; `looked_ahead`: the scores are
// there.
void route_layer(Backend& be, const LayerParams& w, const FfnPlan& plan, Run run, bool looked_ahead,
                 const AddNorm& in, LayerState& s) {
  const Ops& op = be.ops;
  const bool plain = !looked_ahead && plan.router == RouterKind::linear &&
                     plan.squash == Squash::sigmoid && plan.rule == Rule::threshold &&
                     !plan.scaled && run.gate == Gate::hard && run.noise == 0;
  if (plain && in.out && plan.input == RouterInput::normed && op.norm_route_linear &&
      op.norm_route_linear(*be.ctx, s.scores, expert_lists(s), in, w.router_w, w.router_b,
                           plan.cut)) {
    return;
  }
  add_norm(be, in);
  if (looked_ahead) return gate_layer(be, plan, run, s);
  const Tensor input = router_input(be, plan, s.norm2, s);
  if (plain && op.route_linear &&
      op.route_linear(*be.ctx, s.scores, expert_lists(s), input, w.router_w, w.router_b,
                      plan.cut)) {
    return;
  }
  score_layer(be, w, plan, run, input, s);
  gate_layer(be, plan, run, s);
}

// out = x w' [+ b] for the FFN's input x, or with sparse inputs for what is large of it.
void from_input(Backend& be, Tensor out, const FfnPlan& plan, Run run, const LayerState& s,
                const Tensor& w, const Tensor& w_t, const Tensor& b) {
  if (plan.in_cut < 0 || run.exec != Exec::gathered) {
    linear(be, out, plan.in_cut < 0 ? s.norm2 : s.large, w, b);
    return;
  }
  be.ops.gemm_sparse(*be.ctx, out, s.large, w_t);
  if (b) be.ops.bias_add(*be.ctx, out, b);
}

// s.act of all neurons.
void dense_act(Backend& be, const ModelConfig& c, const LayerParams& w, const FfnPlan& plan,
               Run run, LayerState& s) {
  if (plan.in_cut >= 0) be.ops.keep_large(*be.ctx, s.large, s.kept, s.norm2, plan.in_cut);
  if (be.ops.linear_activate && plan.in_cut < 0 && !c.gated && w.up_b &&
      be.ops.linear_activate(*be.ctx, s.act, s.up, s.norm2, w.up_w, w.up_b, c.act)) {
    return;
  }
  from_input(be, s.up, plan, run, s, w.up_w, w.up_t, w.up_b);
  if (c.gated) from_input(be, s.gate, plan, run, s, w.gate_w, w.gate_t, {});
  be.ops.activate(*be.ctx, s.act, c.gated ? s.gate : s.up, c.gated ? s.up : Tensor{}, c.act);
}

void masked_ffn(Backend& be, const LayerParams& w, const FfnPlan& plan, Run run, LayerState& s) {
  const bool routed = plan.router != RouterKind::none;
  if (routed) {
    be.ops.scale_experts(*be.ctx, s.hidden, s.act, run.gate == Gate::soft ? s.scores : s.gates);
  }
  linear(be, s.delta, routed ? s.hidden : s.act, w.down_w, w.down_b, false);
}

// Writes s.delta, but for the last bias, where it does not go through s.act of all neurons; false: s.act is there.
// The layer's own activations choose: what has to be computed to choose is computed in full.
bool self_routed_ffn(Backend& be, const ModelConfig& c, const LayerParams& w, const FfnPlan& plan,
                     Run run, LayerState& s) {
  const Ops& op = be.ops;
  const bool by_gate = plan.router == RouterKind::gate;
  if (by_gate) {
    linear(be, s.gate, s.norm2, w.gate_w, {});
    op.activate(*be.ctx, s.act, s.gate, {}, c.act);
  } else {
    dense_act(be, c, w, plan, run, s);
  }
  op.measure(*be.ctx, s.scores, s.act, plan.weighted ? w.down_w : Tensor{}, plan.measure);
  gate_layer(be, plan, run, s);
  if (run.exec == Exec::gathered) {
    op.ffn_gathered(*be.ctx, s.delta, s.norm2, s.gates, s.index, s.count, s.act,
                    by_gate ? w.up_w : Tensor{}, {}, {}, w.down_w, c.act);
    return true;
  }
  if (by_gate) {
    linear(be, s.up, s.norm2, w.up_w, w.up_b);
    op.activate(*be.ctx, s.act, s.gate, s.up, c.act);
  }
  return false;
}

}  // namespace

bool trains_gathered(const FfnPlan& f) {
  return (f.router == RouterKind::linear || f.router == RouterKind::two_layer) && f.in_cut < 0 &&
         f.squash != Squash::kept_softmax;
}

bool can_train_gathered(const Backend& be, const Plan& plan, Gate gate, const LossTerms& terms) {
  return be.ops.ffn_train && gate == Gate::hard && !terms.train_routers &&
         !terms.straight_through && terms.hoyer == 0 &&
         std::any_of(plan.layer.begin(), plan.layer.end(), trains_gathered);
}

namespace {

// As self_routed_ffn, of any layer.
bool skipping_ffn(Backend& be, const ModelConfig& c, const LayerParams& w, const FfnPlan& plan,
                  Run run, const AddNorm& in, LayerState& s, bool looked_ahead) {
  const Ops& op = be.ops;
  if (plan.router == RouterKind::activation || plan.router == RouterKind::gate) {
    add_norm(be, in);
    return self_routed_ffn(be, c, w, plan, run, s);
  }
  const bool routed = plan.router != RouterKind::none;
  const bool dense = !routed && !s.probs && plan.in_cut < 0;
  if (dense && in.out && op.norm_ffn_token &&
      op.norm_ffn_token(*be.ctx, s.delta, in, ffn_weights(w), c.act)) {
    return true;
  }
  if (routed)
    route_layer(be, w, plan, run, looked_ahead, in, s);
  else
    add_norm(be, in);
  if (routed && run.exec == Exec::gathered) {
    op.ffn_gathered(*be.ctx, s.delta, s.norm2, s.gates, s.index, s.count, {}, w.up_w, w.up_b,
                    w.gate_w, w.down_w, c.act);
    return true;
  }
  if (run.exec == Exec::trained && trains_gathered(plan)) {
    op.ffn_train(*be.ctx, s.delta, packed_rows(s), s.norm2, expert_lists(s), ffn_weights(w), c.act);
    return true;
  }
  if (dense && op.ffn_token && op.ffn_token(*be.ctx, s.delta, s.norm2, ffn_weights(w), c.act)) {
    return true;
  }
  dense_act(be, c, w, plan, run, s);
  return false;
}

// s.delta of s.norm2, which `in` makes.
void ffn_of_norm(Backend& be, const ModelConfig& c, const LayerParams& w, const FfnPlan& plan,
                 Run run, const AddNorm& in, LayerState& s, bool looked_ahead) {
  if (!skipping_ffn(be, c, w, plan, run, in, s, looked_ahead))
    return masked_ffn(be, w, plan, run, s);
  if (w.down_b) be.ops.bias_add(*be.ctx, s.delta, w.down_b);
}

}  // namespace

void ffn_layer(Backend& be, const ModelConfig& c, const LayerParams& w, const FfnPlan& plan,
               Run run, LayerState& s, bool looked_ahead) {
  be.ops.norm(*be.ctx, s.norm2, s.stats2, s.mid, w.norm2_w, w.norm2_b, c.norm_eps);
  ffn_of_norm(be, c, w, plan, run, {}, s, looked_ahead);
}

void forward(Backend& be, const Params& p, const Plan& plan, Tensor tokens, Chunk chunk, Run run,
             State& state) {
  LTE_CHECK(run.gate == Gate::hard || run.exec == Exec::masked,
            "forward: soft gates cannot be gathered");
  LTE_CHECK(run.exec != Exec::trained || be.ops.ffn_train,
            "forward: the backend has no kernels for gathered training");
  for (const FfnPlan& f : plan.layer) {
    const bool soft = f.router == RouterKind::none ||
                      (f.router == RouterKind::linear && f.squash != Squash::kept_softmax);
    LTE_CHECK(run.gate == Gate::hard || soft, "forward: this plan has no soft gates");
  }
  LTE_CHECK(!chunk.at || state.keep == Keep::one_layer,
            "forward: what is kept for the backward pass wants a position that is known");
  const bool fits = chunk.B * chunk.T <= state.B * state.T && chunk.B <= state.B &&
                    chunk.pos + chunk.T <= state.S &&
                    (state.keep == Keep::one_layer ||
                     chunk.B * chunk.T * (chunk.pos + chunk.T) <= state.B * state.T * state.T);
  LTE_CHECK(fits, "forward: the chunk does not fit the state");
  const auto ahead = [&](size_t i) {
    return i < plan.layer.size() && plan.layer[i].input == RouterInput::ahead;
  };
  const int64_t N = chunk.B * chunk.T;
  const ModelConfig& c = p.cfg;
  const Tensor norm = first_rows(state.norm, N), stats = first_rows(state.stats, N);
  const Tensor x_out = first_rows(state.x_out, N);
  if (p.layer.empty()) {
    be.ops.embed(*be.ctx, x_out, tokens, p.wte, p.wpe, chunk);
    be.ops.norm(*be.ctx, norm, stats, x_out, p.norm_w, p.norm_b, c.norm_eps);
  } else {
    const LayerState s = rows_of(state.layer[0], chunk);
    const LayerParams& w = p.layer[0];
    be.ops.embed(*be.ctx, s.x, tokens, p.wte, p.wpe, chunk);
    be.ops.norm(*be.ctx, s.norm1, s.stats1, s.x, w.norm1_w, w.norm1_b, c.norm_eps);
  }
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LayerState s = rows_of(state.layer[i], chunk);
    const LayerParams& w = p.layer[i];
    attention_layer(be, c, w, chunk, s);
    Run own = run;
    own.seed = hash64(run.seed, i);
    const AddNorm in{s.norm2, s.stats2, s.mid, s.x, s.delta, w.norm2_w, w.norm2_b, c.norm_eps};
    ffn_of_norm(be, c, w, plan.layer[i], own, in, s, i > 0 && ahead(i));
    if (i + 1 == p.layer.size()) {
      add_norm(be, {norm, stats, x_out, s.mid, s.delta, p.norm_w, p.norm_b, c.norm_eps});
      break;
    }
    LayerState next = rows_of(state.layer[i + 1], chunk);
    const LayerParams& u = p.layer[i + 1];
    if (ahead(i + 1)) {  // the next layer's experts are chosen now, from this layer's FFN input
      const FfnPlan& f = plan.layer[i + 1];
      score_layer(be, u, f, own, router_input(be, f, s.norm2, next), next);
    }
    add_norm(be,
             {next.norm1, next.stats1, next.x, s.mid, s.delta, u.norm1_w, u.norm1_b, c.norm_eps});
  }
  be.ops.gemm(*be.ctx, first_rows(state.logits, N), norm, false, p.head(), true);
}

}  // namespace lte
