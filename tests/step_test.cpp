// What `lte bench-step` measures: a training step and a decode step of a preset with random weights.
#include "bench/step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/synthetic.h"
#include "core/ops.h"

namespace lte {
namespace {

StepSpec tiny(const std::string& backend) {
  StepSpec s;
  s.model = "gpt2-nano:layers=1", s.backends = {backend};
  s.batch = 2, s.seq = 16, s.rounds = 1, s.steps = 2, s.threads = 1;
  return s;
}

TEST(Step, TrainingIsTimedAndProfiled) {
  const StepReport r = bench_step(tiny("cpu"));
  ASSERT_EQ(r.rows.size(), 1u);
  const StepRow& row = r.rows[0];
  EXPECT_GT(row.seconds, 0);
  EXPECT_DOUBLE_EQ(row.tokens_per_s, 2 * 16 / row.seconds);
  EXPECT_DOUBLE_EQ(r.bound, r.flops / r.gemm);
  double products = 0;
  for (const OpTime& t : row.ops) products += std::string(t.name).starts_with("gemm") ? t.calls : 0;
  // qkv, projection, up, down and head: one product forward, two backward.
  EXPECT_EQ(products, 15);
}

TEST(Step, DecodingReadsHalfTheBytesOfMatricesWithBf16AndFewerWithClosedExperts) {
  if (fastest_inference().find("simd") == std::string::npos)
    GTEST_SKIP() << "wants kernels for weights of bf16";
  StepSpec s = tiny(fastest_inference());
  s.decode = true;
  const double full = bench_step(s).bytes;
  s.bf16 = true;
  const double half = bench_step(s).bytes;
  EXPECT_LT(half, 0.6 * full);
  EXPECT_GT(half, 0.4 * full);
  s.group = 4, s.active = 0.25;
  EXPECT_LT(bench_step(s).bytes, half);
}

TEST(Synthetic, NumbersAreThoseOfSeedAndPlaceForAnyNumberOfThreads) {
  const int64_t n = (int64_t{2} << 20) + 77;
  std::vector<float> a(static_cast<size_t>(n)), b(a);
  Tensor one = shape(DType::f32, {n}), four = one;
  one.data = a.data(), four.data = b.data();
  fill_uniform(one, 0.5, 3, 1), fill_uniform(four, 0.5, 3, 4);
  EXPECT_TRUE(a == b);
  double sum = 0, square = 0, next = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i], square += a[i] * a[i], next += a[i] * a[(i + 1) % a.size()];
  }
  const auto count = static_cast<double>(n);
  EXPECT_NEAR(sum / count, 0, 0.002);
  EXPECT_NEAR(std::sqrt(square / count), 0.5, 0.002);
  EXPECT_NEAR(next / count, 0, 0.002);
  const auto begins_as = [&](size_t piece) {  // pieces are drawn each from a seed of its own
    return std::equal(a.begin(), a.begin() + 16, a.begin() + static_cast<std::ptrdiff_t>(piece));
  };
  EXPECT_FALSE(begins_as(size_t{1} << 20));
  fill_uniform(four, 0.5, 4, 4);
  EXPECT_FALSE(a == b) << "another seed";
}

TEST(Synthetic, ModelsHaveTheirDeviationsAndRoutersThatDiffer) {
  ModelConfig c = parse_model("llama-nano");
  c.vocab = 64;
  Plan plan = dense_plan(c);
  for (FfnPlan& f : plan.layer) f.group = 4, f.router = RouterKind::linear;
  Params p = make_params(c, plan), half = make_params(c, plan, DType::bf16);
  fill_params(p, 1), fill_params(half, 1);
  const Tensor &w = p.layer[0].up_w, &other = p.layer[1].up_w, &bits = half.layer[0].up_w;
  double square = 0, router = 0;
  for (int64_t i = 0; i < w.size(); ++i) {
    square += w.as<float>()[i] * w.as<float>()[i];
    ASSERT_EQ(to_bf16(w.as<float>()[i]).bits, bits.as<Bf16>()[i].bits);
  }
  EXPECT_NEAR(std::sqrt(square / static_cast<double>(w.size())), 0.02, 0.001);
  EXPECT_NE(w.as<float>()[0], other.as<float>()[0]);
  for (int64_t i = 0; i < p.layer[0].router_w.size(); ++i)
    router += p.layer[0].router_w.as<float>()[i] != 0;
  EXPECT_EQ(router, static_cast<double>(p.layer[0].router_w.size()));
  for (int64_t i = 0; i < c.dim; ++i) EXPECT_EQ(p.norm_w.as<float>()[i], 1);
}

TEST(Step, SaysWhatItCannotTime) {
  StepSpec s = tiny("cpu");
  s.bf16 = true;
  EXPECT_THROW(bench_step(s), Error) << "bf16 is for decoding";
  s = tiny("cpu");
  s.cpu_time = true, s.threads = 2;
  EXPECT_THROW(bench_step(s), Error) << "processor time wants one thread";
}

}  // namespace
}  // namespace lte
