// What rows of the benchmark programs count, recomputed by hand for two shapes; and the ceilings.
#include "bench/traffic.h"

#include <gtest/gtest.h>

namespace lte {
namespace {

FfnPlan routed(int group) {
  return {.group = group, .order = {}, .router = RouterKind::linear, .rule = Rule::threshold};
}

TEST(Traffic, FfnOfGpt2Medium) {
  // 1024 x 4096, two matrices: 8,388,608 weights; 128 experts: a router of 131,072.
  const ModelConfig c = parse_model("gpt2-medium");
  const Traffic dense = ffn_traffic(c, {.group = 0, .order = {}}, 1, 1, 4);
  EXPECT_EQ(dense.bytes, 33'554'432);
  EXPECT_EQ(dense.flops, 67'108'864);
  // Each token a quarter, all four together a half.
  const Traffic sparse = ffn_traffic(c, routed(32), 0.25, 0.5, 4);
  EXPECT_EQ(sparse.bytes, 4 * (4'194'304 + 131'072));
  EXPECT_EQ(sparse.flops, 2 * 4 * (2'097'152 + 131'072));
  const Ceilings reads{.stream_all = 10e9, .gemm_f32 = 1e15},
      products{.stream_all = 1e15, .gemm_f32 = 100e9};
  EXPECT_DOUBLE_EQ(bound_seconds(dense, reads), 33'554'432 / 10e9);
  EXPECT_DOUBLE_EQ(bound_seconds(dense, reads) / bound_seconds(sparse, reads),
                   33'554'432.0 / 17'301'504);
  EXPECT_DOUBLE_EQ(bound_seconds(dense, products) / bound_seconds(sparse, products),
                   67'108'864.0 / 17'825'792);
}

TEST(Traffic, FfnOfLlama2) {
  // 4096 x 11008, three matrices: 135,266,304 weights; 344 experts: a router of 1,409,024.
  const ModelConfig c = parse_model("llama2-7b");
  const Traffic dense = ffn_traffic(c, {.group = 0, .order = {}}, 1, 1, 1);
  EXPECT_EQ(dense.bytes, 541'065'216);
  EXPECT_EQ(dense.flops, 270'532'608);
  const Traffic half = ffn_traffic(c, routed(32), 0.5, 0.5, 1);
  EXPECT_EQ(half.bytes, 4 * (67'633'152 + 1'409'024));
  const Ceilings usual{.stream_all = 30e9, .gemm_f32 = 150e9};
  // One token is bound by memory; the router costs 2 % of the ideal of 2.
  EXPECT_NEAR(bound_seconds(dense, usual) / bound_seconds(half, usual), 1.9592, 1e-4);
}

TEST(Traffic, WholeModelOfFourLayers) {
  // A layer: 12288 x 4096 + 4096 x 4096 + 135,266,304 = 202,375,168 weights; head 131,072,000. Keys
  // and values at context 129: 2 x 4 x 129 x 4096 = 4,227,072 numbers. Norms, embedding and
  // activations of a token: 32,768 + 4,096 + 4,096 + 345,088 + 8,192.
  const ModelConfig c = parse_model("llama2-7b:layers=4");
  const std::vector<double> all(4, 1.0);
  const Traffic one = model_traffic(c, dense_plan(c), all, all, 129, 1, 1);
  EXPECT_EQ(one.bytes, 4.0 * (809'500'672 + 131'072'000 + 4'227'072 + 394'240));
  EXPECT_EQ(one.flops, 2.0 * (809'500'672 + 131'072'000 + 4'227'072));
  const Traffic four = model_traffic(c, dense_plan(c), all, all, 129, 4, 1);
  EXPECT_EQ(four.bytes - one.bytes, 3 * 4.0 * 4'227'072);
  EXPECT_EQ(four.flops, 4 * one.flops);
  const Traffic prompt = model_traffic(c, dense_plan(c), all, all, 64.5, 1, 128);
  EXPECT_EQ(prompt.flops, 128 * 2.0 * (809'500'672 + 131'072'000 + 2'113'536));
}

TEST(Ceilings, AreRatesThatAMachineCanHave) {
  const StreamBlock block(8 << 20);  // small: this asks for sense, not for the machine
  Backend be = open_backend("cpu", 2);
  const Ceilings c = measure_ceilings(be, 2, block, 1);
  for (double rate : {c.stream_one, c.stream_all, c.gemm_f32}) {
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 1e15);
  }
  EXPECT_EQ(c.gemm_bf16 > 0, has_bf16(be));
  EXPECT_FALSE(has_bf16(be)) << "Eigen's products here are of floats";
}

}  // namespace
}  // namespace lte
