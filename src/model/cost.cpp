#include "model/cost.h"

namespace lte {

Cost cost_of(const ModelConfig& c, const Plan& plan, std::span<const double> active_layer,
             double context, std::span<const double> inputs, DType weights_type) {
  const double D = c.dim, HC = static_cast<double>(c.heads) * c.head_dim();
  const double KC = static_cast<double>(c.kv_heads) * c.head_dim(), qkv = c.qkv_width();
  const double bias = c.bias ? 1 : 0, norm = c.rms_norm ? 1 : 2, ffn_matrices = c.gated ? 3 : 2;
  double macs = 0, weights = 0, activations = 0;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const FfnPlan& p = plan.layer[i];
    const double n = ffn_matrices, in = p.in_cut >= 0 && !inputs.empty() ? inputs[i] : 1;
    // Neurons computed. With sparse inputs the active fraction is (n - 1) / n inputs + 1 / n neurons.
    const double F = (p.in_cut >= 0 ? n * active_layer[i] - (n - 1) * in : active_layer[i]) * c.ffn;
    const bool routed = p.router != RouterKind::none;
    const double E = routed ? static_cast<double>(experts(c, p)) : 0;
    const auto all = static_cast<double>(kept_neurons(c, p));  // computed before a choice is made
    const double seen = p.router == RouterKind::activation ? ffn_matrices - 1
                        : p.router == RouterKind::gate     ? 1
                                                           : 0;
    const double ffn = (ffn_matrices - seen) * F * D + seen * all * D * in;
    const double router = p.router == RouterKind::linear      ? E * D
                          : p.router == RouterKind::two_layer ? p.width * (D + E)
                                                              : 0;
    const double inner = p.router == RouterKind::two_layer ? p.width : 0;
    const double linear = qkv * D + HC * D + ffn + router;
    macs += linear;
    weights +=
        linear + 2 * norm * D + bias * (qkv + 2 * D + (c.gated ? 0 : F)) + (p.router_bias ? E : 0);
    weights += p.down_bias && !c.bias ? D : 0;
    // What the operations read: norms, projections, attention, sums, activation and down product.
    activations += D + D + qkv + HC + 2 * D + D + ffn_matrices * F + (ffn_matrices - 1) * D +
                   (routed ? D + E + inner : 0) + 2 * D;
  }
  const double layers = c.layers, head = static_cast<double>(c.vocab) * D;
  const double kv = 2 * layers * context * KC;
  Cost cost;
  cost.flops_paper = 2 * macs;
  cost.flops_full = 2 * (macs + 2 * layers * context * HC + head);
  cost.bytes = 4 * (weights + head + norm * D + (c.rope ? 1 : 2) * D + kv + activations + 2 * D);
  // What is half as wide: the matrices of the layers, the head and the rows of the embedding.
  const double matrices = macs + head + (c.rope ? 1 : 2) * D;
  if (weights_type == DType::bf16) cost.bytes -= 2 * matrices;
  return cost;
}

double train_flops(const ModelConfig& c, const Plan& plan, int seq, bool teacher) {
  std::vector<double> kept;
  for (const FfnPlan& p : plan.layer)
    kept.push_back(static_cast<double>(kept_neurons(c, p)) / c.ffn);
  const double context = (seq + 1) / 2.0, own = 3 * cost_of(c, plan, kept, context).flops_full;
  if (!teacher) return own;
  const std::vector<double> all(kept.size(), 1.0);
  return own + cost_of(c, dense_plan(c), all, context).flops_full;
}

}  // namespace lte
