// The subcommands: arguments as plain data, one file each. Every one returns the exit code; errors
// are thrown and printed by main.
#pragma once

#include <string>
#include <vector>

#include "bench/runner.h"
#include "bench/step.h"

namespace lte {

struct CommonArgs {
  int threads = 0;
  bool json = false;
  std::string manifest;  // "" looks for datasets/manifest.toml here and in the source tree
  std::string cache = "data", backend = "auto";
};

struct DataArgs {
  std::string name, tokenizer;
  int samples = 2;
};
struct TrainArgs {
  std::string model = "gpt2-nano", data = "dialects", tokenizer, out;
  int64_t steps = 1000;
  int batch = 16, seq = 0, accum = 1;
  double lr = 3e-3, decay = 0.1, clip = 1, warmup = 0.06;
  uint64_t seed = 0;
};
struct FitArgs {
  std::string method = "lte", from, out, data;
  std::vector<std::string> set;
  uint64_t seed = 0;
};
struct EvalArgs {
  std::string run, data, split = "test", labels;
  int64_t windows = 0, time_windows = 2;
  int repetitions = 9;
};
struct GenerateArgs {
  std::string run, prompt, dtype = "f32";
  int tokens = 200, top_k = 0;
  double temperature = 0, top_p = 1;
  uint64_t seed = 0;
  bool to_newline = false;
};
struct RunArgs {
  std::string spec, work = "runs/suites", results = "results", shard = "0/1";
};
struct ReportArgs {
  std::string results = "results", suite;
  bool expect = false;  // report: writes expected.jsonl too
};

struct CompareArgs {
  std::string a, b;  // a result file of the benchmark programs, or a folder of them
};

int cmd_data(const CommonArgs&, const DataArgs&);
int cmd_train(const CommonArgs&, const TrainArgs&);
int cmd_fit(const CommonArgs&, const FitArgs&);
int cmd_eval(const CommonArgs&, const EvalArgs&);
int cmd_generate(const CommonArgs&, const GenerateArgs&);
int cmd_run(const CommonArgs&, const RunArgs&);
int cmd_report(const CommonArgs&, const ReportArgs&);
int cmd_claims(const CommonArgs&, const ReportArgs&);
// 0: no row of b is slower; 1: some are; 2: they cannot be compared.
int cmd_compare(const CommonArgs&, const CompareArgs&);
int cmd_info(const CommonArgs&, bool ceilings);
int cmd_bench_step(const CommonArgs&, StepSpec, bool profile);

// The mirror comes from the environment variable LTE_DATA_MIRROR.
DataPaths data_paths(const CommonArgs&);

// The dataset that a run was trained on, or `other` in its place, encoded by the run's tokenizer.
// Throws Error where the run's own text has changed.
Dataset dataset_of(const LoadedRun&, const std::string& folder, const std::string& other,
                   const CommonArgs&);

// One refreshed line on a terminal, a plain line every few seconds elsewhere; on standard error, so
// that standard output stays clean for --json.
struct ProgressLine {
  bool terminal;
  double last = -1e9;
  bool open = false;  // a refreshed line is waiting for its end

  ProgressLine();
  void show(const Progress&);
  void close();
};
std::string duration(double seconds);  // "3 m 12 s"

}  // namespace lte
