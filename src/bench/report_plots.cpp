// The plots of a group.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "bench/report_parts.h"
#include "bench/svg.h"
#include "bench/svg_parts.h"

namespace lte {
namespace {

constexpr double kShown = 0.25;      // active fraction near which single rows are looked at
constexpr size_t kPanelColumns = 6;  // layers of a histogram figure
constexpr double kSamePoint = 0.02;  // active fractions that the ideal line does not tell apart
constexpr size_t kMostCurves = 10;   // of more, those of a single point are left to the tables
constexpr size_t kMostRows = 8;      // of layers, unions and score histograms
constexpr double kSqueezed = 2.5;    // spread of all points over that of the compared ones

double active_of(const Record& r) { return r.quality.active; }

std::string row_name(const Row& row) {
  return fmt::format("{} ({})", row.label, row.what().protocol);
}

bool is_dense(const Row& row) { return row.what().method == "dense"; }
bool is_static(const Row& row) { return is_dense(row) || row.what().method == "prune"; }

// One curve a method and protocol. Curves of a method in both protocols share their color.
struct Curve {
  Series series;
  std::vector<const Row*> rows;
};

std::vector<Curve> curves_of(const Group& g) {
  std::vector<Curve> curves;
  std::map<std::string, size_t> seen;
  for (const Row& row : g.rows) {
    if (row.failed || is_dense(row)) continue;
    const std::string& protocol = row.what().protocol;
    const std::string name = fmt::format("{} ({})", row.curve, protocol);
    const auto [at, fresh] = seen.try_emplace(name, curves.size());
    if (fresh) {
      const Stroke stroke = protocol == "paper" ? Stroke::dashed : Stroke::solid;
      curves.push_back({{.name = name, .stroke = stroke}, {}});
    }
    curves[at->second].rows.push_back(&row);
  }
  return curves;
}

struct Point {
  double x = 0, y = 0, low = 0, high = 0;
};
using PointOf = std::function<std::optional<Point>(const Row&)>;

std::vector<Series> series_of(const Group& g, const PointOf& point_of) {
  std::vector<Series> all;
  std::vector<Curve> curves = curves_of(g);
  if (curves.size() > kMostCurves) {
    std::erase_if(curves, [](const Curve& c) { return c.rows.size() < 2; });
  }
  std::map<std::string, int> colors;
  for (Curve& curve : curves) {
    const auto next = static_cast<int>(colors.size());
    curve.series.color = colors.try_emplace(curve.rows[0]->curve, next).first->second;
    std::vector<Point> points;
    for (const Row* row : curve.rows) {
      if (const auto p = point_of(*row)) points.push_back(*p);
    }
    if (points.empty()) continue;
    std::stable_sort(points.begin(), points.end(),
                     [](const Point& a, const Point& b) { return a.x < b.x; });
    for (const Point& p : points) {
      curve.series.x.push_back(p.x), curve.series.y.push_back(p.y);
      curve.series.y_low.push_back(p.low), curve.series.y_high.push_back(p.high);
    }
    all.push_back(std::move(curve.series));
  }
  return all;
}

std::vector<Level> dense_levels(const Group& g, const PointOf& point_of) {
  std::vector<Level> levels;
  for (const Row& row : g.rows) {
    if (row.failed || !is_dense(row)) continue;
    const auto p = point_of(row);
    const bool paper = row.what().protocol == "paper";
    if (p) levels.push_back({row_name(row), p->y, paper ? Stroke::dashed : Stroke::solid});
  }
  return levels;
}

std::optional<double> flops_ratio(const Record& r) {
  if (r.dense_cost.flops_paper <= 0) return std::nullopt;
  return r.quality.cost.flops_paper / r.dense_cost.flops_paper;
}

std::optional<double> bytes_ratio(const Record& r) {
  if (r.dense_cost.bytes <= 0) return std::nullopt;
  return r.quality.cost.bytes / r.dense_cost.bytes;
}

double loss_of(const Record& r) { return r.quality.loss; }

std::optional<Point> point_at(const Row& row, const Number& x, const Number& y) {
  const Stat at = over_seeds(row, x), value = over_seeds(row, y);
  if (at.n == 0 || value.n == 0) return std::nullopt;
  return Point{at.mean, value.mean, value.mean - value.sd, value.mean + value.sd};
}

// If some rows lie so far off that the others would be squeezed together, the axis ends above the others: nine
// tenths of those that were trained further.
std::optional<std::pair<double, double>> readable_range(const Plot& p) {
  double low = 1e300, far = -1e300;
  std::vector<double> compared;
  const auto see = [&](double value, bool trained) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value), far = std::max(far, value);
    if (trained) compared.push_back(value);
  };
  for (const Level& l : p.levels) see(l.y, true);
  for (const Series& s : p.series) {
    for (double y : s.y_high) see(y, s.stroke == Stroke::solid);
    for (double y : s.y_low) see(y, s.stroke == Stroke::solid);
  }
  if (compared.empty()) return std::nullopt;
  std::sort(compared.begin(), compared.end());
  const double near = compared[(compared.size() - 1) * 9 / 10];
  if (near <= low || far - low <= kSqueezed * (near - low)) return std::nullopt;
  return std::pair(low - 0.06 * (near - low), near + 0.4 * (near - low));
}

// What quality is drawn against.
struct Against {
  const char* name;
  const char* title;
  const char* label;
  Number number;
};
const Against kAgainst[] = {
    {"flops", "FLOPs per token", "FLOPs per token / dense (paper convention)", flops_ratio},
    {"active", "active fraction", "active fraction of FFN neurons", active_of},
    {"bytes", "bytes of a decode step", "bytes per token / dense", bytes_ratio}};

Plot quality_plot(const Group& g, const char* title, const char* label, const Number& y,
                  const Against& x) {
  const PointOf point = [&](const Row& row) { return point_at(row, x.number, y); };
  return {.title = fmt::format("{} against {}", title, x.title),
          .x = {.label = x.label},
          .y = {.label = label},
          .series = series_of(g, point),
          .levels = dense_levels(g, point)};
}

// What a task is scored by; a dataset has some of them, or none.
struct Metric {
  const char* name;
  const char* title;
  std::optional<double> Record::*value;
};
constexpr Metric kMetrics[] = {{"exact", "Exact match", &Record::exact_match},
                               {"bleu", "BLEU (E2E)", &Record::bleu},
                               {"rouge", "ROUGE-L", &Record::rouge_l},
                               {"slots", "Slot error", &Record::slot_error}};

// A row's label without its active fraction.
std::string short_label(const std::string& label) {
  const size_t at = label.find(" active=");
  if (at == label.npos) return label;
  return label.substr(0, at) + label.substr(std::min(label.size(), label.find(' ', at + 1)));
}

// The rows at equal budget near kShown by their loss, best first.
Ranking ranking_of(const Group& g) {
  Ranking r{
      .title =
          "Test loss near a quarter of the neurons, equal budget; behind a name its FLOPs / dense",
      .x_label = "test loss (nats/token)"};
  for (const Row& row : g.rows) {
    if (row.failed || row.what().protocol == "paper") continue;
    const auto p = point_at(row, active_of, loss_of);
    if (!p) continue;
    if (is_dense(row)) r.level = p->y, r.level_name = "dense";
    if (is_dense(row) || std::abs(p->x - kShown) > kSamePoint) continue;
    const Stat flops = over_seeds(row, flops_ratio);
    const std::string cost = flops.n > 0 ? fmt::format(" · {:.2f}", flops.mean) : std::string();
    r.lines.push_back({short_label(row.label) + cost, p->y, p->low, p->high,
                       row.what().method.starts_with("lte")});
  }
  std::stable_sort(r.lines.begin(), r.lines.end(),
                   [](const auto& a, const auto& b) { return a.value < b.value; });
  return r;
}

std::optional<Point> decode_point(const Row& row) {
  const auto t = decode_of(row);
  if (!t) return std::nullopt;
  return Point{over_seeds(row, active_of).mean, t->median, t->median - t->mad, t->median + t->mad};
}

// What decode would take if its time were in proportion to the bytes that it reads. Rows of nearly
// the same active fraction (with and without routers) share a point.
Series ideal_series(const Group& g) {
  std::vector<double> dense;
  std::vector<std::pair<double, double>> points;  // active, bytes / dense bytes
  for (const Row& row : g.rows) {
    const auto t = decode_of(row);
    const Stat bytes = over_seeds(row, bytes_ratio);
    if (!t || t->speedup <= 0 || bytes.n == 0) continue;
    dense.push_back(t->median * t->speedup);
    points.emplace_back(over_seeds(row, active_of).mean, bytes.mean);
  }
  std::sort(points.begin(), points.end());
  Series s{.name = "ideal: dense time × bytes", .stroke = Stroke::dotted, .markers = false};
  s.color = -1;
  for (size_t i = 0; i < points.size();) {
    std::vector<double> x, y;
    for (const double first = points[i].first; i < points.size(); ++i) {
      if (points[i].first > first + kSamePoint) break;
      x.push_back(points[i].first), y.push_back(points[i].second);
    }
    s.x.push_back(stat_of(x).mean);
    s.y.push_back(stat_of(y).mean * median_of(dense));
  }
  return s;
}

Plot decode_plot(const Group& g) {
  Plot p{.title = "Decode latency against active fraction",
         .x = {.label = "active fraction of FFN neurons"},
         .y = {.label = "decode (µs/token)"},
         .series = series_of(g, decode_point),
         .levels = dense_levels(g, decode_point)};
  if (p.series.empty() && p.levels.empty()) return p;
  Series ideal = ideal_series(g);
  if (!ideal.x.empty()) p.series.push_back(std::move(ideal));
  return p;
}

// Of every method that routes, the row nearest to kShown; of many methods, those at equal budget first,
// and of these the best.
std::vector<const Row*> shown_rows(const Group& g) {
  std::vector<const Row*> rows;
  std::map<std::string, size_t> seen;
  const auto distance = [](const Row& row) {
    return std::abs(over_seeds(row, active_of).mean - kShown);
  };
  for (const Row& row : g.rows) {
    if (row.failed || is_static(row)) continue;
    const auto [at, fresh] = seen.try_emplace(row.what().method, rows.size());
    if (fresh) {
      rows.push_back(&row);
    } else if (distance(row) < distance(*rows[at->second])) {
      rows[at->second] = &row;
    }
  }
  if (rows.size() <= kMostRows) return rows;
  std::stable_sort(rows.begin(), rows.end(), [](const Row* a, const Row* b) {
    const auto key = [](const Row* r) {
      return std::pair(r->what().protocol == "paper", over_seeds(*r, loss_of).mean);
    };
    return key(a) < key(b);
  });
  rows.resize(kMostRows);
  return rows;
}

std::string near_name(const Row& row) {
  return fmt::format("{}, measured {:.2f}", row.label, over_seeds(row, active_of).mean);
}

Bars layer_bars(std::span<const Row* const> rows) {
  Bars b{.title = "Active fraction by layer",
         .x_label = "layer",
         .y_label = "active fraction of FFN neurons"};
  size_t layers = 0;
  for (const Row* row : rows) {
    for (const Record* r : row->records) layers = std::max(layers, r->quality.active_layer.size());
  }
  for (size_t l = 0; l < layers; ++l) b.groups.push_back(fmt::format("{}", l));
  for (const Row* row : rows) {
    std::vector<double> values;
    for (size_t l = 0; l < layers; ++l) {
      values.push_back(over_seeds(*row, [l](const Record& r) -> std::optional<double> {
                         if (l >= r.quality.active_layer.size()) return std::nullopt;
                         return r.quality.active_layer[l];
                       }).mean);
    }
    b.names.push_back(near_name(*row));
    b.values.push_back(std::move(values));
  }
  return b;
}

Plot union_plot(std::span<const Row* const> rows) {
  Plot p{.title = "Union of active experts over consecutive tokens",
         .x = {.label = "consecutive tokens", .log = true, .ticks = {}},
         .y = {.label = "active fraction of the union"}};
  p.y.range = {0.0, 1.05};
  for (int n : kUnions) p.x.ticks.push_back(n);
  for (size_t i = 0; i < rows.size(); ++i) {
    Series s{.name = near_name(*rows[i]), .color = static_cast<int>(i)};
    for (size_t k = 0; k < kUnions.size(); ++k) {
      s.x.push_back(kUnions[k]);
      s.y.push_back(
          over_seeds(*rows[i], [k](const Record& r) { return r.quality.active_union[k]; }).mean);
    }
    p.series.push_back(std::move(s));
  }
  p.levels.push_back({"every expert", 1.0, Stroke::dashed});
  return p;
}

// A row of panels a stage, a column a layer; of many layers, evenly spaced ones.
std::optional<Histograms> score_histograms(const Row& row) {
  const auto found = std::find_if(row.records.begin(), row.records.end(),
                                  [](const Record* r) { return !r->histograms.empty(); });
  if (found == row.records.end()) return std::nullopt;
  const Record& r = **found;
  size_t layers = 0;
  for (const Histogram& h : r.histograms) layers = std::max(layers, h.layer.size());
  if (layers == 0) return std::nullopt;
  const size_t shown = std::min(layers, kPanelColumns);
  Histograms all{.title = fmt::format("Router scores of {}, seed {}", near_name(row), r.what.seed),
                 .x_label = "router score",
                 .columns = static_cast<int>(shown)};
  for (const Histogram& h : r.histograms) {
    for (size_t i = 0; i < shown; ++i) {
      const size_t l = shown == 1 ? 0 : i * (layers - 1) / (shown - 1);
      all.panels.push_back({fmt::format("{}, layer {}", h.stage, l),
                            l < h.layer.size() ? h.layer[l] : std::vector<int64_t>{}});
    }
  }
  return all;
}

using Add = std::function<void(const std::string& name, std::string caption, std::string svg)>;

// If far-off rows squeeze the others together, the plot comes twice: near, and in full.
void add_loss(const Add& add, const std::string& name, Plot p) {
  const std::string title = p.title;
  const std::string caption =
      title + ". Solid: equal budget, dashed: paper. Bars: one standard deviation over seeds.";
  p.y.range = readable_range(p);
  if (p.y.range) p.title = title + ", where the rows are close";
  const bool twice = p.y.range.has_value();
  add(name, caption, draw(p));
  if (!twice) return;
  p.y.range.reset();
  p.title = title + ", all rows";
  add(name + "-all", title + ", in full.", draw(p));
}

void add_rows(const Add& add, const std::vector<const Row*>& rows) {
  if (rows.empty()) return;
  add("layers", "Where the active neurons are, mean over seeds.", draw(layer_bars(rows)));
  add("union", "What a batch or a block of tokens loads, mean over seeds.", draw(union_plot(rows)));
  for (const Row* row : rows) {
    const auto histograms = score_histograms(*row);
    if (!histograms) continue;
    add("scores-" + slug(row->what().method),
        "Router scores before and after each stage. Every panel has its own scale; dashed: 0.5.",
        draw(*histograms));
  }
}

}  // namespace

std::vector<Figure> figures_of(const Group& g, const std::string& prefix) {
  std::vector<Figure> figures;
  const Add add = [&](const std::string& name, std::string caption, const std::string& drawing) {
    figures.push_back({prefix + "-" + name, std::move(caption), svg::compact(drawing)});
  };
  const bool measured =
      std::any_of(g.rows.begin(), g.rows.end(), [](const Row& row) { return !row.failed; });
  if (!measured) return figures;
  for (const Against& x : kAgainst) {
    add_loss(add, fmt::format("loss-{}", x.name),
             quality_plot(g, "Test loss", "test loss (nats/token)", loss_of, x));
  }
  if (const Ranking ranking = ranking_of(g); ranking.lines.size() > 2) {
    add("ranking", "Rows near a quarter of the neurons. Bars: one standard deviation over seeds.",
        draw(ranking));
  }
  for (const Metric& m : kMetrics) {
    for (const Against& x : kAgainst) {
      const Plot p = quality_plot(
          g, m.title, m.title, [&](const Record& r) { return r.*m.value; }, x);
      if (p.series.empty() && p.levels.empty()) continue;
      add(fmt::format("{}-{}", m.name, x.name),
          fmt::format("{}. Solid: equal budget, dashed: paper.", p.title), draw(p));
    }
  }
  const Plot decode = decode_plot(g);
  if (!decode.series.empty() || !decode.levels.empty()) {
    add("decode",
        "Decode latency. Bars: median absolute deviation. Dotted: a decode that takes time in "
        "proportion to the bytes it reads.",
        draw(decode));
  }
  add_rows(add, shown_rows(g));
  return figures;
}

}  // namespace lte
