// As forward_test.cpp, for every kind of router, score and rule that a plan can name.
#include <fmt/format.h>

#include "errors.h"
#include "testing.h"

namespace lte::testing {
namespace {

constexpr int64_t kB = 3, kT = 12;
constexpr int kVocab = 19;
constexpr Run kMasked{Gate::hard, Exec::masked}, kGathered{Gate::hard, Exec::gathered};

// What one layer's plan is beside its experts, and the cut at which every gate is open.
struct Kind {
  const char* name;
  FfnPlan plan;
  double all_on;  // below -1: no cut is the dense model
  bool gated_only = false;
};
constexpr double kNever = -9, kEvery = 1000;

const Kind kKinds[] = {
    {"linear_top_k",
     {.order = {}, .router = RouterKind::linear, .rule = Rule::top_k, .cut = 3},
     kEvery},
    {"similarity",
     {.order = {},
      .router = RouterKind::linear,
      .router_bias = true,
      .input = RouterInput::unit,
      .rule = Rule::top_k,
      .cut = 2,
      .squash = Squash::none},
     kEvery},
    {"residual_softmax_cumulative",
     {.order = {},
      .router = RouterKind::linear,
      .router_bias = true,
      .input = RouterInput::residual,
      .rule = Rule::cumulative,
      .cut = 0.6,
      .squash = Squash::softmax},
     1},
    {"kept_softmax",
     {.order = {},
      .router = RouterKind::linear,
      .rule = Rule::top_k,
      .cut = 3,
      .squash = Squash::kept_softmax},
     kNever},
    {"mlp_tanh_unit",
     {.order = {},
      .router = RouterKind::two_layer,
      .input = RouterInput::unit,
      .rule = Rule::top_k,
      .cut = 3,
      .width = 8,
      .inner = Inner::tanh,
      .squash = Squash::none},
     kEvery},
    {"low_rank_threshold",
     {.order = {},
      .router = RouterKind::two_layer,
      .rule = Rule::threshold,
      .cut = 0.6,
      .width = 3},
     -1},
    {"low_rank_ahead",
     {.order = {},
      .router = RouterKind::two_layer,
      .input = RouterInput::ahead,
      .rule = Rule::top_k,
      .cut = 3,
      .width = 5},
     kEvery},
    {"linear_ahead",
     {.order = {},
      .router = RouterKind::linear,
      .router_bias = true,
      .input = RouterInput::ahead,
      .rule = Rule::threshold,
      .cut = 0.5},
     -1},
    {"norms_relative_max",
     {.order = {},
      .router = RouterKind::two_layer,
      .router_bias = true,
      .rule = Rule::relative_max,
      .cut = 0.5,
      .width = 6,
      .inner = Inner::relu,
      .squash = Squash::absolute},
     0},
    {"norms_cumulative",
     {.order = {},
      .router = RouterKind::two_layer,
      .rule = Rule::cumulative,
      .cut = 0.5,
      .width = 6,
      .inner = Inner::relu,
      .squash = Squash::absolute},
     1},
    {"oracle",
     {.order = {}, .router = RouterKind::activation, .rule = Rule::top_k, .cut = 3},
     kEvery},
    {"oracle_weighted",
     {.order = {},
      .router = RouterKind::activation,
      .rule = Rule::top_k,
      .cut = 3,
      .weighted = true},
     kEvery},
    {"oracle_norm",
     {.order = {},
      .router = RouterKind::activation,
      .rule = Rule::relative_max,
      .cut = 0.4,
      .measure = Measure::norm},
     0},
    {"oracle_positive",
     {.order = {},
      .router = RouterKind::activation,
      .rule = Rule::top_k,
      .cut = 2,
      .measure = Measure::positive},
     kEvery},
    {"gate_threshold",
     {.order = {}, .router = RouterKind::gate, .rule = Rule::threshold, .cut = 0.25},
     -1,
     true},
    {"gate_weighted_top_k",
     {.order = {}, .router = RouterKind::gate, .rule = Rule::top_k, .cut = 3, .weighted = true},
     kEvery,
     true},
};

// Rounding through two layers, as in forward_test.cpp.
double rounding(const Tensor& logits) {
  return tolerance_of(logits.dtype, 48 * 10, largest(values(logits)));
}

bool reads_activations(const FfnPlan& f) {
  return f.router == RouterKind::activation || f.router == RouterKind::gate;
}

class Routing : public ::testing::TestWithParam<std::tuple<const char*, Kind>> {
 protected:
  const Kind& kind = std::get<1>(GetParam());
  ModelConfig c = tiny(std::get<0>(GetParam()), kVocab);
  Backend be = open_backend("cpu", 1);
  Store s;
  Rng rng{4};
  Params dense = make_params(c, dense_plan(c));
  Tensor tokens = s.ints(kB * kT, kVocab, rng);

  void SetUp() override {
    if (kind.gated_only && !c.gated) GTEST_SKIP() << "this kind wants a gated FFN";
    randomise(dense, 21);
  }
  Plan plan_of(int group) const {
    Plan plan = routed(c, group);
    for (FfnPlan& f : plan.layer) {
      const std::vector<int> order = f.order;
      f = kind.plan, f.order = order, f.group = group;
    }
    return plan;
  }
  Params params_of(const Plan& plan) const {
    Params p = apply_order(dense, plan);
    Rng draw(6);
    for (LayerParams& l : p.layer) {
      for (const Tensor& t : {l.router_in, l.router_w, l.router_b})
        for (int64_t i = 0; t && i < t.size(); ++i) put(t, i, 0.4 * draw.normal());
    }
    return p;
  }
  double open_share(const State& state) const {
    double open = 0, all = 0;
    for (const LayerState& l : state.layer) {
      for (double g : values(l.gates)) open += g != 0, ++all;
    }
    return open / all;
  }
};

TEST_P(Routing, MaskedIsGathered) {
  for (int group : {1, 4, 8}) {
    const Plan plan = plan_of(group);
    check_plan(c, plan);
    const Params p = params_of(plan);
    for (int64_t B : {int64_t{1}, kB}) {
      const Tensor text = first_rows(tokens, 1), all = tokens;
      Tensor in = all;
      if (B == 1) in = shape(DType::i32, {5}), in.data = text.data;
      const State a = run_forward(be, p, plan, in, B, kMasked);
      const State b = run_forward(be, p, plan, in, B, kGathered);
      EXPECT_GT(open_share(a), 0) << "group " << group;
      EXPECT_LT(open_share(a), 1) << "group " << group;
      for (size_t i = 0; i < a.layer.size(); ++i)
        expect_same_bits(a.layer[i].gates, b.layer[i].gates, "gates");
      expect_close(b.logits, a.logits, rounding(a.logits), fmt::format("group {}", group));
    }
  }
}

TEST_P(Routing, AllOnIsDense) {
  const State want = run_forward(be, dense, dense_plan(c), tokens, kB, kMasked);
  for (int group : {1, 8, c.ffn}) {
    if (kind.all_on < -1 && group < c.ffn) continue;  // weights of one expert alone are 1
    Plan plan = plan_of(group);
    for (FfnPlan& f : plan.layer) f.cut = kind.all_on < -1 ? 1 : kind.all_on;
    const Params p = params_of(plan);
    for (lte::Run run : {kMasked, kGathered}) {
      const State got = run_forward(be, p, plan, tokens, kB, run);
      EXPECT_EQ(open_share(got), 1);
      expect_close(got.logits, want.logits, rounding(want.logits), fmt::format("group {}", group));
    }
  }
}

TEST_P(Routing, ChunksAreThePrompt) {
  const Plan plan = plan_of(4);
  const Params p = params_of(plan);
  const State full = run_forward(be, p, plan, tokens, kB, kGathered);
  for (int64_t chunk : {1, 5}) {
    State state = make_state(p, plan, kB, 5, kT, Keep::one_layer);
    for (int64_t pos = 0; pos < kT; pos += chunk) {
      const int64_t width = std::min(chunk, kT - pos);
      std::vector<int32_t> part;
      for (int64_t b = 0; b < kB; ++b) {
        const int32_t* from = tokens.as<int32_t>() + b * kT + pos;
        part.insert(part.end(), from, from + width);
      }
      forward(be, p, plan, s.ints(part), {kB, width, pos}, kGathered, state);
      for (int64_t b = 0; b < kB; ++b) {
        Tensor got = first_rows(state.logits, width), want = got;
        got.data = state.logits.as<float>() + b * width * kVocab;
        want.data = full.logits.as<float>() + (b * kT + pos) * kVocab;
        expect_close(got, want, rounding(full.logits), fmt::format("chunk {} pos {}", chunk, pos));
      }
    }
  }
}

TEST_P(Routing, OneLayerKeptIsAllLayersKept) {
  for (bool uneven : {false, true}) {
    Plan plan = plan_of(4);
    // Layers of unequal width lie differently in the memory that they share.
    if (uneven) plan.layer[1].order.resize(8), plan.layer[1].cut = std::min(kind.plan.cut, 1.0);
    const Params p = params_of(plan);
    for (lte::Run run : {kMasked, kGathered}) {
      const State all = run_forward(be, p, plan, tokens, kB, run);
      const State one = run_forward(be, p, plan, tokens, kB, run, Keep::one_layer);
      expect_same_bits(one.logits, all.logits, uneven ? "uneven" : "even");
      for (size_t i = 0; i < all.layer.size(); ++i)
        expect_same_bits(one.layer[i].gates, all.layer[i].gates, "gates");
    }
  }
}

// Of experts that no token selects: down rows are never read; up rows only by those who choose by
// the activations; gate rows only by those who choose by gate or activations.
TEST_P(Routing, WhatIsNotSelectedIsNotRead) {
  if (kind.plan.weighted) GTEST_SKIP() << "down rows are read to choose";
  Tensor in = shape(DType::i32, {4});
  in.data = tokens.data;
  const Plan plan = plan_of(1);
  Params p = params_of(plan);
  const State clean = run_forward(be, p, plan, in, 1, kGathered);
  int64_t poisoned = 0;
  for (size_t i = 0; i < p.layer.size(); ++i) {
    const LayerParams& l = p.layer[i];
    for (int64_t j = 0; j < c.ffn; ++j) {
      if (clean.layer[i].count.as<int32_t>()[j] > 0) continue;
      ++poisoned;
      const bool up = kind.plan.router != RouterKind::activation;
      const bool gate = !reads_activations(kind.plan);
      if (l.up_b && up) put(l.up_b, j, NAN);
      for (int64_t d = 0; d < c.dim; ++d) {
        put(l.down_w, j * c.dim + d, NAN);
        if (up) put(l.up_w, j * c.dim + d, NAN);
        if (l.gate_w && gate) put(l.gate_w, j * c.dim + d, NAN);
      }
    }
  }
  EXPECT_GT(poisoned, 0);
  const State again = run_forward(be, p, plan, in, 1, kGathered);
  expect_same_bits(again.logits, clean.logits, "poisoned");
}

TEST_P(Routing, SameBitsForAnyNumberOfThreads) {
  const Plan plan = plan_of(4);
  const Params p = params_of(plan);
  for (lte::Run run : {kMasked, kGathered}) {
    const State one = run_forward(be, p, plan, tokens, kB, run);
    for (int threads : {2, 7}) {
      Backend other = open_backend("cpu", threads);
      const State state = run_forward(other, p, plan, tokens, kB, run);
      expect_same_bits(state.logits, one.logits, fmt::format("{} threads", threads));
    }
  }
}

// The scores of every layer by formula, in double, from what the layer itself was given.
TEST_P(Routing, ScoresByFormula) {
  const Plan plan = plan_of(4);
  const Params p = params_of(plan);
  const State st = run_forward(be, p, plan, tokens, kB, kMasked);
  for (size_t i = 0; i < p.layer.size(); ++i) {
    const LayerState& l = st.layer[i];
    const LayerParams& w = p.layer[i];
    const FfnPlan& f = plan.layer[i];
    if (reads_activations(f)) continue;
    const int64_t D = c.dim, E = l.scores.cols(), N = kB * kT, R = f.width;
    const Tensor x = f.input == RouterInput::residual         ? l.mid
                     : f.input == RouterInput::ahead && i > 0 ? st.layer[i - 1].norm2
                                                              : l.norm2;
    Values want;
    for (int64_t n = 0; n < N; ++n) {
      Values in(static_cast<size_t>(D));
      double length = 0, sum = 0;
      for (int64_t d = 0; d < D; ++d)
        in[static_cast<size_t>(d)] = at(x, n * D + d), length += std::pow(at(x, n * D + d), 2);
      for (double& v : in) v /= f.input == RouterInput::unit ? std::sqrt(length) : 1;
      for (int64_t r = 0; r < R; ++r) {
        double h = 0;
        for (int64_t d = 0; d < D; ++d)
          h += in[static_cast<size_t>(d)] * at(w.router_in, r * D + d);
        in.push_back(f.inner == Inner::relu   ? std::max(h, 0.0)
                     : f.inner == Inner::tanh ? std::tanh(h)
                                              : h);
      }
      if (R > 0) in.erase(in.begin(), in.begin() + D);
      for (int64_t e = 0; e < E; ++e) {
        double z = f.router_bias ? at(w.router_b, e) : 0;
        for (size_t d = 0; d < in.size(); ++d)
          z += in[d] * at(w.router_w, e * w.router_w.cols() + static_cast<int64_t>(d));
        sum += std::exp(z);
        want.push_back(f.squash == Squash::sigmoid    ? 1 / (1 + std::exp(-z))
                       : f.squash == Squash::absolute ? std::abs(z)
                       : f.squash == Squash::softmax  ? std::exp(z)
                                                      : z);
      }
      for (size_t k = want.size() - static_cast<size_t>(E); k < want.size(); ++k)
        want[k] /= f.squash == Squash::softmax ? sum : 1;
    }
    expect_close(l.scores, want, tolerance_of(DType::f32, D, largest(want)), kind.name);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Routing,
                         ::testing::Combine(::testing::Values(kGpt, kLlama),
                                            ::testing::ValuesIn(kKinds)),
                         [](const auto& info) {
                           return fmt::format("{}_{}",
                                              std::get<0>(info.param) == kGpt ? "gpt2" : "llama",
                                              std::get<1>(info.param).name);
                         });

// ---- what single kinds promise

struct Layers {
  ModelConfig c = tiny(kLlama, kVocab);
  Backend be = open_backend("cpu", 1);
  Store s;
  Rng rng{4};
  Plan plan = routed(c, 4);
  Params p;
  Tensor tokens = s.ints(kB * kT, kVocab, rng);
  explicit Layers(const FfnPlan& f) {
    for (FfnPlan& l : plan.layer) {
      const std::vector<int> order = l.order;
      l = f, l.order = order, l.group = 4;
    }
    p = make_params(c, plan);
    randomise(p, 21);
  }
  State run(lte::Run run = kMasked) { return run_forward(be, p, plan, tokens, kB, run); }
};

TEST(LookAhead, ReadsTheLayerBelow) {
  for (RouterInput input : {RouterInput::ahead, RouterInput::normed}) {
    Layers q({.order = {},
              .router = RouterKind::two_layer,
              .input = input,
              .rule = Rule::top_k,
              .cut = 3,
              .width = 5});
    const State before = q.run();
    for (size_t layer : {0u, 1u}) {
      Params kept = clone(q.p);
      for (int64_t d = 0; d < q.c.dim; ++d)
        put(q.p.layer[layer].norm2_w, d, 0.1 * static_cast<double>(d));
      const State after = q.run();
      const bool own = bits(before.layer[layer].scores) == bits(after.layer[layer].scores);
      EXPECT_EQ(own, input == RouterInput::ahead && layer == 1) << "layer " << layer;
      if (layer == 0) {
        EXPECT_FALSE(bits(before.layer[1].scores) == bits(after.layer[1].scores));
      }
      EXPECT_FALSE(bits(before.logits) == bits(after.logits)) << "its experts read it";
      q.p = std::move(kept);
    }
  }
}

TEST(KeptSoftmax, WeighsTheSelectedExperts) {
  Layers q({.order = {},
            .router = RouterKind::linear,
            .rule = Rule::top_k,
            .cut = 3,
            .squash = Squash::kept_softmax});
  const State st = q.run();
  for (const LayerState& l : st.layer) {
    const int64_t E = l.gates.cols(), G = l.act.cols() / E;
    for (int64_t n = 0; n < kB * kT; ++n) {
      double sum = 0, open = 0;
      for (int64_t e = 0; e < E; ++e)
        if (at(l.gates, n * E + e) != 0) sum += std::exp(at(l.scores, n * E + e)), ++open;
      EXPECT_EQ(open, 3);
      for (int64_t e = 0; e < E; ++e) {
        const double g = at(l.gates, n * E + e);
        EXPECT_NEAR(g, g == 0 ? 0 : std::exp(at(l.scores, n * E + e)) / sum, 1e-6);
        const int64_t j = (n * E + e) * G;
        EXPECT_NEAR(at(l.hidden, j), g * at(l.act, j), 1e-6 * std::abs(at(l.act, j)));
      }
    }
  }
}

TEST(Noise, IsDrawnBySeedAndLayer) {
  Layers q({.order = {}, .router = RouterKind::linear, .rule = Rule::all, .squash = Squash::none});
  const auto noise = [&](uint64_t seed, size_t layer) {
    const State quiet = q.run(), loud = q.run({Gate::hard, Exec::masked, 0.25, seed});
    Values d = values(loud.layer[layer].scores);
    for (size_t i = 0; i < d.size(); ++i)
      d[i] -= at(quiet.layer[layer].scores, static_cast<int64_t>(i));
    return d;
  };
  const Values a = noise(1, 0), b = noise(1, 1), other = noise(2, 0);
  EXPECT_EQ(a, noise(1, 0));
  double square = 0, across = 0, seeds = 0;
  const auto n = static_cast<double>(a.size());
  for (size_t i = 0; i < a.size(); ++i)
    square += a[i] * a[i] / n, across += a[i] * b[i] / n, seeds += a[i] * other[i] / n;
  // Five standard errors of 432 draws with variance 1/16.
  EXPECT_NEAR(square, 0.0625, 5 * 0.0625 * std::sqrt(2 / n));
  EXPECT_NEAR(across, 0, 5 * 0.0625 / std::sqrt(n)) << "layers draw their own";
  EXPECT_NEAR(seeds, 0, 5 * 0.0625 / std::sqrt(n));
}

TEST(DownBias, IsAddedWhereTheFamilyHasNone) {
  for (const char* model : {kGpt, kLlama}) {
    const ModelConfig c = tiny(model, kVocab);
    Store s;
    Rng rng(4);
    Backend be = open_backend("cpu", 1);
    const Tensor tokens = s.ints(kT, kVocab, rng);
    Plan with = dense_plan(c);
    for (FfnPlan& f : with.layer) f.down_bias = true;
    Params dense = make_params(c, dense_plan(c));
    randomise(dense, 5);
    Params p = apply_order(dense, with);
    const State want = run_forward(be, dense, dense_plan(c), tokens, 1, kMasked);
    expect_close(run_forward(be, p, with, tokens, 1, kMasked).logits, want.logits,
                 rounding(want.logits), "a bias as the family has it, or of zeros");
    ASSERT_TRUE(p.layer[1].down_b);
    put(p.layer[1].down_b, 3, at(p.layer[1].down_b, 3) + 1);
    const State moved = run_forward(be, p, with, tokens, 1, kMasked);
    for (int64_t n = 0; n < kT; ++n) {
      const int64_t i = n * c.dim + 3;
      EXPECT_NEAR(at(moved.x_out, i) - at(want.x_out, i), 1, 1e-5);
      EXPECT_NEAR(at(moved.x_out, i + 1), at(want.x_out, i + 1), 1e-5);
    }
  }
}

TEST(Refusals, PlansThatCannotBe) {
  const ModelConfig gpt = tiny(kGpt, kVocab);
  Plan plan = routed(gpt, 4);
  plan.layer[1].router = RouterKind::gate;
  EXPECT_NE(error_of([&] { check_plan(gpt, plan); }).find("gated FFN"), std::string::npos);
  plan.layer[1].router = RouterKind::two_layer;
  EXPECT_NE(error_of([&] { check_plan(gpt, plan); }).find("width"), std::string::npos);
  for (const FfnPlan& f :
       {FfnPlan{.order = {}, .router = RouterKind::two_layer, .width = 3},
        FfnPlan{.order = {}, .router = RouterKind::activation},
        FfnPlan{.order = {}, .router = RouterKind::gate},
        FfnPlan{.order = {}, .router = RouterKind::linear, .squash = Squash::kept_softmax}}) {
    Layers q(f);
    EXPECT_NE(error_of([&] { q.run({Gate::soft, Exec::masked}); }), "no error");
  }
}

}  // namespace
}  // namespace lte::testing
