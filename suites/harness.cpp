#include "harness.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "bench/measure.h"
#include "core/device.h"
#include "core/statistics.h"

namespace lte {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kSkipped = "skipped: ";
// Ceilings older than this are measured again. A device is nobody else's.
constexpr double kFreshSeconds = 1, kFreshDeviceSeconds = 60;

constexpr const char* kHelp =
    "Flags of the suite, before those of Google Benchmark:\n"
    "  --backend=NAME   backend[+variant], see `lte info` (auto: the fastest of this build, for "
    "programs\n"
    "                   that only infer with the kernels of +simd)\n"
    "  --threads=N      0: one for each core\n"
    "  --run=FOLDER     a fitted run of `lte fit` for the trained rows; else one is trained now\n"
    "  --smoke          every case once on tiny shapes, no claim about time\n";

// The machine's ceilings, as of about now: rows of a shared machine are held against their minute.
struct Gauge {
  std::optional<StreamBlock> block;
  Ceilings last;
  Clock::time_point when;

  const Ceilings& fresh(Session& s) {
    const bool device = s.backend.device;
    const double age = std::chrono::duration<double>(Clock::now() - when).count();
    if (last.stream_all > 0 && age < (device ? kFreshDeviceSeconds : kFreshSeconds)) return last;
    if (!device && !block) block.emplace();
    last =
        device ? measure_device(s.backend) : measure_ceilings(s.backend, s.options.threads, *block);
    when = Clock::now();
    return last;
  }
};

// A case whose work is there and has been checked.
struct Prepared {
  Work work;
  std::vector<uint64_t> outputs;  // of every input
  Checked checked;
  Seen seen;  // mean over the inputs
};

void check_output(const Work& w, Prepared& p) {
  if (!w.check || (p.checked.rows > 0 && p.checked.decided)) return;
  p.checked = w.check();
  if (!p.checked.decided) return;
  LTE_CHECK(p.checked.rows > 0, "the check compared nothing");
  LTE_CHECK(p.checked.comparison.ok,
            fmt::format("differs from the reference: {}", p.checked.comparison.message));
}

Prepared prepare(const Case& c, Session& s) {
  Prepared p{.work = c.prepare(s), .outputs = {}, .checked = {}, .seen = {0, 0, {}}};
  const Work& w = p.work;
  for (int64_t i = 0; i < w.inputs; ++i) {
    if (w.load) w.load(i);
    w.call();
    s.backend.finish();
    p.outputs.push_back(w.output());
    check_output(w, p);
    if (!w.look) continue;
    const Seen seen = w.look();
    const auto n = static_cast<double>(w.inputs);
    p.seen.active += seen.active / n, p.seen.loaded += seen.loaded / n;
    p.seen.traffic.bytes += seen.traffic.bytes / n, p.seen.traffic.flops += seen.traffic.flops / n;
    p.seen.traffic.weights = seen.traffic.weights;
  }
  LTE_CHECK(p.checked.rows > 0 && p.checked.decided,
            "on no input did the reference choose the same experts");
  return p;
}

struct Times {
  std::vector<double> call, beside;
};

// The library reports the mean of a repetition's calls; a call that was interrupted would move it. So
// the whole time is handed over at the end, as that of so many calls of the median.
Times timed_loop(benchmark::State& state, Session& s, const Work& w, Timer timer) {
  Times t;
  for (auto _ : state) {
    const auto i = static_cast<int64_t>(t.call.size()) % w.inputs;
    if (w.load) w.load(i), s.backend.finish();
    if (w.beside) t.beside.push_back(seconds_of(s.backend, timer, w.beside));
    t.call.push_back(seconds_of(s.backend, timer, w.call));
    const auto n = static_cast<benchmark::IterationCount>(t.call.size());
    state.SetIterationTime(n == state.max_iterations ? median_of(t.call) * static_cast<double>(n)
                                                     : 0);
  }
  return t;
}

// Rates and ratios; `c` are the ceilings of this minute.
void count_time(benchmark::State& state, const Prepared& p, const Times& t, const Ceilings& c) {
  const Work& w = p.work;
  const double seconds = median_of(t.call);
  if (w.tokens) state.counters["tokens_per_s"] = static_cast<double>(w.tokens) / seconds;
  if (w.look) {
    const Traffic& all = p.seen.traffic;
    state.counters["GBps"] = 1e-9 * all.bytes / seconds;
    state.counters["GFLOPs"] = 1e-9 * all.flops / seconds;
    if (all.bytes > 0) state.counters["of_stream"] = all.bytes / seconds / c.stream_all;
    if (all.bytes > 0 && c.copy > 0) state.counters["of_copy"] = all.bytes / seconds / c.copy;
    state.counters["of_gemm"] = all.flops / seconds / product_rate(all, c);
  }
  if (!w.beside) return;
  const double ratio = median_of(t.beside) / seconds;
  state.counters[w.beside_counter] = ratio;
  if (w.dense.flops <= 0) return;
  const double ideal = bound_seconds(w.dense, c) / bound_seconds(p.seen.traffic, c);
  state.counters["ideal"] = ideal;
  state.counters["of_ideal"] = ratio / ideal;
}

// What host code has written or read since goes back to the device, so that no timed call moves it.
void fetch(Session& s, const Work& w) {
  if (!s.backend.device) return;
  for (const Arena* a : w.memory) s.backend.device->fetch(*s.backend.ctx, a->base(), a->used);
}

void run_row(benchmark::State& state, Session& s, Gauge& gauge, const Case& c, Timer timer,
             Latest<Prepared>& latest) {
  const Prepared& p = *latest.get(c.name, [&] { return prepare(c, s); });
  const Work& w = p.work;
  fetch(s, w);
  const Ceilings ceilings = s.options.smoke ? Ceilings{} : gauge.fresh(s);
  for (int64_t i = 0; !s.options.smoke && i < std::min<int64_t>(w.inputs, 2); ++i) {  // warm-up
    if (w.load) w.load(i);
    if (w.beside) w.beside();
    w.call();
  }
  s.backend.finish();
  const Times times = timed_loop(state, s, w, timer);
  const size_t last = (times.call.size() - 1) % static_cast<size_t>(w.inputs);
  LTE_CHECK(w.output() == p.outputs[last], "the last timed output differs from the checked one");
  if (!s.options.smoke) count_time(state, p, times, ceilings);
  if (w.look) state.counters["active"] = p.seen.active, state.counters["loaded"] = p.seen.loaded;
  if (w.counters) {
    for (const auto& [name, value] : w.counters()) state.counters[name] = value;
  }
  state.counters["max_err_used"] = p.checked.comparison.worst_used;
  state.counters["checked"] = static_cast<double>(p.checked.rows);
}

// Counts the rows that erred: the library itself returns 0 for them.
struct CountingReporter : benchmark::ConsoleReporter {
  std::set<std::string> errors, skipped;
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& r : runs) {
      if (!r.error_occurred) continue;
      (r.error_message.starts_with(kSkipped) ? skipped : errors).insert(r.run_name.str());
    }
    ConsoleReporter::ReportRuns(runs);
  }
};

std::string simd_of() {
  std::string all;
#if defined(__x86_64__)
  const auto add = [&](bool has, const char* name) {
    if (has) all += fmt::format("{}{}", all.empty() ? "" : " ", name);
  };
  add(__builtin_cpu_supports("avx2"), "avx2");
  add(__builtin_cpu_supports("avx512f"), "avx512f");
  add(__builtin_cpu_supports("avx512bf16"), "avx512bf16");
#endif
  return all.empty() ? "unknown" : all;
}

void add_context(Session& s, Gauge& gauge) {
  for (const auto& [key, value] : describe_machine(s.options.threads)) {
    benchmark::AddCustomContext(key, value);
  }
  benchmark::AddCustomContext("backend", s.backend.name);
  if (s.backend.device) {
    for (const auto& [key, value] : s.backend.device->describe())
      benchmark::AddCustomContext(key, value);
  }
  benchmark::AddCustomContext("simd", simd_of());
  benchmark::AddCustomContext(
      "library_note",
      "Debian builds Google Benchmark itself without NDEBUG, hence library_build_type and its "
      "warning; what is timed was built as build_type says");
  if (s.options.smoke) {
    benchmark::AddCustomContext("smoke", "tiny shapes, no claim about time");
    return;
  }
  const Ceilings& c = gauge.fresh(s);
  const auto giga = [](double rate) { return fmt::format("{:.1f}", 1e-9 * rate); };
  if (s.backend.device) {
    benchmark::AddCustomContext("device_copy_GBps", giga(c.copy));
    benchmark::AddCustomContext("gemm_tf32_GFLOPs", giga(c.gemm_tf32));
    benchmark::AddCustomContext("gpu_clock_GHz", c.clock > 0 ? giga(c.clock) : "unknown");
  } else {
    benchmark::AddCustomContext("stream_1_GBps", giga(c.stream_one));
  }
  benchmark::AddCustomContext("stream_all_GBps", giga(c.stream_all));
  benchmark::AddCustomContext("gemm_f32_GFLOPs", giga(c.gemm_f32));
  benchmark::AddCustomContext("gemm_bf16_GFLOPs", c.gemm_bf16 > 0 ? giga(c.gemm_bf16) : "none");
}

// Takes the suite's own flags out of argv.
Options take_options(int& argc, char** argv) {
  Options o;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    const auto value = [&](std::string_view name) {
      return arg.starts_with(name) ? arg.substr(name.size()) : std::string_view{};
    };
    if (arg == "--smoke") {
      o.smoke = true;
    } else if (arg.starts_with("--backend=")) {
      o.backend = value("--backend=");
    } else if (arg.starts_with("--run=")) {
      o.run = value("--run=");
    } else if (arg.starts_with("--threads=")) {
      const std::string_view n = value("--threads=");
      const auto [end, error] = std::from_chars(n.data(), n.data() + n.size(), o.threads);
      LTE_CHECK(error == std::errc() && end == n.data() + n.size() && o.threads >= 0,
                fmt::format("{}: wants a whole number of at least 0", arg));
    } else {
      if (arg == "--help") fmt::print("{}\n", kHelp);
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return o;
}

void register_row(const std::string& name, const Case& c, Timer timer, Session& s, Gauge& gauge,
                  Latest<Prepared>& latest) {
  auto* row = benchmark::RegisterBenchmark(name.c_str(), [&, c, timer](benchmark::State& state) {
    try {
      run_row(state, s, gauge, c, timer, latest);
    } catch (const Skip& skip) {
      state.SkipWithError(fmt::format("{}{}", kSkipped, skip.why).c_str());
    } catch (const std::exception& e) {
      state.SkipWithError(e.what());
    }
  });
  row->UseManualTime()->Unit(benchmark::kMicrosecond)->ComputeStatistics("mad", mad_of);
  if (s.options.smoke) row->Iterations(1);
}

void register_case(const Case& c, Session& s, Gauge& gauge, Latest<Prepared>& latest) {
  if (!c.kernels || !s.backend.device) {
    return register_row(c.name, c, Timer::wall, s, gauge, latest);
  }
  register_row(c.name + "/l2:warm", c, Timer::warm, s, gauge, latest);
  register_row(c.name + "/l2:cold", c, Timer::cold, s, gauge, latest);
}

int run_suite(int argc, char** argv) {
  Session session{.options = take_options(argc, argv), .backend = {}};
  std::string& backend = session.options.backend;
  if (backend == "auto" && kInference) backend = fastest_inference();
  session.backend = open_backend(backend, session.options.threads);
  session.options.device = session.backend.device;
  Gauge gauge;
  Latest<Prepared> latest;
  const std::vector<Case> all = cases(session.options);
  for (const Case& c : all) register_case(c, session, gauge, latest);
  // Result files name the program, not a folder of this machine.
  if (char* slash = std::strrchr(argv[0], '/')) argv[0] = slash + 1;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_context(session, gauge);
  CountingReporter reporter;
  const size_t run = benchmark::RunSpecifiedBenchmarks(&reporter);
  fmt::print(stderr, "{} rows, {} failed, {} skipped\n", run, reporter.errors.size(),
             reporter.skipped.size());
  return run > 0 && reporter.errors.empty() ? 0 : 1;
}

}  // namespace

double seconds_of(Backend& be, Timer timer, const std::function<void()>& call) {
  if (timer != Timer::wall) return be.device->seconds(*be.ctx, call, timer == Timer::cold);
  const double start = wall_seconds();
  call();
  be.finish();
  return wall_seconds() - start;
}

Block make_block(std::initializer_list<Tensor> shapes, Memory where) {
  Block b{.tensor = shapes, .memory = {.where = where}};
  size_t bytes = 0;
  for (const Tensor& t : b.tensor) bytes += Arena::padded(t.bytes());
  b.memory.reserve(bytes);
  for (Tensor& t : b.tensor) b.memory.carve(t);
  return b;
}

int permille(double share) { return static_cast<int>(std::lround(1000 * share)); }

}  // namespace lte

int main(int argc, char** argv) {
  try {
    return lte::run_suite(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", argv[0], e.what());
  }
  return 1;
}
