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
  static const std::map<std::string, std::string> kSiblings = {{"lte", "moefication"},
                                                               {"random-router", "moefication"},
                                                               {"prune-path", "moefication"},
                                                               {"teal", "dense"},
                                                               {"cats", "dense"},
                                                               {"relu", "dense"}};
  const auto sibling = kSiblings.find(e.method);
  return sibling == kSiblings.end() ? e.method : sibling->second;
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

using Key = std::pair<std::string, std::string>;  // dataset, method

std::map<Key, Search> searches() {
  std::map<Key, Search> found;
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl"))) {
    if (r.what.suite != "search") continue;
    EXPECT_EQ(r.split, "valid") << r.name;
    EXPECT_EQ(r.status, "ok") << r.name;
    found[{r.what.base.dataset, r.what.method}].trials[r.what.knobs.at("lr")] = r.quality.loss;
  }
  return found;
}

// The rates that a dataset without a search of its own may borrow: those that most searches chose, of the
// dense model or of all sparse methods together.
std::set<std::string> most_chosen(const std::map<Key, Search>& all, const std::string& method) {
  std::map<std::string, int> votes;
  int most = 0;
  for (const auto& [key, search] : all) {
    if ((key.second == "dense") == (method == "dense"))
      most = std::max(most, ++votes[search.best()]);
  }
  std::set<std::string> rates;
  for (const auto& [rate, n] : votes) {
    if (n == most) rates.insert(rate);
  }
  return rates;
}

TEST(Search, EveryMethodHadTheSameTrials) {
  const auto all = searches();
  ASSERT_EQ(all.size(), 28u) << "seven methods on four datasets";
  std::set<std::string> first;
  for (const auto& [lr, loss] : all.begin()->second.trials) first.insert(lr);
  EXPECT_EQ(first.size(), 3u);
  for (const auto& [key, search] : all) {
    std::set<std::string> rates;
    for (const auto& [lr, loss] : search.trials) rates.insert(lr);
    EXPECT_EQ(rates, first) << key.first << " " << key.second;
  }
}

class Suite : public ::testing::TestWithParam<const char*> {};
TEST_P(Suite, TrainsWithTheBestLearningRate) {
  const auto all = searches();
  int held = 0;
  for (const Experiment& e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (e.protocol == "paper") continue;
    ++held;
    const std::string method = tuned_as(e);
    const auto search = all.find({e.base.dataset, method});
    if (search == all.end()) {
      EXPECT_TRUE(most_chosen(all, method).contains(e.knobs.at("lr"))) << name_of(e);
      EXPECT_EQ(e.trials, 1) << "borrowed: " << name_of(e);
      continue;
    }
    EXPECT_EQ(e.knobs.at("lr"), search->second.best()) << name_of(e);
    const bool own =
        e.method == method && (!e.knobs.contains("score") || e.knobs.at("score") == "wanda");
    EXPECT_EQ(e.trials, own ? static_cast<int>(search->second.trials.size()) : 1) << name_of(e);
  }
  EXPECT_GT(held, 10);
}
INSTANTIATE_TEST_SUITE_P(Suites, Suite,
                         ::testing::Values("default.toml", "quality.toml", "text.toml"));

}  // namespace
}  // namespace lte
