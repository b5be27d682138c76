#include "bench/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bench/svg_parts.h"

namespace lte {
namespace {

using namespace svg;

// A point beyond the top or the bottom of the box: a triangle at the edge that points there.
void beyond(std::string& out, double x, bool top, int color) {
  const double way = top ? 1 : -1, step = 1 + 11 * (std::max(0, color) % 3);  // side by side
  const double edge = (top ? kBox.y : kBox.y + kBox.height) + way * step;
  out += fmt::format(
      "<path d=\"M{:.1f} {:.1f}l5 {:.1f}h-10z\" fill=\"none\" stroke=\"{}\" "
      "stroke-width=\"1.5\"/>\n",
      x, edge, way * 9, color_of(color));
}

void error_bar(std::string& out, const Series& s, size_t i, const Scale& x, const Scale& y) {
  if (i >= s.y_low.size() || i >= s.y_high.size()) return;
  if (!y.holds(s.y_low[i]) || !y.holds(s.y_high[i])) return;
  const char* color = color_of(s.color);
  const double at = x(s.x[i]), low = y(s.y_low[i]), high = y(s.y_high[i]);
  if (std::abs(high - low) < 9) return;  // hidden by the marker
  line(out, at, low, at, high, color, 1.4);
  line(out, at - 4, low, at + 4, low, color, 1.4);
  line(out, at - 4, high, at + 4, high, color, 1.4);
}

// Whether a point lies outside of the box's height. Lines are clipped by an inner <svg>.
bool draw_series(std::string& inside, std::string& edge, const Series& s, const Scale& x,
                 const Scale& y) {
  std::vector<std::pair<double, double>> points;
  std::vector<size_t> kept;
  for (size_t i = 0; i < std::min(s.x.size(), s.y.size()); ++i) {
    if (!x.holds(s.x[i]) || !y.holds(s.y[i])) continue;
    points.emplace_back(x(s.x[i]), y(s.y[i]));
    kept.push_back(i);
  }
  polyline(inside, points, color_of(s.color), s.stroke);
  bool outside = false;
  for (size_t k = 0; k < kept.size(); ++k) {
    error_bar(inside, s, kept[k], x, y);
    const double value = s.y[kept[k]];
    if (s.x[kept[k]] < x.low || s.x[kept[k]] > x.high) continue;
    const bool high = value > y.high, low = value < y.low;
    if (high || low) {
      beyond(edge, points[k].first, high, s.color);
      outside = true;
    } else if (s.markers || points.size() == 1) {
      marker(edge, points[k].first, points[k].second, s.color);
    }
  }
  return outside;
}

void draw_legend(std::string& out, const Plot& p, bool outside) {
  const double left = kLegendX;
  double y = kLegendY;
  for (const Series& s : p.series) {
    polyline(out, {{left, y}, {left + 30, y}}, color_of(s.color), s.stroke);
    if (s.markers) marker(out, left + 15, y, s.color);
    text(out, left + 38, y + 4.5, shorten(s.name));
    y += kLegendLine;
  }
  for (const Level& l : p.levels) {
    line(out, left, y, left + 30, y, "#000000", 1.5, l.stroke);
    text(out, left + 38, y + 4.5, shorten(l.name));
    y += kLegendLine;
  }
  if (outside) text(out, left, y + 4.5, "△ beyond the axis: see the table", Anchor::start, 12);
}

std::vector<double> y_values(const Plot& p) {
  std::vector<double> values;
  for (const Series& s : p.series) {
    values.insert(values.end(), s.y.begin(), s.y.end());
    values.insert(values.end(), s.y_low.begin(), s.y_low.end());
    values.insert(values.end(), s.y_high.begin(), s.y_high.end());
  }
  for (const Level& l : p.levels) values.push_back(l.y);
  return values;
}

}  // namespace

std::string draw(const Plot& p) {
  std::vector<std::string> names;
  std::vector<double> xs;
  for (const Series& s : p.series) {
    names.push_back(s.name);
    xs.insert(xs.end(), s.x.begin(), s.x.end());
  }
  for (const Level& l : p.levels) names.push_back(l.name);
  const Scale x = make_scale(p.x, xs, kBox.x, kBox.x + kBox.width);
  const Scale y = make_scale(p.y, y_values(p), kBox.y + kBox.height, kBox.y);

  std::string inside, edge;
  bool outside = false;
  for (const Level& l : p.levels) {
    if (!y.holds(l.y)) continue;
    line(inside, kBox.x, y(l.y), kBox.x + kBox.width, y(l.y), "#000000", 1.5, l.stroke);
  }
  for (const Series& s : p.series) outside |= draw_series(inside, edge, s, x, y);

  if (outside) names.emplace_back(32, ' ');
  std::string out = begin_plot(p.title, names);
  grid_y(out, kBox, p.y, y);
  grid_x(out, kBox, p.x, x);
  frame(out, kBox, p.x.label, p.y.label);
  if (inside.empty() && edge.empty()) no_data(out);
  out += fmt::format(
      "<svg x=\"{0:.1f}\" y=\"{1:.1f}\" width=\"{2:.1f}\" height=\"{3:.1f}\" "
      "viewBox=\"{0:.1f} {1:.1f} {2:.1f} {3:.1f}\" overflow=\"hidden\">\n{4}</svg>\n",
      kBox.x, kBox.y, kBox.width, kBox.height, inside);
  out += edge;
  draw_legend(out, p, outside);
  return out + kEnd;
}

}  // namespace lte
