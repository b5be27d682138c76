// Static pruning: scores by hand, what layers share, the bias that stays, and the learnt mask.
#include <fmt/format.h>

#include <numeric>
#include <set>

#include "fitting.h"
#include "methods/prune_scores.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte::testing {
namespace {

constexpr const char* kOneLayer = "gpt2-nano:dim=16,heads=2,ffn=32,layers=1,max_seq=32";
constexpr const char* kOneGated = "llama-nano:dim=16,heads=2,kv_heads=2,ffn=32,layers=1,max_seq=32";

TEST(Prune, MagnitudeKeepsTheLongestDownRows) {
  Fitting q("gpt2-nano:dim=16,heads=2,ffn=32,layers=1,max_seq=32");
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
    Fitting q(model);
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
  Fitting q;
  for (const auto& [asked, seen] : {std::pair{"256", 512}, {"300", 512}, {"1", 256}}) {
    EXPECT_EQ(q.run("prune", {{"calibration", asked}}).calibration_tokens, seen)
        << "2 layers, batches of 8 windows of 16 tokens; asked for " << asked;
  }
}

// Mean and variance by two passes over the same tokens.
TEST(ActivationStats, AreThoseOfTwoPasses) {
  Fitting q;
  Plan plan = dense_plan(q.c);
  plan.layer[0].order = {1, 5, 9, 30};
  const Params p = apply_order(q.dense, plan);
  for (size_t layer : {0u, 1u}) {
    int64_t seen = 100;
    const ActivationStats got = activation_stats(q.input(), plan, layer, 384, seen);
    EXPECT_EQ(seen, 100 + 384);
    std::vector<Values> rows;
    calibrate(q.input(), p, plan, 384, [&](const State& s) {
      const Tensor& act = s.layer[layer].act;
      for (int64_t r = 0; r < act.rows(); ++r) {
        rows.emplace_back();
        for (int64_t j = 0; j < act.cols(); ++j) rows.back().push_back(at(act, r * act.cols() + j));
      }
    });
    ASSERT_EQ(rows.size(), 384u);
    ASSERT_EQ(got.mean.size(), layer == 0 ? 4u : 32u);
    for (size_t j = 0; j < got.mean.size(); ++j) {
      double mean = 0, variance = 0, square = 0;
      for (const Values& r : rows) mean += r[j] / 384, square += r[j] * r[j];
      for (const Values& r : rows) variance += std::pow(r[j] - mean, 2) / 384;
      EXPECT_NEAR(got.mean[j], mean, 1e-12);
      EXPECT_NEAR(got.variance[j], variance, 1e-12);
      EXPECT_NEAR(got.square[j], square, 1e-9);
      EXPECT_GT(variance, 1e-8);
    }
  }
}

// The mean loss of the first `batches` batches that Taylor scores look at, in double.
struct MeanLoss {
  Fitting& q;
  Plan plan = dense_plan(q.c);
  Params p = make_params(q.c, plan, DType::f64);
  explicit MeanLoss(Fitting& fitting) : q(fitting) {
    std::vector<Tensor> from;
    visit_params(q.dense, [&](Tensor& t, const ParamInfo&) { from.push_back(t); });
    size_t k = 0;
    visit_params(p, [&](Tensor& t, const ParamInfo&) {
      for (int64_t i = 0; i < t.size(); ++i) put(t, i, at(from[k], i));
      ++k;
    });
  }
  double operator()(uint64_t batches) const {
    double sum = 0;
    for (uint64_t b = 0; b < batches; ++b) {
      Store s;
      std::vector<int32_t> in(8 * 16), want(in.size());
      for (int64_t row = 0; row < 8; ++row) {
        const Window w =
            train_window(q.train_set, 16, hash64(1, 0x7a710), b, static_cast<uint64_t>(row));
        fill_row(q.train_set, w, row, 16, in, want);
      }
      const State st = run_forward(q.be, p, plan, s.ints(in), 8, {Gate::hard, Exec::masked});
      for (size_t n = 0; n < want.size(); ++n) {
        double z = 0;
        const auto at_n = static_cast<int64_t>(n) * kFitVocab;
        for (int64_t v = 0; v < kFitVocab; ++v) z += std::exp(at(st.logits, at_n + v));
        sum += std::log(z) - at(st.logits, at_n + want[n]);
      }
    }
    return sum / static_cast<double>(batches * 8 * 16);
  }
};

TEST(Taylor, IsWeightTimesGradientByDifferences) {
  for (const char* model : {kGpt, kLlama}) {
    Fitting q(model);
    int64_t seen = 0;
    const LayerScores got = taylor_scores(q.input(), 256, seen);
    EXPECT_EQ(seen, 256);
    ASSERT_EQ(got.size(), 2u);
    const MeanLoss loss(q);
    for (const auto& [layer, j] : {std::pair<size_t, int64_t>{0, 3}, {1, 17}}) {
      const LayerParams& l = loss.p.layer[layer];
      double want = 0;
      for (const Tensor& t : {l.gate_w, l.up_w, l.down_w}) {
        for (int64_t i = j * 16; t && i < j * 16 + 16; ++i) {
          const double w = at(t, i), h = 1e-5;
          put(t, i, w + h);
          const double up = loss(2);
          put(t, i, w - h);
          want += std::abs(w * (up - loss(2)) / (2 * h));
          put(t, i, w);
        }
      }
      // The backward pass in f32 against differences in double.
      EXPECT_NEAR(got[layer][static_cast<size_t>(j)], want, 1e-4 * want) << model;
    }
  }
}

TEST(Prune, FlapIsVarianceTimesSquaredNorm) {
  Fitting q;
  const Fitted f = q.run(
      "prune",
      {{"active", "0.5"}, {"score", "flap"}, {"calibration", "256"}, {"allocation", "uniform"}});
  int64_t seen = 0;
  const ActivationStats stats = activation_stats(q.input(), dense_plan(q.c), 0, 256, seen);
  std::vector<std::pair<double, int>> order;
  for (int j = 0; j < 32; ++j) {
    double square = 0;
    for (int d = 0; d < 16; ++d) square += std::pow(at(q.dense.layer[0].down_w, j * 16 + d), 2);
    order.push_back({-square * stats.variance[static_cast<size_t>(j)], j});
  }
  std::sort(order.begin(), order.end());
  std::set<int> want;
  for (size_t k = 0; k < 16; ++k) want.insert(order[k].second);
  EXPECT_EQ(std::set<int>(f.plan.layer[0].order.begin(), f.plan.layer[0].order.end()), want);
  EXPECT_TRUE(f.plan.layer[0].down_bias) << "compensated, as published";
}

// What the FFN adds on average over the calibration tokens.
Values mean_output(Fitting& q, const Params& p, const Plan& plan) {
  Values mean(16);
  calibrate(q.input(), p, plan, 256, [&](const State& s) {
    const Tensor& delta = s.layer[0].delta;
    for (int64_t i = 0; i < delta.size(); ++i)
      mean[static_cast<size_t>(i % 16)] += at(delta, i) / 256;
  });
  return mean;
}

TEST(Prune, CompensationKeepsTheMeanOutput) {
  for (const char* model : {kOneLayer, kOneGated}) {
    for (const char* score : {"magnitude", "wanda", "flap", "random"}) {
      Fitting q(model);
      Knobs k = {{"active", "0.25"}, {"score", score}, {"calibration", "256"}, {"compensate", "1"}};
      const Values want = mean_output(q, q.dense, dense_plan(q.c));
      const Fitted with = q.run("prune", k);
      k["compensate"] = "0";
      const Fitted without = q.run("prune", k);
      const Values a = mean_output(q, with.params, with.plan),
                   b = mean_output(q, without.params, without.plan);
      double worst = 0, off = 0;
      for (size_t d = 0; d < 16; ++d)
        worst = std::max(worst, std::abs(a[d] - want[d])),
        off = std::max(off, std::abs(b[d] - want[d]));
      EXPECT_LT(worst, 1e-5 * std::max(1.0, largest(want))) << model << ' ' << score;
      EXPECT_GT(off, 1e-3) << model << ' ' << score << ": nothing to compensate";
      EXPECT_FALSE(without.plan.layer[0].down_bias);
      EXPECT_EQ(with.plan.layer[0].order, without.plan.layer[0].order);
    }
  }
}

TEST(Prune, GlobalAllocationKeepsTheAskedTotal) {
  for (const char* score : {"magnitude", "wanda", "flap", "taylor", "random", "mask"}) {
    for (const auto& [active, total] :
         {std::pair{"0.5", 32u}, {"0.3", 19u}, {"1", 64u}, {"0.03", 2u}}) {
      Fitting q;
      const Fitted f = q.run("prune", {{"active", active},
                                       {"score", score},
                                       {"allocation", "global"},
                                       {"calibration", "256"},
                                       {"mask_steps", "3"},
                                       {"batch", "4"}});
      const size_t a = f.plan.layer[0].order.size(), b = f.plan.layer[1].order.size();
      EXPECT_EQ(a + b, total) << score << ' ' << active;
      EXPECT_GE(std::min(a, b), 1u) << score << ' ' << active;
    }
  }
}

TEST(Prune, GlobalAllocationFollowsTheScores) {
  Fitting q;
  // Layer 1 has a few long rows and many short ones, layer 0 all of one length but for noise.
  Rng rng(5);
  for (int64_t i = 0; i < 32 * 16; ++i) {
    put(q.dense.layer[0].down_w, i, 1 + 0.01 * rng.normal());
    put(q.dense.layer[1].down_w, i, (i / 16 < 4 ? 10 : 1) + 0.001 * rng.normal());
  }
  const Knobs k = {{"active", "0.125"}, {"score", "magnitude"}, {"allocation", "global"}};
  const Fitted f = q.run("prune", k);
  // Standardised, the four long rows lie 2.6 deviations up, and at most a few of the others do.
  const std::vector<int>& second = f.plan.layer[1].order;
  EXPECT_EQ(second, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(f.plan.layer[0].order.size(), 4u);
}

TEST(Prune, RandomIsDrawnBySeed) {
  Fitting q;
  const Knobs k = {{"active", "0.5"}, {"score", "random"}};
  const Fitted a = q.run("prune", k, 1), b = q.run("prune", k, 1), other = q.run("prune", k, 2);
  EXPECT_EQ(a.plan.layer[0].order, b.plan.layer[0].order);
  EXPECT_NE(a.plan.layer[0].order, other.plan.layer[0].order);
  EXPECT_NE(a.plan.layer[0].order, a.plan.layer[1].order);
}

// ---- the learnt mask

// A model all of whose FFN is in eight neurons a layer: the others' down rows are zero.
std::vector<std::set<int>> plant_important(Fitting& q) {
  const Fitted f = q.run(
      "prune",
      {{"steps", "200"}, {"active", "0.25"}, {"score", "random"}, {"batch", "8"}, {"lr", "1e-2"}});
  std::vector<std::set<int>> important;
  copy_matching(q.dense, f.params);
  for (size_t i = 0; i < q.dense.layer.size(); ++i) {
    LayerParams& to = q.dense.layer[i];
    const LayerParams& from = f.params.layer[i];
    const std::vector<int>& order = f.plan.layer[i].order;
    important.emplace_back(order.begin(), order.end());
    for (int64_t k = 0; k < to.down_w.size(); ++k) put(to.down_w, k, 0);
    for (size_t n = 0; n < order.size(); ++n) {
      const int64_t j = order[n], row = static_cast<int64_t>(n);
      put(to.up_b, j, at(from.up_b, row));
      for (int64_t d = 0; d < 16; ++d) {
        put(to.up_w, j * 16 + d, at(from.up_w, row * 16 + d));
        put(to.down_w, j * 16 + d, at(from.down_w, row * 16 + d));
      }
    }
  }
  return important;
}

TEST(LearnMask, KeepsWhatMatters) {
  for (bool global : {false, true}) {
    Fitting q;
    const auto important = plant_important(q);
    const TrainSpec train{.batch = 8, .seq = 16, .lr = 0, .seed = 1, .terms = {}};
    const LayerScores logits =
        learn_mask(q.input(), train, {.steps = 800, .active = 0.35, .global = global}).logits;
    ASSERT_EQ(logits.size(), 2u);
    double open = 0;
    for (size_t i = 0; i < 2; ++i) {
      double low = 1e9, high = -1e9;
      for (int j = 0; j < 32; ++j) {
        const double a = logits[i][static_cast<size_t>(j)];
        (important[i].contains(j) ? low : high) =
            important[i].contains(j) ? std::min(low, a) : std::max(high, a);
        // Hard concrete: the probability that a gate is not 0, with beta 2/3 and limits -0.1, 1.1.
        open += 1 / (1 + std::exp(-(a + 2.0 / 3 * std::log(11.0)))) / 64;
      }
      EXPECT_GT(low, high) << "layer " << i << " global " << global;
    }
    EXPECT_NEAR(open, 0.35, 0.01) << "the constraint on the expected share";
  }
}

TEST(LearnMask, TrainsTheModelMeanwhile) {
  Fitting q;
  TrainSpec train{.batch = 8, .seq = 16, .lr = 0, .seed = 1, .terms = {}};
  const MaskSpec mask{.steps = 20, .active = 0.5};
  const auto loss = [&](const Params& p) {
    const std::vector<Window> windows = test_windows(q.train_set, 16, 32);
    return score(q.be, p, dense_plan(p.cfg), q.train_set, windows, {1, 16, 0}, Exec::masked).loss;
  };
  const double before = loss(q.dense);
  EXPECT_EQ(loss(learn_mask(q.input(), train, mask).params), before);
  train.lr = 3e-3;
  EXPECT_LT(loss(learn_mask(q.input(), train, mask).params), before - 0.01);
}

TEST(LearnMask, TakesItsStepsOutOfTheBudget) {
  Fitting q;
  Knobs k = {{"score", "mask"}, {"mask_steps", "5"}, {"batch", "4"}, {"steps", "12"}};
  EXPECT_EQ(q.run("prune", k).train_tokens, 12 * 4 * 16);
  k["steps"] = "0";
  EXPECT_EQ(q.run("prune", k).train_tokens, 5 * 4 * 16) << "learning the mask is training";
  k["steps"] = "5";
  EXPECT_NE(error_of([&] { q.run("prune", k); }).find("mask_steps"), std::string::npos);
}

TEST(LearnMask, ForbidsCompensationBeforeItBegins) {
  Fitting q;
  const Knobs k = {
      {"score", "mask"}, {"compensate", "1"}, {"batch", "4"}, {"mask_steps", "1000000000"}};
  EXPECT_NE(error_of([&] { q.run("prune", k); }).find("compensate=1"), std::string::npos);
}

}  // namespace
}  // namespace lte::testing
