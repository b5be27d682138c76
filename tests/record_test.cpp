// Records: their lines, their files, and what later runs are held against.
#include <cmath>
#include <limits>

#include "bench_testing.h"

namespace lte {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

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
  EXPECT_EQ(b.quality.loss, 0.3) << "nine digits of 0.1 + 0.2";
  EXPECT_EQ(b.quality.active, 0.333333333);
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

TEST_F(Bench, TrialsAndResultsLieApart) {
  Record r = full_record();
  EXPECT_EQ(records_path("d", "test"), "d/records.jsonl");
  EXPECT_EQ(records_path("d", "valid"), "d/trials.jsonl");
  EXPECT_TRUE(read_results(folder).empty());
  file("records.jsonl", to_json(r) + "\n"), r.split = "valid";
  file("trials.jsonl", to_json(r) + "\n");
  ASSERT_EQ(read_results(folder).size(), 2u);
  EXPECT_EQ(read_results(folder)[1].split, "valid");
  r.split = "test", r.status = "older";
  file("records-b.jsonl", to_json(r) + "\n"), file("records.txt", "no record\n");
  ASSERT_EQ(read_results(folder).size(), 3u);
  r.split = "valid", file("trials-b.jsonl", to_json(r) + "\n");
  ASSERT_EQ(read_results(folder).size(), 4u);
  EXPECT_EQ(read_results(folder)[0].status, "older") << "the newest of a name is the last";
}

TEST_F(Bench, ExpectedIsWhatALaterRunIsHeldAgainst) {
  const std::vector<Record> records = {full_record()};
  EXPECT_TRUE(read_expected(folder + "/none.jsonl").empty());
  const auto all = read_expected(file("e.jsonl", expected_lines(records)));
  ASSERT_EQ(all.size(), 1u);
  const Expected& e = all.at(records[0].name);
  EXPECT_EQ(e.loss, 0.3);
  EXPECT_EQ(e.active, 0.333333333);
  EXPECT_EQ(e.digest, 0xfedcba9876543210u);
  std::vector<Record> failed = records;
  failed[0].status = "failed";
  EXPECT_EQ(expected_lines(failed), "");
  expect_in(error_of([&] { read_expected(file("e.jsonl", "\n{}\n")); }), "e.jsonl:2:");
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
