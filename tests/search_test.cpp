// The suites train every method with the best learning rate of its search, and the searches are equal.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "bench/record.h"

namespace lte {
namespace {

const std::string kRoot = LTE_SOURCE_DIR;

// What a search is made for. Two-stage lte takes the learning rate of lte-one-stage.
std::string key_of(const Experiment& e) {
  const auto score = e.knobs.find("score");
  return fmt::format("{} {} {}", e.base.dataset, e.method == "lte" ? "lte-one-stage" : e.method,
                     score == e.knobs.end() ? "" : score->second);
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
  for (const Record& r : latest(read_records(kRoot + "/results/records.jsonl"))) {
    if (r.what.suite != "search") continue;
    EXPECT_EQ(r.split, "valid") << r.name;
    EXPECT_EQ(r.status, "ok") << r.name;
    found[key_of(r.what)].trials[r.what.knobs.at("lr")] = r.quality.loss;
  }
  return found;
}

TEST(Search, EveryMethodHadTheSameTrials) {
  const auto all = searches();
  ASSERT_GE(all.size(), 8u);
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
    const auto search = all.find(key_of(e));
    ASSERT_NE(search, all.end()) << name_of(e);
    EXPECT_EQ(e.knobs.at("lr"), search->second.best()) << name_of(e);
    EXPECT_EQ(e.trials, static_cast<int>(search->second.trials.size())) << name_of(e);
    ++held;
  }
  EXPECT_GT(held, 10);
}
INSTANTIATE_TEST_SUITE_P(Suites, Suite, ::testing::Values("default.toml", "full.toml"));

}  // namespace
}  // namespace lte
