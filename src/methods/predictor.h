// Training of routers that predict, on a frozen model, what its experts will contribute.
#pragma once

#include <vector>

#include "methods/aligned.h"
#include "methods/methods.h"

namespace lte {

// One layer's observations of n tokens, with all experts on.
struct Contributions {
  std::vector<float> input;   // [n,D] what the router reads
  std::vector<float> output;  // [n,E] what every expert contributes
  int64_t n = 0, D = 0, E = 0;
};
struct Observed {
  std::vector<Contributions> layer;
  int64_t tokens = 0;  // looked at
};
// What `output` is: the measure of the layer's plan on its activations, or the norm of the expert's
// output vector (D2DMoE).
enum class Contribution : uint8_t { measured, output_norm };
// Runs the model with every gate open (weighed by its score where the plan is `scaled`) over about `tokens` training
// tokens. The parameters are in plan order.
Observed observe(const FitInput&, const Params&, const Plan&, int64_t tokens, Contribution);

// logistic: cross-entropy of targets in [0,1] and sigmoid(z); weighted: the same with the weight
// y + (1 - y) (mean(y) + 0.005) (Deja Vu); square: (|z| - target)^2 (D2DMoE);
// softmax: cross-entropy of the targets' shares and softmax(z).
enum class PredictorLoss : uint8_t { logistic, weighted, square, softmax };
struct PredictorSpec {
  PredictorLoss loss = PredictorLoss::logistic;
  double lr = 1e-3, decay = 0;  // AdamW
  int batch = 256, epochs = 20;
  double held_out = 0.1;  // share of the rows that choose the best epoch
  int patience = 1000;    // epochs without a better one before it stops
  double label = 0;  // weighted: an output above it is a 1; else outputs over the batch's largest
  double active = 0.25;  // share of experts that the choice of the epoch looks at (logistic)
};

// Trains router_in, router_w and router_b of one layer from where they are, keeps the best epoch: by
// recall (weighted), by the outputs' mass that the top `active` of the experts hold (logistic), by loss
// (else). Deterministic by seed. Returns the FLOPs of the products.
double train_predictor(Backend&, LayerParams&, const FfnPlan&, const Contributions&,
                       const PredictorSpec&, uint64_t seed);
// All layers' by their specs, seeds made of `seed`, `salt` and the layer. What a GPU's backend is given is trained on
// the host, layers side by side: targets and losses are the host's anyway, and so many small steps wait for memory to
// move.
double train_predictors(const Backend&, Params&, const Plan&, std::span<const Contributions>,
                        std::span<const PredictorSpec>, uint64_t seed, uint64_t salt);

// [n,E], 0 or 1: which gates the layer's plan opens, and which experts matter: those with an output above
// `label`, or (label < 0) as many of the largest as the gates open.
struct Labelled {
  Floats open, matters;
  int64_t n = 0, E = 0;
};
Labelled label_predictions(Backend&, const LayerParams&, const FfnPlan&, const Contributions&,
                           double label);
// How the two agree, over all rows.
Prediction judge_predictor(Backend&, const LayerParams&, const FfnPlan&, const Contributions&,
                           double label);

// z[n,E] of the rows [first, first + rows) as scores, squashed as the plan says.
std::vector<float> predict(Backend&, const LayerParams&, const FfnPlan&, const Contributions&,
                           int64_t first, int64_t rows);

// What predictors are judged on: 16,384 tokens of the training text, in windows drawn by another seed than
// those that predictors are fitted on. Both are drawn at random and may overlap.
Observed observe_apart(const FitInput&, const Params&, const Plan&, Contribution);
// Appends every layer's judgement to f.predictors, by the model as it is now. `labels`: one a layer, or none (see judge_predictor).
void judge_predictors(const FitInput&, Fitted& f, Contribution, std::span<const double> labels);

// The value that `share` of the values lie above; -1e30 for all of them.
float quantile(std::vector<float> values, double share_above);

// Fills the weights of routers with normal(0, std of the fan-in), drawn from seed; biases 0.
void init_predictors(Params&, const Plan&, uint64_t seed);

// Sets one cut for all layers, or with `by_layer` one a layer, such that the rule (threshold,
// cumulative or relative_max) opens the share `active` of the experts over training text, cut as text
// is scored. Returns how many tokens it looked at.
int64_t calibrate_cut(const FitInput&, const Params&, Plan&, double active, bool by_layer);

}  // namespace lte
