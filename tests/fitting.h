// What the tests of methods share: a small dense model with its data, and small settings of every knob.
#pragma once

#include "errors.h"
#include "methods/methods.h"
#include "testing.h"

namespace lte::testing {

inline constexpr int kFitVocab = 16;

// A dense model that was trained a little, and the data it came from.
struct Fitting {
  ModelConfig c;
  Backend be = test_backend(2);
  TokenSet train_set = patterned_tokens(3000, kFitVocab, 1),
           valid = patterned_tokens(400, kFitVocab, 2);
  Params dense;
  std::vector<std::string> stages;

  explicit Fitting(const char* spec = kGpt) : c(tiny(spec, kFitVocab)) {
    dense = test_params(c, dense_plan(c));
    init_params(dense, 4);
    TrainSpec s{.steps = 30, .batch = 8, .seq = 16, .lr = 1e-2, .terms = {}};
    train(be, dense, dense_plan(c), train_set, valid, s, {});
  }
  FitInput input(uint64_t seed = 1) {
    return {.backend = be,
            .dense = dense,
            .train = train_set,
            .valid = valid,
            .seq = 16,
            .seed = seed,
            .hooks = [this](const std::string& stage) {
              stages.push_back(stage);
              return TrainHooks{};
            }};
  }
  Fitted run(std::string_view method, const Knobs& knobs, uint64_t seed = 1) {
    return fit(input(seed), method, knobs);
  }
};

// Small settings for whatever knobs a method has.
inline Knobs small_knobs(const Method& m, const char* steps = "12") {
  Knobs k = {{"steps", steps}, {"batch", "4"}};
  const Knobs wanted = {{"group", "8"},         {"warm_tokens", "512"}, {"warm_steps", "20"},
                        {"calibration", "512"}, {"epochs", "3"},        {"rank", "4"},
                        {"width", "4"},         {"mask_steps", "5"}};
  for (const KnobRow& row : all_knobs(m)) {
    if (wanted.contains(row.name)) k[row.name] = wanted.at(row.name);
  }
  return k;
}

}  // namespace lte::testing
