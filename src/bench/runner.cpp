#include "bench/runner.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <future>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "core/files.h"
#include "core/hash.h"
#include "core/threads.h"

namespace lte {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string short_hash(const std::string& text) { return sha256_hex(text).substr(0, 16); }

// Planned work of a stage, in training FLOPs; measuring and timing count as a little.
constexpr double kSmallWork = 1e11;

// What a fit may take: Deja Vu's predictors are shown some hundred thousand tokens of gpt2-micro at once.
constexpr double kFitBytes = 3e9;

// A stage under way. Several fits are, each on threads of its own.
struct Stage {
  Progress now;
  double part = 0;  // of its planned work, done
};

struct Runner {
  const RunnerSpec& spec;
  Backend be;
  Clock::time_point start = Clock::now();
  std::map<std::string, std::unique_ptr<Dataset>> datasets{};
  std::vector<Experiment> mine{};
  std::mutex mutex{};  // of what follows
  int stages = 0;
  double work_total = 0, work_done = 0, work_cached = 0, work_under_way = 0;
  RunSummary summary{};

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start).count(); }

  const Dataset& dataset(const std::string& name) {
    const auto known = datasets.find(name);
    if (known != datasets.end()) return *known->second;
    auto& slot = datasets[name];
    slot = std::make_unique<Dataset>(load_dataset(name, "", spec.data));
    use_split(*slot, spec.suite.split);
    return *slot;
  }

  void report(Stage& stage, double part) {  // under the lock
    work_under_way += part - stage.part, stage.part = part;
    stage.now.stage = summary.run + summary.cached + (stage.now.finished ? 0 : 1);
    stage.now.stages = stages, stage.now.elapsed = elapsed();
    const double done = work_done + work_under_way;
    stage.now.remaining =
        done > work_cached ? stage.now.elapsed * (work_total - done) / (done - work_cached) : -1;
    if (spec.progress) spec.progress(stage.now);
  }
  Stage begin(const std::string& what) {
    Stage stage{.now = {.what = what}};
    const std::lock_guard lock(mutex);
    report(stage, 0);
    return stage;
  }
  void end(Stage& stage, double work, bool cached) {
    const std::lock_guard lock(mutex);
    work_done += work;
    if (cached) work_cached += work;
    ++(cached ? summary.cached : summary.run);
    stage.now.cached = cached, stage.now.finished = true;
    report(stage, 0);
  }
  std::function<void(const StepLog&)> watch(Stage& stage, double work, int64_t before,
                                            int64_t all) {
    return [this, &stage, work, before, all](const StepLog& l) {
      const std::lock_guard lock(mutex);
      stage.now.step = before + l.step, stage.now.steps = all, stage.now.loss = l.loss,
      stage.now.tokens_per_s = l.tokens_per_s;
      report(stage, work * static_cast<double>(stage.now.step) /
                        static_cast<double>(std::max<int64_t>(1, all)));
    };
  }

  std::string base_key(const BaseSpec& b) {
    const Dataset& d = dataset(b.dataset);
    return fmt::format("{} {} {} {} {} {} {} {} {}", kTrainerRevision, be.name, b.model, d.sha256,
                       d.tokenizer.spec, b.steps, b.batch, b.lr, b.seed);
  }
  std::string base_folder(const BaseSpec& b) {
    return fmt::format("{}/base-{}", spec.work, short_hash(base_key(b)));
  }
  std::string fit_folder(const Experiment& e) {
    std::string text = base_key(e.base) + e.method + fmt::format(" {}", e.seed);
    for (const auto& [key, value] : knobs_of(e)) text += fmt::format(" {}={}", key, value);
    return fmt::format("{}/{}-{}", spec.work, e.method, short_hash(text));
  }
  // A record belongs to its fit, to its name, and to how it was scored.
  std::string record_path(const Experiment& e) {
    const SuiteSpec& s = spec.suite;
    return fmt::format("{}/record-{}.json", fit_folder(e),
                       short_hash(fmt::format("{} {} {} {} {} {}", name_of(e), e.protocol, e.trials,
                                              s.split, s.score_windows, kTrainerRevision)));
  }

  static Knobs knobs_of(const Experiment& e) {
    return resolve_knobs(e.method, all_knobs(find_method(e.method)), e.knobs);
  }
  static int64_t fit_steps(const Experiment& e) {
    const Knobs k = knobs_of(e);
    return k.contains("steps") ? get_whole(k, "steps", 0, 1'000'000'000) : 0;
  }
  double base_work(const BaseSpec& b) {
    ModelConfig c = parse_model(b.model);
    const Dataset& d = dataset(b.dataset);
    c.vocab = static_cast<int>(d.tokenizer.vocab.size());
    const TrainSpec t = base_training(b, d.default_seq, c.max_seq);
    return static_cast<double>(b.steps * b.batch * t.seq) *
           train_flops(c, dense_plan(c), t.seq, false);
  }
  double fit_work(const Experiment& e) {
    BaseSpec b = e.base;
    b.steps = fit_steps(e), b.batch = static_cast<int>(get_whole(knobs_of(e), "batch", 1, 65536));
    return base_work(b) + kSmallWork;
  }

  LoadedRun run_base(const BaseSpec& b) {
    const std::string folder = base_folder(b);
    const double work = base_work(b);
    const bool cached = is_run(folder);
    Stage stage = begin(fmt::format("train {} on {}, seed {}", b.model, b.dataset, b.seed));
    const Dataset& d = dataset(b.dataset);
    LoadedRun run =
        train_base(be, b.model, base_training(b, d.default_seq, parse_model(b.model).max_seq), d,
                   folder, watch(stage, work, 0, b.steps));
    end(stage, work, cached);
    return run;
  }

  // Fits and measures one experiment. What goes wrong is a record of its own, and the suite goes
  // on.
  Record fit_and_measure(Backend& on, int threads, const Experiment& e, const LoadedRun& base_run,
                         Stage& under_way, double work) {
    try {
      const int64_t steps = fit_steps(e);
      std::string stage;
      int64_t before = 0, last = 0;
      const auto see = [&](const std::string& name, const StepLog& l) {
        if (name != stage) before += last, stage = name;
        last = l.steps;
        watch(under_way, work, before, steps)(l);
      };
      const LoadedRun run = fit_method(on, base_run, dataset(e.base.dataset), e.method, e.knobs,
                                       e.seed, fit_folder(e), see);
      Record r = measure(run, dataset(e.base.dataset), e, spec.suite.score_windows, threads);
      r.split = spec.suite.split;
      return r;
    } catch (const Error& error) {
      Record r;
      r.what = e, r.status = "failed", r.why = error.what();
      r.what.shape = {.b = 8, .p = base_run.info.seq, .d = 0};
      r.name = name_of(r.what);
      r.quality.loss = std::numeric_limits<double>::quiet_NaN();
      r.machine = describe_machine(threads);
      return r;
    }
  }

  void run_fit(Backend& on, int threads, const Experiment& e, const LoadedRun& base_run) {
    const std::string path = record_path(e);
    const double work = fit_work(e);
    // What failed is tried again: the cause may have been a full disk.
    const bool cached = fs::exists(path) && read_records(path).at(0).status == "ok";
    std::string knobs;
    for (const auto& [key, value] : e.knobs) knobs += fmt::format(" {}={}", key, value);
    Stage stage =
        begin(fmt::format("{}{} on {}, seed {}", e.method, knobs, e.base.dataset, e.seed));
    if (!cached) {
      const Record r = fit_and_measure(on, threads, e, base_run, stage, work);
      make_folder(fit_folder(e));
      write_file(path, to_json(r) + "\n");
    }
    end(stage, work, cached);
  }

  // Fits side by side: small models leave threads idle that share one fit (gpt2-nano on two: 1.6 times the
  // speed of one). Their results do not depend on threads. What lies in one folder is one thread's.
  void run_fits(const std::vector<const Experiment*>& group, const LoadedRun& base_run) {
    std::map<std::string, std::vector<const Experiment*>> folders;
    for (const Experiment* e : group) folders[fit_folder(*e)].push_back(e);
    std::vector<std::vector<const Experiment*>> jobs;  // in the order of the suite
    for (const Experiment* e : group) {
      if (auto same = folders.extract(fit_folder(*e))) jobs.push_back(std::move(same.mapped()));
    }
    const int threads = thread_count(spec.threads),
              room = static_cast<int>(std::clamp(free_memory() / kFitBytes, 1.0, 1e6)),
              workers = be.device ? 1 : std::min({threads, room, static_cast<int>(jobs.size())});
    std::atomic<size_t> next = 0;
    const auto work = [&](Backend& on, int n) {
      try {
        for (size_t i; (i = next++) < jobs.size();) {
          for (const Experiment* e : jobs[i]) run_fit(on, n, *e, base_run);
        }
      } catch (...) {
        next = jobs.size();
        throw;
      }
    };
    if (workers <= 1) return work(be, spec.threads);
    std::vector<std::future<void>> running;
    for (int w = 0; w < workers; ++w) {
      running.push_back(std::async(std::launch::async, [&, n = threads / workers] {
        Backend own = open_backend(be.name, n);
        work(own, n);
      }));
    }
    for (std::future<void>& f : running) f.wait();
    for (std::future<void>& f : running) f.get();
  }

  // Times the experiments of one base together, and adds their records to the results.
  void run_timing(const std::vector<const Experiment*>& group, const LoadedRun& dense) {
    const BaseSpec& b = group[0]->base;
    Stage stage = begin(fmt::format("time {} methods, {} on {}", group.size(), b.model, b.dataset));
    std::vector<Record> records;
    bool cached = true;
    for (const Experiment* e : group) {
      records.push_back(read_records(record_path(*e)).at(0));
      const auto& decode = records.back().decode;
      cached &= (decode && decode->repetitions == spec.suite.repetitions) ||
                records.back().status != "ok";
    }
    if (!cached && spec.suite.repetitions > 0) {
      std::vector<std::unique_ptr<LoadedRun>> runs;
      std::vector<Timed> timed;
      for (size_t i = 0; i < group.size(); ++i) {
        if (records[i].status != "ok") continue;
        runs.push_back(std::make_unique<LoadedRun>(load_run(fit_folder(*group[i]), be.memory)));
        timed.push_back({runs.back().get(), &records[i]});
      }
      stage.now.steps = spec.suite.repetitions;
      const auto round = [&](int n) {
        const std::lock_guard lock(mutex);
        stage.now.step = n;
        report(stage, 0);
      };
      time_group(dense, timed, dataset(b.dataset), spec.suite.time_windows, spec.suite.repetitions,
                 be.name, spec.threads, round);
      const std::string threads = describe_machine(spec.threads).at("threads");
      for (Timed& t : timed)
        t.record->machine["threads"] = threads;  // the bits do not depend on it
      for (size_t i = 0; i < group.size(); ++i)
        write_file(record_path(*group[i]), to_json(records[i]) + "\n");
    }
    end(stage, kSmallWork, cached);
    append_records(records);
    for (Record& r : records) summary.records.push_back(std::move(r));
  }

  // Appends what the results do not hold yet, by name, digest, revision and machine.
  void append_records(const std::vector<Record>& records) {
    const std::string path = records_path(spec.results, spec.suite.split);
    make_folder(spec.results);
    std::set<std::string> known;
    const auto key = [](const Record& r) {
      return fmt::format("{} {} {} {:x} {} {} {}", r.name, r.what.protocol, r.what.trials,
                         r.quality.digest, r.status, r.machine.at("revision"), r.machine.at("cpu"));
    };
    for (const Record& r : read_results(spec.results)) known.insert(key(r));
    for (const Record& r : records) {
      if (known.insert(key(r)).second) append_line(path, to_json(r));
    }
  }

  void run() {
    for (size_t i = 0; i < spec.suite.experiments.size(); ++i) {
      if (static_cast<int>(i % static_cast<size_t>(spec.shards)) == spec.shard)
        mine.push_back(spec.suite.experiments[i]), mine.back().backend = be.name;
    }
    std::vector<BaseSpec> bases;
    for (const Experiment& e : mine) {
      if (std::find(bases.begin(), bases.end(), e.base) == bases.end()) bases.push_back(e.base);
    }
    for (const BaseSpec& b : bases) work_total += base_work(b) + kSmallWork;
    for (const Experiment& e : mine) work_total += fit_work(e);
    stages = static_cast<int>(2 * bases.size() + mine.size());
    for (const BaseSpec& b : bases) {
      const LoadedRun base_run = run_base(b);
      std::vector<const Experiment*> group;
      for (const Experiment& e : mine) {
        if (e.base == b) group.push_back(&e);
      }
      run_fits(group, base_run);
      run_timing(group, base_run);
    }
    for (const Record& r : summary.records) summary.failed += r.status != "ok";
    summary.seconds = elapsed();
  }
};

}  // namespace

RunSummary run_suite(const RunnerSpec& spec) {
  LTE_CHECK(spec.shards >= 1 && spec.shard >= 0 && spec.shard < spec.shards,
            fmt::format("shard {}/{}: wants 0/n to n-1/n", spec.shard, spec.shards));
  Runner r{.spec = spec, .be = open_backend(spec.backend, spec.threads)};
  r.run();
  return std::move(r.summary);
}

}  // namespace lte
