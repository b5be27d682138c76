// The backward pass, layer by layer in reverse. g.dx carries the gradient by the residual stream.
#include "model/forward.h"
#include "model/rows.h"

namespace lte {
namespace {

struct Pass {
  Backend& be;
  const ModelConfig& c;
  Chunk chunk;
  Run run;
  const LossTerms& terms;
  Gradients& g;
  Tensor dx, dnorm;  // [N,D]; dnorm is kept as the norm is whose gradient it holds
};

// Ops::linear_backward, by two products where a backend has no such entry.
void linear_backward(Backend& be, Tensor dx, bool add_dx, Tensor dw, Tensor dout, Tensor x,
                     Tensor w, bool tw) {
  const Ops& op = be.ops;
  if (op.linear_backward) return op.linear_backward(*be.ctx, dx, add_dx, dw, dout, x, w, tw);
  (add_dx ? op.gemm_add : op.gemm)(*be.ctx, dx, dout, false, w, !tw);
  op.gemm_add(*be.ctx, dw, tw ? dout : x, true, tw ? x : dout, false);
}

bool reaches_router(const FfnPlan& f, Run run, const LossTerms& terms) {
  return f.router != RouterKind::none &&
         (terms.train_routers || run.gate == Gate::soft || f.squash == Squash::kept_softmax);
}

void check_routers(const Plan& plan, Run run, const LossTerms& terms) {
  for (const FfnPlan& f : plan.layer) {
    if (!reaches_router(f, run, terms)) continue;
    const bool own = f.input == RouterInput::normed || f.input == RouterInput::residual;
    LTE_CHECK(f.router == RouterKind::linear && own && f.squash != Squash::softmax &&
                  f.squash != Squash::absolute,
              "backward: the gradient by this plan's routers is not known");
    LTE_CHECK(f.squash != Squash::kept_softmax || (terms.eta == 0 && terms.lambda == 0),
              "backward: scores of kept_softmax cannot be regularised");
  }
}

// `size` elements of a row of sums.
Tensor part_of(const Tensor& row, int64_t first, int64_t size) {
  Tensor t = shape(DType::f64, {size});
  t.data = row.as<double>() + first;
  return t;
}

// The gradient that reaches the router's logits, from the task through the gates (p.g.dgates) and
// from the regularisers; then on to its weights and its input. L and E normalise as in the paper.
void router_backward(Pass& p, const LayerParams& w, const LayerParams& d, const FfnPlan& plan,
                     const LayerState& s, Tensor dgates, Tensor sums, size_t layers) {
  const Ops& op = p.be.ops;
  const bool weights = plan.squash == Squash::kept_softmax;
  const bool through_task = p.run.gate == Gate::soft || p.terms.straight_through || weights;
  if (!through_task) op.fill(*p.be.ctx, dgates, 0);
  const double share = 1.0 / (static_cast<double>(layers) * static_cast<double>(s.scores.size()));
  const GateLoss loss{.efficiency = p.terms.eta * share,
                      .separability = p.terms.lambda * share,
                      .tau = p.terms.tau,
                      .eps = p.terms.sep_eps,
                      .clip = p.terms.sep_clip};
  op.gate_loss_add(*p.be.ctx, p.terms.train_routers ? dgates : Tensor{}, part_of(sums, 0, 3),
                   s.scores, loss);
  if (p.run.gate == Gate::hard) {  // the gates that are open, by whatever rule and cut
    op.gate_loss_add(*p.be.ctx, {}, part_of(sums, 3, 3), s.gates, {.tau = 0, .eps = 1});
  }
  if (!reaches_router(plan, p.run, p.terms)) return;
  if (weights) op.gate_softmax_backward(*p.be.ctx, dgates, dgates, s.gates);
  if (plan.squash == Squash::sigmoid) op.sigmoid_backward(*p.be.ctx, dgates, dgates, s.scores);
  const bool normed = plan.input == RouterInput::normed;
  if (p.terms.train_routers) {
    op.gemm_add(*p.be.ctx, d.router_w, dgates, true, normed ? s.norm2 : s.mid, false);
    if (d.router_b) op.bias_backward_add(*p.be.ctx, d.router_b, dgates);
  }
  op.gemm_add(*p.be.ctx, normed ? p.dnorm : p.dx, dgates, false, w.router_w, false);
}

// p.dnorm and the gradients of a layer's matrices, by p.dx, and of the gates where there are some.
void masked_backward(Pass& p, const LayerParams& w, const LayerParams& d, const FfnPlan& plan,
                     const LayerState& s, Tensor dact, Tensor dup, Tensor dgates, Tensor hoyer,
                     size_t layers) {
  const Ops& op = p.be.ops;
  const bool routed = plan.router != RouterKind::none;
  const bool at_once =
      op.linear_activate_backward && !routed && !p.c.gated && p.terms.hoyer == 0 &&
      op.linear_activate_backward(*p.be.ctx, dact, d.down_w, p.dx, s.act, s.up, w.down_w, p.c.act);
  if (!at_once)
    linear_backward(p.be, dact, false, d.down_w, p.dx, routed ? s.hidden : s.act, w.down_w, false);
  if (routed) {
    op.scale_experts_backward(*p.be.ctx, dact, dgates, dact, s.act,
                              p.run.gate == Gate::soft ? s.scores : s.gates);
  }
  if (p.terms.hoyer > 0) {
    op.hoyer_add(*p.be.ctx, dact, hoyer, s.act, p.terms.hoyer / static_cast<double>(layers));
  }
  if (p.c.gated) {
    op.activate_backward(*p.be.ctx, dact, dup, dact, s.gate, s.up, p.c.act);
    linear_backward(p.be, p.dnorm, false, d.gate_w, dact, s.norm2, w.gate_w, true);
    linear_backward(p.be, p.dnorm, true, d.up_w, dup, s.norm2, w.up_w, true);
  } else {
    if (!at_once) op.activate_backward(*p.be.ctx, dact, {}, dact, s.up, {}, p.c.act);
    linear_backward(p.be, p.dnorm, false, d.up_w, dact, s.norm2, w.up_w, true);
    if (d.up_b) op.bias_backward_add(*p.be.ctx, d.up_b, dact);
  }
}

void ffn_backward(Pass& p, const LayerParams& w, const LayerParams& d, const FfnPlan& plan,
                  const LayerState& s, Tensor sums, size_t layers) {
  const Ops& op = p.be.ops;
  LTE_CHECK(plan.in_cut < 0, "backward: sparse inputs are not trained under");
  const bool routed = plan.router != RouterKind::none;
  p.dnorm.dtype = s.norm2.dtype;
  Tensor dact = s.act, dup = s.act, dgates = s.gates;
  dact.data = p.g.dact.data, dup.data = p.g.dup.data, dgates.data = p.g.dgates.data;
  if (p.run.exec == Exec::trained && trains_gathered(plan)) {
    const PackedRows work{.up = dup, .gate = p.c.gated ? dact : Tensor{}, .act = {}};
    op.fill(*p.be.ctx, p.dnorm, 0);
    op.ffn_train_backward_add(*p.be.ctx, p.dnorm, ffn_weights(d), work, p.dx, packed_rows(s),
                              s.norm2, expert_lists(s), ffn_weights(w), p.c.act);
  } else {
    masked_backward(p, w, d, plan, s, dact, dup, dgates, part_of(sums, 6, 1), layers);
  }
  if (d.down_b) op.bias_backward_add(*p.be.ctx, d.down_b, p.dx);
  if (routed) router_backward(p, w, d, plan, s, dgates, sums, layers);
  op.norm_backward_add(*p.be.ctx, p.dx, d.norm2_w, d.norm2_b, p.dnorm, s.stats2, s.mid, w.norm2_w);
}

void attention_backward(Pass& p, const LayerParams& w, const LayerParams& d, const LayerState& s) {
  const Ops& op = p.be.ops;
  Tensor dattended = s.attended, dqkv = s.qkv;
  dattended.data = p.g.dattended.data, dqkv.data = p.g.dqkv.data;
  p.dnorm.dtype = s.norm1.dtype;
  linear_backward(p.be, dattended, false, d.proj_w, p.dx, s.attended, w.proj_w, true);
  if (d.proj_b) op.bias_backward_add(*p.be.ctx, d.proj_b, p.dx);
  op.attention_backward(*p.be.ctx, dqkv, dattended, s.attended, s.qkv, s.k, s.v, s.probs, p.chunk,
                        p.c.head_shape());
  if (p.c.rope) {
    op.rope(*p.be.ctx, dqkv, p.chunk, p.c.heads + p.c.kv_heads, p.c.head_dim(), p.c.rope_theta,
            true);
  }
  linear_backward(p.be, p.dnorm, false, d.qkv_w, dqkv, s.norm1, w.qkv_w, true);
  if (d.qkv_b) op.bias_backward_add(*p.be.ctx, d.qkv_b, dqkv);
  op.norm_backward_add(*p.be.ctx, p.dx, d.norm1_w, d.norm1_b, p.dnorm, s.stats1, s.x, w.norm1_w);
}

}  // namespace

void backward(Backend& be, const Params& p, const Plan& plan, Tensor tokens, Tensor targets,
              Chunk chunk, Run run, const LossTerms& terms, double weight, Tensor teacher,
              State& state, Gradients& g) {
  LTE_CHECK(state.keep == Keep::all_layers && run.exec != Exec::gathered && chunk.pos == 0,
            "backward: wants a masked forward over whole prompts that kept all layers");
  LTE_CHECK(run.exec == Exec::masked || can_train_gathered(be, plan, run.gate, terms),
            "backward: these gates or terms cannot be trained gathered");
  check_routers(plan, run, terms);
  const Ops& op = be.ops;
  const int64_t N = chunk.B * chunk.T;
  Pass pass{.be = be,
            .c = p.cfg,
            .chunk = chunk,
            .run = run,
            .terms = terms,
            .g = g,
            .dx = first_rows(g.dx, N),
            .dnorm = first_rows(g.dnorm, N)};
  const Tensor logits = first_rows(state.logits, N), dlogits = first_rows(g.dlogits, N);
  const double distill = teacher ? terms.distill : 0;
  op.cross_entropy(*be.ctx, first_rows(state.losses, N), dlogits, logits, targets,
                   weight * (1 - distill), p.cfg.vocab);
  if (teacher) op.distill_add(*be.ctx, dlogits, logits, teacher, targets, weight * distill);
  Params& d = g.d;
  g.gate = run.gate;
  op.fill(*be.ctx, g.sums, 0);
  pass.dnorm.dtype = state.norm.dtype;
  linear_backward(be, pass.dnorm, false, d.head(), dlogits, first_rows(state.norm, N), p.head(),
                  true);
  op.fill(*be.ctx, pass.dx, 0);
  op.norm_backward_add(*be.ctx, pass.dx, d.norm_w, d.norm_b, pass.dnorm, first_rows(state.stats, N),
                       first_rows(state.x_out, N), p.norm_w);
  for (size_t i = p.layer.size(); i-- > 0;) {
    const LayerState s = rows_of(state.layer[i], chunk);
    ffn_backward(pass, p.layer[i], d.layer[i], plan.layer[i], s,
                 slice(g.sums, static_cast<int64_t>(i)), p.layer.size());
    attention_backward(pass, p.layer[i], d.layer[i], s);
  }
  op.embed_backward_add(*be.ctx, d.wte, d.wpe, pass.dx, tokens, chunk);
}

}  // namespace lte
