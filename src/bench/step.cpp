#include "bench/step.h"

#include <algorithm>
#include <cmath>

#include "bench/ceilings.h"
#include "bench/report_rows.h"
#include "bench/synthetic.h"
#include "bench/traffic.h"
#include "core/device.h"
#include "core/rng.h"
#include "core/statistics.h"
#include "model/decode.h"
#include "model/train.h"

namespace lte {
namespace {

struct Bench {
  const StepSpec& spec;
  ModelConfig cfg;
  Plan plan;
  Params params;
  TokenSet set;
  double (*now)() = spec.cpu_time ? thread_seconds : wall_seconds;
  Traffic decoded;  // of the last decode step, by the gates that were open

  explicit Bench(const StepSpec& s) : spec(s), cfg(parse_model(s.model)) {
    cfg.vocab = cfg.vocab ? cfg.vocab : s.vocab;
    cfg.max_seq = std::max(cfg.max_seq, s.seq);
    plan = dense_plan(cfg);
    for (FfnPlan& f : plan.layer) {
      if (s.group == 0) break;
      f.group = s.group, f.router = RouterKind::linear, f.router_bias = true;
      f.rule = Rule::threshold;
    }
    check_plan(cfg, plan);
    params = make_params(cfg, plan);
    fill_params(params, 1, s.threads);
    Backend plain = open_backend("auto", s.threads);
    if (s.group) plan = with_density(plain, params, plan, s.active);
    if (s.bf16) params = to_bf16(params);
    set.tokens = random_tokens(50000, cfg.vocab);
  }

  // Seconds of each of `steps` training steps, after one that warms up.
  std::vector<double> train_steps(Backend& be, int steps, ProfileCtx* clock) {
    TrainSpec t;
    t.steps = steps + 1, t.batch = spec.batch, t.seq = spec.seq;
    t.terms.train_routers = t.terms.straight_through = spec.group > 0;
    std::vector<double> seconds;
    TrainHooks hooks;
    double last = 0;
    hooks.log = [&](const StepLog& log) {
      if (log.step > 1) seconds.push_back(now() - last);
      last = now();
      if (log.step == 1 && clock) clock->reset();
    };
    Params p = clone(params, be.memory);
    train(be, p, plan, set, {}, t, hooks);
    return seconds;
  }

  // Seconds of each of `steps` decode steps of `batch` sequences, the last ones of the sequence.
  std::vector<double> decode_steps(Backend& be, int steps, ProfileCtx* clock) {
    const int64_t B = spec.batch, S = spec.seq;
    const Params p = clone(params, be.memory);
    if (be.device) be.device->fetch(*be.ctx, p.memory.base(), p.memory.used);
    State state = make_state(p, plan, B, 1, S, Keep::one_layer);
    const std::span<const int32_t> tokens(set.tokens.data(), static_cast<size_t>(B));
    DecodeStep one = make_decode_step(be, B);
    std::vector<double> seconds;
    for (int i = -2; i < steps;
         ++i) {  // the first makes scratch, the second a graph, where there are any
      if (i == 0 && clock) clock->reset();
      const int64_t pos = std::max<int64_t>(0, S - 1 - (steps - 1 - std::max(i, 0)));
      const double start = now();
      decode(be, p, plan, tokens, pos, {Gate::hard, Exec::gathered}, state, one);
      be.finish();
      if (i >= 0) seconds.push_back(now() - start);
    }
    const Open o = open_gates(plan, state, B);
    decoded =
        model_traffic(cfg, plan, o.active, o.loaded, static_cast<double>(S), B, 1, params.dtype);
    return seconds;
  }

  std::vector<double> steps(Backend& be, int n, ProfileCtx* clock = nullptr) {
    return spec.decode ? decode_steps(be, n, clock) : train_steps(be, n, clock);
  }
};

void profile_row(Bench& bench, Backend& be, StepRow& row) {
  Profiled p = profiled(be);
  p.clock->now = bench.now;
  const int n = std::max(3, bench.spec.steps);
  // The mean of the steps, as the times of operations are.
  double sum = 0;
  for (double seconds : bench.steps(p.backend, n, p.clock.get())) sum += seconds;
  row.profiled = sum / n;
  for (OpTime t : p.clock->times) {
    if (t.calls == 0) continue;
    t.seconds /= n, t.calls /= n;
    row.ops.push_back(t);
  }
  std::stable_sort(row.ops.begin(), row.ops.end(),
                   [](const OpTime& a, const OpTime& b) { return a.seconds > b.seconds; });
}

}  // namespace

StepReport bench_step(const StepSpec& spec) {
  LTE_CHECK(!spec.cpu_time || spec.threads == 1, "processor time wants --threads 1");
  LTE_CHECK(!spec.bf16 || spec.decode, "weights of bf16 are for --decode");
  Bench bench(spec);
  std::vector<Backend> backends;
  for (const std::string& name : spec.backends)
    backends.push_back(open_backend(name, spec.threads));
  Backend& front = backends.front();
  const Ceilings device = front.device ? measure_device(front) : Ceilings{};
  Backend best = open_backend("auto", spec.threads);
  GemmProbe probe(best, kGemmSide, kGemmSide, kGemmSide, DType::f32, false);
  StepReport report;
  std::vector<std::vector<double>> all(backends.size()), ratios(backends.size());
  for (int r = 0; r < spec.rounds; ++r) {
    const double rate =
        front.device ? device.gemm_f32
                     : 2.0 * kGemmSide * kGemmSide * kGemmSide / probe.seconds(best, bench.now);
    report.gemm = std::max(report.gemm, rate);
    double first = 0;
    for (size_t i = 0; i < backends.size(); ++i) {
      const std::vector<double> s = bench.steps(backends[i], spec.steps);
      all[i].insert(all[i].end(), s.begin(), s.end());
      if (i == 0) first = median_of(s);
      ratios[i].push_back(first / median_of(s));
    }
  }
  const double tokens = static_cast<double>(spec.batch) * (spec.decode ? 1 : spec.seq);
  for (size_t i = 0; i < backends.size(); ++i) {
    StepRow row{.backend = backends[i].name, .ops = {}};
    row.seconds = median_of(all[i]), row.tokens_per_s = tokens / row.seconds;
    row.mad = mad_of(all[i]), row.ratio = median_of(ratios[i]);
    profile_row(bench, backends[i], row);
    report.rows.push_back(std::move(row));
  }
  report.flops = tokens * train_flops(bench.cfg, bench.plan, spec.seq, false);
  report.bound = report.flops / report.gemm;
  if (spec.decode) {
    report.stream = device.stream_all;
    if (!front.device) {
      ThreadPool pool(spec.threads);
      const StreamBlock block;
      for (int i = 0; i < 5; ++i) report.stream = std::max(report.stream, stream_rate(pool, block));
    }
    report.flops = bench.decoded.flops, report.bytes = bench.decoded.bytes;
    report.bound = report.bytes / report.stream;
  }
  return report;
}

}  // namespace lte
