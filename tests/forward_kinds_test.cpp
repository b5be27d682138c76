// What single kinds of routers, scores and biases promise, beside what forward_routing_test.cpp asks
// of all of them.
#include "errors.h"
#include "testing.h"

namespace lte::testing {
namespace {

constexpr int64_t kB = 3, kT = 12;
constexpr int kVocab = 19;
constexpr Run kMasked{Gate::hard, Exec::masked};

// Rounding through two layers, as in forward_test.cpp.
double rounding(const Tensor& logits) {
  return tolerance_of(logits.dtype, 48 * 10, largest(values(logits)));
}

struct Layers {
  ModelConfig c = tiny(kLlama, kVocab);
  Backend be = test_backend(1);
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
    p = test_params(c, plan);
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
    Backend be = test_backend(1);
    const Tensor tokens = s.ints(kT, kVocab, rng);
    Plan with = dense_plan(c);
    for (FfnPlan& f : with.layer) f.down_bias = true;
    Params dense = test_params(c, dense_plan(c));
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

// What is small for every token is not read: neither its rows of the transposed copies, nor the
// weights that those were made from.
TEST(SparseInputs, RowsOfSmallInputsAreNotRead) {
  Layers q({.order = {},
            .router = RouterKind::activation,
            .rule = Rule::threshold,
            .cut = 0.05,
            .in_cut = 1.2});
  refresh_transposed(q.p);
  q.tokens.dim[0] = 3;  // few, so that some inputs are small for all of them
  const lte::Run gathered{Gate::hard, Exec::gathered};
  const State clean = run_forward(q.be, q.p, q.plan, q.tokens, 1, gathered);
  int64_t poisoned = 0;
  double kept = 0;
  for (size_t i = 0; i < q.p.layer.size(); ++i) {
    const LayerParams& l = q.p.layer[i];
    const Tensor& x = clean.layer[i].large;
    for (int64_t n = 0; n < 3; ++n) {
      double share = 0;
      for (int64_t d = 0; d < q.c.dim; ++d) share += at(x, n * q.c.dim + d) != 0;
      EXPECT_NEAR(at(clean.layer[i].kept, n), share / q.c.dim, 1e-6);
      kept += share;
    }
    for (int64_t d = 0; d < q.c.dim; ++d) {
      bool used = false;
      for (int64_t n = 0; n < 3; ++n) used |= at(x, n * q.c.dim + d) != 0;
      if (used) continue;
      ++poisoned;
      for (int64_t j = 0; j < q.c.ffn; ++j)
        put(l.up_t, d * q.c.ffn + j, NAN), put(l.gate_t, d * q.c.ffn + j, NAN);
    }
    for (int64_t k = 0; k < l.up_w.size(); ++k) put(l.up_w, k, NAN), put(l.gate_w, k, NAN);
  }
  EXPECT_GT(poisoned, 0);
  EXPECT_GT(kept, 0);
  const State again = run_forward(q.be, q.p, q.plan, q.tokens, 1, gathered);
  expect_same_bits(again.logits, clean.logits, "poisoned");
}

// Matrices rounded to bf16 once, and the same numbers as floats, for so few tokens that no backend rounds
// what it multiplies them with, but for the last product of a dense FFN.
TEST(Bf16, ModelIsTheRoundedModel) {
  if (!takes_bf16(kTestBackend)) GTEST_SKIP() << "no weights of bf16 here";
  // So wide that GPUs have products of one token by blocks.
  const char* const wide = "llama-nano:dim=2048,heads=16,kv_heads=2,ffn=64,layers=2,max_seq=32";
  for (const char* spec : {kGpt, kLlama, wide}) {
    for (bool sparse : {true, false}) {
      const std::string what = std::string(spec) + (sparse ? ", routed" : ", dense");
      const ModelConfig c = tiny(spec, kVocab);
      const Plan plan = sparse ? routed(c, spec == wide ? 8 : 4) : dense_plan(c);
      Params p = test_params(c, plan);
      randomise(p, 21, spec == wide ? 0.02 : 0.3);
      const Params half = to_bf16(p);
      visit_params(p, [&](Tensor& t, const ParamInfo&) {
        for (int64_t i = 0; t.rank > 1 && i < t.size(); ++i)
          t.as<float>()[i] = to_float(to_bf16(t.as<float>()[i]));
      });
      Backend be = test_backend(1);
      Store s;
      Rng rng{4};
      constexpr int64_t kFew = 6;
      const Tensor tokens = s.ints(kFew, kVocab, rng);
      const lte::Run way{Gate::hard, sparse ? Exec::gathered : Exec::masked};
      const State want = run_forward(be, p, plan, tokens, 1, way, Keep::one_layer);
      const double tol = sparse ? rounding(want.logits) : 0.01 * largest(values(want.logits));
      const State got = run_forward(be, half, plan, tokens, 1, way, Keep::one_layer);
      expect_close(got.logits, want.logits, tol, what);
      State step = make_state(half, plan, 1, 1, kFew, Keep::one_layer);
      for (int64_t t = 0; t < kFew; ++t) {
        forward(be, half, plan, slice(tokens, t), {1, 1, t}, way, step);
        be.finish();
        expect_close(step.logits, values(slice(want.logits, t)), tol, what + ", by token");
      }
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
  plan.layer[1].router = RouterKind::linear, plan.layer[1].in_cut = 0.1;
  EXPECT_NE(error_of([&] { check_plan(gpt, plan); }).find("sparse inputs"), std::string::npos);
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
