// The fairest single figure: at which active fraction is a method's perplexity exactly p % above that
// of the dense control? (Luo et al., 2024, arXiv 2411.02335, define the like for one model.)
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "bench/report_parts.h"

namespace lte {

// One point of a curve: the seeds of one row.
struct CurvePoint {
  std::vector<double> active, loss;
  bool own = true;  // false: the dense model, which ends the curve
};

struct Permitted {
  double active = 1;         // at which the curve crosses; lower is better
  double low = 1, high = 1;  // 90 % bootstrap interval over seeds; equal to `active` with one seed
  bool below = false;        // the sparsest point is still within: the crossing lies lower
  bool never = false;        // not even the anchor is within
  bool beyond = false;       // between the densest point of the method's own and the dense model
};

// `points` and the anchor (the densest point) in any order; losses in nats. The crossing with
// mean(control) + log(1 + percent / 100), walking from the densest point down, linear between points.
// Deterministic. Empty without points or control.
std::optional<Permitted> permitted_active(std::span<const CurvePoint> points,
                                          std::span<const double> control, double percent);

// Methods x (model on dataset) of all test groups, one table a percentage.
Section permitted_section(std::span<const Group>);

}  // namespace lte
