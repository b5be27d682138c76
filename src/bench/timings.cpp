#include "bench/timings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/files.h"
#include "core/rng.h"
#include "core/statistics.h"

namespace lte {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDraws = 2000;
constexpr double kTail = 0.025;
constexpr const char* kSkipped = "skipped: ";

// The library writes numbers that JSON has none of, such as the variation of a counter of zeros.
std::string without_nan(std::string_view text) {
  std::string out(text);
  for (const char* word : {": NaN", ": -NaN", ": Infinity", ": -Infinity"}) {
    for (size_t at = out.find(word); at != out.npos; at = out.find(word, at)) {
      out.replace(at, std::string_view(word).size(), ": null");
    }
  }
  return out;
}

double unit_seconds(const std::string& unit, const std::string& path) {
  static const std::map<std::string, double> kUnits = {
      {"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}};
  const auto found = kUnits.find(unit);
  LTE_CHECK(found != kUnits.end(), fmt::format("{}: unknown time unit '{}'", path, unit));
  return found->second;
}

// Adds a repetition; returns whether it was one.
bool add_row(Timings& t, const std::string& path, const Json& b) {
  if (b.value("run_type", "iteration") != "iteration") return false;
  const std::string name = b.at("run_name");
  TimedRow& row = t.row[name];
  if (b.value("error_occurred", false)) {
    const std::string why = b.value("error_message", "");
    LTE_CHECK(why.starts_with(kSkipped), fmt::format("{}: row {} failed: {}", path, name, why));
    row.skipped = why.substr(std::string_view(kSkipped).size());
    return true;
  }
  const double time = b.at("real_time").get<double>();
  LTE_CHECK(std::isfinite(time) && time > 0,
            fmt::format("{}: row {}: {} is not a time", path, name, time));
  row.seconds.push_back(time * unit_seconds(b.at("time_unit"), path));
  return true;
}

void add_machine(Timings& t, const std::string& path, const Json& context) {
  for (const char* key : {"cpu", "cores", "threads", "gpu"}) {
    std::string value = context.value(key, "unknown");
    if (value.starts_with("none")) value = "none";  // why there is none is not the machine's
    const auto [at, added] = t.machine.insert({key, value});
    LTE_CHECK(added || at->second == value, fmt::format("{}: {} is '{}', of the files before '{}'",
                                                        path, key, value, at->second));
  }
}

// Medians of samples that are drawn with replacement.
std::vector<double> draw_medians(const std::vector<double>& from, Rng& rng) {
  std::vector<double> medians, sample(from.size());
  for (int i = 0; i < kDraws; ++i) {
    for (double& x : sample) x = from[rng.below(from.size())];
    medians.push_back(median_of(sample));
  }
  return medians;
}

std::pair<double, double> interval(std::vector<double> draws) {
  std::sort(draws.begin(), draws.end());
  const auto n = static_cast<double>(draws.size() - 1);
  return {draws[static_cast<size_t>(kTail * n)], draws[static_cast<size_t>((1 - kTail) * n)]};
}

std::string verdict_of(const RowVersus& r) {
  const double most = 1 + kVersusMargin, least = 1 / most;
  if (r.b_low > r.a_high && r.ratio > most) return "slower";
  if (r.b_high < r.a_low && r.ratio < least) return "faster";
  return r.low >= least && r.high <= most ? "same" : "noise";
}

RowVersus versus(const std::string& name, const TimedRow& a, const TimedRow& b) {
  RowVersus r{.name = name, .verdict = "skipped"};
  if (!a.skipped.empty()) return r;
  for (const TimedRow* side : {&a, &b}) {
    LTE_CHECK(side->seconds.size() >= kVersusLeast,
              fmt::format("row {}: {} repetitions, at least {} are wanted", name,
                          side->seconds.size(), kVersusLeast));
  }
  Rng rng(1979);
  const std::vector<double> as = draw_medians(a.seconds, rng), bs = draw_medians(b.seconds, rng);
  std::vector<double> ratios;
  for (size_t i = 0; i < as.size(); ++i) ratios.push_back(bs[i] / as[i]);
  r.a = median_of(a.seconds), r.b = median_of(b.seconds);
  r.ratio = r.b / r.a;
  std::tie(r.a_low, r.a_high) = interval(as), std::tie(r.b_low, r.b_high) = interval(bs);
  std::tie(r.low, r.high) = interval(ratios);
  r.verdict = verdict_of(r);
  return r;
}

void check_rows(const Timings& a, const Timings& b, const char* side) {
  for (const auto& [name, row] : a.row) {
    const auto other = b.row.find(name);
    LTE_CHECK(other != b.row.end(), fmt::format("other rows: {} is in {} alone", name, side));
    LTE_CHECK(row.skipped.empty() == other->second.skipped.empty(),
              fmt::format("other rows: {} was skipped on one side", name));
  }
}

std::string time_text(double seconds) {
  return seconds < 1e-3 ? fmt::format("{:.3f} us", 1e6 * seconds)
         : seconds < 1  ? fmt::format("{:.3f} ms", 1e3 * seconds)
                        : fmt::format("{:.3f} s", seconds);
}

}  // namespace

void add_timings(Timings& t, const std::string& path, std::string_view text) {
  try {
    const Json j = Json::parse(without_nan(text));
    const Json& context = j.at("context");
    LTE_CHECK(!context.contains("smoke"), fmt::format("{}: a smoke run times nothing", path));
    bool any = false;
    for (const Json& b : j.at("benchmarks")) any |= add_row(t, path, b);
    LTE_CHECK(any, fmt::format("{}: has no repetitions, only aggregates or nothing; run without "
                               "--benchmark_report_aggregates_only",
                               path));
    add_machine(t, path, context);
  } catch (const nlohmann::json::exception& e) {
    fail(fmt::format("{}: not a result file of Google Benchmark: {}", path, e.what()));
  }
}

Timings load_timings(const std::string& path) {
  Timings t;
  std::vector<std::string> files;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() == ".json") files.push_back(entry.path().string());
    }
    LTE_CHECK(!files.empty(), fmt::format("{}: holds no *.json", path));
    std::sort(files.begin(), files.end());
  } else {
    files.push_back(path);
  }
  for (const std::string& f : files) add_timings(t, f, read_file(f));
  return t;
}

std::vector<RowVersus> compare_timings(const Timings& a, const Timings& b) {
  for (const auto& [key, value] : a.machine) {
    const auto other = b.machine.find(key);
    const std::string theirs = other == b.machine.end() ? "unknown" : other->second;
    LTE_CHECK(theirs == value,
              fmt::format("another machine: {} is '{}' in A and '{}' in B", key, value, theirs));
  }
  check_rows(a, b, "A"), check_rows(b, a, "B");
  std::vector<RowVersus> rows;
  for (const auto& [name, row] : a.row) rows.push_back(versus(name, row, b.row.at(name)));
  return rows;
}

std::string versus_table(const std::vector<RowVersus>& rows) {
  size_t width = 3;
  for (const RowVersus& r : rows) width = std::max(width, r.name.size());
  std::string out = fmt::format("{:<{}}  {:>12}  {:>12}  {:>6}  {:<16}  {}\n", "row", width, "A",
                                "B", "B/A", "95 %", "verdict");
  std::map<std::string, int> count;
  for (const RowVersus& r : rows) {
    ++count[r.verdict];
    if (r.verdict == "skipped") {
      out += fmt::format("{:<{}}  {:>12}  {:>12}  {:>6}  {:<16}  skipped\n", r.name, width, "", "",
                         "", "");
      continue;
    }
    out += fmt::format("{:<{}}  {:>12}  {:>12}  {:>6.3f}  [{:.3f}, {:.3f}]  {}\n", r.name, width,
                       time_text(r.a), time_text(r.b), r.ratio, r.low, r.high, r.verdict);
  }
  std::string summary;
  for (const auto& [verdict, n] : count) {
    summary += fmt::format("{}{} {}", summary.empty() ? "" : ", ", n, verdict);
  }
  return out + fmt::format("{} rows: {}\n", rows.size(), summary);
}

std::string versus_json(const std::vector<RowVersus>& rows) {
  Json list = Json::array();
  int slower = 0;
  for (const RowVersus& r : rows) {
    slower += r.verdict == "slower";
    if (r.verdict == "skipped") {
      list.push_back({{"name", r.name}, {"verdict", r.verdict}});
      continue;
    }
    list.push_back({{"name", r.name},
                    {"a_seconds", r.a},
                    {"a_interval", {r.a_low, r.a_high}},
                    {"b_seconds", r.b},
                    {"b_interval", {r.b_low, r.b_high}},
                    {"ratio", r.ratio},
                    {"ratio_interval", {r.low, r.high}},
                    {"verdict", r.verdict}});
  }
  return Json{{"rows", list}, {"slower", slower}}.dump();
}

}  // namespace lte
