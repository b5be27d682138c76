// Two timings held against each other, on files that are made up.
#include "bench/timings.h"

#include <fmt/format.h>

#include "bench_testing.h"
#include "core/rng.h"

namespace lte {
namespace {

constexpr const char* kContext =
    R"j("context": {"cpu": "X", "cores": "2", "threads": "2", "gpu": "none (no driver)"})j";

// One repetition, or with `type` an aggregate.
std::string entry(const std::string& name, double microseconds, const char* type = "iteration") {
  return fmt::format(
      R"({{"run_name": "{}", "name": "{}", "run_type": "{}", "real_time": {}, "time_unit": "us"}})",
      name, name, type, microseconds);
}
std::string file_of(const std::vector<std::string>& entries, const char* context = kContext) {
  std::string list;
  for (const std::string& e : entries) list += (list.empty() ? "" : ",\n") + e;
  return fmt::format("{{{}, \"benchmarks\": [{}]}}", context, list);
}
// `n` repetitions of `median` with a spread of `noise` of it, and the aggregate that readers skip.
std::vector<std::string> row(const std::string& name, double median, double noise, uint64_t seed,
                             int n = 9) {
  std::vector<std::string> all;
  Rng rng(seed);
  for (int i = 0; i < n; ++i) {
    all.push_back(entry(name, median * (1 + noise * (2 * rng.uniform() - 1))));
  }
  all.push_back(entry(name, 1e9, "aggregate"));
  return all;
}
std::vector<std::string> both(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Timings timings(const std::string& json) {
  Timings t;
  add_timings(t, "f.json", json);
  return t;
}
std::string verdict(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  return compare_timings(timings(file_of(a)), timings(file_of(b))).at(0).verdict;
}
std::string error(const std::string& a, const std::string& b) {
  return error_of([&] { compare_timings(timings(a), timings(b)); });
}

TEST(Compare, IdenticalFilesAreTheSame) {
  const auto a = both(row("one", 10, 0.01, 1), row("two", 1000, 0.01, 2));
  const auto rows = compare_timings(timings(file_of(a)), timings(file_of(a)));
  ASSERT_EQ(rows.size(), 2u);
  for (const RowVersus& r : rows) {
    EXPECT_EQ(r.ratio, 1);
    EXPECT_EQ(r.verdict, "same");
    EXPECT_LE(r.low, 1);
    EXPECT_GE(r.high, 1);
  }
  EXPECT_NEAR(rows[0].a, 10e-6, 0.2e-6) << "aggregates count for nothing, units do";
  EXPECT_EQ(versus_table(rows),
            versus_table(compare_timings(timings(file_of(a)), timings(file_of(a)))));
}

TEST(Compare, NumbersThatJsonHasNoneOfAreRead) {
  const std::string odd =
      R"({"run_name": "x", "run_type": "aggregate", "real_time": -NaN, "max_err_used": NaN})";
  const auto a = both(row("x", 10, 0.01, 1), {odd});
  EXPECT_EQ(verdict(a, a), "same");
  expect_in(error_of([] {
              timings(file_of({R"({"run_name": "x", "real_time": NaN, "time_unit": "us"})"}));
            }),
            "not a result file");
}

TEST(Compare, APlantedSlowdownIsSeenBothWays) {
  const auto a = row("x", 10, 0.01, 1), b = row("x", 11, 0.01, 2);
  EXPECT_EQ(verdict(a, b), "slower");
  EXPECT_EQ(verdict(b, a), "faster");
  const RowVersus r = compare_timings(timings(file_of(a)), timings(file_of(b))).at(0);
  EXPECT_NEAR(r.ratio, 1.1, 0.02);
  EXPECT_GT(r.low, 1.05);
  EXPECT_LT(r.high, 1.15);
}

TEST(Compare, NoiseIsNotAVerdict) {
  EXPECT_EQ(verdict(row("x", 10, 0.3, 1), row("x", 11, 0.3, 2)), "noise");
  EXPECT_EQ(verdict(row("x", 10, 0.001, 1), row("x", 10.2, 0.001, 2)), "same")
      << "2 % are within the margin, however sure";
}

// The share of false alarms under the null, over many pairs of the same distribution.
TEST(Compare, FalseAlarmsAreRare) {
  int alarms = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const std::string v = verdict(row("x", 10, 0.1, 2 * i + 1), row("x", 10, 0.1, 2 * i + 2));
    alarms += v == "slower" || v == "faster";
  }
  EXPECT_LE(alarms, 4);
}

TEST(Compare, OtherRowsOrAnotherMachineCannotBeCompared) {
  const std::string a = file_of(both(row("one", 1, 0, 1), row("two", 1, 0, 2)));
  expect_in(error(a, file_of(row("one", 1, 0, 1))), "other rows: two is in A alone");
  expect_in(error(file_of(row("one", 1, 0, 1)), a), "other rows: two is in B alone");
  const char* machine = R"j("context": {"cpu": "Y", "cores": "2", "threads": "2", "gpu": "none"})j";
  expect_in(error(a, file_of(both(row("one", 1, 0, 1), row("two", 1, 0, 2)), machine)),
            "another machine: cpu is 'X' in A and 'Y' in B");
  const char* reason =
      R"j("context": {"cpu": "X", "cores": "2", "threads": "2", "gpu": "none (y)"})j";
  EXPECT_EQ(error(a, file_of(both(row("one", 1, 0, 1), row("two", 1, 0, 2)), reason)), "no error");
  expect_in(error(file_of(row("x", 1, 0, 1, 4)), file_of(row("x", 1, 0, 1))), "4 repetitions");
}

TEST(Compare, SkippedRowsStandOnBothSidesOrNone) {
  const std::string skip =
      R"({"run_name": "x", "run_type": "iteration", "error_occurred": true,
          "error_message": "skipped: no memory"})";
  const auto rows = compare_timings(timings(file_of({skip})), timings(file_of({skip})));
  EXPECT_EQ(rows.at(0).verdict, "skipped");
  expect_in(error(file_of({skip}), file_of(row("x", 1, 0, 1))), "skipped on one side");
  const std::string failed =
      R"({"run_name": "x", "run_type": "iteration", "error_occurred": true,
          "error_message": "differs from the reference"})";
  expect_in(error(file_of({failed}), file_of({failed})), "row x failed");
}

TEST(Compare, WhatIsNoResultFileIsSaidInOneLine) {
  const std::string good = file_of(row("x", 1, 0, 1));
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "not a result file"},
      {"{", "not a result file"},
      {"[]", "not a result file"},
      {"{\"context\": {}}", "not a result file"},
      {file_of({R"({"run_type": "iteration"})"}), "not a result file"},
      {file_of({R"({"run_name": "x", "real_time": "soon", "time_unit": "us"})"}),
       "not a result file"},
      {file_of({R"({"run_name": "x", "real_time": 1, "time_unit": "fortnight"})"}), "time unit"},
      {file_of({entry("x", -1)}), "is not a time"},
      {file_of({}), "has no repetitions"},
      {file_of({entry("x", 1, "aggregate")}), "has no repetitions, only aggregates"},
      {file_of(row("x", 1, 0, 1), R"j("context": {"smoke": "yes"})j"), "a smoke run"}};
  for (const auto& [json, text] : bad) {
    const std::string e = error(good, json);
    expect_in(e, "f.json");
    expect_in(e, text);
    EXPECT_EQ(e.find('\n'), e.npos) << e;
  }
}

struct CompareFolders : Bench {};

TEST_F(CompareFolders, RepetitionsOfSeveralFilesBelongTogether) {
  make_folder(folder + "/a");
  for (int i = 0; i < 3; ++i) {
    file(fmt::format("a/{}.json", i), file_of(row("x", 10 + i, 0, 1, 3)));
  }
  file("a/notes.txt", "not a result");
  const Timings t = load_timings(folder + "/a");
  ASSERT_EQ(t.row.size(), 1u);
  EXPECT_EQ(t.row.at("x").seconds.size(), 9u);
  const RowVersus r = compare_timings(t, t).at(0);
  EXPECT_NEAR(r.a, 11e-6, 1e-12);
  file("a/3.json", file_of(row("x", 1, 0, 1), R"j("context": {"cpu": "Y"})j"));
  expect_in(error_of([&] { load_timings(folder + "/a"); }), "3.json: cpu is 'Y'");
  make_folder(folder + "/b");
  expect_in(error_of([&] { load_timings(folder + "/b"); }), "holds no *.json");
  expect_in(error_of([&] { load_timings(folder + "/none"); }), "none");
}

}  // namespace
}  // namespace lte
