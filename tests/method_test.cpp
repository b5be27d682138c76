// What every row of the methods table must hold, whatever it does; then grouping and pruning.
#include <fmt/format.h>

#include <numeric>
#include <set>

#include "methods/cluster.h"
#include "methods/methods.h"
#include "model/batches.h"
#include "model/score.h"
#include "testing.h"

namespace lte::testing {
namespace {

constexpr int kVocab = 16;
constexpr const char* kGpt256 = "gpt2-nano:dim=16,heads=2,ffn=256,layers=2,max_seq=32";

// A dense model that was trained a little, and the data it came from.
struct Problem {
  ModelConfig c;
  Backend be = open_backend("cpu", 2);
  TokenSet train_set = patterned_tokens(3000, kVocab, 1), valid = patterned_tokens(400, kVocab, 2);
  Params dense;
  std::vector<std::string> stages;

  explicit Problem(const char* spec = kGpt) : c(tiny(spec, kVocab)) {
    dense = make_params(c, dense_plan(c));
    init_params(dense, 4);
    TrainSpec s{.steps = 30, .batch = 8, .seq = 16, .lr = 1e-2, .terms = {}};
    train(be, dense, dense_plan(c), train_set, valid, s, {});
  }
  Fitted run(std::string_view method, Knobs knobs, uint64_t seed = 1) {
    return fit({.backend = be,
                .dense = dense,
                .train = train_set,
                .valid = valid,
                .seq = 16,
                .seed = seed,
                .hooks =
                    [this](const std::string& stage) {
                      stages.push_back(stage);
                      return TrainHooks{};
                    }},
               method, knobs);
  }
  // Small settings for whatever knobs a method has.
  Knobs small(const Method& m, const char* steps = "12") const {
    Knobs k = {{"steps", steps}, {"batch", "4"}};
    const std::pair<const char*, const char*> wanted[] = {
        {"group", "8"}, {"warm_tokens", "512"}, {"warm_steps", "20"}, {"calibration", "512"}};
    for (const KnobRow& row : all_knobs(m)) {
      for (const auto& [name, value] : wanted) {
        if (row.name == std::string(name)) k[name] = value;
      }
    }
    return k;
  }
};

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

class EveryMethod : public ::testing::TestWithParam<const Method*> {};

TEST_P(EveryMethod, IsDeterministicBySeed) {
  const Method& m = *GetParam();
  Problem q;
  const Fitted a = q.run(m.name, q.small(m)), b = q.run(m.name, q.small(m));
  expect_same_bits(a.params.flat(), b.params.flat(), "two runs");
  ASSERT_EQ(a.plan.layer.size(), b.plan.layer.size());
  for (size_t i = 0; i < a.plan.layer.size(); ++i)
    EXPECT_EQ(a.plan.layer[i].order, b.plan.layer[i].order);
  q.be = open_backend("cpu", 7);
  expect_same_bits(q.run(m.name, q.small(m)).params.flat(), a.params.flat(), "7 threads");
  const Fitted other = q.run(m.name, q.small(m), 2);
  EXPECT_FALSE(bits(other.params.flat()) == bits(a.params.flat())) << "the seed has no effect";
}

TEST_P(EveryMethod, PlanIsValidAndCarriesEveryKnob) {
  const Method& m = *GetParam();
  for (const char* model : {kGpt, kLlama}) {
    Problem q(model);
    const Fitted f = q.run(m.name, q.small(m));
    EXPECT_NO_THROW(check_plan(q.c, f.plan));
    EXPECT_EQ(f.plan.method, m.name);
    const Knobs set = q.small(m);
    EXPECT_EQ(f.plan.knobs.size(), all_knobs(m).size());
    for (const KnobRow& row : all_knobs(m)) {
      ASSERT_TRUE(f.plan.knobs.contains(row.name)) << row.name;
      const auto given = set.find(row.name);
      EXPECT_EQ(f.plan.knobs.at(row.name), given == set.end() ? row.value : given->second);
      EXPECT_GT(std::string(row.about).size(), 5u) << row.name << " is not documented";
    }
    for (size_t i = 0; i < f.plan.layer.size(); ++i) {
      EXPECT_EQ(f.params.layer[i].up_w.dim[0], kept_neurons(q.c, f.plan.layer[i]));
      EXPECT_EQ(static_cast<bool>(f.params.layer[i].router_w),
                f.plan.layer[i].router != RouterKind::none);
    }
    visit_params(const_cast<Params&>(f.params), [&](Tensor& t, const ParamInfo& info) {
      for (double x : values(t)) ASSERT_TRUE(std::isfinite(x)) << info.name;
    });
  }
}

TEST_P(EveryMethod, BudgetIsTheStepsThatWereAskedFor) {
  const Method& m = *GetParam();
  Problem q;
  for (const char* steps : {"12", "7"}) {
    const Fitted f = q.run(m.name, q.small(m, steps));
    EXPECT_EQ(f.train_tokens, std::stoi(steps) * 4 * 16);
    EXPECT_GT(f.train_flops, 0);
  }
  EXPECT_FALSE(q.stages.empty());
  const uint64_t before = digest(q.dense.flat().data, q.dense.flat().bytes());
  q.run(m.name, q.small(m));
  EXPECT_EQ(digest(q.dense.flat().data, q.dense.flat().bytes()), before) << "the dense model moved";
}

TEST_P(EveryMethod, WrongKnobsAreErrorsThatNameThem) {
  const Method& m = *GetParam();
  Problem q(kGpt256);
  const auto says = [&](const char* knob, const char* value) {
    Knobs k = q.small(m);
    k[knob] = value;
    const std::string e = error_of([&] { q.run(m.name, k); });
    EXPECT_NE(e.find(knob), std::string::npos) << knob << "=" << value << ": " << e;
    EXPECT_NE(e, "no error");
  };
  says("no_such_knob", "1");
  says("active", "1.5");
  says("active", "nan");
  says("steps", "-1");
  says("steps", "1.5");
  says("group", "7");
  says("group", "0");
  says("batch", "0");
  says("lr", "fast");
  says("lr", "");
  says("clip", "-1");
  says("decay", "1e99");
  q.stages.clear();
  says("lr2", "-1");
  says("rate", "-1");
  EXPECT_TRUE(q.stages.empty()) << "a wrong knob was noticed only after stage " << q.stages[0];
  EXPECT_THROW(find_method("no-such-method"), Error);
  EXPECT_NE(error_of([] { find_method("?"); }).find(m.name), std::string::npos);
}

TEST_P(EveryMethod, MaskedIsGatheredAndTimedIsUntimed) {
  const Method& m = *GetParam();
  for (const char* model : {kGpt, kLlama}) {
    Problem q(model);
    const Fitted f = q.run(m.name, q.small(m));
    const std::vector<Window> windows = test_windows(q.valid, 16);
    const auto outcome = [&](Exec exec, Shape shape, Stopwatch* watch) {
      return score(q.be, f.params, f.plan, q.valid, windows, shape, exec, watch);
    };
    Stopwatch watch;
    const Outcome masked = outcome(Exec::masked, {4, 16, 0}, nullptr);
    const Outcome gathered = outcome(Exec::gathered, {4, 16, 0}, nullptr);
    const Outcome timed = outcome(Exec::gathered, {4, 16, 0}, &watch);
    const Outcome decoded = outcome(Exec::gathered, {1, 4, 12}, nullptr);
    EXPECT_EQ(gathered.digest, timed.digest);
    EXPECT_EQ(gathered.loss, timed.loss);
    EXPECT_GT(gathered.active, 0);
    EXPECT_LE(gathered.active, 1);
    // A mean of losses of about 2 from f32 logits; a gate that rounding tips over may add to it.
    EXPECT_NEAR(masked.loss, gathered.loss, 1e-4);
    EXPECT_NEAR(masked.loss, decoded.loss, 1e-4);
    EXPECT_NEAR(masked.active, gathered.active, 1e-3);
    EXPECT_TRUE(std::isfinite(gathered.loss));
    EXPECT_GT(gathered.cost.flops_paper, 0);
    if (!f.plan.routed()) continue;
    EXPECT_FALSE(f.histograms.empty()) << "routers without a look at their scores";
    const double dense =
        cost_of(q.c, dense_plan(q.c), std::vector<double>(2, gathered.active), 1).flops_paper;
    EXPECT_GT(gathered.cost.flops_paper, dense) << "the routers are counted";
  }
}

INSTANTIATE_TEST_SUITE_P(Table, EveryMethod,
                         ::testing::ValuesIn(methods().begin(), methods().end()),
                         [](const auto& info) {
                           std::string name = info.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MethodTable, NamesAreDistinctAndDocumented) {
  std::set<std::string> names;
  for (const Method* each : methods()) {
    const Method& m = *each;
    EXPECT_TRUE(names.insert(m.name).second) << m.name;
    EXPECT_NE(m.fit, nullptr);
    std::set<std::string> knobs;
    for (const KnobRow& row : all_knobs(m)) EXPECT_TRUE(knobs.insert(row.name).second) << row.name;
  }
}

// ---- single methods

TEST(Dense, NoStepsIsTheModelAsItIs) {
  Problem q;
  const Fitted f = q.run("dense", {});
  expect_same_bits(f.params.flat(), q.dense.flat(), "dense");
  EXPECT_EQ(f.train_tokens, 0);
}

TEST(Lte, ToTheLetterHasNoRouterBiasAndFreezesRouters) {
  Problem q;
  const Fitted f = q.run("lte", {{"steps", "12"}, {"batch", "4"}, {"group", "8"}});
  EXPECT_EQ(q.stages, (std::vector<std::string>{"stage1", "stage2"}));
  // Stage 1 alone: the same routers as after stage 2.
  const Fitted one = q.run("lte", {{"steps", "12"}, {"batch", "4"}, {"group", "8"}, {"lr2", "0"}});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(f.plan.layer[i].router_bias);
    EXPECT_EQ(f.plan.layer[i].rule, Rule::threshold);
    EXPECT_EQ(f.plan.layer[i].cut, 0.5);
    expect_same_bits(f.params.layer[i].router_w, one.params.layer[i].router_w,
                     "stage 2 moved a router");
    EXPECT_FALSE(bits(f.params.layer[i].up_w) == bits(one.params.layer[i].up_w));
  }
}

TEST(LteOneStage, ReachesTheActiveFractionThatWasAskedFor) {
  Problem q;
  for (const char* active : {"0.25", "0.5"}) {
    const Fitted f = q.run("lte-one-stage", {{"steps", "300"},
                                             {"batch", "8"},
                                             {"group", "4"},
                                             {"active", active},
                                             {"warm_tokens", "2048"},
                                             {"rate", "0.5"}});
    const Outcome o = score(q.be, f.params, f.plan, q.valid, test_windows(q.valid, 16), {4, 16, 0},
                            Exec::gathered);
    EXPECT_NEAR(o.active, std::stod(active), 0.12);
  }
}

TEST(LteOneStage, WarmRoutersOpenTheShareThatSteeringStartsAt) {
  Problem q;
  const Fitted f = q.run("lte-one-stage", {{"steps", "1"},
                                           {"batch", "4"},
                                           {"group", "4"},
                                           {"start", "0.5"},
                                           {"calibrate", "0"},
                                           {"lr", "0"},
                                           {"warm_tokens", "2048"}});
  const Outcome o =
      score(q.be, f.params, f.plan, q.valid, test_windows(q.valid, 16), {4, 16, 0}, Exec::gathered);
  EXPECT_NEAR(o.active, 0.5, 0.08) << "calibrated on training text, looked at on other text";
}

// ---- grouping

double objective(const Tensor& x, const std::vector<int>& order, int group) {
  const int64_t D = x.cols();
  double total = 0;
  const auto unit = [&](int j, int64_t d) {
    double norm = 0;
    for (int64_t i = 0; i < D; ++i) norm += std::pow(at(x, j * D + i), 2);
    return at(x, j * D + d) / std::sqrt(norm);
  };
  for (size_t from = 0; from < order.size(); from += static_cast<size_t>(group)) {
    for (int64_t d = 0; d < D; ++d) {
      double mean = 0;
      for (int k = 0; k < group; ++k) mean += unit(order[from + static_cast<size_t>(k)], d) / group;
      for (int k = 0; k < group; ++k)
        total += std::pow(unit(order[from + static_cast<size_t>(k)], d) - mean, 2);
    }
  }
  return total;
}

TEST(BalancedKmeans, IsAPermutationDeterministicAndBetterThanChance) {
  Store s;
  Rng rng(2);
  for (int group : {1, 2, 4, 16, 48}) {
    const Tensor x = s.normal(DType::f32, {48, 6}, rng);
    const std::vector<int> order = balanced_kmeans(x, group, 7);
    std::set<int> seen(order.begin(), order.end());
    ASSERT_EQ(order.size(), 48u);
    ASSERT_EQ(seen.size(), 48u);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), 47);
    EXPECT_EQ(order, balanced_kmeans(x, group, 7));
    if (group == 1 || group == 48) continue;
    double best = 1e9;
    std::vector<int> random(48);
    std::iota(random.begin(), random.end(), 0);
    for (int i = 0; i < 50; ++i)
      shuffle(random, rng), best = std::min(best, objective(x, random, group));
    EXPECT_LT(objective(x, order, group), 0.9 * best);
  }
  EXPECT_THROW(balanced_kmeans(s.normal(DType::f32, {48, 6}, rng), 7, 1), Error);
}

TEST(BalancedKmeans, FindsPlantedClustersWhateverTheirLengths) {
  Store s;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Rng rng(seed);
    const int group = 8, clusters = 6, F = group * clusters, D = 12;
    const Tensor centre = s.normal(DType::f32, {clusters, D}, rng), x = s.blank(DType::f32, {F, D});
    std::vector<int> label(F);
    for (int j = 0; j < F; ++j) label[static_cast<size_t>(j)] = j % clusters;
    shuffle(label, rng);
    for (int j = 0; j < F; ++j) {
      const double length = 0.1 + 5 * rng.uniform();  // rows are normalised: lengths do not matter
      for (int d = 0; d < D; ++d)
        put(x, j * D + d,
            length * (at(centre, label[static_cast<size_t>(j)] * D + d) + 0.1 * rng.normal()));
    }
    const std::vector<int> order = balanced_kmeans(x, group, seed);
    for (int j = 0; j < F; ++j) {
      EXPECT_EQ(label[static_cast<size_t>(order[static_cast<size_t>(j)])],
                label[static_cast<size_t>(order[static_cast<size_t>(j / group * group)])])
          << "seed " << seed;
    }
  }
}

// In a process of its own: a division by zero is no exception.
TEST(BalancedKmeansDeathTest, AGroupOfZeroIsAnError) {
  Store s;
  Rng rng(2);
  const Tensor x = s.normal(DType::f32, {8, 2}, rng);
  EXPECT_EXIT(
      {
        try {
          balanced_kmeans(x, 0, 1);
        } catch (const Error&) {
          std::exit(0);
        }
        std::exit(1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(BalancedKmeans, SurvivesZeroAndEqualRows) {
  Store s;
  const Tensor zero = s.of(DType::f32, {8, 3}, Values(24, 0.0));
  EXPECT_EQ(balanced_kmeans(zero, 2, 1).size(), 8u);
  const Tensor equal = s.of(DType::f32, {8, 3}, Values(24, 2.5));
  EXPECT_EQ(balanced_kmeans(equal, 4, 1).size(), 8u);
}

// ---- pruning

TEST(Prune, MagnitudeKeepsTheLongestDownRows) {
  Problem q("gpt2-nano:dim=16,heads=2,ffn=32,layers=1,max_seq=32");
  Rng rng(3);
  std::vector<double> length(32);
  for (size_t j = 0; j < 32; ++j) length[j] = 1 + static_cast<double>(j);
  shuffle(length, rng);
  for (int64_t i = 0; i < 32 * 16; ++i)  // one entry differs: the 1-norm would order otherwise
    put(q.dense.layer[0].down_w, i,
        i % 16 == 0 ? length[static_cast<size_t>(i / 16)]
                    : 3 - 3 * length[static_cast<size_t>(i / 16)] / 40);
  for (const auto& [active, kept] :
       {std::pair{"0.5", 16u}, {"0.1", 3u}, {"0.03", 1u}, {"1", 32u}}) {
    const Fitted f = q.run("prune", {{"active", active}, {"score", "magnitude"}});
    ASSERT_EQ(f.plan.layer[0].order.size(), kept);
    EXPECT_EQ(f.params.layer[0].down_w.dim[0], kept);
    std::vector<std::pair<double, int>> want;
    for (int j = 0; j < 32; ++j) {
      double square = 0;
      for (int d = 0; d < 16; ++d) square += std::pow(at(q.dense.layer[0].down_w, j * 16 + d), 2);
      want.push_back({-std::sqrt(square), j});
    }
    std::sort(want.begin(), want.end());
    std::set<int> best;
    for (unsigned k = 0; k < kept; ++k) best.insert(want[k].second);
    EXPECT_EQ(std::set<int>(f.plan.layer[0].order.begin(), f.plan.layer[0].order.end()), best);
    EXPECT_EQ(f.calibration_tokens, 0);
  }
}

// methods.md, section 5: mean_i |W2_ji| sqrt(sum_t X_tj^2), layer by layer, below already pruned.
TEST(Prune, WandaByHand) {
  for (const char* model : {kGpt, kLlama}) {
    Problem q(model);
    const int64_t B = 8, T = 16, D = q.c.dim, F = q.c.ffn;
    const Fitted f = q.run("prune", {{"active", "0.5"}, {"calibration", "256"}});
    EXPECT_EQ(f.calibration_tokens, 2 * 256) << "both layers look at them";
    Plan plan = dense_plan(q.c);
    for (size_t i = 0; i < 2; ++i) {
      const Params p = apply_order(q.dense, plan);
      std::vector<double> square(static_cast<size_t>(F));
      for (uint64_t batch = 0; batch < 2; ++batch) {
        Store s;
        std::vector<int32_t> in(static_cast<size_t>(B * T)), unused(in.size());
        for (int64_t row = 0; row < B; ++row) {
          const Window w =
              train_window(q.train_set, 16, hash64(1, 0xca1), batch, static_cast<uint64_t>(row));
          fill_row(q.train_set, w, row, T, in, unused);
        }
        const State st = run_forward(q.be, p, plan, s.ints(in), B, {Gate::hard, Exec::masked});
        for (int64_t k = 0; k < B * T * F; ++k)
          square[static_cast<size_t>(k % F)] += std::pow(at(st.layer[i].act, k), 2);
      }
      std::vector<std::pair<double, int>> score;
      for (int64_t j = 0; j < F; ++j) {
        double mean = 0;
        for (int64_t d = 0; d < D; ++d)
          mean += std::abs(at(q.dense.layer[i].down_w, j * D + d)) / static_cast<double>(D);
        score.push_back({-mean * std::sqrt(square[static_cast<size_t>(j)]), static_cast<int>(j)});
      }
      std::sort(score.begin(), score.end());
      std::vector<int> want;
      for (int64_t k = 0; k < F / 2; ++k) want.push_back(score[static_cast<size_t>(k)].second);
      std::sort(want.begin(), want.end());
      EXPECT_EQ(f.plan.layer[i].order, want) << model << " layer " << i;
      plan.layer[i].order = want;
    }
  }
}

TEST(Prune, CalibrationTokensAreThoseThatWereLookedAt) {
  Problem q;
  for (const auto& [asked, seen] : {std::pair{"256", 512}, {"300", 512}, {"1", 256}}) {
    EXPECT_EQ(q.run("prune", {{"calibration", asked}}).calibration_tokens, seen)
        << "2 layers, batches of 8 windows of 16 tokens; asked for " << asked;
  }
}

TEST(Budget, TokensAreThoseThatWereTrainedOn) {
  Problem q;
  q.train_set.tokens.resize(9);  // sequences of 16 do not exist: the trainer takes 8
  const Fitted f = q.run("dense", {{"steps", "2"}, {"batch", "4"}});
  EXPECT_EQ(f.train_tokens, 2 * 4 * 8);
}

}  // namespace
}  // namespace lte::testing
