// Timings of two builds or machines held against each other: Google Benchmark's JSON with its
// repetitions, as the suites write it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lte {

struct TimedRow {
  std::vector<double> seconds;  // one a repetition
  std::string skipped;          // why, where the row did not run
};
struct Timings {
  std::map<std::string, std::string> machine;  // cpu, cores, threads, gpu
  std::map<std::string, TimedRow> row;         // by name
};

// Adds what one file says; `path` names it in errors. Throws Error in one line where it is not such
// a file, has only aggregates, was a smoke run, holds a row that failed, or comes from another
// machine than what is there already.
void add_timings(Timings&, const std::string& path, std::string_view json);
// A file, or all *.json of a folder: repetitions of one row in several files belong together.
Timings load_timings(const std::string& path);

struct RowVersus {
  std::string name;
  double a = 0, b = 0;  // medians, seconds
  double a_low = 0, a_high = 0, b_low = 0, b_high = 0;
  double ratio = 1, low = 1, high = 1;  // b / a, with its interval
  std::string verdict;                  // faster, slower, same, noise; or skipped
};
inline constexpr double kVersusMargin = 0.03;
inline constexpr int kVersusLeast = 5;  // repetitions of a row

// Row by row, how long b takes against a. Intervals are 95 % by bootstrap of the medians (Efron,
// 1979; 2000 draws, the same in every run). slower, faster: the intervals of a and b are disjoint
// and the ratio is beyond the margin; same: the ratio's interval lies within it; noise: neither.
// Throws Error in one line where they cannot be compared: other rows, another machine, too few
// repetitions.
std::vector<RowVersus> compare_timings(const Timings& a, const Timings& b);

std::string versus_table(const std::vector<RowVersus>&);
std::string versus_json(const std::vector<RowVersus>&);

}  // namespace lte
