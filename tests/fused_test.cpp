// The fused variant beyond what the tests of operations hold every variant to: its exponential, products
// larger than its blocks, and the profile.
#include <fmt/format.h>

#include <set>

#include "core/cpu_fused.h"
#include "core/profile.h"
#include "products.h"
#include "testing.h"

namespace lte::testing {
namespace {

TEST(Exponential, WithinItsStatedError) {
  double worst = 0;
  for (double x = -87; x <= 88; x += 1.0 / 1024) {
    const auto rounded = static_cast<float>(x);
    const fused::Vec<float> y = fused::exp_of(fused::Vec<float>{} + rounded);
    const double want = std::exp(static_cast<double>(rounded));
    for (int i = 1; i < fused::kLanes<float>; ++i) ASSERT_EQ(y[i], y[0]);
    worst = std::max(worst, std::abs(static_cast<double>(y[0]) - want) / want);
  }
  EXPECT_LT(worst, 2.4e-7);
  EXPECT_GT(worst, 0) << "the comparison cannot fail";
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_LT(fused::exp_of(fused::Vec<float>{} - inf)[0], 2e-38f);
  EXPECT_TRUE(std::isfinite(fused::exp_of(fused::Vec<float>{} + inf)[0]));
  EXPECT_TRUE(std::isnan(fused::exp_of(fused::Vec<float>{} + NAN)[0]));
}

// Products of floats large enough for several blocks of every loop.
class FusedProduct : public ::testing::TestWithParam<const char*> {};
TEST_P(FusedProduct, LargerThanItsBlocks) {
  if (!in_this_build(GetParam())) GTEST_SKIP() << GetParam() << " is not in this build";
  Store s;
  const ProductCase cases[] = {{300, 70, 600}, {9, 33, 1024}, {257, 40, 512},
                               {64, 9, 256},   {1, 1, 700},   {1024, 40, 65}};
  Backend one = open_backend(GetParam(), 1), many = open_backend(GetParam(), 7),
          naive = open_backend("cpu+naive", 1);
  each_product(s, cases,
               [&](ProductCase c, Rng& rng, Tensor a, bool ta, Tensor b, bool tb, bool add) {
                 const auto [n, m, k] = c;
                 const Tensor want = s.normal(DType::f32, {n, m}, rng),
                              got = s.of(DType::f32, {n, m}, values(want)),
                              same = s.of(DType::f32, {n, m}, values(want));
                 const auto call = [&](Backend& be, const Tensor& out) {
                   (add ? be.ops.gemm_add : be.ops.gemm)(*be.ctx, out, a, ta, b, tb);
                 };
                 const Tensor sizes = sizes_of(s, want);
                 (add ? naive.ops.gemm_add : naive.ops.gemm)(*naive.ctx, sizes, sizes_of(s, a), ta,
                                                             sizes_of(s, b), tb);
                 call(naive, want), call(one, got), call(many, same);
                 expect_product(got, want, sizes, k);
                 expect_same_bits(got, same, "threads");
               });
}

// The bias is added where a tile is stored, after the last block of the inner dimension.
TEST_P(FusedProduct, LinearHasTheBitsOfProductAndBias) {
  if (!in_this_build(GetParam())) GTEST_SKIP() << GetParam() << " is not in this build";
  Backend be = open_backend(GetParam(), 3);
  ASSERT_TRUE(be.ops.linear);
  const ProductCase cases[] = {{300, 70, 600}, {9, 33, 300}, {64, 16, 256}, {130, 52, 64}};
  for (const auto [n, m, k] : cases) {
    for (const bool tw : {false, true}) {
      Store s;
      Rng rng(4);
      const Tensor x = s.normal(DType::f32, {n, k}, rng), b = s.normal(DType::f32, {m}, rng),
                   w = tw ? s.normal(DType::f32, {m, k}, rng) : s.normal(DType::f32, {k, m}, rng),
                   want = s.normal(DType::f32, {n, m}, rng),
                   got = s.normal(DType::f32, {n, m}, rng);
      be.ops.gemm(*be.ctx, want, x, false, w, tw), be.ops.bias_add(*be.ctx, want, b);
      be.ops.linear(*be.ctx, got, x, w, tw, b);
      expect_same_bits(got, want, fmt::format("{}x{}x{} tw {}", n, m, k, tw));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Own, FusedProduct, ::testing::Values("cpu+fused", "cpu+onednn+fused"));

// Long enough for pieces that are summed side by side, and for columns beyond the first cut.
TEST(Sums, OfManyPiecesAreThoseOfLoops) {
  Store s;
  Rng rng(6);
  Backend one = open_backend("cpu", 1), many = open_backend("cpu", 7);
  for (const int64_t n : {int64_t{1 << 20} + 77, int64_t{1 << 20}, int64_t{17 * 65536 + 1}}) {
    const Tensor x = s.normal(DType::f32, {n}, rng), a = s.normal(DType::f64, {1}, rng),
                 b = s.normal(DType::f64, {1}, rng);
    double want = 0;
    for (int64_t i = 0; i < n; ++i) want += at(x, i) * at(x, i);
    one.ops.sum_squares(*one.ctx, a, x), many.ops.sum_squares(*many.ctx, b, x);
    EXPECT_NEAR(at(a, 0), want, 1e-6 * want);
    EXPECT_TRUE(bits(a) == bits(b)) << n;
  }
  const int64_t N = 40, D = 300;
  const Tensor d = s.normal(DType::f32, {N, D}, rng), a = s.normal(DType::f32, {D}, rng);
  const Tensor b = s.normal(DType::f32, {D}, rng);
  Values want = values(a);
  for (int64_t i = 0; i < D; ++i) put(b, i, want[static_cast<size_t>(i)]);
  for (int64_t i = 0; i < N * D; ++i) want[static_cast<size_t>(i % D)] += at(d, i);
  one.ops.bias_backward_add(*one.ctx, a, d), many.ops.bias_backward_add(*many.ctx, b, d);
  EXPECT_TRUE(bits(a) == bits(b));
  for (int64_t i = 0; i < D; ++i) EXPECT_NEAR(at(a, i), want[static_cast<size_t>(i)], 1e-4);
}

TEST(Profile, ListsEveryOperation) {
  std::set<std::string> names;
  std::set<std::string> places;
  Ops probe{};
  visit_ops([&]<auto kEntry>(const char* name) {
    names.insert(name);
    const auto at =
        reinterpret_cast<const char*>(&(probe.*kEntry)) - reinterpret_cast<const char*>(&probe);
    places.insert(std::to_string(at));
  });
  EXPECT_EQ(names.size(), sizeof(Ops) / sizeof(void*)) << "visit_ops forgets an entry of Ops";
  EXPECT_EQ(places.size(), sizeof(Ops) / sizeof(void*));
}

TEST(Profile, SameBitsAndCountsCalls) {
  const ModelConfig c = tiny(kLlama, 16);
  const Plan plan = dense_plan(c);
  Params p = make_params(c, plan);
  randomise(p, 2);
  Rng rng(1);
  Store s;
  const Tensor tokens = s.ints(12, 16, rng);
  Backend be = open_backend("cpu", 2);
  Profiled timed = profiled(be);
  const State a = run_forward(be, p, plan, tokens, 2, {}),
              b = run_forward(timed.backend, p, plan, tokens, 2, {});
  expect_same_bits(a.logits, b.logits, "profiled");
  for (const OpTime& t : timed.clock->times) {
    if (std::string(t.name) == "attention") {
      EXPECT_EQ(t.calls, 2);
    }
    EXPECT_EQ(t.seconds > 0, t.calls > 0) << t.name;
  }
  timed.clock->reset();
  for (const OpTime& t : timed.clock->times) EXPECT_EQ(t.calls, 0);
}

}  // namespace
}  // namespace lte::testing
