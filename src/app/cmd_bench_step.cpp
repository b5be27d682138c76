#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/commands.h"

namespace lte {

int cmd_bench_step(const CommonArgs& c, StepSpec spec, bool profile) {
  using Json = nlohmann::ordered_json;
  spec.threads = c.threads;
  const StepReport r = bench_step(spec);
  if (c.json) {
    Json rows = Json::array();
    for (const StepRow& row : r.rows) {
      Json ops = Json::array();
      for (const OpTime& t : row.ops)
        ops.push_back({{"op", t.name},
                       {"seconds", t.seconds},
                       {"share", t.seconds / row.profiled},
                       {"calls", t.calls}});
      rows.push_back({{"backend", row.backend},
                      {"seconds", row.seconds},
                      {"mad", row.mad},
                      {"tokens_per_s", row.tokens_per_s},
                      {"ratio", row.ratio},
                      {"of_bound", r.bound / row.seconds},
                      {"ops", ops}});
    }
    const Json j = {{"model", spec.model},
                    {"step", spec.decode ? "decode" : "train"},
                    {"batch", spec.batch},
                    {"seq", spec.seq},
                    {"group", spec.group},
                    {"active", spec.active},
                    {"dtype", spec.bf16 ? "bf16" : "f32"},
                    {"flops", r.flops},
                    {"bytes", r.bytes},
                    {"gemm_flops_per_s", r.gemm},
                    {"stream_bytes_per_s", r.stream},
                    {"bound_seconds", r.bound},
                    {"rows", rows},
                    {"machine", describe_machine(c.threads)}};
    fmt::print("{}\n", j.dump());
    return 0;
  }
  fmt::print("{} step, {}, batch {}, seq {}{}\n", spec.decode ? "decode" : "training", spec.model,
             spec.batch, spec.seq,
             spec.group
                 ? fmt::format(", experts of {}, {:.3g} of them open", spec.group, spec.active)
                 : "");
  if (spec.decode) {
    fmt::print("bound: {:.3f} ms = {:.2f} MB at the stream rate {:.1f} GB/s\n", r.bound * 1e3,
               r.bytes * 1e-6, r.stream * 1e-9);
  } else {
    fmt::print("bound: {:.3f} ms = {:.2f} GFLOP of products at the product rate {:.0f} GFLOP/s\n",
               r.bound * 1e3, r.flops * 1e-9, r.gemm * 1e-9);
  }
  for (const StepRow& row : r.rows) {
    fmt::print(
        "{}: {:.3f} ms (+- {:.3f}), {:.0f} tokens/s, {:.2f} x the first, {:.0f} % of the bound\n",
        row.backend, row.seconds * 1e3, row.mad * 1e3, row.tokens_per_s, row.ratio,
        100 * r.bound / row.seconds);
    if (!profile) continue;
    double known = 0;
    for (const OpTime& t : row.ops) {
      known += t.seconds;
      fmt::print("  {:<24} {:6.1f} %  {:9.3f} ms  {:4} calls\n", t.name,
                 100 * t.seconds / row.profiled, t.seconds * 1e3, t.calls);
    }
    fmt::print("  {:<24} {:6.1f} %  {:9.3f} ms\n", "between operations",
               100 * (1 - known / row.profiled), (row.profiled - known) * 1e3);
  }
  return 0;
}

}  // namespace lte
