// What each method of the table costs to prepare, on a tiny base that is trained at the start: the
// time is that of one fit; the counters are what the fit itself says. Budgets of training are the
// same for all; what a method calibrates on is its own default.
#include <fmt/format.h>

#include "core/digest.h"
#include "model/batches.h"
#include "model/score.h"
#include "models.h"

namespace lte {
namespace {

constexpr double kLossTolerance =
    1e-3;  // a mean of losses near 2, and gates that rounding tips over

struct Base {
  Dataset data;
  Params params;
  int steps = 0;  // of the base, and of every fit
  Fitted fitted;
};

Base make_base(Session& s, const Method& m) {
  Base b{.data = load_dataset(m.gated_only ? "restaurants" : "dialects", "", {}),
         .params = {},
         .steps = s.options.smoke ? 4 : 64,
         .fitted = {}};
  ModelConfig c = parse_model(m.gated_only ? "llama-nano" : "gpt2-nano");
  c.vocab = static_cast<int>(b.data.tokenizer.vocab.size());
  b.params = make_params(c, dense_plan(c), DType::f32, s.backend.memory);
  init_params(b.params, 0);
  TrainSpec spec;
  spec.steps = 2 * b.steps, spec.batch = 8, spec.seq = 64, spec.lr = 3e-3;
  train(s.backend, b.params, dense_plan(c), b.data.train, {}, spec, {});
  return b;
}

Knobs knobs_of(const Method& m, const Base& b, bool smoke) {
  const Knobs wanted = {{"steps", fmt::format("{}", b.steps)}, {"group", "4"}, {"batch", "8"}};
  // A smoke run only asks whether it works: little is calibrated on.
  const Knobs little = {{"warm_tokens", "512"},
                        {"warm_steps", "4"},
                        {"calibration", "512"},
                        {"epochs", "1"},
                        {"mask_steps", "2"}};
  Knobs k;
  for (const KnobRow& row : all_knobs(m)) {
    if (wanted.contains(row.name)) k[row.name] = wanted.at(row.name);
    if (smoke && little.contains(row.name)) k[row.name] = little.at(row.name);
  }
  return k;
}

// Gathered on this backend against masked plain loops: the loss of one short window.
Checked check(Session& s, const Base& b) {
  const std::vector<Window> windows = test_windows(b.data.test, 32, 1);
  Backend naive = open_backend("cpu+naive", 1);
  const auto loss = [&](Backend& be, Exec exec) {
    return score(be, b.fitted.params, b.fitted.plan, b.data.test, windows,
                 {.b = 1, .p = 32, .d = 0}, exec)
        .loss;
  };
  const Block got = make_block({shape(DType::f64, {1})}),
              want = make_block({shape(DType::f64, {1})});
  *got.tensor[0].as<double>() = loss(s.backend, Exec::gathered);
  *want.tensor[0].as<double>() = loss(naive, Exec::masked);
  return {.comparison = compare(got.tensor[0], want.tensor[0], kLossTolerance), .rows = 32};
}

Work make_row(Session& s, const Method& m, std::shared_ptr<Base> b) {
  Work w;
  const Knobs knobs = knobs_of(m, *b, s.options.smoke);
  w.call = [&s, &m, b, knobs] {
    const FitInput in{.backend = s.backend,
                      .dense = b->params,
                      .train = b->data.train,
                      .valid = b->data.valid,
                      .seq = 64,
                      .seed = 0,
                      .hooks = {}};
    b->fitted = fit(in, m.name, knobs);
  };
  w.output = [b] { return digest(b->fitted.params.flat().data, b->fitted.params.flat().bytes()); };
  w.check = [&s, b] { return check(s, *b); };
  w.counters = [b] {
    return std::map<std::string, double>{
        {"train_tokens", static_cast<double>(b->fitted.train_tokens)},
        {"train_GFLOP", 1e-9 * b->fitted.train_flops},
        {"calibration_tokens", static_cast<double>(b->fitted.calibration_tokens)}};
  };
  return w;
}

}  // namespace

const bool kInference = false;

std::vector<Case> cases(const Options&) {
  std::vector<Case> all;
  auto made = std::make_shared<Latest<Base>>();
  for (const Method* m : methods()) {
    all.push_back(
        {fmt::format("fit_cost/{}/{}", m->name, m->gated_only ? "llama-nano" : "gpt2-nano"),
         [m, made](Session& s) {
           const auto base =
               made->get(m->gated_only ? "gated" : "plain", [&] { return make_base(s, *m); });
           return make_row(s, *m, base);
         }});
  }
  return all;
}

}  // namespace lte
