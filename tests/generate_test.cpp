// Generation: against whole forward passes.
#include "model/generate.h"

#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

constexpr int kVocab = 23;

// A model whose plan is dense, routed or pruned, with random weights.
struct Model {
  ModelConfig c;
  Plan plan;
  Params params;
  Backend be = test_backend(2);

  Model(const char* spec, const std::string& kind) : c(tiny(spec, kVocab)) {
    plan = kind == "routed" ? routed(c, 8) : dense_plan(c);
    for (size_t i = 0; kind == "pruned" && i < plan.layer.size(); ++i) plan.layer[i].order = {3, 7};
    params = test_params(c, plan);
    randomise(params, 11);
    set_routers(params, 0.5, 0);
  }
  Generated run(const std::vector<int32_t>& prompt, int most, Sampling how = {}, int32_t stop = -1,
                const std::function<void(int32_t)>& each = {}) {
    return generate(be, params, plan, prompt, most, stop, how, each);
  }
  // The likeliest next token, by one forward over everything so far.
  int32_t next(std::vector<int32_t> tokens) {
    Store s;
    const State state =
        run_forward(be, params, plan, s.ints(tokens), 1, {Gate::hard, Exec::gathered});
    const float* last =
        state.logits.as<float>() + (static_cast<int64_t>(tokens.size()) - 1) * kVocab;
    return static_cast<int32_t>(std::max_element(last, last + kVocab) - last);
  }
};

std::vector<int32_t> prompt_of(int64_t n, uint64_t seed = 1) {
  return random_tokens(n, kVocab, seed).tokens;
}

TEST(Generate, GreedyIsTheArgmaxOfAWholeForward) {
  for (const char* spec : {kGpt, kLlama}) {
    for (const char* kind : {"dense", "routed", "pruned"}) {
      Model m(spec, kind);
      for (int64_t length : {1, 5, 20}) {
        std::vector<int32_t> text = prompt_of(length);
        const Generated g = m.run(text, 12);
        ASSERT_EQ(g.tokens.size(), 12u);
        for (int32_t t : g.tokens) {
          EXPECT_EQ(t, m.next(text)) << spec << " " << kind << " at " << text.size();
          text.push_back(t);
        }
      }
    }
  }
}

TEST(Generate, NarrowSamplingIsGreedy) {
  Model m(kGpt, "routed");
  const auto prompt = prompt_of(4);
  const std::vector<int32_t> greedy = m.run(prompt, 20).tokens;
  for (uint64_t seed : {0, 1, 2}) {
    EXPECT_EQ(m.run(prompt, 20, {.temperature = 5, .top_k = 1, .seed = seed}).tokens, greedy);
    EXPECT_EQ(m.run(prompt, 20, {.temperature = 5, .top_p = 1e-12, .seed = seed}).tokens, greedy);
    EXPECT_EQ(m.run(prompt, 20, {.temperature = 1e-9, .seed = seed}).tokens, greedy);
    EXPECT_EQ(m.run(prompt, 20, {.temperature = 0, .top_k = 5, .seed = seed}).tokens, greedy);
  }
}

TEST(Generate, SeedsDecide) {
  Model m(kLlama, "routed");
  const auto prompt = prompt_of(4);
  const Sampling how{.temperature = 1.5, .top_k = 0, .top_p = 1, .seed = 6};
  const std::vector<int32_t> a = m.run(prompt, 24, how).tokens;
  EXPECT_EQ(m.run(prompt, 24, how).tokens, a);
  m.be = test_backend(7);
  EXPECT_EQ(m.run(prompt, 24, how).tokens, a) << "another number of threads";
  Sampling other = how;
  other.seed = 7;
  EXPECT_NE(m.run(prompt, 24, other).tokens, a);
}

TEST(Generate, StopsBeforeTheStopToken) {
  Model m(kGpt, "dense");
  const auto prompt = prompt_of(4);
  const std::vector<int32_t> all = m.run(prompt, 20).tokens;
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t first =
        static_cast<size_t>(std::find(all.begin(), all.end(), all[i]) - all.begin());
    const Generated g = m.run(prompt, 20, {}, all[i]);
    EXPECT_EQ(g.tokens,
              std::vector<int32_t>(all.begin(), all.begin() + static_cast<int64_t>(first)));
    EXPECT_FALSE(g.full);
  }
}

TEST(Generate, ShowsEveryTokenAsItIsDrawn) {
  Model m(kGpt, "routed");
  std::vector<int32_t> seen;
  const Generated g = m.run(prompt_of(4), 9, {}, -1, [&](int32_t t) { seen.push_back(t); });
  EXPECT_EQ(seen, g.tokens);
  EXPECT_TRUE(m.run(prompt_of(4), 0).tokens.empty());
}

// Position S - 1 is the last that is computed, and gives one token more.
TEST(Generate, EndsAtAFullContext) {
  for (const char* spec : {kGpt, kLlama}) {
    Model m(spec, "routed");
    const int S = m.c.max_seq;
    for (int length : {1, 10, S - 2, S - 1}) {
      const int room = S - length + 1;
      const Generated all = m.run(prompt_of(length), 1000);
      EXPECT_EQ(static_cast<int>(all.tokens.size()), room);
      EXPECT_TRUE(all.full);
      const Generated exact = m.run(prompt_of(length), room);
      EXPECT_EQ(exact.tokens, all.tokens);
      EXPECT_FALSE(exact.full) << "nothing was cut off";
    }
  }
}

TEST(Generate, LongPromptsKeepTheirEnd) {
  Model m(kLlama, "routed");
  const int S = m.c.max_seq;
  for (int length : {S, S + 1, 3 * S}) {
    const auto prompt = prompt_of(length);
    for (int most : {1, 3, 1000}) {
      const int kept = std::clamp(S + 1 - most, S / 2, S - 1);
      const std::vector<int32_t> end(prompt.end() - kept, prompt.end());
      const Generated cut = m.run(prompt, most);
      EXPECT_EQ(cut.tokens, m.run(end, most).tokens) << length << " " << most;
      EXPECT_EQ(cut.prompt, kept);
    }
  }
}

TEST(Generate, CountsTheActiveFraction) {
  Model dense(kGpt, "dense"), pruned(kGpt, "pruned"), routes(kGpt, "routed");
  EXPECT_DOUBLE_EQ(dense.run(prompt_of(5), 7).active, 1);
  EXPECT_DOUBLE_EQ(pruned.run(prompt_of(5), 7).active, 2.0 / dense.c.ffn);
  const double some = routes.run(prompt_of(5), 7).active;
  EXPECT_TRUE(some > 0 && some < 1) << some;
  set_routers(routes.params, 0, 9);
  EXPECT_DOUBLE_EQ(routes.run(prompt_of(5), 7).active, 1);
  set_routers(routes.params, 0, -9);
  EXPECT_DOUBLE_EQ(routes.run(prompt_of(5), 7).active, 0);
}

TEST(Generate, RefusesAnEmptyPrompt) {
  Model m(kGpt, "dense");
  EXPECT_THROW(m.run({}, 3), Error);
}

// With room for one token the prompt has no end to keep. In a process of its own: it may crash.
TEST(GenerateDeathTest, ContextOfOneTokenWorksOrIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto generates = [] {
    Model m("gpt2-nano:dim=16,heads=2,ffn=32,layers=2,max_seq=1", "dense");
    try {
      const Generated g = m.run({5}, 3);
      std::exit(g.tokens == std::vector<int32_t>{m.next({5})} && g.full ? 0 : 3);
    } catch (const Error&) {
      std::exit(0);
    }
  };
  EXPECT_EXIT(generates(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace lte::testing
