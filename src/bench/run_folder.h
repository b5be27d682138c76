// A run folder: model.safetensors, tokenizer.json, run.json, log.jsonl, and while a stage is under
// way stage-NAME.safetensors. Everything is written under a temporary name and renamed.
#pragma once

#include <string>

#include "data/dataset.h"
#include "methods/methods.h"

namespace lte {

struct RunInfo {
  std::string kind = "base";  // or "fit"
  std::string backend;        // that trained it
  std::string dataset, data_sha256;
  std::string base_of;  // of a fit: hash of the base model's weights
  uint64_t seed = 0;
  int64_t base_steps = 0;  // how the base was trained, also in a fit
  int base_batch = 0;
  double base_lr = 0;
  uint64_t base_seed = 0;
  int seq = 128;  // window length
  int64_t train_tokens = 0, calibration_tokens = 0;
  double train_flops = 0, train_seconds = 0;
  std::vector<Histogram> histograms;
  std::vector<Prediction> predictors;  // one a layer
};

struct LoadedRun {
  Params params;
  Plan plan;  // with the method's name and knobs
  Tokenizer tokenizer;
  RunInfo info;
};

void save_run(const std::string& folder, const Params&, const Plan&, const Tokenizer&,
              const RunInfo&);
// Throws Error with one line where a file is missing, damaged, or does not fit the others.
LoadedRun load_run(const std::string& folder, Memory = {});
bool is_run(const std::string& folder);

// Hooks that log every step to log.jsonl, checkpoint the stage every few seconds, and take it up
// again. A checkpoint that was made under another `key` (a hash of all settings) is not taken up.
// `watch` sees every step too; `save_seconds` is how often a checkpoint is written.
TrainHooks run_hooks(const std::string& folder, const std::string& stage, const std::string& key,
                     std::function<void(const StepLog&)> watch, double save_seconds = 20);
// Seconds of all steps in log.jsonl, over all sessions of a run.
double logged_seconds(const std::string& folder);
// Removes the checkpoints of finished stages.
void clear_checkpoints(const std::string& folder);

// SHA-256 of the parameters' bytes: what fits to a base are tied to.
std::string weights_sha256(const Params&);

}  // namespace lte
