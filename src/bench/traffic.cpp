#include "bench/traffic.h"

#include <algorithm>

namespace lte {

Traffic ffn_traffic(const ModelConfig& c, const FfnPlan& p, double active, double loaded,
                    int64_t tokens, DType weights) {
  const double D = c.dim, neurons = (c.gated ? 3.0 : 2.0) * D * c.ffn;
  const auto E = static_cast<double>(experts(c, p));
  const double router = p.router == RouterKind::linear      ? E * D
                        : p.router == RouterKind::two_layer ? p.width * (D + E)
                                                            : 0;
  return {.bytes = static_cast<double>(size_of(weights)) * (neurons * loaded + router),
          .flops = 2 * static_cast<double>(tokens) * (neurons * active + router),
          .weights = weights};
}

Traffic model_traffic(const ModelConfig& c, const Plan& plan, std::span<const double> active,
                      std::span<const double> loaded, double context, int64_t sequences,
                      int64_t tokens_each, DType weights) {
  const double kv = 4 * 2.0 * c.layers * context * c.kv_heads * c.head_dim();
  const auto B = static_cast<double>(sequences);
  return {
      .bytes = cost_of(c, plan, loaded, context, {}, weights).bytes + (B - 1) * kv,
      .flops = cost_of(c, plan, active, context).flops_full * B * static_cast<double>(tokens_each),
      .weights = weights};
}

double product_rate(const Traffic& t, const Ceilings& c) {
  return t.weights == DType::bf16 && c.gemm_bf16 > 0 ? c.gemm_bf16 : c.gemm_f32;
}

double bound_seconds(const Traffic& t, const Ceilings& c) {
  return std::max(t.bytes / c.stream_all, t.flops / product_rate(t, c));
}

}  // namespace lte
