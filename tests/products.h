// How far a product in f32 may be off, element by element.
#pragma once

#include "testing.h"

namespace lte::testing {

// A product in f32 against double sums: an element whose terms have the sizes A = |c| + sum |a b| is off by
// rounding that grows like the root of their number, four times over; and by that of the reference.
inline void expect_product(const Tensor& got, const Tensor& want, const Tensor& sizes,
                           int64_t inner) {
  constexpr double kUnit = 0x1p-24;
  const double steps = 4 * std::sqrt(static_cast<double>(inner + inner / 256 + 2));
  int64_t wrong = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double allowed = kUnit * (steps * at(sizes, i) + std::abs(at(want, i)));
    wrong += std::abs(at(got, i) - at(want, i)) <= allowed ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0) << "elements beyond the rounding of their terms";
}
inline Tensor sizes_of(Store& s, const Tensor& t) {
  Values v = values(t);
  for (double& x : v) x = std::abs(x);
  return s.of(t.dtype, {t.rows(), t.cols()}, v);
}

}  // namespace lte::testing
