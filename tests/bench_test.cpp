// Names and suites.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "bench/claims.h"
#include "bench_testing.h"
#include "core/files.h"
#include "core/rng.h"
#include "data/dataset.h"

namespace lte {
namespace {

// ---- names

std::string random_text(Rng& rng, std::string_view letters, size_t least = 1) {
  std::string text(least + rng.below(12), ' ');
  for (char& c : text) c = letters[rng.below(letters.size())];
  return text;
}

Experiment random_experiment(Rng& rng) {
  constexpr std::string_view kAny = "ab/%:,=25Ff .-_\"\\\n\t\xc3\xa9{}seed",
                             kPlain = "abz09_/%.-+ 2F";
  Experiment e;
  e.suite = random_text(rng, kAny, 0);
  e.base = {.model = random_text(rng, kAny),
            .dataset = "text:" + random_text(rng, kAny),
            .steps = static_cast<int64_t>(rng.below(1'000'000'000'000)),
            .batch = static_cast<int>(rng.below(1 << 30)),
            .lr = rng.uniform() * std::pow(10, 8 - static_cast<double>(rng.below(16))),
            .seed = rng.next()};
  e.method = random_text(rng, kPlain), e.backend = random_text(rng, kAny);
  for (uint64_t i = rng.below(4); i > 0; --i) {
    e.knobs[random_text(rng, kPlain)] = random_text(rng, "ab/%:=2F5.-e", 0);
  }
  e.shape = {.b = static_cast<int>(1 + rng.below(64)),
             .p = static_cast<int>(rng.below(512)),
             .d = static_cast<int>(1 + rng.below(512))};
  e.seed = rng.next();
  return e;
}

TEST(Name, ParsesBackToTheExperiment) {
  Rng rng(7);
  for (int i = 0; i < 2000; ++i) {
    const Experiment e = random_experiment(rng);
    const std::string name = name_of(e);
    SCOPED_TRACE(name);
    Experiment back;
    ASSERT_EQ(error_of([&] { back = parse_name(name); }), "no error");
    expect_same(e, back);
    EXPECT_EQ(name_of(back), name);
    if (HasFailure()) return;
  }
}

TEST(Name, HostileNames) {
  for (const char* dataset : {"text:a,b=c.txt", "text:/a/%2F/x", "text:../../a b", "text:seed1",
                              "text:%", "text:%25", "text:base:steps=1", ""}) {
    Experiment e;
    e.base.dataset = dataset, e.base.model = "gpt2-nano:dim=16,heads=2,act=relu";
    expect_same(parse_name(name_of(e)), e);
    EXPECT_EQ(std::ranges::count(name_of(e), '/'), 7) << name_of(e);
  }
}

TEST(Name, MeansWhatItSays) {
  Experiment e;
  e.suite = "s", e.method = "lte", e.knobs = {{"eta", "0.5"}, {"b", "1"}};
  e.base.dataset = "text:a/b", e.seed = 3;
  EXPECT_EQ(name_of(e),
            "s/gpt2-nano/text:a%2Fb/base:steps=1000,batch=32,lr=0.003,seed=0/lte:b=1,eta=0.5/cpu/"
            "b8.p128.d0/seed3");
}

// Nothing validates a knob's text before it becomes part of a name.
TEST(Name, KnobsMayHoldSeparators) {
  for (const char* hostile : {"a,b", "a=b", "a,b=c", ",", "="}) {
    Experiment e;
    e.knobs = {{"value", hostile}};
    EXPECT_EQ(error_of([&] { expect_same(parse_name(name_of(e)), e); }), "no error") << hostile;
    e.knobs = {{hostile, "value"}};
    EXPECT_EQ(error_of([&] { expect_same(parse_name(name_of(e)), e); }), "no error") << hostile;
  }
}

const std::string kGood =
    "s/m/d/base:steps=1,batch=2,lr=0.5,seed=4/lte:eta=1,group=8/cpu/b8.p128.d0/seed5";

std::string with(const std::string& from, const std::string& to) {
  std::string name = kGood;
  return name.replace(name.find(from), from.size(), to);
}

TEST(Name, MalformedNamesAreErrors) {
  EXPECT_EQ(name_of(parse_name(kGood)), kGood);
  for (const std::string& name : {std::string(),
                                  std::string("/"),
                                  std::string("///////"),
                                  std::string(3000, '/'),
                                  kGood + "/",
                                  "/" + kGood,
                                  kGood + "x",
                                  with("base:", "bse:"),
                                  with("seed5", "5"),
                                  with("seed5", "seed"),
                                  with("seed5", "seed-5"),
                                  with("steps=1", "steps="),
                                  with("steps=1", "steps=1.5"),
                                  with("steps=1", "steps=99999999999999999999"),
                                  with("steps=1", "stops=1"),
                                  with("batch=2", "batch"),
                                  with("lr=0.5", "lr=a"),
                                  with("eta=1", "eta"),
                                  with("b8.p128.d0", "b8.p128"),
                                  with("b8.p128.d0", "b0.p128.d0"),
                                  with("b8.p128.d0", "b8.p0.d0"),
                                  with("b8.p128.d0", "b8.p-1.d2"),
                                  with("b8.p128.d0", "b8.p128.d0.x")}) {
    EXPECT_NE(error_of([&] { parse_name(name); }), "no error") << name;
  }
}

// Rule 8: the name is the full specification, so nothing is filled in and nothing said twice.
TEST(Name, OnlyWholeNamesParse) {
  for (const std::string& name :
       {with("steps=1,", ""), with("steps=1", "steps=1,steps=2"), with("eta=1", "eta=1,eta=2"),
        with("lte:eta=1,group=8", "lte:"), with("s/m/d", "s/m%2f/d"), with("s/m/d", "s/m%/d")}) {
    EXPECT_NE(error_of([&] { parse_name(name); }), "no error") << name;
  }
}

// ---- suites

const std::string kBase =
    "suite = \"s\"\n[[base]]\nid = \"b\"\nmodel = \"gpt2-nano\"\ndataset = \"dialects\"\n"
    "steps = 10\n";
const std::string kExperiment = "[[experiment]]\nbase = \"b\"\nmethod = \"lte\"\n";

TEST_F(Bench, SuiteIsTheProductOfSweepsAndSeeds) {
  const SuiteSpec s =
      suite("score_windows = 5\nrepetitions = 3\nabout = \"x\"\n" + kBase + "batch = 4\nlr = 2\n" +
            kExperiment +
            "trials = 6\nprotocol = \"paper\"\nknobs = { steps = 60, lr = \"3e-3\", eta = 9 }\n"
            "sweep = { eta = [0.5, \"1\", 2], group = [8, 16] }\nseeds = [0, 4]\n");
  EXPECT_EQ(s.name, "s");
  EXPECT_EQ(s.score_windows, 5);
  EXPECT_EQ(s.repetitions, 3);
  EXPECT_EQ(s.time_windows, 4);
  ASSERT_EQ(s.experiments.size(), 12u);
  std::set<std::string> seen, names;
  for (const Experiment& e : s.experiments) {
    EXPECT_EQ(e.suite, "s");
    EXPECT_EQ(e.base.batch, 4);
    EXPECT_EQ(e.base.lr, 2);
    EXPECT_EQ(e.base.seed, 0u);
    EXPECT_EQ(e.protocol, "paper");
    EXPECT_EQ(e.trials, 6);
    EXPECT_EQ(e.knobs.at("steps"), "60");
    EXPECT_EQ(e.knobs.at("lr"), "3e-3");
    seen.insert(fmt::format("{} {} {}", e.knobs.at("eta"), e.knobs.at("group"), e.seed));
    names.insert(name_of(e));
  }
  EXPECT_EQ(names.size(), 12u);
  for (const char* eta : {"0.5", "1", "2"}) {
    for (const char* group : {"8", "16"}) {
      for (int seed : {0, 4}) EXPECT_TRUE(seen.contains(fmt::format("{} {} {}", eta, group, seed)));
    }
  }
}

TEST_F(Bench, OwnSeedGivesEverySeedItsBase) {
  const std::string seeds = kExperiment + "seeds = [3, 1]\n";
  const SuiteSpec own = suite(kBase + "own_seed = true\nseed = 9\n" + seeds);
  ASSERT_EQ(own.experiments.size(), 2u);
  EXPECT_EQ(own.experiments[0].base.seed, 3u);
  EXPECT_EQ(own.experiments[1].base.seed, 1u);
  const SuiteSpec shared = suite(kBase + "seed = 9\n" + seeds);
  EXPECT_EQ(shared.experiments[0].base.seed, 9u);
  EXPECT_EQ(shared.experiments[0].seed, 3u);
  EXPECT_EQ(suite(kBase + kExperiment).experiments.at(0).seed, 0u);
}

TEST_F(Bench, SuiteErrorsNameTheLine) {
  const std::string at = folder + "/s.toml:";
  expect_in(suite_error("suit = \"s\"\n" + kBase + kExperiment), at + "1: unknown key 'suit'");
  expect_in(suite_error(kBase + "stps = 1\n" + kExperiment), at + "7: unknown key 'stps'");
  expect_in(suite_error(kBase + kExperiment + "sead = 1\n"), at + "10: unknown key 'sead'");
  expect_in(suite_error(kBase + "[[experiment]]\nbase = \"c\"\nmethod = \"lte\"\n"), "'c'");
  expect_in(suite_error("suite = \"s\"\n[[base]]\nid = \"b\"\nmodel = \"m\"\nsteps = 1\n"),
            "'dataset' is missing");
  expect_in(suite_error(kBase + "[[experiment]]\nbase = \"b\"\n"), "'method' is missing");
  expect_in(suite_error(kBase + kExperiment + "protocol = \"fair\"\n"), "'fair'");
  expect_in(suite_error(kBase), "has no [[experiment]]");
  expect_in(suite_error("suite = \"s\"\n" + kExperiment), "has no [[base]]");
  expect_in(suite_error(kBase + kExperiment + "seeds = [1\n"), at);
  expect_in(suite_error("\xff"), at + "1");
  expect_in(error_of([&] { load_suite(folder + "/none.toml"); }), "none.toml: cannot be read");
}

TEST_F(Bench, SuiteWrongTypesAreErrors) {
  for (const char* line : {"batch = \"x\"", "batch = 1.5", "lr = \"fast\"", "seed = [1]",
                           "own_seed = \"yes\"", "batch = {}"}) {
    EXPECT_NE(suite_error(kBase + line + "\n" + kExperiment), "no error") << line;
  }
  for (const char* line : {"knobs = { eta = [1] }", "knobs = { eta = true }", "sweep = { eta = 1 }",
                           "sweep = { eta = [[1]] }", "trials = \"x\"", "protocol = 3"}) {
    EXPECT_NE(suite_error(kBase + kExperiment + line + "\n"), "no error") << line;
  }
  for (const char* text : {"repetitions = \"9\"\n", "score_windows = 1.5\n", "time_windows = []\n"})
    EXPECT_NE(suite_error(text + kBase + kExperiment), "no error") << text;
  EXPECT_NE(suite_error("base = 3\nexperiment = [1]\nsuite = \"s\"\n"), "no error");
}

// A suite that is written wrong must not run as another suite.
TEST_F(Bench, SuiteIgnoresNothingSilently) {
  for (const char* line : {"seeds = 3", "seeds = [\"a\"]", "seeds = [1.5]", "seeds = [-1]",
                           "seeds = []", "knobs = 3", "sweep = 3", "sweep = { eta = [] }"}) {
    EXPECT_NE(suite_error(kBase + kExperiment + line + "\n"), "no error") << line;
  }
  for (const char* line : {"batch = 0", "batch = 4294967297", "seed = -1"})
    EXPECT_NE(suite_error(kBase + line + "\n" + kExperiment), "no error") << line;
  EXPECT_NE(suite_error("repetitions = -1\n" + kBase + kExperiment), "no error");
  EXPECT_NE(suite_error("split = \"train\"\n" + kBase + kExperiment), "no error");
  EXPECT_NE(suite_error(kBase + kBase.substr(kBase.find('\n') + 1) + kExperiment), "no error")
      << "two bases of one id";
}

TEST(Suites, EveryCommittedSuiteCanStart) {
  int suites = 0;
  for (const auto& entry : fs::directory_iterator(LTE_SOURCE_DIR "/suites")) {
    if (entry.path().extension() != ".toml") continue;
    SCOPED_TRACE(entry.path().string());
    ++suites;
    const SuiteSpec s = load_suite(entry.path().string());
    EXPECT_EQ(s.name, entry.path().stem().string());
    const int least = s.split == "test" ? 9 : 0;  // a search of settings is not timed
    EXPECT_GE(s.repetitions, least) << "the report promises medians of nine repetitions";
    std::set<std::string> names;
    for (const Experiment& e : s.experiments) {
      EXPECT_TRUE(names.insert(name_of(e)).second) << "twice: " << name_of(e);
      expect_same(parse_name(name_of(e)), e);
      EXPECT_NO_THROW(resolve_knobs(e.method, all_knobs(find_method(e.method)), e.knobs));
      EXPECT_EQ(parse_model(e.base.model).vocab, 0) << "a shape for latency suites only";
      EXPECT_TRUE(std::ranges::any_of(datasets(), [&](const DatasetRow& row) {
        return row.name == e.base.dataset;
      })) << e.base.dataset;
    }
    EXPECT_FALSE(s.experiments.empty());
  }
  EXPECT_GE(suites, 1);
}

// What a base says once holds for all its experiments, below what they say themselves.
TEST_F(Bench, BasesGiveBudgetsRatesAndKnobs) {
  const std::string second =
      "[[base]]\nid = \"c\"\nmodel = \"llama-nano\"\ndataset = \"dialects\"\nsteps = 10\n";
  const std::string base =
      kBase +
      "trials = 3\nknobs = { group = 8 }\nbudget = { steps = 60, batch = 4 }\n"
      "rates = { \"2e-3\" = [\"lte\", \"moefication\"], \"5e-4\" = [\"dense\"] }\n"
      "borrowed = { \"3e-3\" = [\"relu\"] }\n" +
      second;
  const auto knobs = [&](const std::string& experiment) {
    return suite(base + "[[experiment]]\nbase = \"b\"\n" + experiment).experiments.at(0).knobs;
  };
  const Knobs lte{{"group", "8"}, {"steps", "60"}, {"batch", "4"}, {"lr", "2e-3"}};
  EXPECT_EQ(knobs("method = \"lte\"\n"), lte);
  EXPECT_EQ(knobs("method = \"dense\"\n"),
            (Knobs{{"steps", "60"}, {"batch", "4"}, {"lr", "5e-4"}}));
  EXPECT_EQ(knobs("method = \"prune\"\n"), (Knobs{{"steps", "60"}, {"batch", "4"}}));
  EXPECT_EQ(knobs("method = \"lte\"\nprotocol = \"paper\"\n"), (Knobs{{"group", "8"}}));
  EXPECT_EQ(knobs("method = \"lte\"\nknobs = { group = 2, lr = 1 }\nsweep = { steps = [7] }\n"),
            (Knobs{{"group", "2"}, {"steps", "7"}, {"batch", "4"}, {"lr", "1"}}));

  const Experiment relu =
      suite(base + "[[experiment]]\nbase = \"b\"\nmethod = \"relu\"\n").experiments.at(0);
  EXPECT_EQ(relu.knobs.at("lr"), "3e-3");
  EXPECT_EQ(relu.trials, 1) << "the rate of another method";

  const SuiteSpec both =
      suite(base + "[[experiment]]\nbase = [\"c\", \"b\"]\nmethod = \"lte\"\nseeds = [0, 1]\n" +
            "[[experiment]]\nbase = \"b\"\nmethod = \"lte\"\nprotocol = \"paper\"\n");
  ASSERT_EQ(both.experiments.size(), 5u);
  EXPECT_EQ(both.experiments[0].base.model, "llama-nano");
  EXPECT_TRUE(both.experiments[0].knobs.empty());
  EXPECT_EQ(both.experiments[2].base.model, "gpt2-nano");
  EXPECT_EQ(both.experiments[2].knobs, lte);
  EXPECT_EQ(both.experiments[0].trials, 1);
  EXPECT_EQ(both.experiments[2].trials, 3);
  EXPECT_EQ(both.experiments[4].trials, 1) << "nothing was tried for what is not trained";
  const auto trials = [&](const char* method) {
    return suite(kBase +
                 "trials = { 7 = [\"lte\"], 12 = [\"relu\", \"prune\"] }\n[[experiment]]\n" +
                 "base = \"b\"\nmethod = \"" + method + "\"\n")
        .experiments.at(0)
        .trials;
  };
  EXPECT_EQ(trials("lte"), 7);
  EXPECT_EQ(trials("prune"), 12);
  EXPECT_EQ(trials("dense"), 1) << "not searched";

  for (const char* line : {"rates = { \"1\" = [\"none\"] }", "rates = { \"1\" = \"lte\" }",
                           "rates = { \"1\" = [\"lte\"], \"2\" = [\"lte\"] }", "budget = 3",
                           "knobs = [1]", "trials = 0", "trials = { 3 = [\"none\"] }",
                           "trials = { x = [\"lte\"] }", "trials = { 0 = [\"lte\"] }"}) {
    EXPECT_NE(suite_error(kBase + line + "\n" + kExperiment), "no error") << line;
  }
  for (const char* line : {"base = []", "base = [\"b\", \"d\"]", "base = 3"}) {
    EXPECT_NE(suite_error(base + "[[experiment]]\nmethod = \"lte\"\n" + line + "\n"), "no error")
        << line;
  }
}

}  // namespace
}  // namespace lte
