// The one mean, median and its spread, of training, records, reports, benchmark programs and comparisons.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace lte {

// Of none: 0.
inline double mean_of(std::span<const double> values) {
  double sum = 0;
  for (double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

// The middle of the values that are finite, or the mean of the two in the middle; of none: 0.
inline double median_of(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Median absolute deviation from the median.
inline double mad_of(const std::vector<double>& values) {
  const double middle = median_of(values);
  std::vector<double> off;
  for (double v : values) off.push_back(std::abs(v - middle));
  return median_of(std::move(off));
}

}  // namespace lte
