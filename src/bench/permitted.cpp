#include "bench/permitted.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/rng.h"
#include "core/statistics.h"

namespace lte {
namespace {

constexpr int kResamples = 1000;

// Knobs that make another variant of a method; the rest are settings or what a curve sweeps over.
constexpr const char* kVariants[] = {
    "score",  "allocation", "selection",    "construction", "rule",   "by",     "look_ahead",
    "before", "group",      "router_input", "distill",      "scaled", "lambda", "warm_tokens"};
// Those that are written wherever they are set, so that a row means the same in every column; so are single
// neurons in place of experts.
constexpr const char* kAlways[] = {"score", "scaled", "lambda", "before"};
// Chosen by a search on each dataset: another curve, without its value, only beside one that has none or another.
constexpr const char* kSearched = "label_share";

std::string value_of(const Experiment& e, const char* knob) {
  const auto found = e.knobs.find(knob);
  return found == e.knobs.end() ? "" : found->second;
}

// Whether some row would lie on the row's curve but for kSearched.
bool has_rival(const Experiment& e, std::span<const Group> groups) {
  const auto rivals = [&](const Record* r) {
    const Experiment& o = r->what;
    return o.method == e.method && o.base.dataset == e.base.dataset &&
           o.base.model == e.base.model && o.protocol == e.protocol &&
           value_of(o, kSearched) != value_of(e, kSearched) &&
           std::all_of(std::begin(kVariants), std::end(kVariants),
                       [&](const char* knob) { return value_of(o, knob) == value_of(e, knob); });
  };
  return std::any_of(groups.begin(), groups.end(), [&](const Group& g) {
    return std::any_of(g.records.begin(), g.records.end(), rivals);
  });
}

std::string variant_of(const Row& row, std::span<const Group> groups) {
  const Experiment& e = row.what();
  std::string label = e.method;
  for (const char* knob : kVariants) {
    const std::string own = value_of(e, knob);
    if (own.empty()) continue;
    const bool differs = std::any_of(groups.begin(), groups.end(), [&](const Group& g) {
      return g.dataset == e.base.dataset && g.model == e.base.model &&
             std::any_of(g.records.begin(), g.records.end(), [&](const Record* r) {
               return r->what.method == e.method && value_of(r->what, knob) != own;
             });
    });
    const bool single = knob == std::string("group") && own == "1";
    const bool always =
        single || std::any_of(std::begin(kAlways), std::end(kAlways),
                              [&](const char* name) { return knob == std::string(name); });
    if (differs || always) label += fmt::format(" {}={}", knob, own);
  }
  if (e.knobs.contains(kSearched) && has_rival(e, groups)) label += fmt::format(" {}", kSearched);
  return fmt::format("{} ({})", label, e.protocol);
}

struct Spot {
  double active, loss;
  bool own = true;
};

// Where a curve, densest first, rises above the limit for the first time.
Permitted crossing(std::vector<Spot> curve, double limit) {
  std::stable_sort(curve.begin(), curve.end(),
                   [](const Spot& a, const Spot& b) { return a.active > b.active; });
  if (!(curve[0].loss <= limit)) return {.active = curve[0].active, .never = true};
  for (size_t i = 1; i < curve.size(); ++i) {
    const Spot &a = curve[i - 1], &b = curve[i];
    if (b.loss <= limit) continue;
    const double way = (limit - a.loss) / (b.loss - a.loss);
    return {.active = a.active + way * (b.active - a.active), .beyond = !a.own};
  }
  return {.active = curve.back().active, .below = true};
}

// Means of one resample, with replacement; without a generator of all values.
Spot spot_of(const CurvePoint& p, Rng* rng) {
  if (!rng) return {mean_of(p.active), mean_of(p.loss), p.own};
  Spot s{0, 0, p.own};
  const auto n = static_cast<double>(p.loss.size());
  for (size_t i = 0; i < p.loss.size(); ++i) {
    const size_t pick = rng->below(p.loss.size());
    s.active += p.active[pick] / n, s.loss += p.loss[pick] / n;
  }
  return s;
}

CurvePoint point_of(const Row& row) {
  CurvePoint p;
  for (const Record* r : row.records) {
    if (!std::isfinite(r->quality.loss)) continue;
    p.active.push_back(r->quality.active), p.loss.push_back(r->quality.loss);
  }
  return p;
}

std::string cell_of(const Permitted& p) {
  if (p.never) return "none";
  if (p.below) return fmt::format("≤ {:.3f}", p.active);
  if (p.beyond) return fmt::format("~ {:.3f}", p.active);
  if (p.high - p.low < 5e-4) return fmt::format("{:.3f}", p.active);
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", p.active, p.low, p.high);
}

// Curves of a group by "label (protocol)"; the dense rows by protocol, under "dense".
struct Curves {
  std::map<std::string, std::vector<CurvePoint>> points;
  std::map<std::string, std::string> protocol;
  std::map<std::string, CurvePoint> dense;
  std::vector<std::string> order;

  Curves(const Group& g, std::span<const Group> all) {
    for (const Row& row : g.rows) {
      if (row.failed) continue;
      const CurvePoint p = point_of(row);
      if (p.loss.empty()) continue;
      const std::string& protocol_of = row.what().protocol;
      if (row.what().method == "dense") {
        dense.try_emplace(protocol_of, p);
        continue;
      }
      const std::string label = variant_of(row, all);
      if (points[label].empty()) order.push_back(label);
      points[label].push_back(p), protocol[label] = protocol_of;
    }
  }

  std::optional<Permitted> at(const std::string& label, double percent) const {
    const auto control = dense.find("equal budget");
    const auto found = points.find(label);
    if (control == dense.end() || found == points.end()) return {};
    std::vector<CurvePoint> curve = found->second;
    const auto anchor = dense.find(protocol.at(label));
    if (anchor != dense.end()) {
      curve.push_back(anchor->second);
      curve.back().own = false;
    }
    return permitted_active(curve, control->second.loss, percent);
  }
};

}  // namespace

std::optional<Permitted> permitted_active(std::span<const CurvePoint> points,
                                          std::span<const double> control, double percent) {
  if (points.empty() || control.empty()) return {};
  const double margin = std::log1p(percent / 100);
  const auto once = [&](Rng* rng) {
    std::vector<Spot> curve;
    for (const CurvePoint& p : points) curve.push_back(spot_of(p, rng));
    double limit = mean_of(control);
    if (rng) {
      limit = 0;
      for (size_t i = 0; i < control.size(); ++i) {
        limit += control[rng->below(control.size())] / static_cast<double>(control.size());
      }
    }
    return crossing(std::move(curve), limit + margin);
  };
  Permitted best = once(nullptr);
  Rng rng(0xb007);
  std::vector<double> all;
  for (int i = 0; i < kResamples; ++i) {
    const Permitted p = once(&rng);
    all.push_back(p.never ? 1 : p.active);
  }
  std::sort(all.begin(), all.end());
  best.low = all[kResamples / 20], best.high = all[kResamples - 1 - kResamples / 20];
  return best;
}

Section permitted_section(std::span<const Group> groups) {
  Section s{.title = "Active fraction at a permitted perplexity",
            .anchor = "permitted",
            .tables = {},
            .notes = {},
            .figures = {},
            .machine = {}};
  std::vector<std::pair<std::string, Curves>> columns;
  std::vector<std::string> labels;
  for (const Group& g : groups) {
    if (g.records.front()->split != "test") continue;
    Curves c(g, groups);
    if (!c.dense.contains("equal budget") || c.order.empty()) continue;
    for (const std::string& label : c.order) {
      if (std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
    }
    columns.emplace_back(fmt::format("{}: {} on {}", g.suite, g.model, g.dataset), std::move(c));
  }
  for (const double percent : {1.0, 5.0}) {
    Table t{.caption = fmt::format("Perplexity {:g} % above the dense control", percent),
            .columns = {{"method (protocol)"}},
            .rows = {}};
    for (const auto& [title, curves] : columns) t.columns.push_back({title, true});
    for (const std::string& label : labels) {
      std::vector<std::string> row = {label};
      for (const auto& [title, curves] : columns) {
        const auto p = curves.at(label, percent);
        row.push_back(p ? cell_of(*p) : "–");
      }
      t.rows.push_back(std::move(row));
    }
    if (!t.rows.empty()) s.tables.push_back(std::move(t));
  }
  return s;
}

}  // namespace lte
