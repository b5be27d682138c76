// A small writer of plots: data in, one self-contained SVG picture out. The same data give the same
// text; points that are not finite (or beyond 1e100) are left out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lte {

enum class Stroke : uint8_t { none, solid, dashed, dotted };

struct Series {
  std::string name = {};
  std::vector<double> x = {}, y = {};
  std::vector<double> y_low = {}, y_high = {};  // ends of the error bars; empty: none
  Stroke stroke = Stroke::solid;
  bool markers = true;
  int color = 0;  // of a colour-blind safe palette, with its own marker; negative: black
};

// A horizontal line for reference.
struct Level {
  std::string name = {};
  double y = 0;
  Stroke stroke = Stroke::solid;
};

struct Axis {
  std::string label = {};
  bool log = false;                                     // else linear
  std::optional<std::pair<double, double>> range = {};  // else from the data
  std::vector<double> ticks = {};                       // else 1-2-5
};

struct Plot {
  std::string title = {};
  Axis x = {}, y = {};
  std::vector<Series> series = {};
  std::vector<Level> levels = {};
};

// Grouped bars from zero: one group a label, in it one bar a series.
struct Bars {
  std::string title = {}, x_label = {}, y_label = {};
  std::vector<std::string> groups = {};
  std::vector<std::string> names = {};           // of the series
  std::vector<std::vector<double>> values = {};  // [series][group]
  std::optional<double> y_high = {};             // else from the data
};

// Named values with their intervals, one a line, from the top.
struct Ranking {
  std::string title = {}, x_label = {};
  struct Line {
    std::string name = {};
    double value = 0, low = 0, high = 0;
    bool mark = false;  // drawn in another color
  };
  std::vector<Line> lines = {};
  std::optional<double> level = {};  // a vertical line for reference
  std::string level_name = {};
};

// Small multiples of counts over equal bins of [0, 1], row by row. Every panel has its own scale,
// up to the share of its fullest bin, which is written in it.
struct Panel {
  std::string title = {};
  std::vector<int64_t> counts = {};
};
struct Histograms {
  std::string title = {}, x_label = {};
  int columns = 4;
  std::vector<Panel> panels = {};
};

std::string draw(const Plot&);
std::string draw(const Bars&);
std::string draw(const Ranking&);
std::string draw(const Histograms&);

}  // namespace lte
