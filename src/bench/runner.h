// Runs a suite: trains bases, fits methods, measures, times, and appends records. Finished stages
// are found by the hash of everything that they depend on and skipped; an interrupted one goes on
// from its last checkpoint.
#pragma once

#include <functional>
#include <string>

#include "bench/measure.h"

namespace lte {

// Raise it when a change of the trainer, the methods or the scoring changes results.
inline constexpr int kTrainerRevision = 5;

struct Progress {
  int stage = 0, stages = 0;  // how many are done, this one counted; of how many
  std::string what;           // "train gpt2-nano on dialects"
  int64_t step = 0, steps = 0;
  double loss = 0, tokens_per_s = 0, elapsed = 0, remaining = 0;  // seconds; remaining < 0: unknown
  bool cached = false, finished = false;
};

struct RunnerSpec {
  SuiteSpec suite;
  std::string work = "runs/suites", results = "results";
  int shard = 0, shards = 1;  // runs experiments i with i % shards == shard
  int threads = 0;
  std::string backend = "auto";
  DataPaths data;
  std::function<void(const Progress&)> progress;
};

struct RunSummary {
  int run = 0, cached = 0, failed = 0;
  std::vector<Record> records;
  double seconds = 0;
};
RunSummary run_suite(const RunnerSpec&);

// The pieces, as the command line uses them one by one.
TrainSpec base_training(const BaseSpec&, int seq, int max_seq);
// Trains a base into `folder`, or loads it if it is there.
LoadedRun train_base(Backend&, const std::string& model, const TrainSpec&, const Dataset&,
                     const std::string& folder, const std::function<void(const StepLog&)>& watch);
// Fits a method to a base into `folder`, or loads it if it is there.
LoadedRun fit_method(Backend&, const LoadedRun& base, const Dataset&, const std::string& method,
                     const Knobs&, uint64_t seed, const std::string& folder,
                     const std::function<void(const std::string& stage, const StepLog&)>& watch);

}  // namespace lte
