#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "bench/claims.h"
#include "bench/report.h"
#include "core/files.h"

namespace lte {
namespace {

std::vector<Verdict> verdicts_of(const std::string& results, std::span<const Record> records) {
  const std::string path = results + "/claims.toml";
  return std::filesystem::exists(path) ? judge(path, records) : std::vector<Verdict>{};
}

std::vector<Record> of_suite(std::vector<Record> all, const std::string& suite) {
  if (!suite.empty()) std::erase_if(all, [&](const Record& r) { return r.what.suite != suite; });
  return all;
}

void write_report(const std::string& results, std::span<const Record> records) {
  const Report report = make_report(records, verdicts_of(results, records));
  make_folder(results + "/plots");
  for (const auto& [name, text] : report.svg) write_file(results + "/plots/" + name, text);
  write_file(results + "/README.md", report.markdown);
  write_file(results + "/report.html", report.html);
}

void print_verdicts(std::span<const Verdict> verdicts) {
  for (const Verdict& v : verdicts) {
    fmt::print("{:<15} {}: {}{}{}\n", v.verdict, v.id, v.statement,
               v.measured.empty() ? "" : " Measured: ", v.measured);
  }
}

void parse_shard(const std::string& text, RunnerSpec& spec) {
  const size_t slash = text.find('/');
  const auto whole = [&](std::string_view part) {
    int value = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    LTE_CHECK(error == std::errc() && end == part.data() + part.size(),
              fmt::format("--shard {}: wants i/n", text));
    return value;
  };
  LTE_CHECK(slash != text.npos, fmt::format("--shard {}: wants i/n", text));
  spec.shard = whole(std::string_view(text).substr(0, slash)),
  spec.shards = whole(std::string_view(text).substr(slash + 1));
}

// One line that holds this run against what the committed records have under the same names, made on any
// machine.
void print_match(const std::string& path, std::span<const Record> records) {
  const std::map<std::string, Expected> expected = read_expected(path);
  if (expected.empty()) return;
  int bits = 0, close = 0, differ = 0, absent = 0;
  for (const Record& r : records) {
    const auto same = expected.find(r.name);
    if (same == expected.end()) {
      ++absent;
      continue;
    }
    const Expected& e = same->second;
    if (e.digest == r.quality.digest) {
      ++bits;
    } else if (std::abs(e.loss / r.quality.loss - 1) <= 0.03 &&
               std::abs(e.active - r.quality.active) <= 0.03) {
      ++close;
    } else {
      ++differ;
      fmt::print(
          "differs from what is expected: {}: loss {:.4f} against {:.4f}, active {:.3f} against "
          "{:.3f}\n",
          r.name, r.quality.loss, e.loss, r.quality.active, e.active);
    }
  }
  fmt::print("against {}: {} with the same bits, {} within 3 %, {} differing, {} not expected\n",
             path, bits, close, differ, absent);
}

}  // namespace

int cmd_run(const CommonArgs& c, const RunArgs& a) {
  RunnerSpec spec;
  spec.suite = load_suite(a.spec), spec.work = a.work, spec.results = a.results;
  parse_shard(a.shard, spec);
  spec.threads = c.threads, spec.backend = c.backend, spec.data = data_paths(c);
  ProgressLine line;
  spec.progress = [&](const Progress& p) { line.show(p); };
  verdicts_of(a.results, {});  // malformed claims or records are said now, not after the work
  read_results(a.results), read_expected(a.results + "/expected.jsonl");
  const RunSummary s = run_suite(spec);
  line.close();
  const std::vector<Record> all = latest(read_results(a.results));
  write_report(a.results, all);
  fmt::print("\n{}\n", console_table(s.records));
  const std::vector<Record> mine = of_suite(all, spec.suite.name);
  std::vector<Verdict> verdicts = verdicts_of(a.results, mine);
  const size_t claims = verdicts.size();
  std::erase_if(verdicts, [](const Verdict& v) { return v.verdict == "not run"; });
  if (!verdicts.empty()) fmt::print("claims, among the records of this suite:\n");
  print_verdicts(verdicts);
  if (verdicts.size() < claims)
    fmt::print("not run for want of records: {} of {} claims; `lte claims` judges all\n",
               claims - verdicts.size(), claims);
  print_match(a.results + "/expected.jsonl", s.records);
  fmt::print(
      "{}: {} stages run, {} done before, {} records failed, {}; {}/README.md and {}/report.html\n",
      spec.suite.name, s.run, s.cached, s.failed, duration(s.seconds), a.results, a.results);
  return s.failed ? 1 : 0;
}

int cmd_report(const CommonArgs&, const ReportArgs& a) {
  const std::vector<Record> records = of_suite(latest(read_results(a.results)), a.suite);
  LTE_CHECK(!records.empty(),
            fmt::format("{}/records.jsonl: has no records; run `make reproduce`", a.results));
  write_report(a.results, records);
  if (a.expect) write_file(a.results + "/expected.jsonl", expected_lines(records));
  fmt::print("{}\n{}/README.md and {}/report.html\n", console_table(records), a.results, a.results);
  return 0;
}

int cmd_claims(const CommonArgs& c, const ReportArgs& a) {
  const std::vector<Record> records = of_suite(latest(read_results(a.results)), a.suite);
  const std::vector<Verdict> verdicts = judge(a.results + "/claims.toml", records);
  if (!c.json) {
    print_verdicts(verdicts);
    return 0;
  }
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Verdict& v : verdicts) {
    list.push_back({{"id", v.id},
                    {"statement", v.statement},
                    {"expected", v.expected},
                    {"measured", v.measured},
                    {"verdict", v.verdict},
                    {"suite", v.suite}});
  }
  fmt::print("{}\n", list.dump());
  return 0;
}

}  // namespace lte
