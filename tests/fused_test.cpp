// The fused variant beyond what the tests of operations hold every variant to: attention by row sums, its
// exponential, whole gradients and training runs against the reference, and the profile.
#include <fmt/format.h>

#include <set>

#include "core/cpu_fused.h"
#include "core/profile.h"
#include "model/train.h"
#include "testing.h"

namespace lte::testing {
namespace {

class RowSums : public OpsTest {};

TEST_P(RowSums, AttentionForwardAndBackward) {
  struct {
    Chunk c;
    HeadShape h;
    int64_t S;
  } const cases[] = {
      {{1, 1, 0}, {1, 1, 1}, 1},    {{2, 3, 0}, {4, 2, 5}, 7},      {{2, 9, 4}, {4, 2, 16}, 13},
      {{1, 5, 0}, {3, 3, 7}, 5},    {{2, 70, 0}, {6, 3, 9}, 70},    {{1, 33, 30}, {2, 1, 17}, 64},
      {{2, 64, 0}, {4, 4, 32}, 64}, {{1, 131, 0}, {4, 1, 16}, 140}, {{1, 257, 0}, {2, 2, 40}, 257}};
  const Ops& plain = open_backend("cpu", 1).ops;
  for (const auto& one : cases) {
    const Chunk c = one.c;
    const HeadShape h = one.h;
    const int64_t S = one.S;
    SCOPED_TRACE(fmt::format("B {} T {} pos {} H {} K {} C {}", c.B, c.T, c.pos, h.H, h.K, h.C));
    const int64_t N = c.B * c.T, R = c.pos + c.T, W = (h.H + 2 * h.K) * h.C, HC = h.H * h.C;
    const Tensor qkv = normal({N, W}), k = normal({c.B, h.K, S, h.C}),
                 v = normal({c.B, h.K, S, h.C});
    const Tensor want = blank({N, HC}), probs = blank({c.B, h.H, c.T, R});
    Backend& be = backends[0];
    plain.store_kv(*be.ctx, k, v, qkv, c, h);
    // What lies in the cache beyond the chunk is never read.
    for (int64_t i = 0; i < k.size(); ++i) {
      if (i / h.C % S >= R) put(k, i, NAN), put(v, i, NAN);
    }
    plain.attention(*be.ctx, want, probs, qkv, k, v, c, h);
    const Tensor out = blank({N, HC}), bare = blank({N, HC}), sums = blank({c.B, h.H, c.T});
    run({out, sums}, [&](const Ops& o, Ctx& x) { o.attention(x, out, sums, qkv, k, v, c, h); });
    run({bare}, [&](const Ops& o, Ctx& x) { o.attention(x, bare, {}, qkv, k, v, c, h); });
    expect_close(out, values(want), tol(h.C + R, 2), "attention");
    expect_close(bare, values(want), tol(h.C + R, 2), "attention that keeps nothing");
    Values log_sums;
    for (int64_t n = 0; n < sums.size(); ++n) {
      const int64_t b = n / c.T / h.H, q = n / c.T % h.H, t = n % c.T,
                    at_q = (b * c.T + t) * W + q * h.C;
      double sum = 0;
      for (int64_t j = 0; j <= c.pos + t; ++j) {
        double dot = 0;
        for (int64_t i = 0; i < h.C; ++i)
          dot += at(qkv, at_q + i) * at(k, ((b * h.K + q * h.K / h.H) * S + j) * h.C + i);
        sum += std::exp(dot / std::sqrt(static_cast<double>(h.C)));
      }
      log_sums.push_back(std::log(sum));
    }
    expect_close(sums, log_sums, tol(h.C + R, 4), "row sums");
    if (c.pos > 0) continue;
    const Tensor dout = normal({N, HC}), grad = blank({N, W}), dqkv = blank({N, W});
    plain.attention_backward(*be.ctx, grad, dout, qkv, k, v, probs, c, h);
    run({dqkv},
        [&](const Ops& o, Ctx& x) { o.attention_backward(x, dqkv, dout, qkv, k, v, sums, c, h); });
    const Values g = values(grad);
    expect_close(dqkv, g, tol(h.C + R, std::max(1.0, std::min(10.0, largest(g)))), "its gradient");
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, RowSums,
                         ::testing::Combine(::testing::Values("cpu+fused", "cpu+onednn+fused"),
                                            ::testing::Values(DType::f32, DType::f64)),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '+', '_');
                           return name + "_" + name_of(std::get<1>(info.param));
                         });

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
}

// A product in f32 against double sums: an element whose terms have the sizes A = |c| + sum |a b| is off by
// rounding that grows like the root of their number, four times over; and by that of the reference.
void expect_product(const Tensor& got, const Tensor& want, const Tensor& sizes, int64_t inner) {
  constexpr double kUnit = 0x1p-24;
  const double steps = 4 * std::sqrt(static_cast<double>(inner + inner / 256 + 2));
  int64_t wrong = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double allowed = kUnit * (steps * at(sizes, i) + std::abs(at(want, i)));
    wrong += std::abs(at(got, i) - at(want, i)) <= allowed ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0) << "elements beyond the rounding of their terms";
}
Tensor sizes_of(Store& s, const Tensor& t) {
  Values v = values(t);
  for (double& x : v) x = std::abs(x);
  return s.of(t.dtype, {t.rows(), t.cols()}, v);
}

// Products of floats large enough for several blocks of every loop.
class FusedProduct : public ::testing::TestWithParam<const char*> {};
TEST_P(FusedProduct, LargerThanItsBlocks) {
  if (!in_this_build(GetParam())) GTEST_SKIP() << GetParam() << " is not in this build";
  Store s;
  Rng rng(3);
  struct {
    int64_t n, m, k;
  } const cases[] = {{300, 70, 600}, {9, 33, 1024}, {257, 40, 512}, {64, 9, 256}, {1, 1, 700}};
  Backend one = open_backend(GetParam(), 1), many = open_backend(GetParam(), 7),
          naive = open_backend("cpu+naive", 1);
  for (const auto& [n, m, k] : cases) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool ta = flags & 1, tb = flags & 2, add = flags & 4;
      SCOPED_TRACE(fmt::format("{}x{}x{} ta {} tb {} add {}", n, m, k, ta, tb, add));
      const Tensor a = ta ? s.normal(DType::f32, {k, n}, rng) : s.normal(DType::f32, {n, k}, rng);
      const Tensor b = tb ? s.normal(DType::f32, {m, k}, rng) : s.normal(DType::f32, {k, m}, rng);
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
      EXPECT_TRUE(s.intact());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Own, FusedProduct, ::testing::Values("cpu+fused", "cpu+onednn+fused"));

// Against double sums of factors that are rounded first: what is left is rounding in f32.
TEST(Bf16Product, OfRoundedFactors) {
  if (!in_this_build("cpu+bf16")) GTEST_SKIP() << "cpu+bf16 is not in this build";
  Store s;
  Rng rng(3);
  struct {
    int64_t n, m, k;
  } const cases[] = {{1, 1, 1},      {7, 5, 3},      {33, 31, 2},
                     {130, 257, 67}, {300, 70, 601}, {9, 33, 1024}};
  Backend one = open_backend("cpu+bf16", 1), many = open_backend("cpu+fused+bf16", 7),
          naive = open_backend("cpu+naive", 1);
  for (const auto& [n, m, k] : cases) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool ta = flags & 1, tb = flags & 2, add = flags & 4;
      SCOPED_TRACE(fmt::format("{}x{}x{} ta {} tb {} add {}", n, m, k, ta, tb, add));
      const Tensor a = ta ? s.normal(DType::f32, {k, n}, rng) : s.normal(DType::f32, {n, k}, rng);
      const Tensor b = tb ? s.normal(DType::f32, {m, k}, rng) : s.normal(DType::f32, {k, m}, rng);
      const Tensor want = add ? s.normal(DType::f32, {n, m}, rng) : s.blank(DType::f32, {n, m}),
                   got = s.of(DType::f32, {n, m}, values(want)),
                   same = s.of(DType::f32, {n, m}, values(want));
      const auto call = [&](Backend& be, const Tensor& out) {
        (add ? be.ops.gemm_add : be.ops.gemm)(*be.ctx, out, a, ta, b, tb);
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
      EXPECT_TRUE(s.intact());
    }
  }
  const Tensor a = s.of(DType::f32, {1, 2}, {NAN, 1}), b = s.of(DType::f32, {2, 1}, {1, 1}),
               out = s.blank(DType::f32, {1, 1});
  one.ops.gemm(*one.ctx, out, a, false, b, false);
  EXPECT_TRUE(std::isnan(at(out, 0)));
}

struct Case {
  const char* backend;
  const char* model;
  int group;
};

class FusedModel : public ::testing::TestWithParam<Case> {
 protected:
  ModelConfig c = tiny(GetParam().model, 16);
  Plan plan = GetParam().group ? routed(c, GetParam().group) : dense_plan(c);

  void SetUp() override {
    if (!in_this_build(GetParam().backend)) GTEST_SKIP() << "not in this build";
  }
};

// In double, where rounding hides nothing: the gradient that grad_test holds against finite differences.
TEST_P(FusedModel, GradientsOfTheReference) {
  Params p = make_params(c, plan, DType::f64);
  randomise(p, 4);
  Rng rng(8);
  Store s;
  const int64_t B = 3, T = 19;
  const Tensor tokens = s.ints(B * T, 16, rng), targets = s.ints(B * T, 16, rng);
  const auto gradient = [&](Backend be) {
    State state = make_state(p, plan, B, T, T, Keep::all_layers, be.ops.keeps_row_sums(*be.ctx));
    Gradients g = make_gradients(p, plan, state);
    const lte::Run run{Gate::hard, Exec::masked};
    const LossTerms terms{.eta = 0.3,
                          .lambda = 0.1,
                          .train_routers = plan.routed(),
                          .straight_through = plan.routed()};
    forward(be, p, plan, tokens, {B, T, 0}, run, state);
    backward(be, p, plan, tokens, targets, {B, T, 0}, run, terms, 1.0 / (B * T), {}, state, g);
    return std::pair(values(g.d.flat()), values(state.losses));
  };
  const auto [want, losses] = gradient(open_backend("cpu", 1));
  const auto [got, others] = gradient(open_backend(GetParam().backend, 3));
  ASSERT_GT(largest(want), 1e-3);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-12) << i;
  for (size_t i = 0; i < losses.size(); ++i) ASSERT_NEAR(others[i], losses[i], 1e-12) << i;
}

// Rounding differs, and Adam turns it into steps of full size where a gradient is near zero: losses of 20
// steps agree to 2e-5 of their size in f32, to 1e-3 with factors in bf16. The same bits
// for any number of threads.
TEST_P(FusedModel, TrainsAsTheReferenceDoes) {
  const TokenSet set = patterned_tokens(2000, 16, 1);
  const auto train_on = [&](const char* spec, int threads) {
    Params p = make_params(c, plan);
    init_params(p, 11), set_routers(p, 0.5, 0);
    TrainSpec t{.steps = 20, .batch = 4, .seq = 24, .lr = 3e-3, .terms = {}};
    t.terms.train_routers = t.terms.straight_through = plan.routed();
    Backend be = open_backend(spec, threads);
    Values losses;
    TrainHooks hooks;
    hooks.log = [&](const StepLog& log) { losses.push_back(log.loss); };
    train(be, p, plan, set, {}, t, hooks);
    return std::pair(losses, bits(p.flat()));
  };
  const auto want = train_on("cpu", 1), got = train_on(GetParam().backend, 1),
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

const Case kCases[] = {{"cpu+fused", kGpt, 0},          {"cpu+fused", kLlama, 0},
                       {"cpu+fused", kGpt, 4},          {"cpu+onednn+fused", kGpt, 0},
                       {"cpu+onednn+fused", kLlama, 4}, {"cpu+onednn+fused+bf16", kGpt, 0},
                       {"cpu+fused+bf16", kLlama, 4}};
INSTANTIATE_TEST_SUITE_P(Cpu, FusedModel, ::testing::ValuesIn(kCases));

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
