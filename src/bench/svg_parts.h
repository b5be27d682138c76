// What the plots are made of: escaped text, shapes, scales and ticks.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/svg.h"

namespace lte::svg {

// Text for XML and HTML, in elements and in attributes.
std::string escape(std::string_view);
// Characters of UTF-8 text.
size_t length(std::string_view utf8);

// Values [low, high] to pixels [from, to].
struct Scale {
  double low = 0, high = 1;
  bool log = false;
  double from = 0, to = 1;
  double operator()(double value) const;
  bool holds(double value) const;  // of a size that can be drawn, and positive on a log scale
};
// Covers the values (or the axis's range) with a margin; of no values, [0, 1].
Scale make_scale(const Axis&, const std::vector<double>& values, double from, double to);
// 1-2-5 steps inside the scale, about `wanted` of them.
std::vector<double> ticks_of(const Scale&, int wanted);
// The ticks' numbers, with as many digits as tell them apart.
std::vector<std::string> tick_labels(const std::vector<double>&);

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
};
enum class Anchor : uint8_t { start, middle, end };

// Shapes are appended to `out`. A color is any SVG color.
void line(std::string& out, double x1, double y1, double x2, double y2, std::string_view color,
          double width, Stroke = Stroke::solid);
void rect(std::string& out, Box, std::string_view fill);
void text(std::string& out, double x, double y, std::string_view, Anchor = Anchor::start,
          int size = 13, std::string_view color = "#222222");
void polyline(std::string& out, const std::vector<std::pair<double, double>>&,
              std::string_view color, Stroke);
void marker(std::string& out, double x, double y, int color);
// Grid lines with their numbers, and the frame with the labels, of a plot in `box`.
void grid_y(std::string& out, Box, const Axis&, const Scale&);
void grid_x(std::string& out, Box, const Axis&, const Scale&);
void frame(std::string& out, Box, std::string_view x_label, std::string_view y_label);

// Where a plot with a legend at its right has its data, and its legend's entries.
inline constexpr Box kBox{.x = 72, .y = 44, .width = 500, .height = 330};
inline constexpr double kLegendX = 592, kLegendY = 52, kLegendLine = 22;
// Names of more than `most` characters are cut: too long for a legend.
std::string shorten(const std::string& name, size_t most = 84);
// The picture's beginning, as large as the box, the title and the legend need.
std::string begin_plot(std::string_view title, const std::vector<std::string>& names);
void no_data(std::string& out);

const char* color_of(int index);
std::string begin(double width, double height, std::string_view title);  // with the title on top
inline constexpr const char* kEnd = "</svg>\n";

// The same drawing in fewer bytes: without, inside tags, ".0" of numbers and what is the default anyway.
std::string compact(std::string_view drawing);

}  // namespace lte::svg
