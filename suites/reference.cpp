#include "reference.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "core/cpu.h"

namespace lte {
namespace {

struct ReplayCtx : CpuCtx {
  const State* seen;
  int64_t first;
  double slack;
  void (*gate)(Ctx&, Tensor, Tensor, Rule, double);
  size_t layer = 0;
  std::shared_ptr<std::string> wrong = std::make_shared<std::string>();

  explicit ReplayCtx(int threads) : CpuCtx(threads) {}
};

// Ops::gate by the recorded gates.
void replay_gate(Ctx& ctx, Tensor gates, Tensor scores, Rule rule, double cut) {
  auto& r = static_cast<ReplayCtx&>(ctx);
  LTE_CHECK(rule == Rule::threshold, "only thresholds are replayed");
  r.gate(ctx, gates, scores, rule, cut);
  const Tensor seen = some_rows(r.seen->layer[r.layer].gates, r.first, gates.rows());
  double largest = 0;
  for (int64_t i = 0; i < scores.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(scores.as<float>()[i])));
  for (int64_t i = 0; i < gates.size(); ++i) {
    const double off = std::abs(static_cast<double>(scores.as<float>()[i]) - cut);
    if ((gates.as<float>()[i] != 0) == (seen.as<float>()[i] != 0) || off <= r.slack * largest)
      continue;
    *r.wrong = fmt::format(
        "layer {}, expert {} of row {}: {}, and the reference's score {:.6g} is {:.3g} off the cut "
        "{:.6g}",
        r.layer, i % gates.cols(), r.first + i / gates.cols(),
        seen.as<float>()[i] != 0 ? "open" : "closed", static_cast<double>(scores.as<float>()[i]),
        off, cut);
  }
  std::memcpy(gates.data, seen.data, gates.bytes());
  ++r.layer;
}

}  // namespace

Backend reference_backend(const Session& s, DType weights) {
  if (!s.backend.device) return open_backend("cpu+naive", 1);
  Backend fast = open_backend(fastest_inference(), s.options.threads);
  if (weights == DType::bf16 && !has_bf16(fast)) return open_backend("cpu+naive", 1);
  return fast;
}

double allowed(const Session& s, DType weights, int64_t length, int64_t layers, double largest) {
  const bool rounds =
      s.backend.device &&
      (weights == DType::bf16 || has_variant(s.backend, "bf16") || has_variant(s.backend, "tf32"));
  return rounds ? 0x1.0p-7 * std::sqrt(static_cast<double>(layers)) * largest
                : tolerance_of(DType::f32, length, largest);
}

Replay replay(const Session& s, DType weights, const State& seen, int64_t first, double slack) {
  Backend b = reference_backend(s, weights);
  auto ctx = std::make_shared<ReplayCtx>(s.options.threads);
  ctx->seen = &seen, ctx->first = first, ctx->slack = slack, ctx->gate = b.ops.gate;
  b.ops.gate = replay_gate;
  b.ctx = ctx;
  return {.backend = b, .wrong = ctx->wrong};
}

}  // namespace lte
