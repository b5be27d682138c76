// Carves the memory of activations and gradients.
#include <algorithm>

#include "model/forward.h"

namespace lte {
namespace {

// Runs `list` twice over the same tensors: once to add up the bytes, once to place them.
template <class List>
void place(Arena& arena, List&& list) {
  size_t bytes = 0;
  list([&](Tensor& t) { bytes += Arena::padded(t.bytes()); });
  arena.reserve(bytes);
  list([&](Tensor& t) { arena.carve(t); });
}

DType kept_type(const Params& p, Kept kept) {
  return p.dtype == DType::f32 ? kept.type : activation_type(p.dtype);
}

void shape_layer(LayerState& l, const Params& p, const FfnPlan& f, int64_t B, int64_t T, int64_t S,
                 Keep keep, Kept kept) {
  const ModelConfig& c = p.cfg;
  const int64_t N = B * T, F = kept_neurons(c, f), E = experts(c, f);
  const auto make = [&](std::initializer_list<int64_t> dims) {
    return shape(activation_type(p.dtype), dims);
  };
  const DType type = kept_type(p, kept);
  const bool plain = f.router == RouterKind::none && f.in_cut < 0;
  l.x = l.mid = l.delta = make({N, c.dim});
  l.norm1 = shape(type, {N, c.dim});
  l.norm2 = plain ? l.norm1 : l.x;
  l.stats1 = l.stats2 = make({N, 2});
  l.qkv = shape(type, {N, c.qkv_width()});
  l.attended = shape(type, {N, static_cast<int64_t>(c.heads) * c.head_dim()});
  if (keep == Keep::all_layers)
    l.probs = kept.row_sums ? make({B, c.heads, T}) : make({B, c.heads, T, T});
  l.up = l.act = shape(l.norm2.dtype, {N, F});
  if (c.gated) l.gate = l.up;
  if (f.router != RouterKind::none) {
    l.hidden = make({N, F});
    l.scores = l.gates = make({N, E});
    l.index = shape(DType::i32, {E, N});
    l.count = shape(DType::i32, {E});
    if (f.input == RouterInput::unit) l.unit = make({N, c.dim});
    if (f.router == RouterKind::two_layer) l.inner = make({N, f.width});
  }
  if (f.in_cut >= 0) l.large = make({N, c.dim}), l.kept = make({N});
  l.k = l.v = shape(type, {B, c.kv_heads, S, c.head_dim()});
}

// The tensors that a layer may share with the next one, and those that it may not.
template <class F>
void each_shared(LayerState& l, F&& f) {
  for (Tensor* t : {&l.x, &l.norm1, &l.stats1, &l.qkv, &l.probs, &l.attended, &l.mid, &l.norm2,
                    &l.stats2, &l.up, &l.gate, &l.act, &l.hidden, &l.delta, &l.unit, &l.large}) {
    if (t->rank) f(*t);
  }
}
template <class F>
void each_own(LayerState& l, F&& f) {
  for (Tensor* t : {&l.scores, &l.gates, &l.index, &l.count, &l.inner, &l.kept, &l.k, &l.v}) {
    if (t->rank) f(*t);
  }
}

}  // namespace

Kept kept_by(const Backend& be, const ModelConfig& c) {
  if (!be.ops.keeps_row_sums(*be.ctx)) return {};
  const bool wide = c.head_dim() > kMostKeptColumns;
  return {.row_sums = true, .type = wide ? DType::f32 : be.ops.kept_type(*be.ctx)};
}

State make_state(const Params& p, const Plan& plan, int64_t B, int64_t T, int64_t S, Keep keep,
                 Kept kept) {
  const int64_t N = B * T;
  State s{.B = B,
          .T = T,
          .S = S,
          .keep = keep,
          .layer = {},
          .x_out = {},
          .norm = {},
          .stats = {},
          .logits = {},
          .losses = {},
          .memory = {.where = p.memory.where}};
  s.layer.resize(p.layer.size());
  size_t shared = 0, own = 0;
  for (size_t i = 0; i < s.layer.size(); ++i) {
    shape_layer(s.layer[i], p, plan.layer[i], B, T, S, keep, kept);
    size_t bytes = 0;
    each_shared(s.layer[i], [&](Tensor& t) { bytes += Arena::padded(t.bytes()); });
    each_own(s.layer[i], [&](Tensor& t) { own += Arena::padded(t.bytes()); });
    shared = keep == Keep::all_layers ? shared + bytes : std::max(shared, bytes);
  }
  const DType dtype = activation_type(p.dtype);
  s.x_out = shape(dtype, {N, p.cfg.dim});
  s.norm = shape(kept_type(p, kept), {N, p.cfg.dim});
  s.stats = shape(dtype, {N, 2});
  s.logits = shape(dtype, {N, p.cfg.vocab});
  if (s.norm.dtype == DType::bf16) s.logits = shape(DType::bf16, {N, (p.cfg.vocab + 7) / 8 * 8});
  s.losses = shape(dtype, {N});
  Tensor* const outer[] = {&s.x_out, &s.norm, &s.stats, &s.logits, &s.losses};
  for (Tensor* t : outer) own += Arena::padded(t->bytes());
  s.memory.reserve(shared + own);
  const auto carve = [&](Tensor& t) { s.memory.carve(t); };
  for (LayerState& l : s.layer) each_own(l, carve);
  for (Tensor* t : outer) carve(*t);
  const size_t stride_start = s.memory.used;
  for (LayerState& l : s.layer) {
    if (keep == Keep::one_layer) s.memory.used = stride_start;  // a stride of zero: same memory
    each_shared(l, carve);
  }
  return s;
}

Gradients make_gradients(const Params& p, const Plan& plan, const State& s) {
  LTE_CHECK(p.dtype != DType::bf16, "a model of bf16 can be run, not trained");
  const int64_t N = s.B * s.T, D = p.cfg.dim;
  Gradients g{.d = make_params(p.cfg, plan, p.dtype, p.memory.where),
              .dlogits = s.logits,
              .dx = {},
              .dnorm = {},
              .dattended = {},
              .dqkv = {},
              .dact = {},
              .dup = {},
              .dgates = {},
              .gate = {},
              .sums = {},
              .norm = {},
              .memory = {.where = p.memory.where}};
  int64_t F = 1, E = 1;
  for (const FfnPlan& f : plan.layer) {
    F = std::max(F, kept_neurons(p.cfg, f)), E = std::max(E, experts(p.cfg, f));
  }
  g.dx = g.dnorm = shape(p.dtype, {N, D});
  g.dattended = s.layer[0].attended, g.dqkv = s.layer[0].qkv;
  g.dact = g.dup = shape(p.dtype, {N, F});
  g.dgates = shape(p.dtype, {N, E});
  g.sums = shape(DType::f64, {p.cfg.layers, 7});
  g.norm = shape(DType::f64, {1});
  place(g.memory, [&](auto&& f) {
    for (Tensor* t : {&g.dlogits, &g.dx, &g.dnorm, &g.dattended, &g.dqkv, &g.dact, &g.dup,
                      &g.dgates, &g.sums, &g.norm})
      f(*t);
  });
  return g;
}

GateSums gate_sums(const Gradients& g, size_t layer) {
  const double* s = g.sums.as<double>() + 7 * layer;
  return {
      .square = s[0], .separation = s[1], .above = s[g.gate == Gate::hard ? 5 : 2], .hoyer = s[6]};
}

}  // namespace lte
