#include "core/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace lte {
namespace {

double value(const Tensor& t, int64_t i) {
  return t.dtype == DType::f64 ? t.as<double>()[i] : static_cast<double>(t.as<float>()[i]);
}

// Share of the tolerance that a pair uses; infinity where it can never pass.
double share(double got, double want, double tolerance) {
  if (std::isnan(got) && std::isnan(want)) return 0;
  if (std::isinf(got) || std::isinf(want)) {
    return got == want ? 0 : std::numeric_limits<double>::infinity();
  }
  const double difference = std::abs(got - want);
  if (difference == 0) return 0;
  if (difference <= tolerance) return difference / tolerance;
  // Also where the difference is NaN, or the tolerance 0.
  const double ratio = difference / tolerance;
  return ratio > 1 ? ratio : std::numeric_limits<double>::infinity();
}

}  // namespace

double tolerance_of(DType t, int64_t length, double magnitude) {
  const double epsilon = t == DType::f64 ? std::numeric_limits<double>::epsilon()
                                         : std::numeric_limits<float>::epsilon();
  return 4 * epsilon * std::sqrt(static_cast<double>(length < 1 ? 1 : length)) * magnitude;
}

Comparison compare(const Tensor& got, const Tensor& want, double tolerance) {
  Comparison c;
  if (got.rank != want.rank || !std::equal(got.dim, got.dim + 4, want.dim) ||
      got.dtype != want.dtype) {
    c.message = fmt::format("shapes differ: {} {} against {} {}", got.size(), name_of(got.dtype),
                            want.size(), name_of(want.dtype));
    return c;
  }
  double largest = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double w = value(want, i), used = share(value(got, i), w, tolerance);
    if (std::isfinite(w)) largest = std::max(largest, std::abs(w));
    if (c.worst_index < 0 || used > c.worst_used) c.worst_used = used, c.worst_index = i;
  }
  c.ok = c.worst_used <= 1;
  if (largest > 0 && !(tolerance < largest)) {
    c.ok = false;
    c.message =
        fmt::format("the tolerance {:.3g} is not below the signal {:.3g}", tolerance, largest);
    return c;
  }
  if (c.worst_index >= 0) {
    const int64_t i = c.worst_index, cols = got.cols();
    c.message =
        fmt::format("{}: row {} column {}: got {:.9g}, want {:.9g}; {:.3g} % of allowed{}",
                    c.ok ? "ok" : "differs", i / cols, i % cols, value(got, i), value(want, i),
                    100 * c.worst_used, c.ok && c.worst_used > 0.5 ? " (warning: above 50 %)" : "");
  }
  return c;
}

}  // namespace lte
