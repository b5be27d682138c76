// Names, suites, records and claims: everything between an experiment and its verdict.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "bench/claims.h"
#include "core/files.h"
#include "core/rng.h"
#include "data/dataset.h"
#include "errors.h"

namespace lte {
namespace {

namespace fs = std::filesystem;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

void expect_in(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

struct Bench : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_bench_test_" + std::to_string(getpid());
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }

  std::string file(const std::string& name, const std::string& text) const {
    const std::string path = folder + "/" + name;
    write_file(path, text);
    return path;
  }
  SuiteSpec suite(const std::string& text) const { return load_suite(file("s.toml", text)); }
  std::string suite_error(const std::string& text) const {
    return error_of([&] { suite(text); });
  }
};

// ---- names

void expect_same(const Experiment& a, const Experiment& b) {
  EXPECT_EQ(a.suite, b.suite);
  EXPECT_TRUE(a.base == b.base);
  EXPECT_EQ(a.method, b.method);
  EXPECT_EQ(a.knobs, b.knobs);
  EXPECT_EQ(a.backend, b.backend);
  EXPECT_EQ(name_of(a.shape), name_of(b.shape));
  EXPECT_EQ(a.seed, b.seed);
}

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

// ---- records

Record full_record() {
  Record r;
  r.what.suite = "s", r.what.base.dataset = "text:\xc3\xa9/\"a\".txt", r.what.method = "lte";
  r.what.knobs = {{"eta", "0.5"}}, r.what.seed = 18446744073709551615u;
  r.what.protocol = "paper", r.what.trials = 7;
  r.name = name_of(r.what), r.status = "ok", r.why = "two\nlines";
  r.quality = {.loss = 0.1 + 0.2,
               .scored = 12345678901,
               .tokens = 99,
               .active = 1.0 / 3,
               .active_p50 = 0.25,
               .active_p99 = 1,
               .active_layer = {0.5, 1e-17},
               .active_union = {0.3, 0.4, 0.5, kNan, kNan},
               .context = 63.5,
               .cost = {.flops_paper = 1e9, .flops_full = 2e9, .bytes = 3e300},
               .digest = 0xfedcba9876543210u};
  r.token_ppl = 1.35, r.byte_ppl = 1.2, r.word_ppl = 4.5, r.window = 128, r.stride = 64;
  r.text_sha256 = "00ff", r.excess = -0.25, r.rouge_l = 0.5, r.slot_error = 0;
  r.bleu = 0.625, r.exact_match = 0.75;
  r.dense_cost = {.flops_paper = 4, .flops_full = 5, .bytes = 6};
  r.reference_loss = 0.3, r.checked_loss = 0.31;
  r.prefill = Timing{.median = 1.5, .mad = 0.25, .repetitions = 9};
  r.decode = Timing{.median = 2.5, .mad = 0.125, .repetitions = 9};
  r.prefill_speedup = 1.1, r.decode_speedup = 1.2, r.ideal_decode = 1.3, r.digest_ok = true;
  r.train_tokens = 10, r.calibration_tokens = 11, r.train_flops = 12, r.train_seconds = 13.5;
  r.histograms = {{"stage1", {{1, 2, 3}, {4, 5, 6}}}, {"stage2", {}}};
  r.machine = {{"cpu", "x"}, {"revision", "y"}};
  return r;
}

TEST(Record, RoundTrip) {
  const Record r = full_record();
  const std::string line = to_json(r);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Record b = record_from_json(line);
  EXPECT_EQ(to_json(b), line);
  expect_same(b.what, r.what);
  EXPECT_EQ(b.what.protocol, "paper");
  EXPECT_EQ(b.what.trials, 7);
  EXPECT_EQ(b.why, r.why);
  EXPECT_EQ(b.quality.loss, r.quality.loss);
  EXPECT_EQ(b.quality.scored, r.quality.scored);
  EXPECT_EQ(b.quality.digest, r.quality.digest);
  EXPECT_EQ(b.quality.active_layer, r.quality.active_layer);
  EXPECT_EQ(b.quality.active_union[2], 0.5);
  EXPECT_TRUE(std::isnan(b.quality.active_union[3]));
  EXPECT_EQ(b.quality.cost.bytes, 3e300);
  EXPECT_EQ(b.excess, r.excess);
  EXPECT_EQ(b.slot_error, r.slot_error);
  EXPECT_EQ(b.bleu, r.bleu);
  EXPECT_EQ(b.exact_match, r.exact_match);
  ASSERT_TRUE(b.prefill && b.decode);
  EXPECT_EQ(b.prefill->mad, 0.25);
  EXPECT_EQ(b.decode->repetitions, 9);
  EXPECT_EQ(b.decode_speedup, r.decode_speedup);
  EXPECT_TRUE(b.digest_ok);
  ASSERT_EQ(b.histograms.size(), 2u);
  EXPECT_EQ(b.histograms[0].layer, r.histograms[0].layer);
  EXPECT_EQ(b.machine, r.machine);
}

TEST(Record, AbsentOptionalsStayAbsent) {
  Record r = full_record();
  r.excess = r.rouge_l = r.slot_error = r.prefill_speedup = r.decode_speedup = r.ideal_decode = {};
  r.bleu = r.exact_match = {};
  r.prefill = r.decode = {}, r.histograms = {}, r.quality.active_layer = {};
  const Record b = record_from_json(to_json(r));
  EXPECT_FALSE(b.excess || b.rouge_l || b.slot_error || b.prefill_speedup || b.decode_speedup ||
               b.ideal_decode || b.prefill || b.decode || b.bleu || b.exact_match);
  EXPECT_EQ(to_json(b), to_json(r));
}

// Records from before these two were measured.
TEST(Record, OlderRecordsLackBleuAndExactMatch) {
  std::string line = to_json(full_record());
  const std::string keys = "\"bleu_e2e\":0.625,\"exact_match\":0.75,";
  ASSERT_NE(line.find(keys), std::string::npos) << line;
  const Record old = record_from_json(line.erase(line.find(keys), keys.size()));
  EXPECT_FALSE(old.bleu || old.exact_match);
  EXPECT_EQ(old.rouge_l, 0.5);
}

// A model that diverged is a failed record; it must not make the whole file unreadable.
TEST(Record, NumbersThatAreNotFiniteCanBeReadBack) {
  const auto reads = [](const Record& r) {
    return error_of([&] { record_from_json(to_json(r)); });
  };
  Record r = full_record();
  r.token_ppl = r.byte_ppl = kInf;
  EXPECT_EQ(reads(r), "no error") << "perplexity of a loss above 709";
  r = full_record();
  r.status = "failed", r.quality.loss = r.token_ppl = r.reference_loss = r.checked_loss = kNan;
  EXPECT_EQ(reads(r), "no error");
}

TEST_F(Bench, DamagedRecordsNameFileAndLine) {
  const std::string good = to_json(full_record());
  const auto swapped = [&](const std::string& from, const std::string& to) {
    std::string line = good;
    EXPECT_NE(line.find(from), std::string::npos) << from;
    return line.replace(line.find(from), from.size(), to);
  };
  EXPECT_TRUE(read_records(folder + "/none.jsonl").empty());
  EXPECT_EQ(read_records(file("ok.jsonl", good + "\n\n" + good)).size(), 2u);
  for (const std::string& bad :
       {good.substr(0, good.size() / 2), good + "}", std::string("{}"), std::string("[1]"),
        std::string("null"), swapped("\"seed\":18", "\"seed\":x18"),
        swapped("\"mad\":0.25", "\"mad\":\"0.25\""), swapped("\"trials\":7,", ""),
        swapped("/seed1", "/sead1"), swapped("\"ok\"", "3"), swapped("[1,2,3]", "[1,\"2\"]"),
        swapped("\"00ff\"", "null")}) {
    const std::string path = file("r.jsonl", good + "\n\n" + bad + "\n" + good + "\n");
    const std::string message = error_of([&] { read_records(path); });
    EXPECT_EQ(message.substr(0, path.size() + 3), path + ":3:") << bad;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST_F(Bench, DamagedDigestNamesFileAndLine) {
  for (const char* digest : {"not hex", "", "fedcba98765432100"}) {
    std::string line = to_json(full_record());
    line.replace(line.find("fedcba9876543210"), 16, digest);
    const std::string path = file("r.jsonl", line + "\n");
    EXPECT_EQ(error_of([&] { read_records(path); }).substr(0, path.size() + 3), path + ":1:");
  }
}

TEST(Record, LatestKeepsTheLastOfEveryNameInOrder) {
  std::vector<Record> all(5);
  const char* names[] = {"a", "b", "a", "c", "b"};
  for (int i = 0; i < 5; ++i) all[i].name = names[i], all[i].train_tokens = i;
  const std::vector<Record> last = latest(all);
  ASSERT_EQ(last.size(), 3u);
  EXPECT_EQ(last[0].name + last[1].name + last[2].name, "abc");
  EXPECT_EQ(last[0].train_tokens, 2);
  EXPECT_EQ(last[1].train_tokens, 4);
  EXPECT_TRUE(latest({}).empty());
}

}  // namespace
}  // namespace lte
