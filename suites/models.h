// The models that rows are timed on: shapes with synthetic weights, and small ones that are trained.
#pragma once

#include <optional>

#include "bench/run_folder.h"
#include "bench/synthetic.h"
#include "harness.h"
#include "model/decode.h"

namespace lte {

inline constexpr double kDensities[] = {1, 0.5, 0.25, 0.1, 0.05};

// The preset as it is, or, for a smoke run, the same family cut to a tiny model.
ModelConfig suite_model(const std::string& spec, bool smoke);

// Throws Skip where that much memory is not free, on the host and on a device.
void want_memory(const Session&, const std::string& what, double bytes);

// A model of random weights whose every layer has experts of `group` neurons and a linear router.
// Throws Skip where the memory that is free does not hold it, or the backend has no such products.
struct Synthetic {
  Params params;
  Plan plan;  // all experts on
  std::optional<Params>
      on_host;  // the same numbers for the reference, where params lie on a device

  const Params& reference() const { return on_host ? *on_host : params; }
};
Synthetic make_synthetic(Session&, const ModelConfig&, int group, DType);

// The shapes that whole-model programs share, with the type of their weights.
struct WholeShape {
  const char* model;
  DType weights;
};
inline constexpr WholeShape kWholeShapes[] = {{"gpt2", DType::f32},
                                              {"gpt2-medium", DType::f32},
                                              {"llama2-7b:layers=4", DType::f32},
                                              {"llama2-7b", DType::bf16}};
// And those that a device runs besides.
std::vector<WholeShape> whole_shapes(const Options&);
inline constexpr double kWholeDensities[] = {0, 1, 0.5, 0.25, 0.1};  // 0: the dense model
std::vector<double> whole_densities(const Options&);
std::string synthetic_name(const Options&, const WholeShape&, double density);
// A small model after `lte-one-stage`, and text that it was not trained on.
struct Trained {
  LoadedRun run;
  TokenSet text;
  double seconds = 0;  // what that took; 0: it was read from --run
};
// gpt2-nano on dialects: a few hundred steps of training, as many of fitting; says so on standard
// error. With --run the fitted run of that folder and its dataset's test split.
Trained make_trained(Session&, double active);
// What the rows of whole models share: models are made once for all rows, thresholds once for a density.
struct Made {
  Latest<Synthetic> synthetic;
  Latest<Plan> plan;
  Latest<Trained> trained;

  std::shared_ptr<const Params> params(Session&, const WholeShape&);
  // The same where the reference reads them.
  std::shared_ptr<const Params> reference() const;
  // Of the model that params() gave last.
  const Plan& thresholds(Session&, const WholeShape&, double density);
};

// Rows of trained models are made for these: the folder's own fraction (0), or two of ours.
std::vector<double> trained_fractions(const Options&);
std::map<std::string, double> trained_counters(const Trained&);  // "trained_s"
std::string trained_name(const Options&, double active);  // "trained/gpt2-nano/active_permille:250"

// The gates of `rows` rows of a, from `first` on, agree with the first ones of b.
bool same_gates(const Plan&, const State& a, const State& b, int64_t first, int64_t rows);

// How many rows of `flops` each the plain-loop reference computes in about a second.
int64_t reference_rows(double flops, int64_t rows);
// got against want, both [rows, columns]; `length` is that of the sums behind an element, in `layers` layers of
// such weights.
Comparison compare_rows(const Session&, const Tensor& got, const Tensor& want, DType weights,
                        int64_t length, int64_t layers);
// Two checks as one: the worse comparison of two that are decided, the rows of both.
Checked both(const Checked&, const Checked&);

// A whole model at work: one state, tokens, and chunks of B sequences of T tokens.
struct Whole {
  std::shared_ptr<const Params> params,
      reference;  // the same numbers; the second for the reference
  Plan plan, dense;
  State state;
  Chunk chunk;
  std::vector<int32_t> tokens;  // of the next call
  DecodeStep step = {}, dense_step = {};
};
// The row's work but for `load`: forward over the chunk, gathered, beside the dense plan on the same
// weights; checked on the first sequences or the first tokens. With `dense_only` the dense model is
// what is timed.
Work whole_work(Session&, std::shared_ptr<Whole>, bool dense_only);

}  // namespace lte
