// Scoring: what is counted, over which windows, and what it costs; each against a count by hand.
#include "model/score.h"

#include <fmt/format.h>

#include <set>

#include "model/batches.h"
#include "testing.h"

namespace lte::testing {
namespace {

constexpr int kVocab = 19;

struct Scored {
  ModelConfig c;
  Plan plan;
  Params p;
  TokenSet set = random_tokens(200, kVocab, 8);
  Backend be = test_backend(1);
  explicit Scored(const char* spec, bool sparse) : c(tiny(spec, kVocab)) {
    plan = sparse ? routed(c, 4) : dense_plan(c);
    p = test_params(c, plan);
    randomise(p, 31);
    if (sparse) set_routers(p, 1, 0);
  }
  Outcome run(const std::vector<Window>& w, Shape shape, Exec exec = Exec::gathered,
              Stopwatch* watch = nullptr) {
    return score(be, p, plan, set, w, shape, exec, watch);
  }
};

class Score : public ::testing::TestWithParam<const char*> {};

TEST_P(Score, TimedIsUntimed) {
  Scored s(GetParam(), true);
  const std::vector<Window> windows = test_windows(s.set, 16);
  for (Shape shape : {Shape{4, 16, 0}, Shape{1, 4, 12}, Shape{3, 0, 16}}) {
    for (Exec exec : {Exec::masked, Exec::gathered}) {
      Stopwatch watch;
      const Outcome plain = s.run(windows, shape, exec),
                    timed = s.run(windows, shape, exec, &watch);
      EXPECT_EQ(plain.digest, timed.digest);
      EXPECT_NE(plain.digest, 0u);
      EXPECT_EQ(plain.loss, timed.loss);
      EXPECT_EQ(plain.active, timed.active);
      const size_t batches = (windows.size() + shape.b - 1) / static_cast<size_t>(shape.b);
      EXPECT_EQ(watch.prefill.size(), shape.p > 0 ? batches : 0);
      EXPECT_LE(watch.decode.size(), batches);
      EXPECT_EQ(watch.decode.empty(), shape.d == 0);
      for (double x : watch.prefill) EXPECT_GT(x, 0);
    }
  }
}

TEST_P(Score, DigestSeesEveryLogit) {
  Scored s(GetParam(), true);
  const std::vector<Window> windows = test_windows(s.set, 16);
  const uint64_t before = s.run(windows, {4, 16, 0}).digest;
  for (int threads : {2, 7}) {
    s.be = test_backend(threads);
    EXPECT_EQ(s.run(windows, {4, 16, 0}).digest, before);
  }
  const float old = s.p.layer[1].proj_w.as<float>()[3];
  s.p.layer[1].proj_w.as<float>()[3] = old * 1.001f;
  EXPECT_NE(s.run(windows, {4, 16, 0}).digest, before);
}

// The loss of every window by a forward of its own; batches, padding and decoding change nothing.
TEST_P(Score, LossIsTheMeanOverScoredTokens) {
  for (bool sparse : {false, true}) {
    Scored s(GetParam(), sparse);
    Rng rng(3);
    s.set.scored.resize(s.set.tokens.size());
    for (uint8_t& x : s.set.scored) x = rng.uniform() < 0.7;
    s.set.tokens.resize(190), s.set.scored.resize(190);
    const std::vector<Window> windows = test_windows(s.set, 16);
    ASSERT_EQ(windows.size(), 12u);
    ASSERT_EQ(windows.back().length, 13) << "perplexity windows: 11 whole ones and the rest";
    double sum = 0;
    int64_t counted = 0;
    Store store;
    for (const Window& w : windows) {
      const auto from = s.set.tokens.begin() + w.start;
      const Tensor in = store.ints(std::vector<int32_t>(from, from + w.length));
      const State st = run_forward(s.be, s.p, s.plan, in, 1, {Gate::hard, Exec::masked});
      for (int64_t t = 0; t < w.length; ++t) {
        const auto next = static_cast<size_t>(w.start + t + 1);
        if (!s.set.scored[next]) continue;
        double z = 0;
        for (int v = 0; v < kVocab; ++v) z += std::exp(at(st.logits, t * kVocab + v));
        sum += std::log(z) - at(st.logits, t * kVocab + s.set.tokens[next]), ++counted;
      }
    }
    for (Shape shape : {Shape{1, 16, 0}, Shape{5, 16, 0}, Shape{2, 5, 11}, Shape{5, 0, 16}}) {
      for (Exec exec : {Exec::masked, Exec::gathered}) {
        const Outcome o = s.run(windows, shape, exec);
        EXPECT_EQ(o.scored, counted);
        EXPECT_EQ(o.tokens, 189);
        // Rounding of f32 logits of about 10, averaged.
        EXPECT_NEAR(o.loss, sum / static_cast<double>(counted), 2e-5) << name_of(shape);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Score, ::testing::Values(kGpt, kLlama),
                         [](const auto& info) { return info.index == 0 ? "gpt2" : "llama"; });

// Gates by rule: layer 0 opens expert t % 8 alone, layer 1 the first t % 4 + 1 of 8.
struct Crafted {
  static inline int64_t calls = 0, rows = 1;
  static void gate(Ctx&, Tensor gates, Tensor, Rule, double) {
    const int64_t width = gates.rows() / rows;
    for (int64_t i = 0; i < gates.size(); ++i) {
      const int64_t t = i / 8 % width, e = i % 8;
      put(gates, i, calls % 2 == 0 ? e == t % 8 : e <= t % 4);
    }
    ++calls;
  }
};

TEST(ActiveFraction, ByHand) {
  Scored s(kGpt, true);
  s.be.ops.gate = Crafted::gate;
  for (int rows : {1, 2}) {
    Crafted::calls = 0, Crafted::rows = rows;
    const Outcome o = s.run({{0, 16}, {40, 16}}, {rows, 16, 0});
    EXPECT_EQ(o.tokens, 32);
    ASSERT_EQ(o.active_layer.size(), 2u);
    EXPECT_DOUBLE_EQ(o.active_layer[0], 1.0 / 8);
    EXPECT_DOUBLE_EQ(o.active_layer[1], 2.5 / 8);
    EXPECT_DOUBLE_EQ(o.active, (1 + 2.5) / 16);
    // Over both layers a token computes 2, 3, 4 or 5 sixteenths, each as often.
    EXPECT_DOUBLE_EQ(o.active_p50, 4.0 / 16);
    EXPECT_DOUBLE_EQ(o.active_p99, 5.0 / 16);
    // Runs of w tokens: layer 0 uses min(w, 8) experts; layer 1 uses 2.5, (2 + 4) / 2, 4, 4, 4.
    const double want[] = {(1 + 2.5) / 16, (2 + 3) / 16.0, (4 + 4) / 16.0, (8 + 4) / 16.0,
                           (8 + 4) / 16.0};
    for (size_t u = 0; u < kUnions.size(); ++u) EXPECT_DOUBLE_EQ(o.active_union[u], want[u]) << u;
    EXPECT_DOUBLE_EQ(o.context, 17.0 / 2);
    const double F = 32, D = 16, linear = 4 * D * D + 8 * D;  // attention and the router
    EXPECT_DOUBLE_EQ(o.cost.flops_paper, 2 * (2 * linear + 2 * D * F * (1 + 2.5) / 8));
  }
}

TEST(ActiveFraction, PaddingDoesNotCount) {
  Scored s(kGpt, true);
  s.be.ops.gate = Crafted::gate;
  Crafted::calls = 0, Crafted::rows = 2;
  const Outcome o = s.run({{0, 8}, {40, 16}}, {2, 16, 0});
  EXPECT_EQ(o.tokens, 24);
  EXPECT_DOUBLE_EQ(o.active, (1 + 2.5) / 16);
  EXPECT_DOUBLE_EQ(o.context, (8 * 9 / 2 + 16 * 17 / 2) / 24.0);
  EXPECT_DOUBLE_EQ(o.active_union[4], 12.0 / 16) << "only the longer row has 16 tokens";
}

// Decode shapes and short documents have no run of 16 tokens: 0 would read as perfect sparsity.
TEST(ActiveFraction, AUnionThatWasNeverSeenIsNotZero) {
  Scored s(kGpt, true);
  const Outcome o = s.run({{0, 8}, {40, 8}}, {2, 8, 0});
  for (size_t u = 0; u < kUnions.size(); ++u) {
    EXPECT_FALSE(o.active_union[u] < o.active) << "runs of " << kUnions[u];
  }
}

TEST(Digest, DoesNotSeePadding) {
  Scored s(kLlama, true);  // its head is not the embedding table
  for (int32_t& t : s.set.tokens) t = 1 + t % (kVocab - 1);
  // Masked: gathered products are cut by who selects an expert, and so round otherwise.
  const std::vector<Window> windows = {{0, 8}, {40, 16}};  // 8 positions of padding, input 0
  const uint64_t before = s.run(windows, {2, 16, 0}, Exec::masked).digest;
  put(s.p.wte, 0, 3);
  EXPECT_EQ(s.run(windows, {2, 16, 0}, Exec::masked).digest, before);
  put(s.p.wte, s.c.dim, 3);
  EXPECT_NE(s.run(windows, {2, 16, 0}, Exec::masked).digest, before) << "token 1 is text";
}

TEST(ActiveFraction, DenseAndPruned) {
  Scored s(kLlama, false);
  const std::vector<Window> windows = test_windows(s.set, 16);
  Outcome o = s.run(windows, {4, 16, 0});
  EXPECT_DOUBLE_EQ(o.active, 1);
  EXPECT_DOUBLE_EQ(o.active_union[0], 1);
  s.plan.layer[0].order = {1, 2, 3}, s.plan.layer[1].order = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  s.p = apply_order(s.p, s.plan);
  o = s.run(windows, {4, 16, 0});
  EXPECT_DOUBLE_EQ(o.active_layer[0], 3.0 / 48);
  EXPECT_DOUBLE_EQ(o.active_layer[1], 9.0 / 48);
  EXPECT_DOUBLE_EQ(o.active, 6.0 / 48);
  EXPECT_DOUBLE_EQ(o.active_p99, 6.0 / 48);
  EXPECT_DOUBLE_EQ(o.active_union[3], 6.0 / 48);
}

TEST(Histogram, CountsEveryScore) {
  Scored s(kGpt, true);
  const std::vector<Window> windows = {{0, 16}, {30, 9}};
  for (double bias : {-40.0, 0.0, 40.0}) {
    set_routers(s.p, 0, bias);
    const auto h = score_histogram(s.be, s.p, s.plan, s.set, windows, Gate::hard, 10);
    ASSERT_EQ(h.size(), 2u);
    for (const auto& layer : h) {
      EXPECT_EQ(layer[bias < 0 ? 0 : bias == 0 ? 5 : 9], 25 * 8);
    }
  }
}

// ---- windows

// Documents of random lengths: short, exactly a window, one more, one less, and long.
TokenSet random_documents(uint64_t seed, int seq) {
  Rng rng(seed);
  TokenSet s;
  const int64_t documents = 1 + static_cast<int64_t>(rng.below(12));
  for (int64_t i = 0; i < documents; ++i) {
    const int64_t lengths[] = {
        1,       2,           seq - 1,
        seq,     seq + 1,     seq + 2,
        2 * seq, 3 * seq + 1, 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * seq)))};
    const int64_t length = std::max<int64_t>(1, lengths[rng.below(9)]);
    s.starts.push_back(static_cast<int64_t>(s.tokens.size()));
    for (int64_t k = 0; k < length; ++k) {
      s.tokens.push_back(static_cast<int32_t>(rng.below(kVocab)));
      s.scored.push_back(k > 0 && rng.uniform() < 0.8);
    }
  }
  return s;
}

TEST(Windows, DocumentsAreScoredExactlyOnce) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const int seq = 1 + static_cast<int>(seed % 9);
    const TokenSet set = random_documents(seed, seq);
    const auto size = static_cast<int64_t>(set.tokens.size());
    SCOPED_TRACE(fmt::format("seed {} seq {} size {}", seed, seq, size));
    std::vector<int> covered(set.tokens.size()), window_of(set.tokens.size(), -1);
    const std::vector<Window> windows = test_windows(set, seq);
    int64_t counted = 0;
    std::vector<int32_t> in(static_cast<size_t>(seq)), want(in.size());
    for (size_t i = 0; i < windows.size(); ++i) {
      const Window w = windows[i];
      ASSERT_GE(w.length, 1);
      ASSERT_LE(w.length, seq);
      ASSERT_GE(w.start, 0);
      ASSERT_LT(w.start + w.length, size);
      for (int64_t t = w.start + 1; t <= w.start + w.length; ++t)
        ++covered[static_cast<size_t>(t)], window_of[static_cast<size_t>(t)] = static_cast<int>(i);
      counted += fill_row(set, w, 0, seq, in, want);
    }
    for (size_t d = 0; d < set.starts.size(); ++d) {
      const int64_t from = set.starts[d], to = d + 1 < set.starts.size() ? set.starts[d + 1] : size;
      EXPECT_LE(covered[static_cast<size_t>(from)], 1) << "first token of a document";
      for (int64_t t = from + 1; t < to; ++t)
        ASSERT_EQ(covered[static_cast<size_t>(t)], 1) << "token " << t;
      // A document that fits a window is whole in one: from its first token as input.
      for (int64_t t = from + 1; to - from - 1 <= seq && t < to; ++t) {
        const int w = window_of[static_cast<size_t>(t)];
        ASSERT_EQ(w, window_of[static_cast<size_t>(from + 1)]) << "document at " << from;
        ASSERT_LE(windows[static_cast<size_t>(w)].start, from) << "document at " << from;
      }
    }
    EXPECT_EQ(counted, std::count(set.scored.begin(), set.scored.end(), 1));
  }
}

TEST(Windows, DocumentsThatFillAWindowExactly) {
  const auto windows = [](std::vector<int64_t> starts, int64_t size, int seq) {
    TokenSet set = random_tokens(size, kVocab, 1);
    set.starts = std::move(starts);
    std::vector<std::pair<int64_t, int32_t>> out;
    for (const Window& w : test_windows(set, seq)) out.push_back({w.start, w.length});
    return out;
  };
  using List = std::vector<std::pair<int64_t, int32_t>>;
  // Two documents of 4 are 7 predictions, the second one's first token among them.
  EXPECT_EQ(windows({0, 4, 8}, 12, 7), (List{{0, 7}, {8, 3}}));
  EXPECT_EQ(windows({0, 4, 8}, 12, 6), (List{{0, 3}, {4, 3}, {8, 3}}));
  // 8 tokens are 7 predictions; 9 are one more than a window of 7.
  EXPECT_EQ(windows({0, 8}, 16, 7), (List{{0, 7}, {8, 7}}));
  EXPECT_EQ(windows({0, 9}, 17, 7), (List{{0, 7}, {7, 1}, {9, 7}}));
}

TEST(Windows, StreamsAreScoredExactlyOnce) {
  for (int64_t size : {0, 1, 2, 3, 8, 9, 10, 57}) {
    for (int seq : {1, 2, 8, 9, 100}) {
      const TokenSet set = random_tokens(size, kVocab, 1);
      const std::vector<Window> windows = test_windows(set, seq);
      int64_t at = 0;
      for (const Window& w : windows) {
        EXPECT_EQ(w.start, at);
        at += w.length;
        EXPECT_EQ(w.length, std::min<int64_t>(seq, size - 1 - w.start));
      }
      EXPECT_EQ(at, std::max<int64_t>(0, size - 1));
    }
  }
}

TEST(Windows, ALimitTakesDistinctOnesFromAllOver) {
  const TokenSet set = random_tokens(1001, kVocab, 1);
  const std::vector<Window> some = test_windows(set, 10, 7);
  ASSERT_EQ(some.size(), 7u);
  std::set<int64_t> starts;
  for (const Window& w : some) starts.insert(w.start);
  EXPECT_EQ(starts.size(), 7u);
  EXPECT_EQ(*starts.begin(), 0);
  EXPECT_GT(*starts.rbegin(), 800);
  EXPECT_EQ(test_windows(set, 10, 5000).size(), 100u);
}

TEST(Windows, TrainingWindowsAreInsideAndReproducible) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    for (bool stream : {true, false}) {
      TokenSet set = random_documents(seed, 6);
      if (stream) set.starts.clear();
      if (set.tokens.size() < 2) continue;
      const auto size = static_cast<int64_t>(set.tokens.size());
      for (uint64_t step = 0; step < 4; ++step) {
        const Window w = train_window(set, 6, seed, step, 1),
                     same = train_window(set, 6, seed, step, 1);
        EXPECT_EQ(w.start, same.start);
        EXPECT_EQ(w.length, std::min<int64_t>(6, size - 1));
        EXPECT_GE(w.start, 0);
        EXPECT_LT(w.start + w.length, size);
        EXPECT_EQ(std::count(set.starts.begin(), set.starts.end(), w.start), stream ? 0 : 1);
      }
    }
  }
  const TokenSet set = random_tokens(5000, kVocab, 1);
  std::set<int64_t> starts;
  for (uint64_t row = 0; row < 64; ++row) starts.insert(train_window(set, 8, 1, 2, row).start);
  EXPECT_GT(starts.size(), 55u) << "rows of a batch differ";
}

TEST(Windows, FillRow) {
  TokenSet set;
  set.tokens = {5, 6, 7, 8, 9}, set.scored = {1, 1, 0, 1, 1};
  std::vector<int32_t> in(8, 99), want(8, 99);
  EXPECT_EQ(fill_row(set, {1, 3}, 1, 4, in, want), 2);
  EXPECT_EQ(in, (std::vector<int32_t>{99, 99, 99, 99, 6, 7, 8, 0}));
  EXPECT_EQ(want, (std::vector<int32_t>{99, 99, 99, 99, -1, 8, 9, -1}));
}

TEST(ShapeNames, RoundTrip) {
  for (const char* name : {"b8.p128.d0", "b1.p16.d48", "b1.p0.d1"}) {
    EXPECT_EQ(name_of(parse_shape(name)), name);
  }
  for (const char* bad :
       {"", "b8", "b8.p1", "b0.p1.d0", "b1.p0.d0", "b1.p-1.d2", "b1.p1.d1x", "p1.b1.d1"})
    EXPECT_THROW(parse_shape(bad), Error) << bad;
}

// ---- cost

TEST(CostOf, Llama7BInThePapersConvention) {
  const ModelConfig c = parse_model("llama2-7b");
  const std::vector<double> all(32, 1.0), half(32, 0.5);
  const double attention = 4.0 * 4096 * 4096, ffn = 3.0 * 4096 * 11008, routers = 4096.0 * 344;
  EXPECT_EQ(cost_of(c, dense_plan(c), all, 1).flops_paper, 2 * 32 * (attention + ffn));
  EXPECT_NEAR(2 * 32 * (attention + ffn) / (1 << 30), 12.06, 0.005) << "table 1 of the paper";
  Plan lte = dense_plan(c);
  for (FfnPlan& f : lte.layer) f.group = 32, f.router = RouterKind::linear;
  EXPECT_EQ(cost_of(c, lte, all, 1).flops_paper, 2 * 32 * (attention + ffn + routers));
  EXPECT_EQ(cost_of(c, lte, half, 1).flops_paper, 2 * 32 * (attention + ffn / 2 + routers));
  // Scores and values over 100 positions, and the head.
  EXPECT_EQ(cost_of(c, lte, half, 100).flops_full,
            2 * 32 * (attention + ffn / 2 + routers + 2.0 * 100 * 4096) + 2.0 * 32000 * 4096);
}

TEST(CostOf, Gpt2Medium) {
  const ModelConfig c = parse_model("gpt2-medium");
  const std::vector<double> all(24, 1.0);
  // 24 blocks of 12 * 1024^2 = 12,582,912 multiply-adds.
  EXPECT_EQ(cost_of(c, dense_plan(c), all, 1).flops_paper, 2.0 * 24 * 12582912);
  const Cost cost = cost_of(c, dense_plan(c), all, 64);
  EXPECT_EQ(cost.flops_full, 2.0 * (24 * (12582912 + 2 * 64 * 1024) + 50257 * 1024));
  // At least every weight of the blocks and the head once; below twice that at a short context.
  const double weights = 4.0 * (24 * 12582912.0 + 50257 * 1024);
  EXPECT_GT(cost.bytes, weights);
  EXPECT_LT(cost.bytes, 1.1 * weights);
  EXPECT_EQ(cost_of(c, dense_plan(c), all, 65).bytes - cost.bytes, 4.0 * 2 * 24 * 1024);
}

TEST(CostOf, GroupedHeadsAndTraining) {
  const ModelConfig c = tiny(kLlama, kVocab);  // dim 16, 4 heads, 2 kv heads of 4, ffn 48
  const std::vector<double> all(2, 1.0);
  const double block = 16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 48;
  EXPECT_EQ(cost_of(c, dense_plan(c), all, 5).flops_paper, 2 * 2 * block);
  const double full = 2 * (2 * (block + 2 * 4.5 * 16) + kVocab * 16);
  EXPECT_EQ(train_flops(c, dense_plan(c), 8, false), 3 * full);
  EXPECT_EQ(train_flops(c, dense_plan(c), 8, true), 4 * full);
  EXPECT_EQ(train_flops(c, routed(c, 4), 8, false), 3 * (full + 2 * 2 * 12 * 16))
      << "masked training computes every neuron, and the routers";
}

// Multiply-adds of one layer beside attention, for dim 16 and experts of 4 neurons, a quarter of
// them active.
TEST(CostOf, EveryKindByHand) {
  struct {
    const char* model;
    FfnPlan plan;
    double macs;
  } const cases[] = {
      // 32 neurons, 8 experts; two matrices of 32 x 16.
      {kGpt, {.order = {}}, 2 * 8 * 16},
      {kGpt, {.order = {}, .router = RouterKind::linear}, 2 * 8 * 16 + 8 * 16},
      {kGpt,
       {.order = {}, .router = RouterKind::linear, .input = RouterInput::unit},
       2 * 8 * 16 + 8 * 16},
      {kGpt, {.order = {}, .router = RouterKind::two_layer, .width = 5}, 2 * 8 * 16 + 5 * (16 + 8)},
      {kGpt,
       {.order = {}, .router = RouterKind::two_layer, .input = RouterInput::ahead, .width = 5},
       2 * 8 * 16 + 5 * (16 + 8)},
      // All of the first matrix, a quarter of the second.
      {kGpt, {.order = {}, .router = RouterKind::activation}, 32 * 16 + 8 * 16},
      // 48 neurons, 12 experts; three matrices of 48 x 16.
      {kLlama, {.order = {}}, 3 * 12 * 16},
      {kLlama, {.order = {}, .router = RouterKind::linear}, 3 * 12 * 16 + 12 * 16},
      {kLlama,
       {.order = {}, .router = RouterKind::two_layer, .width = 5},
       3 * 12 * 16 + 5 * (16 + 12)},
      {kLlama, {.order = {}, .router = RouterKind::activation}, 2 * 48 * 16 + 12 * 16},
      {kLlama, {.order = {}, .router = RouterKind::gate}, 48 * 16 + 2 * 12 * 16},
  };
  for (const auto& one : cases) {
    const ModelConfig c = tiny(one.model, kVocab);
    Plan plan = dense_plan(c);
    for (FfnPlan& f : plan.layer) f = one.plan, f.group = 4;
    const double attention = c.gated ? 16 * (16 + 8 + 8) + 16 * 16 : 4 * 16 * 16;
    const double quarter[] = {0.25, 0.25};
    const Cost cost = cost_of(c, plan, quarter, 10);
    SCOPED_TRACE(fmt::format("{} router {}", one.model, static_cast<int>(one.plan.router)));
    EXPECT_EQ(cost.flops_paper, 2 * 2 * (attention + one.macs));
    EXPECT_EQ(cost.flops_full, 2 * 2 * (attention + one.macs + 2 * 10 * 16) + 2.0 * kVocab * 16);
    // Every weight that is multiplied is read.
    EXPECT_GT(cost.bytes, 4 * 2 * (attention + one.macs));
  }
}

// A linear router reads its input and its scores; only two layers have something between them. MoEfication's
// routers by similarity have a width too, as its predictors do.
TEST(CostOf, AnInnerLayerIsReadWhereThereIsOne) {
  const ModelConfig c = tiny(kGpt, kVocab);  // dim 16, ffn 32
  const double all[] = {1, 1};
  const auto bytes = [&](RouterKind kind, int width) {
    Plan plan = dense_plan(c);
    for (FfnPlan& f : plan.layer) f.group = 4, f.router = kind, f.width = width;
    return cost_of(c, plan, all, 1).bytes;
  };
  const double dense = bytes(RouterKind::none, 0);
  // 8 experts, in each of two layers: 8 rows of 16 weights, an input of 16, 8 scores.
  for (int width : {0, 8})
    EXPECT_EQ(bytes(RouterKind::linear, width) - dense, 4 * 2 * (8 * 16 + 16 + 8)) << width;
  EXPECT_EQ(bytes(RouterKind::two_layer, 5) - dense, 4 * 2 * (5 * (16 + 8) + 16 + 8 + 5));
}

// Pruned to half: what is seen before the choice is what is kept.
TEST(CostOf, OraclesOnPrunedLayers) {
  const ModelConfig c = tiny(kGpt, kVocab);
  Plan plan = dense_plan(c);
  for (FfnPlan& f : plan.layer) {
    f.group = 1, f.router = RouterKind::activation;
    for (int j = 0; j < 16; ++j) f.order.push_back(j);
  }
  const double share[] = {0.25, 0.25};  // 8 neurons of the dense model's 32
  EXPECT_EQ(cost_of(c, plan, share, 1).flops_paper, 2 * 2 * (4 * 256 + 16 * 16 + 8 * 16));
}

// A bias that the family does not have is read too; one that it has is not read twice.
TEST(CostOf, DownBias) {
  const double all[] = {1, 1};
  for (const char* model : {kGpt, kLlama}) {
    const ModelConfig c = tiny(model, kVocab);
    Plan plan = dense_plan(c);
    const Cost without = cost_of(c, plan, all, 1);
    for (FfnPlan& f : plan.layer) f.down_bias = true;
    const Cost with = cost_of(c, plan, all, 1);
    EXPECT_EQ(with.flops_paper, without.flops_paper);
    EXPECT_EQ(with.bytes - without.bytes, model == kLlama ? 4 * 2 * 16 : 0);
  }
}

// Training computes every neuron, whatever is chosen: an oracle costs what the dense model costs.
TEST(CostOf, TrainingUnderOracles) {
  for (const char* model : {kGpt, kLlama}) {
    const ModelConfig c = tiny(model, kVocab);
    Plan plan = dense_plan(c);
    for (FfnPlan& f : plan.layer) f.group = 1, f.router = RouterKind::activation;
    EXPECT_EQ(train_flops(c, plan, 8, false), train_flops(c, dense_plan(c), 8, false));
  }
}

}  // namespace
}  // namespace lte::testing
