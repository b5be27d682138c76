// Claims against intervals that were worked out by hand.
#include "bench/claims.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "core/files.h"
#include "errors.h"

namespace lte {
namespace {

namespace fs = std::filesystem;

struct Claims : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_claims_test_" + std::to_string(getpid());
  std::vector<Record> records;
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }

  Record& add(const std::string& method, const Knobs& knobs, uint64_t seed, double loss,
              double active = 0.5) {
    Record r;
    r.what.suite = "s", r.what.method = method, r.what.knobs = knobs, r.what.seed = seed;
    r.name = name_of(r.what), r.status = "ok";
    r.quality.loss = loss, r.quality.active = active;
    r.quality.cost.flops_paper = 50, r.dense_cost.flops_paper = 100;
    records.push_back(r);
    return records.back();
  }
  void three(const std::string& method, const Knobs& knobs, double first) {
    for (uint64_t seed = 0; seed < 3; ++seed)
      add(method, knobs, seed, first + 0.1 * static_cast<double>(seed));
  }
  std::vector<Verdict> all(const std::string& toml) const {
    const std::string path = folder + "/claims.toml";
    write_file(path, toml);
    return judge(path, records);
  }
  Verdict one(const std::string& keys) const {
    return all("[[claim]]\nid = \"c\"\nstatement = \"It is so.\"\n" + keys).at(0);
  }
  std::string error(const std::string& toml) const {
    return error_of([&] { all(toml); });
  }
};

const std::string kBetter =
    "kind = \"better\"\nbetter = { method = \"lte\", active = \"0.25\" }\n"
    "than = { method = \"prune\", protocol = \"equal budget\" }\n";

// 1.0, 1.1, 1.2: mean 1.1, s = 0.1, half = 4.303 * 0.1 / sqrt(3) = 0.248434.
TEST_F(Claims, BetterWantsDisjointIntervals) {
  three("lte", {{"active", "0.25"}}, 1.0);
  three("prune", {}, 1.5);  // [1.351566, 1.848434] against [0.851566, 1.348434]
  const Verdict v = one(kBetter);
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.measured,
            "1.100 [0.852, 1.348] (n=3, active 0.500) against 1.600 [1.352, 1.848] (n=3, active "
            "0.500)");
  EXPECT_EQ(v.id + v.statement + v.suite, "cIt is so.s");
  EXPECT_FALSE(v.expected.empty());
  for (Record& r : records) r.quality.loss -= r.what.method == "prune" ? 0.01 : 0;
  EXPECT_EQ(one(kBetter).verdict, "not reproduced") << "the intervals touch: 1.3416 < 1.3484";
  for (Record& r : records) r.quality.loss -= r.what.method == "prune" ? 2 : 0;
  EXPECT_EQ(one(kBetter).verdict, "not reproduced") << "the other way round";
}

TEST_F(Claims, BetterUsesTheRightQuantile) {
  // Four seeds: s = 0.129099, t = 3.182, half = 0.205397; two: half = 12.71 * 0.1.
  for (uint64_t seed = 0; seed < 4; ++seed)
    add("lte", {{"active", "0.25"}}, seed, 1 + 0.1 * static_cast<double>(seed));
  add("prune", {}, 0, 2.0), add("prune", {}, 1, 2.2);
  const Verdict v = one(kBetter);
  EXPECT_EQ(v.measured,
            "1.150 [0.945, 1.355] (n=4, active 0.500) against 2.100 [0.829, 3.371] (n=2, active "
            "0.500)");
  EXPECT_EQ(v.verdict, "not run") << "two seeds";
}

TEST_F(Claims, BetterWithoutRecordsIsNotRun) {
  EXPECT_EQ(one(kBetter).verdict, "not run");
  three("lte", {{"active", "0.25"}}, 1.0);
  EXPECT_EQ(one(kBetter).verdict, "not run");
  three("prune", {}, 5);
  for (Record& r : records) r.what.protocol = "paper";
  EXPECT_EQ(one(kBetter).verdict, "not run") << "another protocol";
  for (Record& r : records) r.what.protocol = "equal budget";
  EXPECT_EQ(one("dataset = \"restaurants\"\n" + kBetter).verdict, "not run");
  EXPECT_EQ(one("model = \"llama-nano\"\n" + kBetter).verdict, "not run");
  EXPECT_EQ(one("dataset = \"dialects\"\nmodel = \"gpt2-nano\"\n" + kBetter).verdict, "reproduced");
}

const std::string kAhead =
    "kind = \"ahead\"\nbetter = { method = \"lte\", active = \"0.25\", distill = \"unset\" }\n"
    "than = { active = \"0.25\", protocol = \"equal budget\" }\nexcept = [\"oracle\"]\n";

TEST_F(Claims, AheadIsOfEveryOtherMethod) {
  const Knobs quarter{{"active", "0.25"}};
  three("lte", quarter, 1.0);  // [0.851566, 1.348434]
  EXPECT_EQ(one(kAhead).verdict, "not run") << "nobody to beat";
  three("moefication", quarter, 2), three("prune", {{"active", "0.25"}, {"score", "wanda"}}, 1.5);
  three("prune", {{"active", "0.5"}, {"score", "wanda"}}, 0.5);  // another fraction
  three("oracle", quarter, 0.1);
  add("cats", quarter, 0, 0.1);  // one seed
  three("lte", {{"active", "0.25"}, {"distill", "0.5"}}, 0.2);
  const Verdict v = one(kAhead);
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.measured,
            "1.100 [0.852, 1.348] (n=3): ahead of 2 of 2; the best of them prune wanda with 1.600 "
            "[1.352, 1.848]; 1 with fewer seeds");
  three("deja-vu", quarter, 1.3);
  EXPECT_EQ(one(kAhead).verdict, "not reproduced");
  EXPECT_NE(one(kAhead).measured.find("ahead of 2 of 3; the best of them deja-vu"),
            std::string::npos);
}

TEST_F(Claims, AheadIsOfWhatCostsAsMuch) {
  three("lte", {}, 1), three("prune", {}, 2), three("deja-vu", {}, 0.5);
  const std::string ahead = "kind = \"ahead\"\nbetter = { method = \"lte\" }\nthan = {}\n";
  EXPECT_EQ(one(ahead + "flops = 1.2\n").verdict, "not reproduced");
  for (Record& r : records) r.quality.cost.flops_paper += r.what.method == "deja-vu" ? 11 : 0;
  const Verdict v = one(ahead + "flops = 1.2\n");  // 61 against 1.2 * 50
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_TRUE(v.measured.ends_with("; 1 cost more")) << v.measured;
  EXPECT_EQ(one(ahead + "flops = 1.25\n").verdict, "not reproduced");
  EXPECT_EQ(one(ahead).verdict, "not reproduced");
}

TEST_F(Claims, TrialsDecideNothing) {
  three("lte", {{"active", "0.25"}}, 1.0), three("prune", {}, 1.5);
  for (Record& r : records) r.split = "valid";
  EXPECT_EQ(one(kBetter).verdict, "not run");
}

TEST_F(Claims, FailedRecordsAreNotUsed) {
  three("lte", {{"active", "0.25"}}, 1.0), three("prune", {}, 1.5);
  add("lte", {{"active", "0.25"}}, 3, 100).status = "failed";
  EXPECT_EQ(one(kBetter).verdict, "reproduced");
  records[0].status = "failed";
  EXPECT_EQ(one(kBetter).verdict, "not run");
}

// Three rows of one seed are not three seeds.
TEST_F(Claims, BetterCountsSeedsNotRecords) {
  for (const char* lr : {"1", "2", "3"}) add("lte", {{"active", "0.25"}, {"lr", lr}}, 0, 1);
  three("prune", {}, 5);
  EXPECT_EQ(one(kBetter).verdict, "not run");
}

TEST_F(Claims, TheSuiteWithMostRecordsThatCanDecideDoes) {
  three("lte", {{"active", "0.25"}}, 1.0), three("prune", {}, 1.5);
  for (int i = 0; i < 20; ++i) add("dense", {}, static_cast<uint64_t>(i), 1).what.suite = "big";
  const Verdict v = one(kBetter);
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.suite, "s");
  // Records of two suites are never mixed.
  for (Record& r : records) r.what.suite = r.what.method == "lte" ? "a" : "b";
  EXPECT_EQ(one(kBetter).verdict, "not run");
}

const std::string kMonotone =
    "kind = \"monotone\"\nselect = { method = \"lte\" }\nknob = \"eta\"\nlow = 0.15\nhigh = 0.6\n";

TEST_F(Claims, MonotoneFallsAndSpans) {
  add("lte", {{"eta", "10"}}, 0, 1, 0.15), add("lte", {{"eta", "2"}}, 0, 1, 0.3);
  add("lte", {{"group", "8"}}, 0, 1, 0.99);  // without the knob
  EXPECT_EQ(one(kMonotone).verdict, "not run") << "two points";
  add("lte", {{"eta", "0.3"}}, 0, 1, 0.5), add("lte", {{"eta", "0.3"}}, 1, 1, 0.7);
  const Verdict v = one(kMonotone);  // 10 comes after 2
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.measured, "eta=0.3: 0.600, eta=2: 0.300, eta=10: 0.150");
  records[0].quality.active = 0.151;
  EXPECT_EQ(one(kMonotone).verdict, "not reproduced") << "does not reach low";
  records[0].quality.active = 0.1, records[1].quality.active = 0.05;
  EXPECT_EQ(one(kMonotone).verdict, "not reproduced") << "rises at its end";
  records[1].quality.active = 0.3, records[3].quality.active = 0.45;
  EXPECT_EQ(one(kMonotone).verdict, "not reproduced") << "does not begin at high";
}

TEST_F(Claims, MonotoneWantsAKnobOfNumbers) {
  for (const char* score : {"wanda", "magnitude", "2x"}) add("lte", {{"eta", score}}, 0, 1);
  EXPECT_NE(error("[[claim]]\nid = \"c\"\n" + kMonotone), "no error");
  records.clear();
  EXPECT_NE(error("[[claim]]\nid = \"c\"\nkind = \"monotone\"\nselect = { method = \"lte\" }\n"
                  "low = 0\nhigh = 1\n"),
            "no error")
      << "no knob";
}

const std::string kWithin =
    "kind = \"within\"\nselect = { method = \"lte\" }\nreference = { method = \"dense\" }\n"
    "ratio = 2\nloss = 0.02\n";

TEST_F(Claims, WithinHoldsTheLossAtTheRatio) {
  EXPECT_EQ(one(kWithin).verdict, "not run");
  three("lte", {{"eta", "1"}}, 1.939);  // mean 2.039 at 100 / 50 FLOPs: exactly the ratio
  add("dense", {}, 0, 1.9), add("dense", {}, 1, 2.1);
  EXPECT_EQ(one(kWithin).verdict, "not run") << "two seeds of the control are not enough";
  add("dense", {}, 2, 2.0);
  const Verdict v = one(kWithin);
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.measured, "lte on dialects: +1.95 % loss at 1/2.00 of the FLOPs");
  add("lte", {{"eta", "5"}}, 0, 1.5);
  EXPECT_EQ(one(kWithin).measured, v.measured) << "one lucky seed does not count";
  for (size_t i = 0; i < 3; ++i) records[i].quality.loss += 0.002;
  EXPECT_EQ(one(kWithin).verdict, "not reproduced");
  for (uint64_t seed = 0; seed < 3; ++seed) {
    add("lte", {{"eta", "9"}}, seed, 1.5).quality.cost.flops_paper = 51;
  }
  EXPECT_EQ(one(kWithin).verdict, "not reproduced") << "better, but with too many FLOPs";
  records[0].status = "failed";
  EXPECT_EQ(one(kWithin).measured, "no row of three seeds computes at most 1/2 of the dense FLOPs");
  EXPECT_EQ(one(kWithin).verdict, "not run");
}

// What the paper's Table 1 permits: of perplexity, of ROUGE-L; a record without the metric decides nothing.
TEST_F(Claims, WithinHoldsThePerplexityOrRouge) {
  three("lte", {}, 3), three("dense", {}, 2);
  const auto of = [](const std::string& unit) {
    return "kind = \"within\"\nselect = { method = \"lte\" }\nreference = { method = \"dense\" }\n"
           "ratio = 2\n" +
           unit + "\n";
  };
  EXPECT_EQ(one(of("rouge_l = 0.05")).verdict, "not run");
  for (Record& r : records) {
    const bool lte = r.what.method == "lte";
    r.token_ppl = lte ? 20.4 : 20, r.rouge_l = lte ? 0.41 : 0.45;
  }
  const Verdict ppl = one(of("ppl = 0.5")), rouge = one(of("rouge_l = 0.05"));
  EXPECT_EQ(ppl.verdict + ": " + ppl.measured,
            "reproduced: lte on dialects: perplexity +0.400 at 1/2.00 of the FLOPs");
  EXPECT_EQ(rouge.verdict + ": " + rouge.measured,
            "reproduced: lte on dialects: ROUGE-L -0.0400 at 1/2.00 of the FLOPs");
  EXPECT_EQ(one(of("ppl = 0.3")).verdict, "not reproduced");
  EXPECT_EQ(one(of("rouge_l = 0.03")).verdict, "not reproduced");
  EXPECT_NE(error("[[claim]]\nid = \"c\"\n" + of("")), "no error") << "permits nothing";
  for (Record& r : records) r.rouge_l = r.what.method == "lte" ? 0.5 : 0.45;
  EXPECT_EQ(one(of("rouge_l = 0")).verdict, "reproduced") << "more of it is better";
}

TEST_F(Claims, FrontierIsOfEveryRowAtItsFlops) {
  const std::string frontier =
      "kind = \"frontier\"\nbetter = { method = \"lte\" }\nthan = {}\nexcept = [\"dense\"]\n";
  three("prune", {}, 2);  // half of the FLOPs
  EXPECT_EQ(one(frontier).verdict, "not run");
  three("lte", {{"eta", "1"}}, 1);
  EXPECT_EQ(one(frontier).verdict, "reproduced");
  EXPECT_EQ(one(frontier).measured, "below 1 of 1 rows");
  for (Record& r : records) r.quality.cost.flops_paper += r.what.method == "lte" ? 1 : 0;
  EXPECT_EQ(one(frontier).verdict, "not run") << "none of ours costs as little";
  three("cats", {}, 1.1), three("dense", {}, 0.1);
  for (Record& r : records) r.quality.cost.flops_paper += r.what.method == "cats" ? 30 : 0;
  const Verdict v = one(frontier);
  EXPECT_EQ(v.verdict, "not reproduced") << "the intervals overlap";
  EXPECT_EQ(v.measured,
            "below 0 of 1 rows; not of cats with 1.200 [0.952, 1.448] at 0.800 of the FLOPs: 1.100 "
            "[0.852, 1.348] at 0.510; 1 cost less than any");
  three("lte", {{"eta", "0.5"}}, 0.5);  // at half again
  EXPECT_EQ(one(frontier).measured, "below 2 of 2 rows");
  // A lower mean that spreads too far does not hide a row that is told apart.
  for (uint64_t seed = 0; seed < 3; ++seed)
    add("lte", {{"eta", "0.1"}}, seed, static_cast<double>(seed) - 1);
  EXPECT_EQ(one(frontier).measured, "below 2 of 2 rows");
}

// The first suite that says anything speaks for a claim on any text.
TEST_F(Claims, WithinSaysWhyItIsNotRun) {
  three("lte", {}, 2), three("dense", {}, 2);
  const std::vector<Record> before = records;
  for (Record r : before) {
    r.what.suite = "other", r.status = "failed";
    records.push_back(r);
  }
  for (Record& r : records) r.quality.cost.flops_paper = 90;
  EXPECT_EQ(one(kWithin).measured, "no row of three seeds computes at most 1/2 of the dense FLOPs");
}

TEST_F(Claims, UnionIsThatOfIndependentChoicesOrOfAnother) {
  const std::string keys = "kind = \"union\"\nselect = { method = \"lte\" }\nratio = 1.1\n";
  three("lte", {}, 2), three("random-router", {}, 2);
  for (Record& r : records) {
    r.quality.active_union.fill(0.25);
    r.quality.active_union.back() = r.what.method == "lte" ? 0.8 : 0.85;
  }
  const Verdict v = one(keys);  // 1 - 0.75^16 = 0.98998
  EXPECT_EQ(v.verdict + ": " + v.measured,
            "reproduced: 0.800 of the neurons (active 0.500, n=3) against 0.990");
  const Verdict other = one(keys + "reference = { method = \"random-router\" }\n");
  EXPECT_EQ(other.verdict + ": " + other.measured,
            "not reproduced: 0.800 of the neurons (active 0.500, n=3) against 0.850");
}

TEST_F(Claims, WithinHoldsWhereItHoldsOnAnyText) {
  three("lte", {}, 2.2), three("dense", {}, 2.0);
  EXPECT_EQ(one(kWithin).verdict, "not reproduced");
  const std::string first = one(kWithin).suite;
  const std::vector<Record> before = records;
  for (Record r : before) {
    r.what.suite = "other";
    if (r.what.method == "lte") r.quality.loss -= 0.2;
    records.push_back(r);
  }
  add("lte", {{"eta", "5"}}, 0, 3);  // the first suite has most records
  const Verdict v = one(kWithin);
  EXPECT_EQ(v.verdict, "reproduced");
  EXPECT_EQ(v.suite, "other");
  for (Record& r : records)
    r.quality.loss += r.what.method == "lte" && r.what.suite == "other" ? 0.2 : 0;
  EXPECT_EQ(one(kWithin).suite, first)
      << "where it holds nowhere, the first suite's figures are shown";
}

TEST_F(Claims, WithinComparesOneDatasetAndModel) {
  three("lte", {}, 2), three("dense", {}, 1.99);
  const auto move = [&](const char* dataset, const char* model) {
    for (size_t i = 3; i < 6; ++i) {
      records[i].what.base.dataset = dataset, records[i].what.base.model = model;
    }
  };
  move("restaurants", "gpt2-nano");
  EXPECT_NE(one(kWithin).verdict, "reproduced");
  move("dialects", "llama-nano");
  EXPECT_NE(one(kWithin).verdict, "reproduced");
  move("dialects", "gpt2-nano");
  EXPECT_EQ(one(kWithin).verdict, "reproduced");
}

TEST_F(Claims, MalformedFilesAreErrors) {
  const std::string head = "[[claim]]\nid = \"c\"\n";
  for (const std::string& toml :
       {std::string("[[claim]\n"), std::string(), std::string("claim = 3"),
        std::string("claim = [1]"), std::string("[[claim]]\n") + kBetter, head,
        head + "kind = \"best\"", head + "kind = 3", head + "kind = \"better\"",
        head + "kind = \"better\"\nbetter = 3\nthan = {}",
        head + "kind = \"better\"\nbetter = { active = 0.25 }\nthan = {}",
        head + "kind = \"monotone\"\nselect = {}\nknob = \"eta\"\nlow = 0.1",
        head + "kind = \"monotone\"\nselect = {}\nknob = \"eta\"\nlow = 0.1\nhigh = \"x\"",
        head + "kind = \"monotone\"\nknob = \"eta\"\nlow = 0.1\nhigh = 0.2",
        head + "kind = \"within\"\nselect = {}\nratio = 2\nloss = \"2 %\""}) {
    const std::string message = error(toml);
    EXPECT_EQ(message.substr(0, folder.size()), folder) << toml << "\n" << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_NE(error_of([&] { judge(folder + "/none.toml", {}); }), "no error");
}

// A typing error must not turn a claim into another one.
TEST_F(Claims, UnknownKeysAreErrors) {
  for (const char* line : {"datset = \"dialects\"", "dataset = 3", "model = []"})
    EXPECT_NE(error("[[claim]]\nid = \"c\"\n" + std::string(line) + "\n" + kBetter), "no error")
        << line;
}

TEST_F(Claims, CommittedClaimsAreWellFormed) {
  const std::vector<Verdict> verdicts = judge(LTE_SOURCE_DIR "/results/claims.toml", {});
  EXPECT_FALSE(verdicts.empty());
  for (const Verdict& v : verdicts) {
    EXPECT_EQ(v.verdict, "not run") << v.id;
    EXPECT_FALSE(v.statement.empty() || v.expected.empty()) << v.id;
  }
}

// The committed records decide every committed claim, or it says what they lack: rows that were added must not make one
// speak of several experiments.
TEST_F(Claims, CommittedClaimsAreDecided) {
  const auto committed = latest(read_results(LTE_SOURCE_DIR "/results"));
  for (const Verdict& v : judge(LTE_SOURCE_DIR "/results/claims.toml", committed)) {
    EXPECT_TRUE(v.verdict != "not run" || v.measured.starts_with("no row of three seeds"))
        << v.id << ": " << v.measured;
  }
}

}  // namespace
}  // namespace lte
