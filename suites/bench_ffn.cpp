// Google Benchmark: the FFN of one layer at real shapes, dense against gathered, through the
// function that the suite's own forward runs: norm, router, gate and compaction are inside the
// time. Weights are random; the density is reached by the routers themselves, whose biases are set
// to the wanted quantile of their scores on other inputs, and is measured. No row without a check
// against the masked plain-loop reference.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "bench/measure.h"
#include "core/rng.h"
#include "model/forward.h"
#include "model/rows.h"

namespace lte {
namespace {

constexpr int kInputs = 32;  // different inputs that the timed loop walks over

struct Case {
  const char* shape;
  int group;       // 0: the dense FFN
  double density;  // wanted
  int64_t tokens;  // of one chunk
};

// One layer's model, made once a shape and group.
struct Layer {
  Params params;
  Plan plan;
};

void randomise(Tensor t, double std, uint64_t seed) {
  Rng rng(seed);
  for (int64_t i = 0; i < t.size(); ++i) t.as<float>()[i] = static_cast<float>(std * rng.normal());
}

Layer make_layer(const char* shape, int group) {
  ModelConfig cfg = parse_model(shape);
  cfg.layers = 1, cfg.vocab = 16, cfg.max_seq = 16;
  Layer l{.params = {}, .plan = dense_plan(cfg)};
  if (group > 0) {
    l.plan.layer[0] = {.group = group,
                       .order = {},
                       .router = RouterKind::linear,
                       .router_bias = true,
                       .input = RouterInput::normed,
                       .rule = Rule::threshold,
                       .cut = 0.5};
  }
  l.params = make_params(cfg, l.plan);
  init_params(l.params, 1);
  if (group > 0) randomise(l.params.layer[0].router_w, 0.05, 2);
  return l;
}

LayerState run_ffn(Backend& be, const Layer& l, Exec exec, State& s, int64_t tokens) {
  LayerState rows = rows_of(s.layer[0], {1, tokens, 0});
  ffn_layer(be, l.params.cfg, l.params.layer[0], l.plan.layer[0], {Gate::hard, exec}, rows);
  return rows;
}

// Random routers spread their scores evenly; the bias moves the wanted share above the threshold.
void calibrate(Backend& be, Layer& l, double density) {
  Tensor& bias = l.params.layer[0].router_b;
  std::fill_n(bias.as<float>(), bias.size(), 0.f);
  State s = make_state(l.params, l.plan, 1, 64, 64, Keep::one_layer);
  randomise(s.layer[0].mid, 1, 5);
  const LayerState seen = run_ffn(be, l, Exec::masked, s, 64);
  std::vector<float> logits;
  for (int64_t i = 0; i < seen.scores.size(); ++i) {
    const float g = seen.scores.as<float>()[i];
    logits.push_back(std::log(g / (1 - g)));
  }
  const auto at = logits.begin() + static_cast<std::ptrdiff_t>(
                                       (1 - density) * static_cast<double>(logits.size() - 1));
  std::nth_element(logits.begin(), at, logits.end());
  std::fill_n(bias.as<float>(), bias.size(), density < 1 ? -*at : 1e3f);
}

double active_of(const Layer& l, const LayerState& s) {
  if (!l.plan.routed()) return 1;
  const float* g = s.gates.as<float>();
  return static_cast<double>(std::count_if(g, g + s.gates.size(), [](float v) { return v != 0; })) /
         static_cast<double>(s.gates.size());
}

// Share of the experts that at least one token of the chunk wants: what is loaded.
double loaded_by(const Layer& l, const LayerState& s) {
  if (!l.plan.routed()) return 1;
  const int32_t* n = s.count.as<int32_t>();
  return static_cast<double>(
             std::count_if(n, n + s.count.size(), [](int32_t v) { return v > 0; })) /
         static_cast<double>(s.count.size());
}

// Share of the allowed error that gathered execution uses; above 1 it is wrong.
double error_used(const Layer& l, const LayerState& got, State& s, int64_t tokens) {
  const std::vector<float> delta(got.delta.as<float>(), got.delta.as<float>() + got.delta.size());
  Backend naive = open_backend("cpu+naive", 1);
  const LayerState want = run_ffn(naive, l, Exec::masked, s, tokens);
  double worst = 0, largest = 0;
  for (size_t i = 0; i < delta.size(); ++i) {
    const double w = want.delta.as<float>()[i], off = std::abs(delta[i] - w);
    if (!(off <= worst)) worst = off;
    largest = std::max(largest, std::abs(w));
  }
  return worst / (1e-4 * largest);
}

void run_case(benchmark::State& state, const Case& c, Backend& be, Layer& l) {
  if (c.group > 0) calibrate(be, l, c.density);
  State s = make_state(l.params, l.plan, 1, c.tokens, c.tokens, Keep::one_layer);
  const int64_t row = c.tokens * l.params.cfg.dim;
  Tensor inputs = shape(DType::f32, {kInputs, row});
  Arena memory;
  memory.reserve(Arena::padded(inputs.bytes()));
  memory.carve(inputs);
  randomise(inputs, 1, 9);
  const auto load = [&](int64_t i) {
    std::copy_n(inputs.as<float>() + i % kInputs * row, row, s.layer[0].mid.as<float>());
  };
  load(0);
  const double used = error_used(l, run_ffn(be, l, Exec::gathered, s, c.tokens), s, c.tokens);
  if (!(used <= 1)) {
    state.SkipWithError(
        fmt::format("differs from the reference by {} times what is allowed", used).c_str());
    return;
  }
  double active = 0, loaded = 0;
  for (int64_t i = 0; i < kInputs; ++i) {
    load(i);
    const LayerState seen = run_ffn(be, l, Exec::gathered, s, c.tokens);
    active += active_of(l, seen) / kInputs, loaded += loaded_by(l, seen) / kInputs;
  }
  int64_t i = 0;
  for (auto _ : state) {
    load(i++);
    benchmark::DoNotOptimize(run_ffn(be, l, Exec::gathered, s, c.tokens).delta.data);
  }
  const ModelConfig& cfg = l.params.cfg;
  const double neurons = (cfg.gated ? 3.0 : 2.0) * cfg.ffn,
               routers = c.group ? static_cast<double>(cfg.ffn) / c.group : 0;
  state.counters["active"] = active;
  state.counters["loaded"] = loaded;
  state.counters["ideal"] =
      neurons / (loaded * neurons + routers);  // weights read, dense over this
  state.counters["GBps"] = benchmark::Counter(4e-9 * cfg.dim * (loaded * neurons + routers),
                                              benchmark::Counter::kIsIterationInvariantRate);
  state.counters["max_err_used"] = used;
  state.counters["checked"] = 1;
  state.SetItemsProcessed(state.iterations() * c.tokens);
}

// Counts the rows that erred: the library itself returns 0 for them.
struct CountingReporter : benchmark::ConsoleReporter {
  int errors = 0;
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& r : runs) errors += r.error_occurred;
    ConsoleReporter::ReportRuns(runs);
  }
};

}  // namespace
}  // namespace lte

int main(int argc, char** argv) {
  using namespace lte;
  Backend be = open_backend("cpu");
  std::map<std::string, std::unique_ptr<Layer>> layers;
  for (const char* shape : {"gpt2-medium", "llama2-7b"}) {
    for (int64_t tokens : {1, 16}) {
      for (double density : {1.0, 0.5, 0.25, 0.125}) {
        for (int group : {0, 32}) {
          if (group == 0 && density < 1) continue;
          const Case c{shape, group, density, tokens};
          const std::string name =
              fmt::format("ffn/{}/{}/density_permille:{}/tokens:{}", shape,
                          group ? "gathered" : "dense", static_cast<int>(1000 * density), tokens);
          benchmark::RegisterBenchmark(
              name.c_str(),
              [&be, &layers, c](benchmark::State& s) {
                auto& layer = layers[fmt::format("{} {}", c.shape, c.group)];
                if (!layer) layer = std::make_unique<Layer>(make_layer(c.shape, c.group));
                run_case(s, c, be, *layer);
              })
              ->Unit(benchmark::kMicrosecond)
              ->UseRealTime();
        }
      }
    }
  }
  for (const auto& [key, value] : describe_machine(0)) benchmark::AddCustomContext(key, value);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  CountingReporter reporter;
  const size_t run = benchmark::RunSpecifiedBenchmarks(&reporter);
  return run > 0 && reporter.errors == 0 ? 0 : 1;
}
