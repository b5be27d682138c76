// The bindings of the one forward: every plan that means the dense model gives the dense model,
// masked and gathered agree, chunks agree with prompts, and what is skipped is never read.
#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

constexpr int64_t kB = 3, kT = 12;
constexpr int kVocab = 19;
constexpr Run kMasked{Gate::hard, Exec::masked}, kSoft{Gate::soft, Exec::masked};
constexpr Run kGathered{Gate::hard, Exec::gathered};

// Rounding through two layers: sums of up to 48 terms a product, some ten products deep, and logits
// of the given size. Far below it lies any mistake: a missing neuron changes logits by 0.01 and up.
double rounding(const Tensor& logits) {
  return tolerance_of(logits.dtype, 48 * 10, largest(values(logits)));
}

struct Model {
  ModelConfig c;
  Params dense;
  Store s;
  Rng rng{4};
  Tensor tokens;
  explicit Model(const char* spec, int64_t n = kB * kT) : c(tiny(spec, kVocab)) {
    dense = test_params(c, dense_plan(c));
    randomise(dense, 21);
    tokens = s.ints(n, kVocab, rng);
  }
  Params ordered(const Plan& plan, double std, double bias) const {
    Params p = apply_order(dense, plan);
    set_routers(p, std, bias);
    return p;
  }
};

double open_share(const State& s) {
  double open = 0, all = 0;
  for (const LayerState& l : s.layer) {
    for (double g : values(l.gates)) open += g, ++all;
  }
  return open / all;
}

class Forward : public ::testing::TestWithParam<const char*> {
 protected:
  Model m{GetParam()};
  Backend be = test_backend(1);
  State dense = run_forward(be, m.dense, dense_plan(m.c), m.tokens, kB, kMasked);

  void same_as_dense(const Params& p, const Plan& plan, lte::Run run, const char* what) {
    const State s = run_forward(be, p, plan, m.tokens, kB, run, Keep::one_layer);
    expect_close(s.logits, dense.logits, rounding(dense.logits), what);
  }
};

TEST_P(Forward, PlansThatMeanTheDenseModel) {
  ASSERT_GT(largest(values(dense.logits)), 1);
  Plan permuted = routed(m.c, 8);
  for (FfnPlan& f : permuted.layer) f.router = RouterKind::none;
  same_as_dense(apply_order(m.dense, permuted), permuted, kMasked, "permuted");
  same_as_dense(apply_order(m.dense, permuted), permuted, kGathered, "permuted, nothing to gather");
  Plan all = routed(m.c, 8);
  for (FfnPlan& f : all.layer) f.rule = Rule::all;
  same_as_dense(m.ordered(all, 1, 0), all, kMasked, "rule all, masked");
  same_as_dense(m.ordered(all, 1, 0), all, kGathered, "rule all, gathered");
  const Plan low = routed(m.c, 8, true, -1);
  same_as_dense(m.ordered(low, 1, 0), low, kGathered, "threshold below every score");
  Plan top = routed(m.c, 8);
  for (FfnPlan& f : top.layer) f.rule = Rule::top_k, f.cut = m.c.ffn / 8;
  same_as_dense(m.ordered(top, 1, 0), top, kGathered, "top k of all");
  const Plan one = routed(m.c, 8);
  same_as_dense(m.ordered(one, 0, 40), one, kSoft, "soft gates of 1");
  const Plan single = routed(m.c, 1, true, -1);
  same_as_dense(m.ordered(single, 1, 0), single, kGathered, "experts of one neuron");
}

TEST_P(Forward, MaskedIsGathered) {
  struct {
    double std, bias, low, high;
  } const densities[] = {
      {1, 0, 0.3, 0.7}, {1, -2, 0.01, 0.5}, {1, 2, 0.6, 0.99}, {0, -40, 0, 0}, {0, 40, 1, 1}};
  for (int group : {1, 4, 8, 16}) {
    for (const auto& [std, bias, low, high] : densities) {
      for (RouterInput input : {RouterInput::normed, RouterInput::residual}) {
        SCOPED_TRACE(
            fmt::format("group {} bias {} input {}", group, bias, static_cast<int>(input)));
        Plan plan = routed(m.c, group);
        for (FfnPlan& f : plan.layer) f.input = input;
        const Params p = m.ordered(plan, std, bias);
        const State a = run_forward(be, p, plan, m.tokens, kB, kMasked);
        const State b = run_forward(be, p, plan, m.tokens, kB, kGathered);
        EXPECT_GE(open_share(a), low);
        EXPECT_LE(open_share(a), high);
        for (size_t i = 0; i < a.layer.size(); ++i)
          expect_same_bits(a.layer[i].gates, b.layer[i].gates, "gates");
        expect_close(b.logits, a.logits, rounding(a.logits), "logits");
      }
    }
  }
}

// 70 tokens of one sequence and a chunk of one: the two ways the CPU gathers.
TEST_P(Forward, MaskedIsGatheredForLongAndShortChunks) {
  for (int64_t n : {1, 2, 16, 17, 30}) {
    Model one(GetParam(), n);
    const Plan plan = routed(one.c, 4);
    const Params p = one.ordered(plan, 1, -1);
    const State a = run_forward(be, p, plan, one.tokens, 1, kMasked);
    const State b = run_forward(be, p, plan, one.tokens, 1, kGathered);
    expect_close(b.logits, a.logits, rounding(a.logits), fmt::format("{} tokens", n));
  }
}

TEST_P(Forward, ExpertsThatAreNeverSelectedAreNeverRead) {
  const Plan plan = routed(m.c, 4);
  Params p = m.ordered(plan, 0.02, 0);
  // Half of the experts always on, half never.
  for (LayerParams& l : p.layer) {
    for (int64_t e = 0; e < l.router_b.size(); ++e) put(l.router_b, e, (e * 7 + 1) % 3 ? -3 : 3);
  }
  const State clean = run_forward(be, p, plan, m.tokens, kB, kGathered);
  EXPECT_GT(open_share(clean), 0.2);
  EXPECT_LT(open_share(clean), 0.5);
  EXPECT_GT(poison_unselected(p, plan, clean), 0);
  const State s = run_forward(be, p, plan, m.tokens, kB, kGathered, Keep::one_layer);
  const State again = run_forward(be, p, plan, m.tokens, kB, kGathered);
  expect_same_bits(again.logits, clean.logits, "poisoned");
  expect_close(s.logits, clean.logits, rounding(clean.logits), "poisoned, one layer kept");
}

// Chunks of 1 and of 3 through the cache, on a state that is larger than the chunk.
TEST_P(Forward, ChunksAreThePrompt) {
  for (bool sparse : {false, true}) {
    const Plan plan = sparse ? routed(m.c, 4) : dense_plan(m.c);
    const Params p = m.ordered(plan, 1, 0);
    const State full = run_forward(be, p, plan, m.tokens, kB, kGathered);
    for (int64_t chunk : {1, 3, 5}) {
      State s = make_state(p, plan, kB, 5, kT, Keep::one_layer);
      for (int64_t pos = 0; pos < kT; pos += chunk) {
        const int64_t width = std::min(chunk, kT - pos);
        std::vector<int32_t> part;
        for (int64_t b = 0; b < kB; ++b) {
          const int32_t* from = m.tokens.as<int32_t>() + b * kT + pos;
          part.insert(part.end(), from, from + width);
        }
        forward(be, p, plan, m.s.ints(part), {kB, width, pos}, kGathered, s);
        be.finish();
        for (int64_t b = 0; b < kB; ++b) {
          Tensor got = first_rows(s.logits, width), want = got;
          got.data = s.logits.as<float>() + b * width * kVocab;
          want.data = full.logits.as<float>() + (b * kT + pos) * kVocab;
          expect_close(got, want, rounding(full.logits),
                       fmt::format("sparse {} chunk {} pos {} row {}", sparse, chunk, pos, b));
        }
      }
    }
  }
}

TEST_P(Forward, RowsOfABatchAreIndependent) {
  const Plan plan = routed(m.c, 4);
  const Params p = m.ordered(plan, 1, 0);
  const State a = run_forward(be, p, plan, m.tokens, kB, kMasked);
  const Tensor other = m.s.ints(kB * kT, kVocab, m.rng);
  std::memcpy(other.as<int32_t>() + kT, m.tokens.as<int32_t>() + kT, kT * sizeof(int32_t));
  const State b = run_forward(be, p, plan, other, kB, kMasked);
  const auto row = [](const State& s, int64_t i) {
    return bits(s.logits).substr(static_cast<size_t>(i * kT * kVocab) * sizeof(float),
                                 kT * kVocab * sizeof(float));
  };
  EXPECT_TRUE(row(a, 1) == row(b, 1)) << "row 1 kept its tokens";
  EXPECT_FALSE(row(a, 0) == row(b, 0));
  // A row alone, where products are cut otherwise.
  const Tensor alone =
      m.s.ints(std::vector<int32_t>(m.tokens.as<int32_t>() + kT, m.tokens.as<int32_t>() + 2 * kT));
  const State c = run_forward(be, p, plan, alone, 1, kMasked);
  Tensor want = c.logits;
  want.data = a.logits.as<float>() + kT * kVocab;
  expect_close(c.logits, want, rounding(a.logits), "a row alone");
}

TEST_P(Forward, TheFutureDoesNotChangeThePast) {
  const Plan plan = routed(m.c, 4);
  const Params p = m.ordered(plan, 1, 0);
  for (lte::Run run : {kMasked, kSoft}) {
    const State a = run_forward(be, p, plan, m.tokens, kB, run);
    for (int64_t change : {1, 7, 11}) {
      const Tensor other =
          m.s.ints(std::vector<int32_t>(m.tokens.as<int32_t>(), m.tokens.as<int32_t>() + kB * kT));
      for (int64_t b = 0; b < kB; ++b) {
        int32_t& t = other.as<int32_t>()[b * kT + change];
        t = (t + 1) % kVocab;
      }
      const State s = run_forward(be, p, plan, other, kB, run);
      for (int64_t n = 0; n < kB * kT; ++n) {
        const bool same = std::memcmp(a.logits.as<float>() + n * kVocab,
                                      s.logits.as<float>() + n * kVocab, kVocab * 4) == 0;
        EXPECT_EQ(same, n % kT < change) << "position " << n % kT << " after " << change;
      }
    }
  }
}

TEST_P(Forward, SameBitsForAnyNumberOfThreads) {
  Model big("gpt2-nano:dim=64,heads=4,ffn=256,layers=2,max_seq=64", 4 * 64);
  Model& wide = m.c.rope ? m : big;
  const int64_t B = m.c.rope ? kB : 4;
  const Plan plan = routed(wide.c, 8);
  const Params p = wide.ordered(plan, 0.3, 0);
  for (lte::Run run : {kMasked, kSoft, kGathered}) {
    const State one = run_forward(be, p, plan, wide.tokens, B, run);
    for (int threads : {2, 7}) {
      Backend other = test_backend(threads);
      const State s = run_forward(other, p, plan, wide.tokens, B, run);
      expect_same_bits(s.logits, one.logits, fmt::format("{} threads", threads));
      for (size_t i = 0; i < s.layer.size(); ++i)
        expect_same_bits(s.layer[i].gates, one.layer[i].gates, "gates");
    }
  }
}

TEST_P(Forward, NaiveVariantAgrees) {
  Backend naive = open_backend("cpu+naive", 1);
  const State s = run_forward(naive, m.dense, dense_plan(m.c), m.tokens, kB, kMasked);
  expect_close(dense.logits, s.logits, rounding(s.logits), "Eigen against plain loops");
}

TEST_P(Forward, PrunedMatricesAreSmaller) {
  Plan plan = dense_plan(m.c);
  plan.layer[0].order = {5, 2, 9}, plan.layer[1].order = {31};
  const Params p = apply_order(m.dense, plan);
  EXPECT_EQ(p.layer[0].up_w.dim[0], 3);
  EXPECT_EQ(p.layer[0].down_w.dim[0], 3);
  EXPECT_EQ(p.layer[1].up_w.dim[0], 1);
  EXPECT_EQ((m.c.gated ? p.layer[0].gate_w : p.layer[0].up_b).dim[0], 3);
  const int64_t neuron = (m.c.gated ? 3 : 2) * m.c.dim + (m.c.gated ? 0 : 1);
  EXPECT_EQ(count_params(m.dense) - count_params(p), (2 * m.c.ffn - 4) * neuron);
  for (int64_t d = 0; d < m.c.dim; ++d) {
    EXPECT_EQ(at(p.layer[0].up_w, m.c.dim + d), at(m.dense.layer[0].up_w, 2 * m.c.dim + d));
    EXPECT_EQ(at(p.layer[0].down_w, 2 * m.c.dim + d), at(m.dense.layer[0].down_w, 9 * m.c.dim + d));
  }
  // The same as the dense model with the other neurons' down rows set to zero.
  Params zeroed = clone(m.dense);
  for (size_t i = 0; i < 2; ++i) {
    const std::vector<int>& kept = plan.layer[i].order;
    for (int j = 0; j < m.c.ffn; ++j) {
      if (std::find(kept.begin(), kept.end(), j) != kept.end()) continue;
      for (int64_t d = 0; d < m.c.dim; ++d) put(zeroed.layer[i].down_w, j * m.c.dim + d, 0);
    }
  }
  const State a = run_forward(be, p, plan, m.tokens, kB, kGathered, Keep::one_layer);
  const State b = run_forward(be, zeroed, dense_plan(m.c), m.tokens, kB, kMasked);
  expect_close(a.logits, b.logits, rounding(b.logits), "pruned");
}

TEST_P(Forward, RefusesWhatItCannotDo) {
  const Plan plan = routed(m.c, 4);
  const Params p = m.ordered(plan, 1, 0);
  State s = make_state(p, plan, kB, kT, kT, Keep::all_layers);
  EXPECT_THROW(forward(be, p, plan, m.tokens, {kB, kT, 0}, {Gate::soft, Exec::gathered}, s), Error);
  EXPECT_THROW(forward(be, p, plan, m.tokens, {kB, kT, 1}, kMasked, s), Error);
  EXPECT_THROW(forward(be, p, plan, m.tokens, {kB + 1, kT, 0}, kMasked, s), Error);
  // Chunks whose probabilities do not fit what was made for [B, H, T, T].
  State narrow = make_state(p, plan, kB, 4, kT, Keep::all_layers);
  EXPECT_THROW(forward(be, p, plan, m.tokens, {kB, 4, 8}, kMasked, narrow), Error);
  EXPECT_THROW(forward(be, p, plan, m.tokens, {1, kT, 0}, kMasked, narrow), Error);
  Plan bad = routed(m.c, 4);
  bad.layer[1].order[3] = bad.layer[1].order[5];
  EXPECT_THROW(check_plan(m.c, bad), Error) << "a neuron twice";
  bad = routed(m.c, 5);
  EXPECT_THROW(check_plan(m.c, bad), Error) << "experts that are not whole";
  bad = routed(m.c, 4);
  bad.layer[1].rule = Rule::top_k;
  for (double cut : {0.0, -5.0, 1e30, 1.5, m.c.ffn / 4 + 1.0}) {
    bad.layer[1].cut = cut;
    EXPECT_THROW(check_plan(m.c, bad), Error) << "top " << cut;
  }
  for (double cut : {1.0, m.c.ffn / 4.0}) {
    bad.layer[1].cut = cut;
    EXPECT_NO_THROW(check_plan(m.c, bad)) << "top " << cut;
  }
  bad = dense_plan(m.c);
  bad.layer[0].router = RouterKind::linear;
  EXPECT_THROW(check_plan(m.c, bad), Error) << "a router without experts";
  bad.layer.pop_back();
  EXPECT_THROW(check_plan(m.c, bad), Error) << "a layer too few";
}

INSTANTIATE_TEST_SUITE_P(Families, Forward, ::testing::Values(kGpt, kLlama),
                         [](const auto& info) { return info.index == 0 ? "gpt2" : "llama"; });

}  // namespace
}  // namespace lte::testing
