// The suites train every method with the best learning rate of its search, and the searches are equal.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "bench/record.h"

namespace lte {
namespace {

const std::string kRoot = LTE_SOURCE_DIR;

// Who takes whose learning rate; see suites/search.toml.
std::string tuned_as(const Experiment& e) {
  static const std::map<std::string, std::string> kSiblings = {{"lte", "lte-one-stage"},
                                                               {"random-router", "moefication"},
                                                               {"prune-path", "moefication"},
                                                               {"teal", "dense"},
                                                               {"cats", "dense"},
                                                               {"relu", "dense"}};
  const auto sibling = kSiblings.find(e.method);
  return fmt::format("{} {}", e.base.dataset,
                     sibling == kSiblings.end() ? e.method : sibling->second);
}

struct Search {
  std::map<std::string, double> trials;  // learning rate -> validation loss
  std::string best() const {
    std::string best;
    for (const auto& [lr, loss] : trials) {
      if (best.empty() || loss < trials.at(best)) best = lr;
    }
    return best;
  }
};

std::map<std::string, Search> searches() {
  std::map<std::string, Search> found;
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl"))) {
    if (r.what.suite != "search") continue;
    EXPECT_EQ(r.split, "valid") << r.name;
    EXPECT_EQ(r.status, "ok") << r.name;
    found[tuned_as(r.what)].trials[r.what.knobs.at("lr")] = r.quality.loss;
  }
  return found;
}

TEST(Search, EveryMethodHadTheSameTrials) {
  const auto all = searches();
  ASSERT_GE(all.size(), 36u);
  std::set<std::string> first;
  for (const auto& [lr, loss] : all.begin()->second.trials) first.insert(lr);
  for (const auto& [key, search] : all) {
    std::set<std::string> rates;
    for (const auto& [lr, loss] : search.trials) rates.insert(lr);
    EXPECT_EQ(rates, first) << key;
  }
}

class Suite : public ::testing::TestWithParam<const char*> {};
TEST_P(Suite, TrainsWithTheBestLearningRate) {
  const auto all = searches();
  int held = 0;
  for (const Experiment& e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (e.protocol == "paper") continue;
    const auto search = all.find(tuned_as(e));
    ASSERT_NE(search, all.end()) << name_of(e);
    EXPECT_EQ(e.knobs.at("lr"), search->second.best()) << name_of(e);
    const bool own = e.base.dataset + " " + e.method == tuned_as(e) &&
                     (!e.knobs.contains("score") || e.knobs.at("score") == "wanda");
    EXPECT_EQ(e.trials, own ? static_cast<int>(search->second.trials.size()) : 1) << name_of(e);
    ++held;
  }
  EXPECT_GT(held, 10);
}
INSTANTIATE_TEST_SUITE_P(Suites, Suite,
                         ::testing::Values("default.toml", "quality.toml", "text.toml"));

}  // namespace
}  // namespace lte
