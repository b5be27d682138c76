// How far a product in f32 may be off, element by element.
#pragma once

#include <fmt/format.h>

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

struct ProductCase {
  int64_t n, m, k;
};
// f(case, rng, a, ta, b, tb, add) for every case and form of a product, op(a)[n,k] op(b)[k,m], with factors drawn.
template <class F>
void each_product(Store& s, std::span<const ProductCase> cases, F&& f) {
  Rng rng(3);
  for (const ProductCase& c : cases) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool ta = flags & 1, tb = flags & 2, add = flags & 4;
      SCOPED_TRACE(fmt::format("{}x{}x{} ta {} tb {} add {}", c.n, c.m, c.k, ta, tb, add));
      const Tensor a =
          ta ? s.normal(DType::f32, {c.k, c.n}, rng) : s.normal(DType::f32, {c.n, c.k}, rng);
      const Tensor b =
          tb ? s.normal(DType::f32, {c.m, c.k}, rng) : s.normal(DType::f32, {c.k, c.m}, rng);
      f(c, rng, a, ta, b, tb, add);
      EXPECT_TRUE(s.intact());
    }
  }
}

}  // namespace lte::testing
