#include "methods/allocation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace lte {

std::vector<int> highest(const std::vector<double>& score, size_t kept) {
  std::vector<int> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return score[static_cast<size_t>(a)] > score[static_cast<size_t>(b)];
  });
  order.resize(kept);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<size_t> global_counts(const LayerScores& scores, size_t kept_in_all, bool standardise) {
  std::vector<std::pair<double, size_t>> all;
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto n = static_cast<double>(scores[i].size());
    const double mean = std::accumulate(scores[i].begin(), scores[i].end(), 0.0) / n;
    double square = 0;
    for (double s : scores[i]) square += (s - mean) * (s - mean);
    const double sd = std::max(1e-30, std::sqrt(square / n));
    for (double s : scores[i]) all.emplace_back(standardise ? (s - mean) / sd : s, i);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  // The first of every layer is kept first, so that the total is the one that was asked for.
  std::vector<size_t> counts(scores.size(), 1);
  std::vector<bool> first(scores.size(), true);
  size_t kept = counts.size();
  for (const auto& [score, i] : all) {
    if (first[i]) {
      first[i] = false;
    } else if (kept < kept_in_all) {
      ++counts[i], ++kept;
    }
  }
  return counts;
}

}  // namespace lte
