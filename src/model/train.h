// One training stage: AdamW on the task loss and LTE's regularisers, through the masked forward.
#pragma once

#include <functional>

#include "core/tokens.h"
#include "model/forward.h"

namespace lte {

// How steps compute the FFN where can_train_gathered; the others are masked. measured: masked and gathered take
// turns, kMeasuredSteps each after one to warm up, and the faster by the median of forward and backward stays.
enum class TrainExec : uint8_t { masked, gathered, measured };
constexpr size_t kMeasuredSteps = 5;

struct TrainSpec {
  int64_t steps = 0;
  int batch = 32, seq = 128, accum = 1;  // sequences of a micro-batch, their length, micro-batches
  double lr = 1e-3, min_lr = 0.1;        // cosine from lr to min_lr * lr
  double warmup = 0.06;                  // share of the steps
  double clip = 1, decay = 0, beta1 = 0.9, beta2 = 0.95, adam_eps = 1e-8;
  uint64_t seed = 0;   // of the batches
  uint64_t first = 0;  // number of the first batch: stages that follow each other draw new ones
  Gate gate = Gate::hard;
  TrainExec exec = TrainExec::masked;
  LossTerms terms = {};
  double sep_ramp = 0;  // share of the steps over which lambda grows from 0 to terms.lambda
  double eta_ramp = 0;  // the same for eta
  // Steering of eta to an active fraction (below 0: off): after every step
  //   eta += steer_rate * (active - wanted), at least 0,
  // where wanted falls from steer_from to steer_to in the first steer_ramp of the steps.
  double steer_to = -1, steer_from = 1, steer_ramp = 0.3, steer_rate = 0.1;
  // The last share of the steps in which routers stay as they are, whatever terms say.
  double adapt = 0;
  const Params* teacher = nullptr;  // dense, to distil from
  double noise = 0;                 // standard deviation of noise on the routers' z
};

struct StepLog {
  int64_t step = 0, steps = 0;
  double loss = 0;                          // task, nats a target
  double efficiency = 0, separability = 0;  // the means that eta and lambda are multiplied with
  double active = 1;                        // share of (token, expert) with score > tau
  double crossings = 0;  // share of the probe's (token, expert) that changed sides in this step
  double eta = 0, lambda = 0, lr = 0, grad_norm = 0, tokens_per_s = 0, seconds = 0;
  Exec exec = Exec::masked;  // of this step: masked or trained
  double gathered_gain =
      0;  // measured: seconds of a masked step over those of a gathered one; 0 until known
};

// All that a stage needs to go on where it stopped.
struct TrainState {
  Params& params;
  Params& m;
  Params& v;
  int64_t& step;
  double& eta;
};

struct TrainHooks {
  std::function<void(const StepLog&)> log;         // after every step
  std::function<bool(const TrainState&)> restore;  // true: a checkpoint was loaded
  std::function<void(const TrainState&)> save;     // called every save_seconds
  double save_seconds = 20;
};

// Trains `params` in place. Batches come from `train`; `probe` (may be empty) is where crossings
// are counted. Two calls with the same arguments give the same bits, also when one was stopped and
// resumed, but for TrainExec::measured. Throws Error where the loss is not finite.
void train(Backend&, Params& params, const Plan&, const TokenSet& train, const TokenSet& probe,
           const TrainSpec&, const TrainHooks&);

double learning_rate(const TrainSpec&, int64_t step);
// One update: gradients clipped by their global norm, AdamW at the step's learning rate; routers only if
// wanted. m and v are the moments. Returns the norm; throws Error where it is not finite.
double adamw_step(Backend&, Params&, Gradients&, Params& m, Params& v, const TrainSpec&,
                  int64_t step, bool routers);
// Tokens of one sequence, shorter than spec.seq where the text is, and of the whole stage.
int64_t trained_seq(const TrainSpec&, const TokenSet&);
int64_t trained_tokens(const TrainSpec&, const TokenSet&);

}  // namespace lte
