#include "bench/svg_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

namespace lte::svg {
namespace {

constexpr double kMargin = 0.06;    // of the range, on both sides of the data
constexpr double kLargest = 1e100;  // beyond it, scales would overflow

const char* dashes(Stroke s) {
  if (s == Stroke::dashed) return " stroke-dasharray=\"7 4\"";
  return s == Stroke::dotted ? " stroke-dasharray=\"2 4\"" : "";
}

double nice_step(double range, int wanted) {
  const double rough = range / std::max(1, wanted);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (double nice : {1.0, 2.0, 5.0}) {
    if (rough <= nice * power * 1.0001) return nice * power;
  }
  return 10 * power;
}

std::vector<double> linear_ticks(double low, double high, int wanted) {
  std::vector<double> ticks;
  if (!(std::isfinite(high - low) && high > low)) return ticks;
  const double step = nice_step(high - low, wanted), slack = step * 1e-9;
  const auto first = static_cast<int64_t>(std::ceil((low - slack) / step));
  for (int64_t i = first; static_cast<double>(i) * step <= high + slack; ++i) {
    ticks.push_back(static_cast<double>(i) * step);
  }
  return ticks;
}

}  // namespace

std::string escape(std::string_view raw) {
  std::string out;
  for (char c : raw) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
    }
  }
  return out;
}

size_t length(std::string_view utf8) {
  return static_cast<size_t>(std::count_if(utf8.begin(), utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

double Scale::operator()(double value) const {
  const double t =
      log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
  return from + t * (to - from);
}

bool Scale::holds(double value) const {
  return std::abs(value) <= kLargest && (!log || value >= 1 / kLargest);  // false of NaN
}

Scale make_scale(const Axis& axis, const std::vector<double>& values, double from, double to) {
  Scale s{.log = axis.log, .from = from, .to = to};
  if (axis.range && s.holds(axis.range->first) && s.holds(axis.range->second) &&
      axis.range->first < axis.range->second) {
    s.low = axis.range->first, s.high = axis.range->second;
    return s;
  }
  bool any = false;
  for (double v : values) {
    if (!s.holds(v)) continue;
    s.low = any ? std::min(s.low, v) : v, s.high = any ? std::max(s.high, v) : v;
    any = true;
  }
  if (!any) s.low = axis.log ? 0.1 : 0, s.high = 1;
  if (axis.log) {
    const double margin = std::max(std::pow(s.high / s.low, kMargin), s.high == s.low ? 2.0 : 1.0);
    s.low /= margin, s.high *= margin;
  } else if (any) {
    const double same = std::max(std::abs(s.high) * 0.1, 1e-6);
    const double margin = s.high > s.low ? (s.high - s.low) * kMargin : same;
    const bool positive = s.low >= 0;
    s.low -= margin, s.high += margin;
    if (positive) s.low = std::max(0.0, s.low);
  }
  return s;
}

std::vector<double> ticks_of(const Scale& s, int wanted) {
  if (!s.log || s.high / s.low < 5) return linear_ticks(s.low, s.high, wanted);
  std::vector<double> ticks;
  const bool wide = s.high / s.low > 1e4;
  const int last = static_cast<int>(std::ceil(std::log10(s.high)));
  const int first = static_cast<int>(std::floor(std::log10(s.low)));
  for (int power = first; power <= last; power += 1 + (last - first) / 10) {
    for (double nice : {1.0, 2.0, 5.0}) {
      const double tick = nice * std::pow(10.0, power);
      if (tick >= s.low && tick <= s.high && (!wide || nice == 1.0)) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::vector<std::string> tick_labels(const std::vector<double>& ticks) {
  double largest = 0, gap = 1e300;
  for (size_t i = 0; i < ticks.size(); ++i) {
    largest = std::max(largest, std::abs(ticks[i]));
    if (i > 0) gap = std::min(gap, std::abs(ticks[i] - ticks[i - 1]));
  }
  std::vector<std::string> labels;
  int digits = 0;
  while (gap < 1e300 && digits < 5 &&
         std::abs(gap * std::pow(10, digits) - std::round(gap * std::pow(10, digits))) > 1e-6) {
    ++digits;
  }
  const bool plain = largest < 1e5 && gap > 1e-5 && ticks.size() > 1;
  for (double t : ticks) {
    labels.push_back(plain ? fmt::format("{:.{}f}", t + 0.0, digits) : fmt::format("{:.3g}", t));
  }
  return labels;
}

void line(std::string& out, double x1, double y1, double x2, double y2, std::string_view color,
          double width, Stroke stroke) {
  out += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"{}\"{}/>\n",
      x1, y1, x2, y2, color, width, dashes(stroke));
}

void rect(std::string& out, Box b, std::string_view fill) {
  out += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n", b.x,
      b.y, b.width, b.height, fill);
}

void text(std::string& out, double x, double y, std::string_view words, Anchor anchor, int size,
          std::string_view color) {
  constexpr const char* kNames[] = {"start", "middle", "end"};
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{}\">{}</text>\n",
      x, y, size, color, kNames[static_cast<size_t>(anchor)], escape(words));
}

void polyline(std::string& out, const std::vector<std::pair<double, double>>& points,
              std::string_view color, Stroke stroke) {
  if (points.size() < 2 || stroke == Stroke::none) return;
  out += "<polyline points=\"";
  for (const auto& [x, y] : points) out += fmt::format("{:.1f},{:.1f} ", x, y);
  out.back() = '"';
  out +=
      fmt::format(" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", color, dashes(stroke));
}

void marker(std::string& out, double x, double y, int color) {
  const char* c = color_of(color);
  const int shape = color < 0 ? 0 : color % 4;
  if (shape == 0) {
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x, y, c);
    return;
  }
  constexpr const char* kPaths[] = {"", "m-3.6 -3.6h7.2v7.2h-7.2z", "m0 -5l4.8 8.4h-9.6z",
                                    "m0 -5.2l5.2 5.2l-5.2 5.2l-5.2 -5.2z"};
  out += fmt::format("<path d=\"M{:.1f} {:.1f}{}\" fill=\"{}\"/>\n", x, y, kPaths[shape], c);
}

void grid_y(std::string& out, Box b, const Axis& axis, const Scale& y) {
  const auto ticks = axis.ticks.empty() ? ticks_of(y, 6) : axis.ticks;
  const auto labels = tick_labels(ticks);
  for (size_t i = 0; i < ticks.size(); ++i) {
    line(out, b.x, y(ticks[i]), b.x + b.width, y(ticks[i]), "#e2e2e2", 1);
    text(out, b.x - 8, y(ticks[i]) + 4.5, labels[i], Anchor::end);
  }
}

void grid_x(std::string& out, Box b, const Axis& axis, const Scale& x) {
  const auto ticks = axis.ticks.empty() ? ticks_of(x, 7) : axis.ticks;
  const auto labels = tick_labels(ticks);
  for (size_t i = 0; i < ticks.size(); ++i) {
    line(out, x(ticks[i]), b.y, x(ticks[i]), b.y + b.height, "#e2e2e2", 1);
    text(out, x(ticks[i]), b.y + b.height + 18, labels[i], Anchor::middle);
  }
}

void frame(std::string& out, Box b, std::string_view x_label, std::string_view y_label) {
  const double bottom = b.y + b.height;
  line(out, b.x, bottom, b.x + b.width, bottom, "#555555", 1);
  line(out, b.x, b.y, b.x, bottom, "#555555", 1);
  text(out, b.x + b.width / 2, bottom + 42, x_label, Anchor::middle, 14);
  out += fmt::format("<g transform=\"translate(18 {:.1f}) rotate(-90)\">", b.y + b.height / 2);
  text(out, 0, 0, y_label, Anchor::middle, 14);
  out += "</g>\n";
}

std::string shorten(const std::string& name, size_t most) {
  if (length(name) <= most) return name;
  size_t end = 0;
  for (size_t chars = 0; end < name.size(); ++end) {
    const bool starts = (static_cast<unsigned char>(name[end]) & 0xc0) != 0x80;
    if (starts && ++chars == most) break;
  }
  return name.substr(0, end) + "…";
}

std::string begin_plot(std::string_view title, const std::vector<std::string>& names) {
  size_t longest = 0;
  for (const std::string& name : names) longest = std::max(longest, length(shorten(name)));
  const double legend = longest == 0 ? 16 : 48 + 7.6 * static_cast<double>(longest);
  const double width = std::max(kLegendX + legend, 32 + 8.4 * static_cast<double>(length(title)));
  const double height = std::max(kBox.y + kBox.height + 58,
                                 kLegendY + kLegendLine * static_cast<double>(names.size()));
  return begin(width, height, title);
}

void no_data(std::string& out) {
  text(out, kBox.x + kBox.width / 2, kBox.y + kBox.height / 2, "no data", Anchor::middle, 16,
       "#777777");
}

// Okabe and Ito, "Color Universal Design", 2008, without its yellow, which is too pale for lines.
const char* color_of(int index) {
  constexpr std::array<const char*, 7> kColors = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                  "#E69F00", "#56B4E9", "#666666"};
  return index < 0 ? "#000000" : kColors[static_cast<size_t>(index) % kColors.size()];
}

std::string begin(double width, double height, std::string_view title) {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "width=\"{0:.0f}\" height=\"{1:.0f}\" role=\"img\" aria-label=\"{2}\" "
      "font-family=\"Helvetica, Arial, sans-serif\" "
      "style=\"font-size:13px\">\n<title>{2}</title>\n",
      width, height, escape(title));
  rect(out, {0, 0, width, height}, "#ffffff");
  text(out, 16, 26, title, Anchor::start, 16);
  return out;
}

std::string compact(std::string_view drawing) {
  constexpr std::string_view kDefaults[] = {" text-anchor=\"start\"", " stroke-width=\"1\"",
                                            " font-size=\"13\""};  // the last: see begin()
  std::string out;
  bool tag = false;
  for (size_t i = 0; i < drawing.size(); ++i) {
    tag = drawing[i] == '<' || (tag && drawing[i] != '>');
    const auto at = [&](size_t k) { return k < drawing.size() ? drawing[k] : ' '; };
    if (tag && drawing[i] == '.' && at(i + 1) == '0' && !std::isdigit(at(i + 2)) && i > 0 &&
        std::isdigit(drawing[i - 1])) {
      ++i;
      continue;
    }
    size_t skipped = 0;
    for (std::string_view usual : kDefaults) {
      if (tag && drawing.substr(i, usual.size()) == usual) skipped = usual.size();
    }
    if (skipped > 0) {
      i += skipped - 1;
    } else {
      out += drawing[i];
    }
  }
  return out;
}

}  // namespace lte::svg
