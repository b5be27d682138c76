// Positions that lie in the backend's memory, recorded work, and generation as a graph: the same bits as
// without; and what may not be recorded is refused.
#include <fmt/format.h>

#include "errors.h"
#include "model/generate.h"
#include "testing.h"

namespace lte::testing {
namespace {

struct Graphs : ::testing::Test {
  Backend be = test_backend(2);
  Store s{.where = be.memory};
  Rng rng{7};

  void SetUp() override {
    if (!be.ops.record) GTEST_SKIP() << be.name << " has no graphs";
  }
  std::shared_ptr<void> record(const std::function<void()>& work) {
    return be.ops.record(*be.ctx, work);
  }
  // More than any other test wants, by a token of very many heads.
  void want_scratch() {
    const Tensor q = s.blank(DType::f32, {1, 3}), kv = s.blank(DType::f32, {1, 1, 1, 1});
    be.ops.attention(*be.ctx, q, {}, q, kv, kv, {1, 1, 0}, {20'000'000, 1, 1});
  }
  void replay(const std::shared_ptr<void>& graph) { be.ops.replay(*be.ctx, graph.get()); }
};

// Every operation that takes a position, at a number in memory and at the number itself.
TEST_P(OpsTest, PositionsMayLieInMemory) {
  constexpr int64_t kS = 50, kC = 6, kD = 9;
  const HeadShape heads{4, 2, kC};
  for (int64_t T : {1, 3, 20}) {
    for (int32_t place : {1, 5, 29}) {
      const Tensor number = s.ints({place - 1});
      const Chunk known{2, T, place},
          placed{2, T, place - number.as<int32_t>()[0], number.as<int32_t>()};
      const int64_t N = 2 * T, width = (heads.H + 2 * heads.K) * kC;
      const Tensor wte = normal({11, kD}), wpe = normal({kS, kD}), tokens = s.ints(N, 11, rng);
      const Tensor k = normal({2, heads.K, kS, kC}), v = normal({2, heads.K, kS, kC});
      const Tensor qkv = normal({N, width});
      std::string results[2];
      for (const Chunk& c : {known, placed}) {
        Tensor keys = s.blank(dtype, {2, heads.K, kS, kC}),
               values_ = s.blank(dtype, {2, heads.K, kS, kC});
        Tensor x = s.blank(dtype, {N, kD}), q = s.blank(dtype, {N, width}),
               out = s.blank(dtype, {N, heads.H * kC});
        std::memcpy(keys.data, k.data, k.bytes()), std::memcpy(values_.data, v.data, v.bytes());
        std::memcpy(q.data, qkv.data, q.bytes());
        std::string& bits_of = results[c.at ? 1 : 0];
        const auto does = [&](std::initializer_list<Tensor> outs,
                              const std::function<void(const Ops&, Ctx&)>& work) {
          std::string before, after;
          for (const Tensor& t : outs) before += bits(t);
          run(outs, work);
          for (const Tensor& t : outs) after += bits(t);
          EXPECT_FALSE(after == before) << "nothing was written";
          bits_of += after;
        };
        does({x}, [&](const Ops& o, Ctx& ctx) { o.embed(ctx, x, tokens, wte, wpe, c); });
        does({q},
             [&](const Ops& o, Ctx& ctx) { o.rope(ctx, q, c, heads.H + heads.K, kC, 1e4, false); });
        does({keys, values_},
             [&](const Ops& o, Ctx& ctx) { o.store_kv(ctx, keys, values_, q, c, heads); });
        does({out}, [&](const Ops& o, Ctx& ctx) {
          o.attention(ctx, out, {}, q, keys, values_, c, heads);
        });
      }
      EXPECT_TRUE(results[0] == results[1]) << fmt::format("T {} at {}", T, place);
    }
  }
}
LTE_EVERY_BACKEND(OpsTest);

TEST_F(Graphs, RecordedWorkIsDoneWhenItIsReplayed) {
  const Tensor a = s.of(DType::f32, {3}, {1, 2, 3}), b = s.of(DType::f32, {3}, {10, 20, 30});
  const auto work = [&] { be.ops.add(*be.ctx, a, a, b); };
  const std::shared_ptr<void> graph = record(work);
  be.finish();
  EXPECT_EQ(values(a), (Values{1, 2, 3})) << "recorded, not done";
  for (int i = 0; i < 3; ++i) replay(graph);
  be.finish();
  EXPECT_EQ(values(a), (Values{31, 62, 93}));
  put(b, 0, 100);  // what lies in memory is read when the work is done
  replay(graph), work();
  be.finish();
  EXPECT_EQ(at(a, 0), 231);
}

// A graph keeps the scratch that it was recorded with, also when larger work has come since.
TEST_F(Graphs, OutlivesTheGrowthOfScratch) {
  const auto sum_of = [&](int64_t n, Tensor out) {
    const Tensor x = s.normal(DType::f32, {n, 3}, rng);
    return [this, x, out] { be.ops.bias_backward_add(*be.ctx, out, x); };
  };
  const Tensor first = s.of(DType::f32, {3}, {0, 0, 0});
  const auto small = sum_of(1000, first);
  small();
  const std::shared_ptr<void> graph = record(small);
  be.finish();
  const Values once = values(first);
  EXPECT_THROW(want_scratch(), Error) << "too large a grid, after its scratch was made";
  be.finish();
  for (int64_t i = 0; i < 3; ++i) put(first, i, 0);
  replay(graph);
  be.finish();
  EXPECT_EQ(values(first), once);
}

TEST_F(Graphs, WhatMayNotBeRecordedIsRefused) {
  const Tensor x = s.of(DType::f32, {2, 2}, {1, 2, 3, 4}),
               table = s.normal(DType::f32, {5, 2}, rng);
  std::vector<int32_t> host = {1, 2};
  Tensor list = shape(DType::i32, {2});
  list.data = host.data();
  const Tensor there = s.ints({0, 0});
  const std::pair<const char*, std::function<void()>> forbidden[] = {
      {"waits", [&] { be.finish(); }},
      {"takes tokens of the host",
       [&] {
         be.ops.embed(*be.ctx, x, list, table, {}, {1, 2, 0});
       }},
      {"reads back", [&] { be.ops.copy_list(*be.ctx, list, there); }},
      {"makes memory", [&] { Arena{.where = be.memory}.reserve(64); }},
      {"grows the scratch", [&] { want_scratch(); }},
  };
  for (const auto& [what, work] : forbidden) {
    const std::string error = error_of([&, &go = work] {
      record([&] {
        be.ops.add(*be.ctx, x, x, x);
        go();
      });
    });
    EXPECT_NE(error, "no error") << what;
    EXPECT_EQ(error.find("launch of"), std::string::npos) << error << ": refused too late";
    be.finish();
    EXPECT_EQ(values(x), (Values{1, 2, 3, 4})) << what;
    const Tensor y = s.of(DType::f32, {1}, {5});
    be.ops.add(*be.ctx, y, y, y);  // the backend goes on
    be.finish();
    EXPECT_EQ(at(y, 0), 10) << what;
  }
}

// ---- generation

constexpr int kVocab = 23;

Plan plan_of(const std::string& kind, const ModelConfig& c) {
  Plan plan = kind == "dense" ? dense_plan(c) : routed(c, 8);
  for (FfnPlan& f : plan.layer) {
    if (kind == "top_k") f.rule = Rule::top_k, f.cut = 2;
    if (kind == "unit") f.input = RouterInput::unit;
    if (kind == "own") f.router = RouterKind::activation, f.router_bias = false, f.cut = 2;
    if (kind == "inputs") {
      f = {.group = 1, .order = {}, .router = RouterKind::activation, .cut = 0.3, .in_cut = 0.4};
      f.rule = Rule::threshold;
    }
  }
  return plan;
}

// By a graph, by one launch after another, and on the CPU.
TEST(Generate, AsAGraphItIsTheSameText) {
  for (const char* spec : {kGpt, kLlama}) {
    for (const char* kind : {"dense", "routed", "top_k", "unit", "own", "inputs"}) {
      SCOPED_TRACE(fmt::format("{} {}", spec, kind));
      const ModelConfig c = tiny(spec, kVocab);
      const Plan plan = plan_of(kind, c);
      Params p = test_params(c, plan);
      randomise(p, 11);
      set_routers(p, 0.5, 0);
      Backend graph = test_backend(2), plain = test_backend(2), cpu = open_backend("cpu", 1);
      plain.ops.record = nullptr;
      for (int64_t length : {1, 6}) {
        const Sampling how = length == 1
                                 ? Sampling{}
                                 : Sampling{.temperature = 1, .top_k = 9, .top_p = 0.9, .seed = 4};
        const std::vector<int32_t> prompt = random_tokens(length, kVocab, 3).tokens;
        const Generated want = generate(cpu, p, plan, prompt, 12, -1, how);
        ASSERT_EQ(want.tokens.size(), 12u);
        for (Backend* be : {&graph, &plain}) {
          std::vector<int32_t> seen;
          const Generated unseen = generate(*be, p, plan, prompt, 12, -1, how),
                          all = generate(*be, p, plan, prompt, 12, -1, how,
                                         [&](int32_t t) { seen.push_back(t); });
          EXPECT_EQ(unseen.tokens, want.tokens);
          EXPECT_EQ(all.tokens, want.tokens);
          EXPECT_EQ(seen, want.tokens);
          EXPECT_DOUBLE_EQ(unseen.active, want.active);
          EXPECT_DOUBLE_EQ(all.active, want.active);
          EXPECT_TRUE(all.active > 0 && all.active <= 1 && (all.active < 1) == plan.routed());
        }
      }
    }
  }
}

// From the second step on nothing but replays.
TEST(Generate, TakesOneGraphAToken) {
  static int64_t records, replays, forwards;
  static Ops real;
  Backend be = test_backend(1);
  if (!be.ops.record) GTEST_SKIP() << be.name << " has no graphs";
  records = replays = forwards = 0, real = be.ops;
  be.ops.record = [](Ctx& c, const std::function<void()>& work) {
    return ++records, real.record(c, work);
  };
  be.ops.replay = [](Ctx& c, void* graph) { ++replays, real.replay(c, graph); };
  be.ops.embed = [](Ctx& ctx, Tensor out, Tensor tokens, Tensor wte, Tensor wpe, Chunk c) {
    ++forwards, real.embed(ctx, out, tokens, wte, wpe, c);
  };
  const ModelConfig c = tiny(kGpt, kVocab);
  const Plan plan = routed(c, 8);
  Params p = test_params(c, plan);
  randomise(p, 11);
  generate(be, p, plan, random_tokens(4, kVocab, 3).tokens, 12, -1, {});
  EXPECT_EQ(records, 1);
  EXPECT_EQ(replays, 10);
  EXPECT_EQ(forwards, 3) << "the prompt, the first step, and the step that is recorded";
}

}  // namespace
}  // namespace lte::testing
