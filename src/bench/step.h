// Where one training step or one decode step spends its time, and what bounds it: no dataset, no run
// folder, a preset with random weights and tokens.
#pragma once

#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "core/profile.h"
#include "model/config.h"

namespace lte {

struct StepSpec {
  std::string model = "gpt2-nano";
  std::vector<std::string> backends = {"auto"};
  int batch = 8, seq = 128, vocab = 256;
  int group = 0;      // experts of so many neurons behind linear routers, hard gates; 0: dense
  double active = 1;  // share of experts that the gates open
  int rounds = 9, steps = 3, threads = 0;
  bool decode = false;  // one token at a time at the end of the sequence, in place of training
  bool bf16 = false;    // matrices of bf16, to decode
  bool cpu_time =
      false;  // this thread's time on its processor, not the wall clock's: wants threads 1
};

// One backend's step. Times are medians over all rounds, and their median absolute deviation.
struct StepRow {
  std::string backend;
  double seconds = 0, mad = 0;
  double tokens_per_s = 0, ratio = 1;  // ratio: of tokens_per_s, to the first backend's, by rounds
  double profiled = 0;                 // seconds of a step with its operations timed, the mean
  std::vector<OpTime> ops;  // seconds and calls of one step, longest first, none of 0 calls
};
struct StepReport {
  double flops = 0, bytes = 0;  // of one step; bytes: read by one decode step
  double
      gemm = 0,
      stream =
          0;  // the best rates that this run measured, of the first backend's device if it has one
  double bound = 0;  // seconds: flops / gemm, or bytes / stream
  std::vector<StepRow> rows;
};
// Throws Error where cpu_time is wanted of more than one thread, or bf16 to train. Backends take turns, `rounds` times `steps` steps each.
StepReport bench_step(const StepSpec&);

}  // namespace lte
