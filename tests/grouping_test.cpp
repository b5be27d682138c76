// Grouping of neurons into experts: clusters, partitions, and the constructions by name.
#include "methods/grouping.h"

#include <fmt/format.h>

#include <numeric>
#include <set>

#include "fitting.h"
#include "methods/cluster.h"

namespace lte::testing {
namespace {

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

// ---- partitions

// Weight of the edges inside groups.
double inside(const std::vector<float>& w, const std::vector<int>& order, int group) {
  const size_t F = order.size(), G = static_cast<size_t>(group);
  double sum = 0;
  for (size_t i = 0; i < F; ++i) {
    for (size_t j = i / G * G; j < i / G * G + G; ++j)
      if (i != j) sum += w[static_cast<size_t>(order[i]) * F + static_cast<size_t>(order[j])];
  }
  return sum;
}

std::vector<float> random_graph(size_t F, Rng& rng) {
  std::vector<float> w(F * F);
  for (size_t i = 0; i < F; ++i) {
    for (size_t j = 0; j <= i; ++j)
      w[i * F + j] = w[j * F + i] = static_cast<float>(std::pow(rng.uniform(), 3));
  }
  return w;
}

TEST(BalancedPartition, FindsAPlantedOne) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Rng rng(seed);
    const size_t F = 24, groups = 4;
    std::vector<int> label(F);
    for (size_t j = 0; j < F; ++j) label[j] = static_cast<int>(j % groups);
    shuffle(label, rng);
    std::vector<float> w = random_graph(F, rng);
    for (size_t i = 0; i < F * F; ++i)
      w[i] = 0.2f * w[i] + (label[i / F] == label[i % F] ? 1.f : 0.f);
    const std::vector<int> order = balanced_partition(w, F, 6, seed);
    for (size_t j = 0; j < F; ++j)
      EXPECT_EQ(label[static_cast<size_t>(order[j])], label[static_cast<size_t>(order[j / 6 * 6])])
          << "seed " << seed;
  }
}

TEST(BalancedPartition, NoExchangeHelpsAndChanceIsWorse) {
  Rng rng(2);
  for (int group : {1, 2, 3, 8, 24}) {
    const std::vector<float> w = random_graph(24, rng);
    std::vector<int> order = balanced_partition(w, 24, group, 7);
    EXPECT_EQ(std::set<int>(order.begin(), order.end()).size(), 24u);
    EXPECT_EQ(order, balanced_partition(w, 24, group, 7));
    const double found = inside(w, order, group);
    std::vector<int> random(24);
    std::iota(random.begin(), random.end(), 0);
    for (int i = 0; i < 50; ++i) {
      shuffle(random, rng);
      EXPECT_GE(found, inside(w, random, group) * (1 - 1e-9)) << "group " << group;
    }
    for (size_t i = 0; i < 24; ++i) {
      for (size_t j = 0; j < i; ++j) {
        std::swap(order[i], order[j]);
        EXPECT_LE(inside(w, order, group), found + 1e-4) << "group " << group;
        std::swap(order[i], order[j]);
      }
    }
  }
  EXPECT_THROW(balanced_partition(std::vector<float>(576), 24, 7, 1), Error);
  EXPECT_THROW(balanced_partition(std::vector<float>(576), 24, 0, 1), Error);
  EXPECT_THROW(balanced_partition(std::vector<float>(575), 24, 8, 1), Error);
  EXPECT_EQ(balanced_partition(std::vector<float>(64), 8, 2, 1).size(), 8u) << "no edges at all";
}

// ---- constructions

TEST(Constructions, DifferAndLookOnlyWhereTheyMust) {
  Fitting q;
  std::set<std::vector<int>> orders;
  for (const char* name : {"kmeans", "coactivation", "random", "contiguous"}) {
    int64_t seen = 0;
    const Plan plan = grouped_plan(q.input(), name, 8, 256, seen), again = plan;
    EXPECT_NO_THROW(check_plan(q.c, plan));
    EXPECT_EQ(seen, name == std::string("coactivation") ? 256 : 0) << name;
    for (const FfnPlan& f : plan.layer) {
      EXPECT_EQ(f.group, 8);
      EXPECT_EQ(f.order.size(), 32u);
      EXPECT_EQ(f.router, RouterKind::none);
    }
    EXPECT_TRUE(orders.insert(plan.layer[0].order).second) << name << " is like another";
    const bool contiguous = name == std::string("contiguous");
    EXPECT_EQ(plan.layer[0].order == plan.layer[1].order, contiguous) << name;
    EXPECT_EQ(std::is_sorted(plan.layer[0].order.begin(), plan.layer[0].order.end()), contiguous);
    int64_t more = 0;
    const Plan other = grouped_plan(q.input(2), name, 8, 256, more);
    EXPECT_EQ(other.layer[0].order == plan.layer[0].order, contiguous) << name << ": the seed";
  }
  int64_t seen = 0;
  const std::string e = error_of([&] { grouped_plan(q.input(), "best", 8, 256, seen); });
  EXPECT_NE(e.find("construction=best"), std::string::npos) << e;
  EXPECT_NE(e.find("coactivation"), std::string::npos) << e;
}

// Neurons that fire on the same half of the input space belong together, whatever their order.
TEST(Constructions, CoactivationGroupsWhatFiresTogether) {
  Fitting q("gpt2-nano:dim=16,heads=2,ffn=32,layers=1,max_seq=32,act=relu");
  LayerParams& l = q.dense.layer[0];
  Rng rng(9);
  std::vector<int> side(32);
  for (size_t j = 0; j < 32; ++j) side[j] = j % 2 ? 1 : -1;
  shuffle(side, rng);
  Values direction(16);
  for (double& d : direction) d = rng.normal();
  for (int64_t j = 0; j < 32; ++j) {
    put(l.up_b, j, 0);
    const double scale = 0.5 + rng.uniform();
    for (int64_t d = 0; d < 16; ++d)
      put(l.up_w, j * 16 + d,
          scale * (side[static_cast<size_t>(j)] * direction[static_cast<size_t>(d)] +
                   0.1 * rng.normal()));
  }
  int64_t seen = 0;
  const Plan plan = grouped_plan(q.input(), "coactivation", 16, 512, seen);
  for (size_t j = 0; j < 32; ++j) {
    const std::vector<int>& order = plan.layer[0].order;
    EXPECT_EQ(side[static_cast<size_t>(order[j])], side[static_cast<size_t>(order[j / 16 * 16])]);
  }
}

TEST(Constructions, KeptExpertsAreAtLeastOneOrRefused) {
  Fitting q;
  const FfnPlan f{.group = 4, .order = {}};
  for (const auto& [active, kept] :
       {std::pair{0.07, 1.0}, {0.25, 2.0}, {0.3, 2.0}, {0.5, 4.0}, {1.0, 8.0}})
    EXPECT_EQ(kept_experts(q.c, f, active), kept) << active;
  for (double none : {0.0, 0.05}) EXPECT_THROW(kept_experts(q.c, f, none), Error) << none;
}

}  // namespace
}  // namespace lte::testing
