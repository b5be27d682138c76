// An experiment is named by its full specification, and the name parses back to it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/plan.h"
#include "model/score.h"

namespace lte {

// How the dense model that every method starts from was trained.
struct BaseSpec {
  std::string model = "gpt2-nano", dataset = "dialects";
  int64_t steps = 1000;
  int batch = 32;
  double lr = 3e-3;
  uint64_t seed = 0;
  bool operator==(const BaseSpec&) const = default;
};

struct Experiment {
  std::string suite = "adhoc";
  BaseSpec base;
  std::string method = "dense";
  Knobs knobs;  // only those that were set
  std::string backend = "cpu";
  Shape shape;  // what quality is scored in
  uint64_t seed = 0;

  std::string protocol = "equal budget";  // or "paper": not trained further
  int trials = 1;                         // hyper-parameter settings that were tried for this row
};

// suite/model/dataset/base:steps=..,batch=..,lr=..,seed=../method:knob=value,../backend/shape/seedN.
// A slash inside a part is written %2F, a percent sign %25. protocol and trials are not in the
// name.
std::string name_of(const Experiment&);
Experiment parse_name(std::string_view);  // throws Error

// Reads suites/*.toml: bases, experiments with sweeps and seeds. Throws Error naming the file, the
// line or the key.
struct SuiteSpec {
  std::string name, about;
  std::vector<Experiment> experiments;
  int64_t score_windows = 0;   // test windows that quality is scored on; 0: all
  int64_t time_windows = 4;    // windows that latency walks over
  int repetitions = 9;         // interleaved repetitions of the timing; 0: not timed
  std::string split = "test";  // what quality is scored on; "valid" for a search of settings
};
SuiteSpec load_suite(const std::string& path);

}  // namespace lte
