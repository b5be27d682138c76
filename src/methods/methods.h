// The registry of sparsity methods: one row a method, one file a row.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/tokens.h"
#include "methods/knobs.h"
#include "model/train.h"

namespace lte {

struct FitInput {
  Backend& backend;
  const Params& dense;    // in the original order
  const TokenSet& train;  // also what is calibrated on
  const TokenSet& valid;  // where crossings and histograms are looked at; nothing is fitted on it
  int seq = 128;          // the dataset's window length
  uint64_t seed = 0;
  std::function<TrainHooks(const std::string& stage)> hooks;  // may be empty
};

struct Histogram {
  std::string stage;
  std::vector<std::vector<int64_t>> layer;  // counts over equal bins of [0, 1]
};

// How a router's choices agree with the experts that matter, on training text.
struct Prediction {
  double recall = 0, precision = 0, density = 0;
  double label = -1;         // an output above it matters; < 0: as many of the largest as are open
  bool output_norm = false;  // outputs are norms of output vectors, else measured on activations
};

struct Fitted {
  Params params;
  Plan plan;
  int64_t train_tokens = 0, calibration_tokens = 0;
  double train_flops = 0;
  std::vector<Histogram> histograms;        // of router scores, at the end of each stage
  std::vector<Prediction> predictors = {};  // one a layer, where a predictor was trained
};

using FitFn = Fitted (*)(const FitInput&, const Knobs&);

struct Method {
  const char* name;
  FitFn fit;
  std::span<const KnobRow> knobs;  // beside kTrainingKnobs
  const char* source;
  const char* about;
  bool gated_only = false;  // needs a gated FFN, and says so elsewhere
};

std::span<const Method* const> methods();
const Method& find_method(std::string_view name);  // throws Error that lists the known ones

// Resolves the knobs and fits; the plan carries the method's name and every knob.
Fitted fit(const FitInput&, std::string_view method, const Knobs& set);
// The knobs of a method with their defaults.
std::vector<KnobRow> all_knobs(const Method&);

// The rows, one in each file of this folder.
extern const Method kDense, kLte, kLteOneStage, kPrune, kMoefication, kDejaVu, kD2dmoe, kCats,
    kPrunePath, kNoisyTopK, kRandomRouter, kOracle, kRelu, kTeal;

// What methods share.

// The same input for another dense model, such as one that was trained on; or for another seed.
FitInput with_dense(const FitInput&, const Params& dense);
FitInput with_seed(const FitInput&, uint64_t seed);
// A stage's settings from the shared knobs.
TrainSpec training(const FitInput&, const Knobs&, int64_t steps);
// The same without distillation: for the dense stage before predictors, which the base would only pull back.
// Where dense training is all that there is (dense, relu, teal), it keeps its teacher.
TrainSpec without_teacher(TrainSpec);
// Trains one named stage of a fit and adds its tokens and FLOPs.
void run_stage(const FitInput&, Fitted&, const TrainSpec&, const std::string& stage);
// Runs the model over about `tokens` training tokens (whole batches, at least one), with all layers kept, and
// shows every batch's activations to `see`. Returns how many tokens it looked at.
int64_t calibrate(const FitInput&, const Params&, const Plan&, int64_t tokens,
                  const std::function<void(const State&)>& see);
// Adds a histogram of the router scores on validation windows.
void add_histogram(const FitInput&, Fitted&, Gate, const std::string& stage);
// The shared knob router_input: "normed" or "residual".
RouterInput router_input(const Knobs&);
// Fills the routers: weights normal(0, std), biases `bias`.
void init_routers(Params&, double std, double bias, uint64_t seed);

}  // namespace lte
