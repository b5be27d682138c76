#include "bench/report_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

namespace lte {
namespace {

using Records = std::span<const Record* const>;

// What a curve walks along; every other knob starts another curve.
constexpr const char* kSwept[] = {"active", "eta"};

bool is_swept(const std::string& knob) {
  return std::find(std::begin(kSwept), std::end(kSwept), knob) != std::end(kSwept);
}

// Everything about an experiment that is not a knob but tells rows apart. The seeds do not.
Knobs setting_of(const Experiment& e) {
  return {{"backend", e.backend},
          {"shape", name_of(e.shape)},
          {"base.steps", fmt::format("{}", e.base.steps)},
          {"base.batch", fmt::format("{}", e.base.batch)},
          {"base.lr", fmt::format("{}", e.base.lr)}};
}

std::optional<std::string> value_of(const Knobs& knobs, const std::string& name) {
  const auto found = knobs.find(name);
  if (found == knobs.end()) return std::nullopt;
  return found->second;
}

std::vector<const Record*> peers_of(const Record& r, Records peers) {
  std::vector<const Record*> out;
  for (const Record* p : peers) {
    if (p->what.method == r.what.method && p->what.protocol == r.what.protocol) out.push_back(p);
  }
  return out;
}

// Whether all of `peers` have this value of a knob, or of another setting.
bool shared(Records peers, const std::string& knob, const std::string& value) {
  return std::all_of(peers.begin(), peers.end(),
                     [&](const Record* p) { return value_of(p->what.knobs, knob) == value; });
}
bool shared_setting(Records peers, const std::string& setting, const std::string& value) {
  return std::all_of(peers.begin(), peers.end(),
                     [&](const Record* p) { return setting_of(p->what).at(setting) == value; });
}

std::string label_of(const Record& r, Records group, bool swept) {
  const auto peers = peers_of(r, group);
  std::string label = r.what.method;
  for (const auto& [name, value] : r.what.knobs) {
    if (shared(peers, name, value) || (!swept && is_swept(name))) continue;
    label += fmt::format(" {}={}", name, value);
  }
  for (const auto& [name, value] : setting_of(r.what)) {
    if (!shared_setting(group, name, value)) label += fmt::format(" {}={}", name, value);
  }
  return label;
}

// Rows that differ in this are different rows.
using Key = std::tuple<std::string, std::string, Knobs, Knobs>;
Key key_of(const Record& r) {
  return {r.what.method, r.what.protocol, r.what.knobs, setting_of(r.what)};
}

std::vector<Row> rows_of(const std::vector<const Record*>& records) {
  std::vector<Row> rows;
  std::map<Key, size_t> seen;
  for (const Record* r : records) {
    const bool failed = r->status != "ok";
    const auto found = seen.find(key_of(*r));
    if (!failed && found != seen.end()) {
      rows[found->second].records.push_back(r);
      continue;
    }
    if (!failed) seen[key_of(*r)] = rows.size();
    rows.push_back({.label = row_label(*r, records),
                    .curve = curve_label(*r, records),
                    .records = {r},
                    .failed = failed});
    if (failed) rows.back().label += fmt::format(" (seed {}, failed)", r->what.seed);
  }
  return rows;
}

double active_of(const Row& row) {
  if (!row.failed) return over_seeds(row, [](const Record& r) { return r.quality.active; }).mean;
  const std::string wanted = value_of(row.what().knobs, "active").value_or("");
  double active = 0;
  const auto [end, error] = std::from_chars(wanted.data(), wanted.data() + wanted.size(), active);
  return error == std::errc() ? active : 0;
}

void sort_rows(std::vector<Row>& rows) {
  std::map<std::string, int> methods, curves;
  for (const Row& row : rows) {
    methods.try_emplace(row.what().method, static_cast<int>(methods.size()));
    curves.try_emplace(row.curve, static_cast<int>(curves.size()));
  }
  const auto key = [&](const Row& row) {
    const Experiment& e = row.what();
    return std::tuple(e.method != "dense", methods.at(e.method), e.protocol != "paper",
                      curves.at(row.curve), -active_of(row), row.failed);
  };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Row& a, const Row& b) { return key(a) < key(b); });
}

// Appends "name=value" to a list with commas.
void list(std::string& out, const std::string& name, const std::string& value) {
  out += fmt::format("{}{}={}", out.empty() ? "" : ", ", name, value);
}

std::vector<std::string> fixed_knobs(const std::vector<const Record*>& records) {
  std::vector<std::string> lines;
  std::set<std::pair<std::string, std::string>> done;
  for (const Record* r : records) {
    if (!done.emplace(r->what.method, r->what.protocol).second) continue;
    const auto peers = peers_of(*r, records);
    std::string knobs;
    for (const auto& [name, value] : r->what.knobs) {
      if (shared(peers, name, value)) list(knobs, name, value);
    }
    if (knobs.empty()) continue;
    lines.push_back(fmt::format("{} ({}): {}", r->what.method, r->what.protocol, knobs));
  }
  std::string settings;
  for (const auto& [name, value] : setting_of(records.front()->what)) {
    if (shared_setting(records, name, value)) list(settings, name, value);
  }
  if (!settings.empty()) lines.push_back(fmt::format("all rows: {}", settings));
  const Record& r = *records.front();
  if (!r.text_sha256.empty()) {
    lines.push_back(
        fmt::format("text: window {}, stride {}, sha256 {}", r.window, r.stride, r.text_sha256));
  }
  return lines;
}

std::optional<RowTiming> timing_of(const Row& row, std::optional<Timing> Record::*timing,
                                   std::optional<double> Record::*speedup) {
  std::vector<double> medians, mads, speedups;
  for (const Record* r : row.records) {
    if (row.failed || !(r->*timing)) continue;
    medians.push_back((r->*timing)->median), mads.push_back((r->*timing)->mad);
    if (r->*speedup) speedups.push_back(*(r->*speedup));
  }
  if (medians.empty()) return std::nullopt;
  const Stat s = stat_of(speedups);
  return RowTiming{.median = median_of(medians),
                   .mad = median_of(mads),
                   .speedup = median_of(speedups),
                   .speedup_low = s.low,
                   .speedup_high = s.high};
}

}  // namespace

Stat stat_of(std::span<const double> values) {
  Stat s;
  for (double v : values) {
    if (!std::isfinite(v)) continue;
    s.low = s.n == 0 ? v : std::min(s.low, v), s.high = s.n == 0 ? v : std::max(s.high, v);
    s.mean += v, ++s.n;
  }
  if (s.n == 0) return s;
  s.mean /= s.n;
  double squares = 0;
  for (double v : values) squares += std::isfinite(v) ? (v - s.mean) * (v - s.mean) : 0;
  s.sd = s.n > 1 ? std::sqrt(squares / (s.n - 1)) : 0;
  return s;
}

std::string row_label(const Record& r, Records peers) { return label_of(r, peers, true); }
std::string curve_label(const Record& r, Records peers) { return label_of(r, peers, false); }

std::vector<Group> group_records(std::span<const Record> records) {
  std::vector<Group> groups;
  for (const Record& r : records) {
    const Experiment& e = r.what;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.suite == e.suite && g.model == e.base.model && g.dataset == e.base.dataset;
    });
    if (group == groups.end()) {
      groups.push_back({.suite = e.suite,
                        .model = e.base.model,
                        .dataset = e.base.dataset,
                        .records = {},
                        .rows = {},
                        .fixed = {}});
      group = groups.end() - 1;
    }
    group->records.push_back(&r);
  }
  for (Group& g : groups) {
    g.rows = rows_of(g.records);
    sort_rows(g.rows);
    g.fixed = fixed_knobs(g.records);
  }
  return groups;
}

Stat over_seeds(const Row& row, const Number& number) {
  std::vector<double> values;
  for (const Record* r : row.records) {
    const std::optional<double> value = number(*r);
    if (!row.failed && value) values.push_back(*value);
  }
  return stat_of(values);
}

std::optional<RowTiming> decode_of(const Row& row) {
  return timing_of(row, &Record::decode, &Record::decode_speedup);
}
std::optional<RowTiming> prefill_of(const Row& row) {
  return timing_of(row, &Record::prefill, &Record::prefill_speedup);
}

}  // namespace lte
