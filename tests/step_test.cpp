// What `lte bench-step` measures: a training step and a decode step of a preset with random weights.
#include "bench/step.h"

#include <gtest/gtest.h>

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
