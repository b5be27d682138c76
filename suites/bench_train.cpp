// Google Benchmark: the rate of one training step (forward, backward, AdamW) against the machine's
// own rate of matrix products, measured in the same run: Eigen through the suite's gemm, 1024^3
// fp32. Counters: GFLOPs as the full convention counts them, of_gemm the share of the product's
// rate.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <chrono>

#include "bench/measure.h"
#include "core/rng.h"
#include "model/train.h"

namespace lte {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
  return std::chrono::duration<double>(Clock::now() - t).count();
}

struct Square {
  Tensor a = shape(DType::f32, {1024, 1024}), b = a, out = a;
  Arena memory;

  Square() {
    memory.reserve(3 * Arena::padded(a.bytes()));
    for (Tensor* t : {&a, &b, &out}) {
      memory.carve(*t);
      for (int64_t i = 0; i < t->size(); ++i) t->as<float>()[i] = static_cast<float>(i % 17) - 8;
    }
  }
  // Seconds of one product.
  double run(Backend& be) {
    const auto start = Clock::now();
    be.ops.gemm(*be.ctx, out, a, false, b, false);
    return seconds_since(start);
  }
};

constexpr double kSquareFlops = 2.0 * 1024 * 1024 * 1024;

void train_step(benchmark::State& state, const char* model, int batch, int seq) {
  Backend be = open_backend("auto");
  ModelConfig cfg = parse_model(model);
  cfg.vocab = 256;
  const Plan plan = dense_plan(cfg);
  Params params = make_params(cfg, plan);
  init_params(params, 1);
  TokenSet set;
  Rng rng(5);
  for (int i = 0; i < 50000; ++i) set.tokens.push_back(static_cast<int32_t>(rng.below(256)));
  Square square;
  square.run(be);
  TrainSpec spec;
  spec.steps = 1 << 30, spec.batch = batch, spec.seq = seq;
  // One step and one product in turn, so that both see the same minute of a shared machine.
  double step_seconds = 0, gemm_seconds = 0;
  int64_t steps = 0;
  TrainHooks hooks;
  struct Enough {};
  auto last = Clock::now();
  auto it = state.begin();
  const auto end = state.end();
  hooks.log = [&](const StepLog&) {
    const double seconds = seconds_since(last);
    if (steps++ > 0) {  // the first step warms up
      step_seconds += seconds;
      gemm_seconds += square.run(be);
      state.SetIterationTime(seconds);
      ++it;
      if (!(it != end)) throw Enough{};
    }
    last = Clock::now();
  };
  if (it != end) {
    try {
      train(be, params, plan, set, {}, spec, hooks);
    } catch (const Enough&) {
    }
  }
  const double tokens = static_cast<double>(batch) * seq, n = static_cast<double>(steps - 1);
  const double rate = train_flops(cfg, plan, seq, false) * tokens * n / step_seconds,
               gemm = kSquareFlops * n / gemm_seconds;
  state.counters["GFLOPs"] = rate * 1e-9;
  state.counters["gemm_GFLOPs"] = gemm * 1e-9;
  state.counters["of_gemm"] = rate / gemm;
  state.SetItemsProcessed(static_cast<int64_t>(tokens * n));
}

}  // namespace
}  // namespace lte

int main(int argc, char** argv) {
  struct Row {
    const char* model;
    int batch, seq;
  };
  for (const Row r :
       {Row{"gpt2-nano", 32, 128}, Row{"gpt2-micro", 16, 256}, Row{"gpt2-mini", 8, 256},
        Row{"llama-nano", 32, 128}, Row{"llama-mini", 8, 256}}) {
    benchmark::RegisterBenchmark(
        fmt::format("train/{}/batch:{}/seq:{}", r.model, r.batch, r.seq).c_str(),
        [r](benchmark::State& s) { lte::train_step(s, r.model, r.batch, r.seq); })
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
  for (const auto& [key, value] : lte::describe_machine(0)) benchmark::AddCustomContext(key, value);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  return benchmark::RunSpecifiedBenchmarks() > 0 ? 0 : 1;
}
