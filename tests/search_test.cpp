// The suites train every method with the best learning rate of its search, and the searches are equal.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "bench/record.h"

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

// The form of a method: "" is what was searched for all alike; "noise" are routers that start at random and
// are kept undecided by noise, "labels 0.25" labels that name a quarter of what is computed; "other" was tried once.
std::string form_of(const Experiment& e) {
  const auto has = [&](const char* knob) { return e.knobs.contains(knob); };
  if (has("warm_tokens") && !has("start")) return "noise";
  if (has("label_share") && !has("construction")) return "labels " + e.knobs.at("label_share");
  const bool before = has("before") && !(e.method == "d2dmoe" && e.knobs.at("before") == "0.3");
  const bool other = before || has("decay") || has("allocation") || has("warm_tokens") ||
                     has("construction") || has("noise") || has("router_lr") || has("hoyer") ||
                     has("rule") || has("epochs") || has("calibration") ||
                     (e.method != "prune" && has("score"));
  return other ? "other" : "";
}

using Key = std::array<std::string, 3>;  // dataset, method, form

std::map<Key, Search> searches() {
  std::map<Key, Search> found;
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl"))) {
    if (r.what.suite != "search") continue;
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

TEST(Search, EveryMethodHadTheSameTrials) {
  const auto all = searches();
  std::set<std::string> first;
  for (const auto& [lr, runs] : all.begin()->second.trials) first.insert(lr);
  EXPECT_EQ(first.size(), 3u);
  std::map<std::string, int> forms;
  for (const auto& [key, search] : all) {
    ++forms[key[2]];
    const std::string what = key[0] + " " + key[1] + " " + key[2];
    std::set<std::string> rates;
    for (const auto& [lr, runs] : search.trials) rates.insert(lr);
    const std::string best = all.at({key[0], key[1], ""}).best();
    const bool label = key[2].starts_with("labels");
    if (key[2] == "other" || (label && key[2] != chosen_form(all, key[0], key[1]))) {
      EXPECT_TRUE(rates.contains(best)) << what;
    } else {
      EXPECT_EQ(rates, first) << what;
    }
  }
  EXPECT_EQ(forms[""], 8 * 6 + 18) << "eight methods on six datasets, five where they are trained";
  EXPECT_EQ(forms["other"], 8 * 4 + 4 * 2)
      << "other forms of the eight on the nano models, of those that predict on the others";
  for (const char* share : {"0.5", "0.25", "0.125"})
    EXPECT_EQ(forms[std::string("labels ") + share], 2 * 6) << "labels of two methods";
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

// Of the settings of methods that learn to predict, all tried from one base model, the best on validation text has rows.
TEST(Search, BestSettingsHaveRows) {
  const auto plain = [](Experiment e) {
    e.suite.clear(), e.backend = "any", e.shape = {}, e.seed = 0;
    return name_of(e);
  };
  std::map<std::string, int> rows;  // the trials that they name
  for (const Record& r : latest(read_results(kRoot + "/results"))) {
    if (r.what.suite == "quality" || r.what.suite == "text") rows[plain(r.what)] = r.what.trials;
  }
  std::map<std::string, std::vector<Record>> tried;
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl"))) {
    const Experiment& e = r.what;
    if (e.method == "moefication" || e.method == "d2dmoe" || e.method == "prune-path" ||
        e.method == "lte-one-stage")
      tried[e.base.dataset + " " + e.method].push_back(r);
  }
  EXPECT_EQ(tried.size(), 4u * 6);
  for (const auto& [what, records] : tried) {
    EXPECT_GE(records.size(), 8u) << what;
    const auto best = std::min_element(
        records.begin(), records.end(),
        [](const Record& a, const Record& b) { return a.quality.loss < b.quality.loss; });
    ASSERT_TRUE(rows.contains(plain(best->what))) << "no row with " << best->name;
    if (form_of(best->what) == "other") {
      EXPECT_EQ(rows[plain(best->what)], static_cast<int>(records.size())) << best->name;
    }
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
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl"))) {
    if (r.what.suite == "search") recorded.insert(name_anywhere(r.what));
  }
  for (const std::string& name : wanted)
    EXPECT_TRUE(recorded.contains(name)) << "not run: " << name;
  for (const std::string& name : recorded)
    EXPECT_TRUE(wanted.contains(name)) << "not in search.toml: " << name;
}

class Suite : public ::testing::TestWithParam<const char*> {};
TEST_P(Suite, TrainsWithTheBestLearningRate) {
  const auto all = searches();
  std::map<std::array<std::string, 2>, size_t> tried;
  for (const Record& r : latest(read_records(kRoot + "/results/trials.jsonl")))
    ++tried[{r.what.base.dataset, r.what.method}];
  int held = 0;
  for (const Experiment& e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (e.protocol == "paper") continue;
    ++held;
    const std::string form = form_of(e) == "other" ? "" : form_of(e);
    const auto search = all.find({e.base.dataset, e.method, form});
    ASSERT_NE(search, all.end()) << "no search for " << name_of(e);
    EXPECT_EQ(e.knobs.at("lr"), search->second.best()) << name_of(e);
    const std::string chosen = chosen_form(all, e.base.dataset, e.method);
    size_t trials = search->second.trials.size();
    if (form == chosen) {  // labels were chosen by trials too
      for (const auto& [key, other] : all) {
        if (key[0] == e.base.dataset && key[1] == e.method && key[2] != form &&
            (key[2].empty() || key[2].starts_with("labels")))
          trials += other.trials.size();
      }
    }
    if (form_of(e) == "other" && e.trials > 3) {  // the best of all settings: BestSettingsHaveRows
      trials = tried[{e.base.dataset, e.method}];
    }
    const bool own = !e.knobs.contains("score") || e.knobs.at("score") == "wanda";
    EXPECT_EQ(e.trials, own ? static_cast<int>(trials) : 1) << name_of(e);
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
  for (Experiment e : load_suite(kRoot + "/suites/" + GetParam()).experiments) {
    if (!all.contains({e.base.dataset, e.method, "labels 0.5"})) continue;
    if (e.method == "lte-one-stage") e.knobs.erase("construction");
    const std::string form = form_of(e);
    if (form == chosen_form(all, e.base.dataset, e.method))
      right.insert(rest(e));
    else if (form != "noise")
      others.push_back(e);
  }
  EXPECT_GT(right.size(), 5u);
  for (const Experiment& e : others) {
    EXPECT_FALSE(form_of(e).starts_with("labels")) << name_of(e);
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
    if (r.what.suite != suite.name) continue;
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
