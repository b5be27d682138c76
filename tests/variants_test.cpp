// Variants that train with another arithmetic or another order of sums: products of rounded factors, whole
// gradients and training runs against the backend's own.
#include <fmt/format.h>

#include "model/train.h"
#include "products.h"
#include "testing.h"

namespace lte::testing {
namespace {

#ifdef LTE_TEST_BACKEND
const char *const kRounding = LTE_TEST_BACKEND "+bf16", *const kRoundingToo = kRounding;
#else
const char *const kRounding = "cpu+bf16", *const kRoundingToo = "cpu+fused+bf16";
#endif

// Against double sums of factors that are rounded first: what is left is rounding in f32.
struct RoundedProducts {
  Store& s;
  Backend one = open_backend(kRounding, 1), many = open_backend(kRoundingToo, 7),
          naive = open_backend("cpu+naive", 1);

  void check(ProductCase c, Rng& rng, Tensor a, bool ta, Tensor b, bool tb, bool add) const {
    const auto [n, m, k] = c;
    const Tensor want = add ? s.normal(DType::f32, {n, m}, rng) : s.blank(DType::f32, {n, m}),
                 got = s.of(DType::f32, {n, m}, values(want)),
                 same = s.of(DType::f32, {n, m}, values(want));
    const auto call = [&](const Backend& be, const Tensor& out) {
      (add ? be.ops.gemm_add : be.ops.gemm)(*be.ctx, out, a, ta, b, tb);
      be.finish();
    };
    call(one, got), call(many, same);
    expect_same_bits(got, same, "threads");
    double moved = 0;
    for (const Tensor& t : {a, b}) {
      for (int64_t i = 0; i < t.size(); ++i) {
        const float rounded = to_float(to_bf16(t.as<float>()[i]));
        moved = std::max(moved, std::abs(at(t, i) - static_cast<double>(rounded)));
        put(t, i, rounded);
      }
    }
    EXPECT_GT(moved, 0) << "rounding changed nothing";
    const Tensor sizes = sizes_of(s, want);
    (add ? naive.ops.gemm_add : naive.ops.gemm)(*naive.ctx, sizes, sizes_of(s, a), ta,
                                                sizes_of(s, b), tb);
    call(naive, want);
    expect_product(got, want, sizes, k);
  }
};

TEST(Bf16Product, OfRoundedFactors) {
  if (!in_this_build(kRounding)) GTEST_SKIP() << kRounding << " is not in this build";
  Store s;
  const ProductCase cases[] = {{1, 1, 1},      {7, 5, 3},      {33, 31, 2},
                               {130, 257, 67}, {300, 70, 601}, {9, 33, 1024}};
  const RoundedProducts products{.s = s};
  each_product(s, cases,
               [&](ProductCase c, Rng& rng, Tensor a, bool ta, Tensor b, bool tb, bool add) {
                 products.check(c, rng, a, ta, b, tb, add);
               });
  const Tensor a = s.of(DType::f32, {1, 2}, {NAN, 1}), b = s.of(DType::f32, {2, 1}, {1, 1}),
               out = s.blank(DType::f32, {1, 1});
  const Backend& one = products.one;
  one.ops.gemm(*one.ctx, out, a, false, b, false);
  one.finish();
  EXPECT_TRUE(std::isnan(at(out, 0)));
}

// Large enough that rows of out that are no whole multiples of 16 bytes are worth several products.
TEST(Bf16Product, LargeWithRowsOfAnyLength) {
  if (!in_this_build(kRounding)) GTEST_SKIP() << kRounding << " is not in this build";
  Store s;
  const ProductCase cases[] = {{1025, 1026, 5}, {1030, 1023, 3}, {1, 1048577, 2}};
  const RoundedProducts products{.s = s};
  each_product(s, cases,
               [&](ProductCase c, Rng& rng, Tensor a, bool ta, Tensor b, bool tb, bool add) {
                 if (ta != tb) products.check(c, rng, a, ta, b, tb, add);
                 EXPECT_TRUE(s.intact());
                 s.blocks.clear();
               });
}

// The entry that does both products of a backward pass gives the bits of the two that do one each.
TEST(Bf16Product, BothOfABackwardPass) {
  const Backend be = open_backend(kRounding, 1);
  if (!be.ops.linear_backward) GTEST_SKIP() << kRounding << " has no such entry";
  Store s;
  Rng rng(5);
  const int64_t N = 19, D = 24, F = 37;
  for (DType type : {DType::f32, DType::f64}) {
    const Tensor x = s.normal(type, {N, D}, rng), dout = s.normal(type, {N, F}, rng);
    for (int flags = 0; flags < 4; ++flags) {
      const bool tw = flags & 1, add = flags & 2;
      const Tensor w = tw ? s.normal(type, {F, D}, rng) : s.normal(type, {D, F}, rng);
      const Tensor dx = s.normal(type, {N, D}, rng), dw = s.normal(type, {w.rows(), w.cols()}, rng);
      const Tensor dx2 = s.of(type, {N, D}, values(dx)),
                   dw2 = s.of(type, {w.rows(), w.cols()}, values(dw));
      be.ops.linear_backward(*be.ctx, dx, add, dw, dout, x, w, tw);
      (add ? be.ops.gemm_add : be.ops.gemm)(*be.ctx, dx2, dout, false, w, !tw);
      be.ops.gemm_add(*be.ctx, dw2, tw ? dout : x, true, tw ? x : dout, false);
      be.finish();
      expect_same_bits(dx, dx2, "dx"), expect_same_bits(dw, dw2, "dw");
      EXPECT_TRUE(s.intact());
    }
  }
}

struct Case {
  const char* backend;
  const char* model;
  int group;
  TrainExec exec = TrainExec::masked;
};

class VariantModel : public ::testing::TestWithParam<Case> {
 protected:
  ModelConfig c = tiny(GetParam().model, 16);
  Plan plan = GetParam().group ? routed(c, GetParam().group) : dense_plan(c);

  void SetUp() override {
    if (!in_this_build(GetParam().backend)) GTEST_SKIP() << "not in this build";
  }
};

// In double, where rounding hides nothing: the gradient that grad_test holds against finite differences.
TEST_P(VariantModel, GradientsOfTheReference) {
  if (c.head_dim() > kMostKeptColumns) GTEST_SKIP() << "in double so wide a head fits no block";
  Params p = test_params(c, plan, DType::f64);
  randomise(p, 4);
  Rng rng(8);
  Store s;
  const int64_t B = 3, T = 19;
  const Tensor tokens = s.ints(B * T, 16, rng), targets = s.ints(B * T, 16, rng);
  const auto gradient = [&](Backend be) {
    State state = make_state(p, plan, B, T, T, Keep::all_layers, kept_by(be, c));
    Gradients g = make_gradients(p, plan, state);
    const lte::Run run{Gate::hard, Exec::masked};
    const LossTerms terms{.eta = 0.3,
                          .lambda = 0.1,
                          .train_routers = plan.routed(),
                          .straight_through = plan.routed()};
    forward(be, p, plan, tokens, {B, T, 0}, run, state);
    backward(be, p, plan, tokens, targets, {B, T, 0}, run, terms, 1.0 / (B * T), {}, state, g);
    be.finish();
    return std::pair(values(g.d.flat()), values(state.losses));
  };
  const auto [want, losses] = gradient(test_backend());
  const auto [got, others] = gradient(open_backend(GetParam().backend, 3));
  ASSERT_GT(largest(want), 1e-3);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-12) << i;
  for (size_t i = 0; i < losses.size(); ++i) ASSERT_NEAR(others[i], losses[i], 1e-12) << i;
}

// Rounding differs, and Adam turns it into steps of full size where a gradient is near zero: losses of 20
// steps agree to 2e-5 of their size in f32, to 1e-3 with factors in bf16. The same bits
// for any number of threads.
TEST_P(VariantModel, TrainsAsTheReferenceDoes) {
  const TokenSet set = patterned_tokens(2000, 16, 1);
  const auto train_on = [&](const char* spec, int threads) {
    Params p = test_params(c, plan);
    init_params(p, 11), set_routers(p, 0.5, 0);
    const TrainExec exec = GetParam().exec;
    TrainSpec t{.steps = 20, .batch = 4, .seq = 24, .lr = 3e-3, .exec = exec, .terms = {}};
    t.terms.train_routers = t.terms.straight_through = plan.routed() && exec == TrainExec::masked;
    Backend be = open_backend(spec, threads);
    Values losses;
    TrainHooks hooks;
    hooks.log = [&](const StepLog& log) { losses.push_back(log.loss); };
    train(be, p, plan, set, {}, t, hooks);
    return std::pair(losses, bits(p.flat()));
  };
  const auto want = train_on(kTestBackend, 1), got = train_on(GetParam().backend, 1),
             two = train_on(GetParam().backend, 2);
  ASSERT_EQ(got.first.size(), 20u);
  const double allowed =
      std::string(GetParam().backend).find("bf16") == std::string::npos ? 2e-5 : 1e-3;
  double most = 0;
  for (size_t i = 0; i < 20; ++i) {
    most = std::max(most, std::abs(got.first[i] / want.first[i] - 1));
    EXPECT_NEAR(got.first[i], want.first[i], allowed * want.first[i]) << i;
  }
  RecordProperty("most", fmt::format("{:.2g}", most));
  EXPECT_GT(most, 0) << "another arithmetic, yet the same losses: was the variant used?";
  EXPECT_TRUE(got.second == two.second) << "other bits with two threads";
}

#ifdef LTE_TEST_BACKEND
// A head of more columns than are kept as bf16.
const char* const kWide = "gpt2-nano:dim=136,heads=1,ffn=32,layers=1,max_seq=32";
#define LTE_VARIANT(name) LTE_TEST_BACKEND "+" name
const Case kCases[] = {{LTE_VARIANT("fused"), kGpt, 0},
                       {LTE_VARIANT("fused"), kLlama, 4},
                       {LTE_VARIANT("bf16"), kGpt, 4},
                       {LTE_VARIANT("fused+bf16"), kLlama, 0},
                       {LTE_VARIANT("bf16+fused"), kGpt, 0},
                       {LTE_VARIANT("bf16+fused"), kGpt, 4},
                       {LTE_VARIANT("bf16+fused"), kWide, 0},
                       {LTE_VARIANT("bf16+tf32+fused"), kGpt, 0},
                       {LTE_VARIANT("bf16"), kGpt, 8, TrainExec::gathered},
                       {LTE_VARIANT("fused+bf16"), kLlama, 8, TrainExec::gathered}};
#undef LTE_VARIANT
#else
const Case kCases[] = {{"cpu+fused", kGpt, 0},          {"cpu+fused", kLlama, 0},
                       {"cpu+fused", kGpt, 4},          {"cpu+onednn+fused", kGpt, 0},
                       {"cpu+onednn+fused", kLlama, 4}, {"cpu+onednn+fused+bf16", kGpt, 0},
                       {"cpu+fused+bf16", kLlama, 4}};
#endif
INSTANTIATE_TEST_SUITE_P(Every, VariantModel, ::testing::ValuesIn(kCases));

}  // namespace
}  // namespace lte::testing
