// As forward_test.cpp, for every kind of router, score and rule that a plan can name.
#include <fmt/format.h>

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
constexpr double kNever = -9, kEvery = 1000;  // kEvery: as many as there are

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
    {"scaled",
     {.order = {},
      .router = RouterKind::linear,
      .router_bias = true,
      .rule = Rule::threshold,
      .cut = 0.5,
      .scaled = true},
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
    {"sparse_inputs",
     {.order = {},
      .router = RouterKind::activation,
      .rule = Rule::threshold,
      .cut = 0.6,
      .in_cut = 0.4},
     -1},
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

class Routing : public ::testing::TestWithParam<std::tuple<const char*, Kind>> {
 protected:
  const Kind& kind = std::get<1>(GetParam());
  ModelConfig c = tiny(std::get<0>(GetParam()), kVocab);
  Backend be = test_backend(1);
  Store s;
  Rng rng{4};
  Params dense = test_params(c, dense_plan(c));
  Tensor tokens = s.ints(kB * kT, kVocab, rng);

  void SetUp() override { randomise(dense, 21); }
  Plan plan_of(int group) const {
    Plan plan = routed(c, group);
    for (FfnPlan& f : plan.layer) {
      const std::vector<int> order = f.order;
      f = kind.plan, f.order = order, f.group = group;
      if (f.rule == Rule::top_k) f.cut = std::min(f.cut, static_cast<double>(experts(c, f)));
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
  static std::vector<bool> open_gates(const LayerState& l) {
    std::vector<bool> open;
    for (double g : values(l.gates)) open.push_back(g != 0);
    return open;
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
    for (int64_t n : {int64_t{1}, int64_t{5}, kB * kT}) {  // one, few and many gather differently
      Tensor in = tokens;
      in.dim[0] = n;
      const int64_t B = n == kB * kT ? kB : 1;
      const State a = run_forward(be, p, plan, in, B, kMasked);
      const State b = run_forward(be, p, plan, in, B, kGathered);
      if (B > 1 && group < 8) {
        EXPECT_GT(open_share(a), 0) << "group " << group;
        EXPECT_LT(open_share(a), 1) << "group " << group;
      }
      for (size_t i = 0; i < a.layer.size(); ++i)
        EXPECT_TRUE(open_gates(a.layer[i]) == open_gates(b.layer[i])) << "gates";
      expect_close(b.logits, a.logits, rounding(a.logits), fmt::format("group {}", group));
    }
  }
}

TEST_P(Routing, AllOnIsDense) {
  const State want = run_forward(be, dense, dense_plan(c), tokens, kB, kMasked);
  for (int group : {1, 8, c.ffn}) {
    const bool scaled = kind.plan.scaled;
    if (kind.all_on < -1 && group < c.ffn && !scaled)
      continue;  // weights of one expert alone are 1
    Plan plan = plan_of(group);
    for (FfnPlan& f : plan.layer) {
      f.cut = scaled ? 0.5 : kind.all_on < -1 ? 1 : kind.all_on, f.in_cut = std::min(f.in_cut, 0.0);
      if (f.rule == Rule::top_k) f.cut = std::min(f.cut, static_cast<double>(experts(c, f)));
    }
    Params p = params_of(plan);
    for (LayerParams& l : p.layer) {  // all scores are 1
      if (scaled) be.ops.fill(*be.ctx, l.router_w, 0), be.ops.fill(*be.ctx, l.router_b, 50);
    }
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
      be.finish();
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
    if (uneven) plan.layer[1].order.resize(plan.layer[1].order.size() - 4);
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

TEST_P(Routing, WhatIsNotSelectedIsNotRead) {
  if (kind.plan.weighted && kind.plan.router == RouterKind::activation) return;  // reads all
  Tensor in = shape(DType::i32, {4});
  in.data = tokens.data;
  const Plan plan = plan_of(1);
  Params p = params_of(plan);
  const State clean = run_forward(be, p, plan, in, 1, kGathered);
  EXPECT_GT(poison_unselected(p, plan, clean), 0);
  const State again = run_forward(be, p, plan, in, 1, kGathered);
  expect_same_bits(again.logits, clean.logits, "poisoned");
}

TEST_P(Routing, SameBitsForAnyNumberOfThreads) {
  const Plan plan = plan_of(4);
  const Params p = params_of(plan);
  for (lte::Run run : {kMasked, kGathered}) {
    const State one = run_forward(be, p, plan, tokens, kB, run);
    for (int threads : {2, 7}) {
      Backend other = test_backend(threads);
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

std::vector<std::tuple<const char*, Kind>> every_kind() {
  std::vector<std::tuple<const char*, Kind>> all;
  for (const Kind& k : kKinds) {
    if (!k.gated_only) all.emplace_back(kGpt, k);
    all.emplace_back(kLlama, k);
  }
  return all;
}

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<const char*, Kind>>& info) {
  return fmt::format("{}_{}", std::get<0>(info.param) == kGpt ? "gpt2" : "llama",
                     std::get<1>(info.param).name);
}
INSTANTIATE_TEST_SUITE_P(Kinds, Routing, ::testing::ValuesIn(every_kind()), name_of_case);

}  // namespace
}  // namespace lte::testing
