// Grouped bars and small multiples of histograms.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bench/svg_parts.h"

namespace lte {
namespace {

using namespace svg;

constexpr double kPanelWidth = 150, kPanelHeight = 84, kGapX = 18, kGapY = 52;
constexpr double kLeft = 24, kTop = 66;  // of the first panel

double top_of(const Bars& b) {
  double top = 0;
  for (const auto& row : b.values) {
    for (double v : row) top = std::isfinite(v) ? std::max(top, v) : top;
  }
  return b.y_high.value_or(top > 0 ? top * 1.06 : 1.0);
}

void draw_group(std::string& out, const Bars& b, size_t g, const Scale& y) {
  const double width = kBox.width / static_cast<double>(b.groups.size());
  const double left = kBox.x + width * static_cast<double>(g);
  const double bar = 0.8 * width / static_cast<double>(std::max<size_t>(1, b.names.size()));
  for (size_t s = 0; s < std::min(b.names.size(), b.values.size()); ++s) {
    const double v = g < b.values[s].size() ? b.values[s][g] : 0;
    if (!std::isfinite(v) || v <= 0) continue;
    const double high = y(std::min(v, y.high));
    const double x = left + 0.1 * width + bar * static_cast<double>(s);
    rect(out, {x, high, bar * 0.94, kBox.y + kBox.height - high}, color_of(static_cast<int>(s)));
  }
  const size_t every = 1 + b.groups.size() / 25;  // of many groups, only some are labelled
  if (g % every != 0) return;
  text(out, left + width / 2, kBox.y + kBox.height + 18, b.groups[g], Anchor::middle);
}

// One path for all bins: a picture has hundreds.
void draw_bins(std::string& out, const Panel& p, Box b, int64_t most) {
  const double bin = b.width / static_cast<double>(std::max<size_t>(1, p.counts.size()));
  std::string path;
  for (size_t k = 0; k < p.counts.size(); ++k) {
    if (p.counts[k] <= 0) continue;
    const double high = b.height * static_cast<double>(p.counts[k]) / static_cast<double>(most);
    path += fmt::format("M{:.1f} {:.1f}v{:.1f}h{:.1f}v{:.1f}z", b.x + bin * static_cast<double>(k),
                        b.y + b.height, -high, bin * 0.92, high);
  }
  if (!path.empty()) out += fmt::format("<path d=\"{}\" fill=\"{}\"/>\n", path, color_of(0));
}

void draw_panel(std::string& out, const Panel& p, Box b) {
  const double bottom = b.y + b.height, right = b.x + b.width;
  int64_t total = 0, most = 0;
  for (int64_t c : p.counts) total += std::max<int64_t>(0, c), most = std::max(most, c);
  const double share =
      total == 0 ? 0 : 100 * static_cast<double>(most) / static_cast<double>(total);
  text(out, b.x, b.y - 7, p.title, Anchor::start, 13);
  text(out, right, b.y - 7, total == 0 ? "no scores" : fmt::format("max {:.0f} %", share),
       Anchor::end, 11, "#555555");
  const double middle = b.x + b.width / 2;
  draw_bins(out, p, b, most);
  line(out, middle, b.y, middle, bottom, "#D55E00", 1.2, Stroke::dashed);
  line(out, b.x, bottom, right, bottom, "#555555", 1);
  text(out, b.x, bottom + 15, "0", Anchor::start, 11);
  text(out, middle, bottom + 15, "0.5", Anchor::middle, 11);
  text(out, right, bottom + 15, "1", Anchor::end, 11);
}

}  // namespace

std::string draw(const Bars& b) {
  std::string out = begin_plot(b.title, b.names);
  const Scale y{.low = 0, .high = top_of(b), .from = kBox.y + kBox.height, .to = kBox.y};
  grid_y(out, kBox, {}, y);
  for (size_t g = 0; g < b.groups.size(); ++g) draw_group(out, b, g, y);
  frame(out, kBox, b.x_label, b.y_label);
  if (b.groups.empty() || b.names.empty()) no_data(out);
  double at = kLegendY;
  for (size_t s = 0; s < b.names.size(); ++s, at += kLegendLine) {
    rect(out, {kLegendX + 12, at - 7, 14, 14}, color_of(static_cast<int>(s)));
    text(out, kLegendX + 38, at + 4.5, shorten(b.names[s]));
  }
  return out + kEnd;
}

std::string draw(const Ranking& r) {
  constexpr double kWidth = 420, kLine = 24, kTopLine = 48, kCharacter = 7.4;
  size_t longest = 0;
  for (const auto& l : r.lines) longest = std::max(longest, length(shorten(l.name)));
  const double names = std::max(400.0, 20 + kCharacter * static_cast<double>(longest));
  const double bottom = kTopLine + kLine * static_cast<double>(std::max<size_t>(1, r.lines.size()));
  const Box box{.x = names, .y = kTopLine, .width = kWidth, .height = bottom - kTopLine};
  std::vector<double> values;
  for (const auto& l : r.lines) values.insert(values.end(), {l.low, l.value, l.high});
  if (r.level) values.push_back(*r.level);
  const Scale x = make_scale({}, values, box.x, box.x + box.width);
  std::string out = begin(names + kWidth + 110, bottom + 66, r.title);
  grid_x(out, box, {}, x);
  frame(out, box, r.x_label, "");
  if (r.lines.empty()) no_data(out);
  if (r.level && x.holds(*r.level)) {
    line(out, x(*r.level), box.y, x(*r.level), bottom, "#000000", 1.4, Stroke::dashed);
    text(out, x(*r.level), box.y - 5, r.level_name, Anchor::middle, 11, "#555555");
  }
  double y = kTopLine + kLine / 2;
  for (const auto& l : r.lines) {
    const int color = l.mark ? 1 : 0;
    text(out, names - 10, y + 4.5, shorten(l.name), Anchor::end);
    if (x.holds(l.low) && x.holds(l.high)) line(out, x(l.low), y, x(l.high), y, color_of(color), 2);
    if (x.holds(l.value)) marker(out, x(l.value), y, color);
    y += kLine;
  }
  return out + kEnd;
}

std::string draw(const Histograms& h) {
  const auto columns = static_cast<size_t>(std::max(1, h.columns));
  const size_t rows = std::max<size_t>(1, (h.panels.size() + columns - 1) / columns);
  const auto across = static_cast<double>(std::max<size_t>(1, std::min(columns, h.panels.size())));
  const double width = std::max(kLeft * 2 + across * (kPanelWidth + kGapX) - kGapX,
                                32 + 8.4 * static_cast<double>(length(h.title)));
  const double height = kTop + static_cast<double>(rows) * (kPanelHeight + kGapY) + 4;
  std::string out = begin(width, height, h.title);
  for (size_t i = 0; i < h.panels.size(); ++i) {
    const double x = kLeft + static_cast<double>(i % columns) * (kPanelWidth + kGapX);
    const double y = kTop + static_cast<double>(i / columns) * (kPanelHeight + kGapY);
    draw_panel(out, h.panels[i], {x, y, kPanelWidth, kPanelHeight});
  }
  if (h.panels.empty()) text(out, width / 2, kTop + 20, "no data", Anchor::middle, 16, "#777777");
  text(out, width / 2, height - 8, h.x_label, Anchor::middle, 14);
  return out + kEnd;
}

}  // namespace lte
