// What every row of the methods table must hold, whatever it does.
#include <fmt/format.h>

#include <set>

#include "fitting.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte::testing {
namespace {

// Tiny models that a method applies to.
std::vector<const char*> models_for(const Method& m) {
  return m.gated_only ? std::vector{kLlama} : std::vector{kGpt, kLlama};
}

// A knob's default, or nothing.
std::string find_knob(const Method& m, const std::string& name) {
  for (const KnobRow& row : all_knobs(m)) {
    if (row.name == name) return row.value;
  }
  return "";
}

class EveryMethod : public ::testing::TestWithParam<const Method*> {};

TEST_P(EveryMethod, IsDeterministicBySeed) {
  const Method& m = *GetParam();
  Fitting q(models_for(m)[0]);
  q.be = test_backend(1);
  const Fitted a = q.run(m.name, small_knobs(m));
  q.be = test_backend(7);
  const Fitted b = q.run(m.name, small_knobs(m));
  expect_same_bits(a.params.flat(), b.params.flat(), "7 threads");
  ASSERT_EQ(a.plan.layer.size(), b.plan.layer.size());
  for (size_t i = 0; i < a.plan.layer.size(); ++i) {
    EXPECT_EQ(a.plan.layer[i].order, b.plan.layer[i].order);
    EXPECT_EQ(a.plan.layer[i].cut, b.plan.layer[i].cut);
  }
  EXPECT_EQ(a.calibration_tokens, b.calibration_tokens);
  ASSERT_EQ(a.predictors.size(), b.predictors.size());
  for (size_t i = 0; i < a.predictors.size(); ++i)
    EXPECT_EQ(a.predictors[i].recall, b.predictors[i].recall);
  const Fitted other = q.run(m.name, small_knobs(m), 2);
  EXPECT_FALSE(bits(other.params.flat()) == bits(a.params.flat())) << "the seed has no effect";
}

TEST_P(EveryMethod, PlanIsValidAndCarriesEveryKnob) {
  const Method& m = *GetParam();
  for (const char* model : models_for(m)) {
    Fitting q(model);
    const Fitted f = q.run(m.name, small_knobs(m));
    EXPECT_NO_THROW(check_plan(f.params.cfg, f.plan));
    EXPECT_EQ(f.plan.method, m.name);
    const Knobs set = small_knobs(m);
    EXPECT_EQ(f.plan.knobs.size(), all_knobs(m).size());
    for (const KnobRow& row : all_knobs(m)) {
      ASSERT_TRUE(f.plan.knobs.contains(row.name)) << row.name;
      const auto given = set.find(row.name);
      EXPECT_EQ(f.plan.knobs.at(row.name), given == set.end() ? row.value : given->second);
      EXPECT_GT(std::string(row.about).size(), 5u) << row.name << " is not documented";
    }
    for (size_t i = 0; i < f.plan.layer.size(); ++i) {
      const LayerParams& l = f.params.layer[i];
      const RouterKind kind = f.plan.layer[i].router;
      EXPECT_EQ(l.up_w.dim[0], kept_neurons(q.c, f.plan.layer[i]));
      EXPECT_EQ(static_cast<bool>(l.router_w),
                kind == RouterKind::linear || kind == RouterKind::two_layer);
      EXPECT_EQ(static_cast<bool>(l.router_in), kind == RouterKind::two_layer);
    }
    visit_params(const_cast<Params&>(f.params), [&](Tensor& t, const ParamInfo& info) {
      for (double x : values(t)) ASSERT_TRUE(std::isfinite(x)) << info.name;
      // One that stayed zero was never set: every router has weights.
      if (info.router && info.name.ends_with("weight")) {
        EXPECT_GT(largest(values(t)), 0) << info.name;
      }
    });
  }
}

TEST_P(EveryMethod, BudgetIsTheStepsThatWereAskedFor) {
  const Method& m = *GetParam();
  Fitting q(models_for(m)[0]);
  for (const char* steps : {"12", "7"}) {
    const Fitted f = q.run(m.name, small_knobs(m, steps));
    EXPECT_EQ(f.train_tokens, std::stoi(steps) * 4 * 16);
    EXPECT_GT(f.train_flops, 0);
  }
  EXPECT_FALSE(q.stages.empty());
  const uint64_t before = digest(q.dense.flat().data, q.dense.flat().bytes());
  q.run(m.name, small_knobs(m));
  EXPECT_EQ(digest(q.dense.flat().data, q.dense.flat().bytes()), before) << "the dense model moved";
}

// As published: nothing is trained, wherever that is the default.
TEST_P(EveryMethod, NoStepsIsNoTraining) {
  const Method& m = *GetParam();
  if (find_knob(m, "steps") != "0") return;
  Fitting q(models_for(m)[0]);
  const Fitted f = q.run(m.name, small_knobs(m, "0"));
  EXPECT_EQ(f.train_tokens, 0);
  EXPECT_TRUE(q.stages.empty());
  // The model itself is as it was, but for the order of its neurons: embeddings and attention.
  expect_same_bits(f.params.wte, q.dense.wte, "embedding");
  expect_same_bits(f.params.layer[1].qkv_w, q.dense.layer[1].qkv_w, "attention");
}

TEST_P(EveryMethod, WrongKnobsAreErrorsThatNameThem) {
  const Method& m = *GetParam();
  Fitting q(models_for(m)[0]);
  const auto says = [&](const char* knob, const char* value, const Knobs& beside = {}) {
    Knobs k = small_knobs(m);
    for (const auto& [name, other] : beside) k[name] = other;
    k[knob] = value;
    const std::string e = error_of([&] { q.run(m.name, k); });
    EXPECT_NE(e.find(knob), std::string::npos) << knob << "=" << value << ": " << e;
    EXPECT_NE(e, "no error");
  };
  says("no_such_knob", "1");
  for (const char* bad : {"1.5", "0", "-1"}) says("active", bad);
  says("active", "nan");
  for (const char* bad : {"-1", "1.5"}) says("steps", bad);
  says("group", "7");
  says("group", "0");
  says("batch", "0");
  says("lr", "fast");
  says("lr", "");
  says("clip", "-1");
  says("decay", "1e99");
  q.stages.clear();
  for (const char* knob : {"lr2", "rate"}) says(knob, "-1");
  std::vector<Knobs> beside = {{}};  // also where another knob makes it idle, or has it used late
  for (const auto& [name, value] :
       Knobs{{"before", "0.5"}, {"selection", "oracle"}, {"warm_tokens", "0"}, {"group", "1"}}) {
    if (find_knob(m, name).empty()) continue;
    Knobs k = small_knobs(m);
    k[name] = value;
    const std::string e = error_of([&] { q.run(m.name, k); });
    const bool taken = e == "no error", named = e.starts_with("knob " + name + "=" + value);
    EXPECT_TRUE(taken || named) << e;
    if (taken) beside.push_back({{name, value}});
  }
  q.stages.clear();
  for (const KnobRow& row : all_knobs(m)) {
    for (const Knobs& other : beside) {
      if (!other.contains(row.name)) says(row.name, "bogus", other);
    }
  }
  EXPECT_TRUE(q.stages.empty()) << "a wrong knob was noticed only after stage " << q.stages[0];
  EXPECT_THROW(find_method("no-such-method"), Error);
  EXPECT_NE(error_of([] { find_method("?"); }).find(m.name), std::string::npos);
}

TEST_P(EveryMethod, MaskedIsGatheredAndTimedIsUntimed) {
  const Method& m = *GetParam();
  for (const char* model : models_for(m)) {
    Fitting q(model);
    const Fitted f = q.run(m.name, small_knobs(m));
    const std::vector<Window> windows = test_windows(q.valid, 16);
    const auto outcome = [&](Exec exec, Shape shape, Stopwatch* watch) {
      return score(q.be, f.params, f.plan, q.valid, windows, shape, exec, watch);
    };
    Stopwatch watch;
    const Outcome masked = outcome(Exec::masked, {4, 16, 0}, nullptr);
    const Outcome gathered = outcome(Exec::gathered, {4, 16, 0}, nullptr);
    const Outcome timed = outcome(Exec::gathered, {4, 16, 0}, &watch);
    const Outcome decoded = outcome(Exec::gathered, {1, 4, 12}, nullptr);
    EXPECT_EQ(gathered.digest, timed.digest);
    EXPECT_EQ(gathered.loss, timed.loss);
    EXPECT_GT(gathered.active, 0);
    EXPECT_LE(gathered.active, 1);
    // A mean of losses of about 2 from f32 logits; a gate that rounding tips over may add to it.
    EXPECT_NEAR(masked.loss, gathered.loss, 1e-4);
    EXPECT_NEAR(masked.loss, decoded.loss, 1e-4);
    EXPECT_NEAR(masked.active, gathered.active, 1e-3);
    EXPECT_TRUE(std::isfinite(gathered.loss));
    EXPECT_GT(gathered.cost.flops_paper, 0);
    if (!f.plan.routed()) continue;
    const double dense =
        cost_of(q.c, dense_plan(q.c), std::vector<double>(2, gathered.active), 1).flops_paper;
    if (f.plan.layer[0].in_cut >= 0) {  // to look at inputs takes no product
      EXPECT_NEAR(gathered.cost.flops_paper, dense, 1e-9 * dense);
    } else {
      EXPECT_GT(gathered.cost.flops_paper, dense) << "what chooses is counted";
    }
    if (find_knob(m, "active").empty()) continue;
    // Experts of 8 of 32 or 48 neurons, calibrated on other text than this.
    EXPECT_NEAR(gathered.active, std::stod(find_knob(m, "active")), 0.15);
  }
}

TEST_P(EveryMethod, WhatIsNotSelectedIsNotRead) {
  const Method& m = *GetParam();
  for (const char* model : models_for(m)) {
    Fitting q(model);
    const Fitted f = q.run(m.name, small_knobs(m));
    if (!f.plan.routed()) continue;
    const lte::Run gathered{Gate::hard, Exec::gathered};
    int64_t poisoned = 0;
    Store s;
    for (int32_t token = 0; token < kFitVocab; ++token) {
      const Params p = clone(f.params);
      const Tensor one = s.ints({token});
      const State clean = run_forward(q.be, p, f.plan, one, 1, gathered);
      poisoned += poison_unselected(p, f.plan, clean);
      const State again = run_forward(q.be, p, f.plan, one, 1, gathered);
      expect_same_bits(again.logits, clean.logits, "poisoned");
    }
    EXPECT_GT(poisoned, 0);
  }
}

// With every gate open, and no score a weight, the fitted model is its own dense model.
TEST_P(EveryMethod, AllOpenIsDense) {
  const Method& m = *GetParam();
  for (const char* model : models_for(m)) {
    Fitting q(model);
    const Fitted f = q.run(m.name, small_knobs(m));
    Plan open = f.plan, dense = f.plan;
    for (FfnPlan& p : open.layer) {
      p.rule = Rule::all, p.scaled = false, p.in_cut = std::min(p.in_cut, 0.0);
      if (p.squash == Squash::kept_softmax) p.squash = Squash::none;
    }
    for (FfnPlan& p : dense.layer) p.router = RouterKind::none, p.in_cut = -1;
    const std::vector<Window> windows = test_windows(q.valid, 16);
    const auto outcome = [&](const Plan& plan, Exec exec) {
      return score(q.be, f.params, plan, q.valid, windows, {4, 16, 0}, exec);
    };
    const Outcome want = outcome(dense, Exec::masked);
    for (const Exec exec : {Exec::masked, Exec::gathered}) {
      const Outcome got = outcome(open, exec);
      EXPECT_EQ(got.active, want.active);
      EXPECT_NEAR(got.loss, want.loss, 1e-5);
    }
  }
}

// How good routers are is part of a fit wherever they were trained to predict or to gate.
TEST_P(EveryMethod, RoutersAreLookedAt) {
  const Method& m = *GetParam();
  Fitting q(models_for(m)[0]);
  const Fitted f = q.run(m.name, small_knobs(m));
  const FfnPlan& p = f.plan.layer[0];
  if (p.router == RouterKind::linear && p.squash == Squash::sigmoid) {
    EXPECT_FALSE(f.histograms.empty());
  }
  if (p.router == RouterKind::two_layer || p.squash == Squash::softmax) {
    EXPECT_EQ(f.predictors.size(), f.plan.layer.size());
  }
  for (const Prediction& one : f.predictors) {
    for (double x : {one.recall, one.precision, one.density}) {
      EXPECT_GT(x, 0);
      EXPECT_LE(x, 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Table, EveryMethod,
                         ::testing::ValuesIn(methods().begin(), methods().end()),
                         [](const auto& info) {
                           std::string name = info.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MethodTable, NamesAreDistinctAndDocumented) {
  std::set<std::string> names;
  for (const Method* each : methods()) {
    const Method& m = *each;
    EXPECT_TRUE(names.insert(m.name).second) << m.name;
    EXPECT_NE(m.fit, nullptr);
    std::set<std::string> knobs;
    for (const KnobRow& row : all_knobs(m)) EXPECT_TRUE(knobs.insert(row.name).second) << row.name;
  }
}

// ---- single methods

TEST(GatedOnly, IsSaidInOneLine) {
  Fitting q;
  for (const Method* m : methods()) {
    if (!m->gated_only) continue;
    const std::string e = error_of([&] { q.run(m->name, small_knobs(*m)); });
    EXPECT_NE(e.find(m->name), std::string::npos) << e;
    EXPECT_NE(e.find("wants a gated FFN"), std::string::npos) << e;
  }
}

TEST(Active, IsAboveNothing) {
  for (const char* bad : {"0", "-1", "1.01", "nan", "x", ""}) {
    const std::string e = error_of([&] { get_active({{"active", bad}}); });
    EXPECT_EQ(e, fmt::format("knob active={}: wants a number above 0, at most 1", bad));
  }
  for (const char* good : {"1e-9", "1"}) EXPECT_GT(get_active({{"active", good}}), 0);
}

TEST(Dense, NoStepsIsTheModelAsItIs) {
  Fitting q;
  const Fitted f = q.run("dense", {});
  expect_same_bits(f.params.flat(), q.dense.flat(), "dense");
  EXPECT_EQ(f.train_tokens, 0);
}

// Forms of one method that its knobs choose: each within its budget, masked as gathered, and as
// sparse as asked.
struct Form {
  const char* method;
  Knobs knobs;
};
const Form kForms[] = {
    {"lte-one-stage", {{"construction", "coactivation"}}},
    {"moefication", {{"selection", "similarity"}}},
    {"moefication", {{"selection", "oracle"}, {"score", "positive"}}},
    {"moefication", {{"construction", "coactivation"}, {"score", "norm"}}},
    {"deja-vu", {{"selection", "threshold"}, {"group", "1"}}},
    {"deja-vu", {{"look_ahead", "1"}}},
    {"deja-vu", {{"before", "0.5"}, {"label", "0.01"}}},
    {"deja-vu", {{"before", "1"}}},
    {"d2dmoe", {{"rule", "cumulative"}}},
    {"oracle", {{"by", "contribution"}, {"construction", "random"}}},
    {"oracle", {{"group", "1"}}},
    {"noisy-top-k", {{"noise", "0"}, {"construction", "contiguous"}}},
    {"prune", {{"score", "flap"}, {"active", "0.25"}}},
    {"prune", {{"score", "taylor"}, {"active", "0.25"}, {"compensate", "1"}}},
    {"prune", {{"score", "mask"}, {"active", "0.25"}, {"allocation", "global"}}},
    {"prune", {{"score", "random"}, {"active", "0.25"}}},
};

TEST(Forms, HoldWhatTheMethodsHold) {
  for (const char* model : {kGpt, kLlama}) {
    for (const Form& form : kForms) {
      const Method& m = find_method(form.method);
      Fitting q(model);
      Knobs k = small_knobs(m);
      std::string name = form.method;
      for (const auto& [key, value] : form.knobs) k[key] = value, name += " " + key + "=" + value;
      SCOPED_TRACE(name);
      const Fitted f = q.run(m.name, k);
      EXPECT_EQ(f.train_tokens, 12 * 4 * 16);
      EXPECT_NO_THROW(check_plan(f.params.cfg, f.plan));
      const std::vector<Window> windows = test_windows(q.valid, 16);
      const auto outcome = [&](Exec exec, Shape shape) {
        return score(q.be, f.params, f.plan, q.valid, windows, shape, exec);
      };
      const Outcome masked = outcome(Exec::masked, {4, 16, 0}),
                    gathered = outcome(Exec::gathered, {4, 16, 0}),
                    decoded = outcome(Exec::gathered, {1, 4, 12});
      EXPECT_NEAR(masked.loss, gathered.loss, 1e-4);
      EXPECT_NEAR(masked.loss, decoded.loss, 1e-4);
      EXPECT_NEAR(gathered.active, 0.25, 0.15);
      q.be = test_backend(7);
      expect_same_bits(q.run(m.name, k).params.flat(), f.params.flat(), "7 threads");
    }
  }
}

TEST(Moefication, SimilarityTakesTheNearestCentres) {
  for (const char* model : {kGpt, kLlama}) {
    Fitting q(model);
    const Fitted f =
        q.run("moefication", {{"selection", "similarity"}, {"group", "8"}, {"active", "0.5"}});
    Store s;
    Rng rng(3);
    const State st = run_forward(q.be, f.params, f.plan, s.ints(32, kFitVocab, rng), 2,
                                 {Gate::hard, Exec::masked});
    const int64_t D = q.c.dim, E = q.c.ffn / 8;
    for (size_t i = 0; i < 2; ++i) {
      const LayerState& l = st.layer[i];
      const LayerParams& w = f.params.layer[i];
      const auto row = [&](const Tensor& t, int64_t n) {
        Values v(static_cast<size_t>(D));
        double square = 0;
        for (int64_t d = 0; d < D; ++d) square += std::pow(at(t, n * D + d), 2);
        for (int64_t d = 0; d < D; ++d)
          v[static_cast<size_t>(d)] = at(t, n * D + d) / std::sqrt(square);
        return v;
      };
      for (int64_t n = 0; n < 32; ++n) {
        std::vector<std::pair<double, int64_t>> distance;
        const Values x = row(l.norm2, n);
        for (int64_t e = 0; e < E; ++e) {
          Values centre(static_cast<size_t>(D));
          for (int64_t j = e * 8; j < e * 8 + 8; ++j) {
            const Values one = row(w.gate_w ? w.gate_w : w.up_w, j);
            for (size_t d = 0; d < one.size(); ++d) centre[d] += one[d] / 8;
          }
          double square = 0;
          for (size_t d = 0; d < x.size(); ++d) square += std::pow(x[d] - centre[d], 2);
          distance.push_back({square, e});
        }
        std::sort(distance.begin(), distance.end());
        for (int64_t k = 0; k < E; ++k)
          EXPECT_EQ(at(l.gates, n * E + distance[static_cast<size_t>(k)].second), k < E / 2)
              << "token " << n;
      }
    }
  }
}

// Neurons that are exactly zero are skipped: the model is the dense ReLU model.
TEST(Relu, SkippingChangesNothing) {
  for (const char* model : {kGpt, kLlama}) {
    Fitting q(model);
    const Fitted f = q.run("relu", {{"steps", "12"}, {"batch", "4"}});
    EXPECT_EQ(f.params.cfg.act, Act::relu);
    EXPECT_EQ(parse_model(f.params.cfg.name).act, Act::relu) << f.params.cfg.name;
    Store s;
    Rng rng(3);
    const Tensor tokens = s.ints(32, kFitVocab, rng);
    const State sparse =
        run_forward(q.be, f.params, f.plan, tokens, 2, {Gate::hard, Exec::gathered});
    const State dense = run_forward(q.be, f.params, dense_plan(f.params.cfg), tokens, 2,
                                    {Gate::hard, Exec::masked});
    expect_close(sparse.logits, values(dense.logits),
                 tolerance_of(DType::f32, 48 * 10, largest(values(dense.logits))), "logits");
    for (const LayerState& l : sparse.layer) {
      const Values gates = values(l.gates);
      const auto open = std::count(gates.begin(), gates.end(), 1.0);
      EXPECT_GT(open, 0);
      EXPECT_LT(open, static_cast<int64_t>(gates.size()));
    }
  }
}

TEST(Lte, ToTheLetterHasNoRouterBiasAndFreezesRouters) {
  Fitting q;
  const Fitted f = q.run("lte", {{"steps", "12"}, {"batch", "4"}, {"group", "8"}});
  EXPECT_EQ(q.stages, (std::vector<std::string>{"stage1", "stage2"}));
  // Stage 1 alone: the same routers as after stage 2.
  const Fitted one = q.run("lte", {{"steps", "12"}, {"batch", "4"}, {"group", "8"}, {"lr2", "0"}});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(f.plan.layer[i].router_bias);
    EXPECT_EQ(f.plan.layer[i].rule, Rule::threshold);
    EXPECT_EQ(f.plan.layer[i].cut, 0.5);
    expect_same_bits(f.params.layer[i].router_w, one.params.layer[i].router_w,
                     "stage 2 moved a router");
    EXPECT_FALSE(bits(f.params.layer[i].up_w) == bits(one.params.layer[i].up_w));
  }
}

TEST(LteOneStage, ReachesTheActiveFractionThatWasAskedFor) {
  Fitting q;
  for (const char* active : {"0.25", "0.5"}) {
    const Fitted f = q.run("lte-one-stage", {{"steps", "300"},
                                             {"batch", "8"},
                                             {"group", "4"},
                                             {"active", active},
                                             {"warm_tokens", "2048"},
                                             {"rate", "0.5"}});
    const Outcome o = score(q.be, f.params, f.plan, q.valid, test_windows(q.valid, 16), {4, 16, 0},
                            Exec::gathered);
    EXPECT_NEAR(o.active, std::stod(active), 0.12);
  }
}

TEST(LteOneStage, WarmRoutersOpenTheShareThatSteeringStartsAt) {
  Fitting q;
  const Fitted f = q.run("lte-one-stage", {{"steps", "1"},
                                           {"batch", "4"},
                                           {"group", "4"},
                                           {"start", "0.5"},
                                           {"calibrate", "0"},
                                           {"lr", "0"},
                                           {"warm_tokens", "2048"}});
  const Outcome o =
      score(q.be, f.params, f.plan, q.valid, test_windows(q.valid, 16), {4, 16, 0}, Exec::gathered);
  EXPECT_NEAR(o.active, 0.5, 0.08) << "calibrated on training text, looked at on other text";
}

// No step would be distilled: not silently an ordinary run.
TEST(Distill, WantsAStepThatIsDistilled) {
  Fitting q;
  const auto said = [&](const char* method, Knobs more) {
    Knobs k = small_knobs(find_method(method));
    k["distill"] = "0.5";
    for (const auto& [name, value] : more) k[name] = value;
    return error_of([&] { q.run(method, k); });
  };
  for (const char* method : {"d2dmoe", "deja-vu"}) {
    EXPECT_NE(said(method, {{"before", "1"}}).find("knob distill: no step"), std::string::npos)
        << method;
    EXPECT_EQ(said(method, {{"before", "0.5"}}), "no error") << method;
  }
  for (const char* method : {"dense", "teal", "prune"}) {
    EXPECT_NE(said(method, {{"steps", "0"}}).find("knob distill: no step"), std::string::npos)
        << method;
    EXPECT_EQ(said(method, {}), "no error") << method;
  }
}

TEST(Budget, TokensAreThoseThatWereTrainedOn) {
  Fitting q;
  q.train_set.tokens.resize(9);  // sequences of 16 do not exist: the trainer takes 8
  const Fitted f = q.run("dense", {{"steps", "2"}, {"batch", "4"}});
  EXPECT_EQ(f.train_tokens, 2 * 4 * 8);
}

}  // namespace
}  // namespace lte::testing
