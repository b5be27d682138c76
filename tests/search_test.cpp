// The suites train every method with the best learning rate of its search, and the searches are equal.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "bench/record.h"
#include "methods/methods.h"

namespace lte {
namespace {

const std::string kRoot = LTE_SOURCE_DIR;

// Validation losses by learning rate: one run's, or, of a method whose active fraction is what comes out,
// several runs'.
struct Search {
  std::map<std::string, std::map<double, double>> trials;  // rate -> active fraction -> loss

  // At a quarter of the neurons, on the line between the runs around it, or in the nearest run.
  double loss(const std::string& lr) const {
    const std::map<double, double>& runs = trials.at(lr);
    const auto above = runs.lower_bound(0.25);
    if (above == runs.begin()) return above->second;
    const auto below = std::prev(above);
    if (above == runs.end()) return below->second;
    const double t = (0.25 - below->first) / (above->first - below->first);
    return below->second + t * (above->second - below->second);
  }
  std::string best() const {
    std::string best;
    for (const auto& [lr, runs] : trials) {
      if (best.empty() || loss(lr) < loss(best)) best = lr;
    }
    return best;
  }
};

// What routers are warm-started from or predictors fitted to: "noise" are routers that start at random and are kept undecided
// by noise, "labels 0.25" labels that name a quarter of what is computed, "" all of it.
std::string labels_of(const Experiment& e) {
  const auto has = [&](const char* knob) { return e.knobs.contains(knob); };
  if (has("warm_tokens") && !has("start")) return "noise";
  return has("label_share") ? "labels " + e.knobs.at("label_share") : "";
}

// The form of a method: "" is what was searched for all alike, "other" was tried at one rate, else what labels_of says.
std::string form_of(const Experiment& e) {
  const auto has = [&](const char* knob) { return e.knobs.contains(knob); };
  if (labels_of(e) == "noise") return "noise";
  // knobs of what was searched for all alike
  const std::map<std::string, std::string> first = {
      {"d2dmoe before", "0.3"}, {"prune score", "wanda"}, {"lte router_std", "0.2"}};
  for (const char* knob :
       {"before", "decay", "allocation", "warm_tokens", "construction", "noise", "router_lr",
        "router_std", "rank", "hoyer", "rule", "epochs", "calibration", "score"}) {
    const auto known = first.find(e.method + " " + knob);
    if (has(knob) && (known == first.end() || known->second != e.knobs.at(knob))) return "other";
  }
  const bool nano = e.base.model.find("nano") != e.base.model.npos;
  if (e.method != "deja-vu" && has("group") && e.knobs.at("group") != (nano ? "4" : "8"))
    return "other";
  return labels_of(e);
}

bool is_method(const std::string& name) {
  return std::ranges::any_of(methods(), [&](const Method* m) { return m->name == name; });
}

// The trials of the methods that there are.
std::vector<Record> trials() {
  std::vector<Record> found = latest(read_results(kRoot + "/results"));
  std::erase_if(
      found, [](const Record& r) { return r.what.suite != "search" || !is_method(r.what.method); });
  return found;
}

using Key = std::array<std::string, 3>;  // dataset, method, form

std::map<Key, Search> searches() {
  std::map<Key, Search> found;
  for (const Record& r : trials()) {
    EXPECT_EQ(r.split, "valid") << r.name;
    EXPECT_EQ(r.status, "ok") << r.name;
    found[{r.what.base.dataset, r.what.method, form_of(r.what)}]
        .trials[r.what.knobs.at("lr")]
        .emplace(r.quality.active, r.quality.loss);
  }
  return found;
}

// What a method's labels name in the suites: what has the lowest loss, all tried at the rate that is best for labels of all
// that is computed.
std::string chosen_form(const std::map<Key, Search>& all, const std::string& dataset,
                        const std::string& method) {
  std::string chosen;
  const std::string rate = all.at({dataset, method, ""}).best();
  for (const auto& [key, search] : all) {
    if (key[0] == dataset && key[1] == method && key[2].starts_with("labels") &&
        search.loss(rate) < all.at({dataset, method, chosen}).loss(rate))
      chosen = key[2];
  }
  return chosen;
}

// Of the form that was searched for all alike, and of the labels that were chosen, all three; of others the best of those.
TEST(Search, EveryMethodHadTheSameRates) {
  const auto all = searches();
  const std::set<std::string> first = {"7e-4", "2e-3", "5.6e-3"};
  for (const auto& [key, search] : all) {
    const std::string what = key[0] + " " + key[1] + " " + key[2];
    std::set<std::string> rates;
    for (const auto& [lr, runs] : search.trials) rates.insert(lr);
    ASSERT_TRUE(all.contains({key[0], key[1], ""})) << what;
    const std::string chosen = chosen_form(all, key[0], key[1]);
    const bool label = key[2].starts_with("labels");
    if (key[2] == "other" || (label && key[2] != chosen)) {
      EXPECT_TRUE(rates.contains(all.at({key[0], key[1], ""}).best()) ||
                  rates.contains(all.at({key[0], key[1], chosen}).best()))
          << what;
    } else {
      EXPECT_EQ(rates, first) << what;
    }
  }
}

// What an oracle keeps is the best that its experts allow: no selector of the same experts, as published, is
// better by more than the oracle's own measure is off.
TEST(Records, OraclesBoundTheirSelectors) {
  const std::vector<Record> all = latest(read_results(kRoot + "/results"));
  int held = 0;
  for (const Record& oracle : all) {
    const Experiment& o = oracle.what;
    if (o.method != "moefication" || !o.knobs.contains("selection") ||
        o.knobs.at("selection") != "oracle" || oracle.status != "ok")
      continue;
    for (const Record& r : all) {
      Experiment e = r.what;
      if (e.method != o.method || r.status != "ok" || r.name == oracle.name) continue;
      e.knobs["selection"] = "oracle";
      if (name_of(e) != oracle.name) continue;
      ++held;
      EXPECT_LE(oracle.quality.loss, r.quality.loss + 0.005) << r.name;
    }
  }
  EXPECT_GT(held, 5);
}

// All trials on a dataset start from one base model: another one, which another backend trains, moves losses as much as
// settings do.
TEST(Search, TrialsStartFromOneBase) {
  std::map<std::string, std::set<std::string>> bases;
  for (const Record& r : trials()) bases[r.what.base.dataset].insert(r.what.backend);
  EXPECT_EQ(bases.size(), 6u);
  for (const auto& [dataset, backends] : bases)
    EXPECT_EQ(backends.size(), 1u)
        << dataset << ": " << fmt::format("{}", fmt::join(backends, ", "));
}

// Of all settings of a method that were tried, the best on validation text has rows; and who chooses, predicts or prunes
// had eight at least.
TEST(Search, BestSettingsHaveRows) {
  const auto plain = [](Experiment e) {
    e.suite.clear(), e.backend = "any", e.shape = {}, e.seed = 0;
    return name_of(e);
  };
  std::set<std::string> rows;
  for (const Record& r : latest(read_results(kRoot + "/results"))) {
    if (r.what.suite == "quality" || r.what.suite == "text") rows.insert(plain(r.what));
  }
  std::map<std::string, std::vector<Record>> tried;
  for (const Record& r : trials()) tried[r.what.base.dataset + " " + r.what.method].push_back(r);
  // What has no setting but the rate, and controls.
  const std::set<std::string> few = {"cats", "dense", "random-router", "relu", "teal"};
  for (const auto& [what, records] : tried) {
    const Experiment& e = records[0].what;
    EXPECT_GE(records.size(), few.contains(e.method) ? 3u : 8u) << what;
    // The fraction of lte is what comes out; weight decay was tried with dense alone.
    if (e.method == "lte" || e.method == "dense") continue;
    const auto best = std::min_element(
        records.begin(), records.end(),
        [](const Record& a, const Record& b) { return a.quality.loss < b.quality.loss; });
    EXPECT_TRUE(rows.contains(plain(best->what))) << "no row with " << best->name;
  }
}

// But for the backend and the shape, which a run fits to the machine and the text.
std::string name_anywhere(Experiment e) {
  e.backend = "any", e.shape = {};
  return name_of(e);
}

TEST(Search, EveryTrialIsRecorded) {
  std::set<std::string> wanted, recorded;
  for (const Experiment& e : load_suite(kRoot + "/suites/search.toml").experiments)
    wanted.insert(name_anywhere(e));
  for (const Record& r : trials()) recorded.insert(name_anywhere(r.what));
  for (const std::string& name : wanted)
    EXPECT_TRUE(recorded.contains(name)) << "not run: " << name;
  for (const std::string& name : recorded)
    EXPECT_TRUE(wanted.contains(name)) << "not in search.toml: " << name;
}

class Suite : public ::testing::TestWithParam<const char*> {};
TEST_P(Suite, TrainsWithTheBestLearningRate) {
  const auto all = searches();
  std::map<std::array<std::string, 2>, int> tried;
  for (const Record& r : trials()) ++tried[{r.what.base.dataset, r.what.method}];
  int held = 0;
  for (const Experiment& e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (e.protocol == "paper") continue;
    ++held;
    const auto search = all.find({e.base.dataset, e.method, labels_of(e)});
    ASSERT_NE(search, all.end()) << "no search for " << name_of(e);
    EXPECT_EQ(e.knobs.at("lr"), search->second.best()) << name_of(e);
    EXPECT_EQ(e.trials, (tried[{e.base.dataset, e.method}])) << name_of(e);
  }
  EXPECT_GT(held, 10);
}
// Rows of methods whose labels were searched for have the chosen ones, or stand beside a row that has and is the same otherwise.
TEST_P(Suite, LabelsAreTheChosenOnes) {
  const auto all = searches();
  const auto rest = [](Experiment e) {
    e.knobs.erase("label_share"), e.knobs.erase("lr");
    return e.protocol + " " + name_of(e);
  };
  std::set<std::string> right;
  std::vector<Experiment> others;
  for (const Experiment& e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (!all.contains({e.base.dataset, e.method, "labels 0.5"})) continue;
    const std::string form = labels_of(e);
    if (form == chosen_form(all, e.base.dataset, e.method))
      right.insert(rest(e));
    else if (form != "noise")
      others.push_back(e);
  }
  EXPECT_GT(right.size(), 5u);
  for (const Experiment& e : others) {
    EXPECT_FALSE(labels_of(e).starts_with("labels")) << name_of(e);
    const bool blocks = e.knobs.at("group") == "32";  // their labels were not searched for
    const bool published =
        e.protocol == "paper" && e.base.model.find("act=relu") != e.base.model.npos;
    EXPECT_TRUE(blocks || published || right.contains(rest(e))) << "no labels: " << name_of(e);
  }
}
// The committed results hold every row of the suite, and no row of it that the suite no longer has.
TEST_P(Suite, EveryRowIsRecorded) {
  const SuiteSpec suite = load_suite(kRoot + "/suites/" + GetParam());
  std::map<std::string, Experiment> recorded;
  for (const Record& r : latest(read_results(kRoot + "/results"))) {
    if (r.what.suite != suite.name || !is_method(r.what.method)) continue;
    EXPECT_EQ(r.status, "ok") << r.name << ": " << r.why;
    recorded[name_anywhere(r.what)] = r.what;
  }
  for (const Experiment& e : suite.experiments) {
    const auto found = recorded.find(name_anywhere(e));
    if (found == recorded.end()) {
      ADD_FAILURE() << "not recorded: " << name_of(e);
      continue;
    }
    EXPECT_EQ(found->second.protocol, e.protocol) << name_of(e);
    EXPECT_EQ(found->second.trials, e.trials) << name_of(e);
    recorded.erase(found);
  }
  for (const auto& [name, what] : recorded) ADD_FAILURE() << "not in the suite: " << name;
}
INSTANTIATE_TEST_SUITE_P(Suites, Suite,
                         ::testing::Values("default.toml", "quality.toml", "text.toml"));

}  // namespace
}  // namespace lte
