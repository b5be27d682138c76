// The comparator is tested first: every other numerical test stands on it.
#include "core/compare.h"

#include "testing.h"

namespace lte::testing {
namespace {

const double kNan = std::numeric_limits<double>::quiet_NaN();
const double kInf = std::numeric_limits<double>::infinity();

Comparison compare_values(const Values& got, const Values& want, double tolerance,
                          DType dtype = DType::f64) {
  Store s;
  const auto n = static_cast<int64_t>(got.size());
  return compare(s.of(dtype, {n}, got), s.of(dtype, {static_cast<int64_t>(want.size())}, want),
                 tolerance);
}

TEST(Compare, NanAndInfinityPassOnlyAgainstThemselves) {
  for (DType dtype : {DType::f32, DType::f64}) {
    const auto ok = [&](double got, double want) {
      return compare_values({1, got}, {1, want}, 0.5, dtype).ok;
    };
    EXPECT_FALSE(ok(kNan, 1));
    EXPECT_FALSE(ok(1, kNan));
    EXPECT_FALSE(ok(kNan, 0));
    EXPECT_TRUE(ok(kNan, kNan));
    EXPECT_FALSE(ok(kInf, 1));
    EXPECT_FALSE(ok(1, kInf));
    EXPECT_FALSE(ok(1, -kInf));
    EXPECT_TRUE(ok(kInf, kInf));
    EXPECT_TRUE(ok(-kInf, -kInf));
    EXPECT_FALSE(ok(kInf, -kInf));
    EXPECT_FALSE(ok(-kInf, kInf));
    EXPECT_FALSE(ok(kNan, kInf));
    EXPECT_FALSE(ok(kInf, kNan));
  }
}

TEST(Compare, NanAnywhereFails) {
  for (size_t place : {0u, 1u, 2u}) {
    Values got = {1, 2, 3};
    got[place] = kNan;
    const Comparison c = compare_values(got, {1, 2, 3}, 0.1);
    EXPECT_FALSE(c.ok);
    EXPECT_EQ(c.worst_index, static_cast<int64_t>(place));
  }
}

TEST(Compare, SignsAndZeros) {
  EXPECT_TRUE(compare_values({-2.05}, {-2}, 0.1).ok);
  EXPECT_FALSE(compare_values({-2.2}, {-2}, 0.1).ok);
  EXPECT_FALSE(compare_values({2}, {-2}, 0.1).ok);
  // Against zero the tolerance is absolute.
  EXPECT_TRUE(compare_values({0, 1}, {0, 1}, 0).ok);
  EXPECT_TRUE(compare_values({1e-7, 1}, {0, 1}, 1e-6).ok);
  EXPECT_FALSE(compare_values({1e-5, 1}, {0, 1}, 1e-6).ok);
  EXPECT_TRUE(compare_values({-0.0}, {0.0}, 0).ok);
  EXPECT_TRUE(compare_values({0.5, 0}, {0, 0}, 0.5).ok) << "all-zero reference";
  EXPECT_FALSE(compare_values({0.6, 0}, {0, 0}, 0.5).ok);
}

TEST(Compare, OneWrongRowIn4096) {
  Store s;
  Rng rng(1);
  const Tensor want = s.normal(DType::f32, {4096, 8}, rng);
  const Tensor got = s.of(DType::f32, {4096, 8}, values(want));
  ASSERT_TRUE(compare(got, want, 0).ok);
  for (int64_t k = 0; k < 8; ++k) got.as<float>()[2077 * 8 + k] += 1e-3f;
  const Comparison c = compare(got, want, 1e-4);
  EXPECT_FALSE(c.ok);
  EXPECT_EQ(c.worst_index / 8, 2077);
  EXPECT_NE(c.message.find("row 2077"), std::string::npos) << c.message;
  EXPECT_NEAR(c.worst_used, 10, 0.1);
}

TEST(Compare, ExceededByOneUlp) {
  for (double tolerance : {0.125, 0.1, 0.3, 1.0 / 3, 0.7}) {
    EXPECT_TRUE(compare_values({tolerance, 1}, {0, 1}, tolerance).ok);
    const double above = std::nextafter(tolerance, 1);
    const Comparison c = compare_values({above, 1}, {0, 1}, tolerance);
    EXPECT_FALSE(c.ok);
    EXPECT_GT(c.worst_used, 1);
  }
  EXPECT_FALSE(compare_values({std::nextafter(1.0, 2)}, {1}, 0).ok);
}

TEST(Compare, ToleranceThatSwallowsTheSignalIsAnError) {
  EXPECT_FALSE(compare_values({1, 2}, {1, 2}, 2).ok) << "equal numbers, but nothing was tested";
  EXPECT_FALSE(compare_values({1, 2}, {1, 2}, 5).ok);
  EXPECT_FALSE(compare_values({1, 2}, {1, 2}, kInf).ok);
  EXPECT_FALSE(compare_values({1, 2}, {1, 2}, kNan).ok);
  EXPECT_FALSE(compare_values({1, 2}, {1, 2.5}, -1).ok);
  EXPECT_TRUE(compare_values({1, 2}, {1, 2}, 1.999).ok);
  EXPECT_FALSE(compare_values({1, kInf}, {1, kInf}, 3).ok) << "infinities are not the signal";
}

TEST(Compare, ShapesAndTypesMustMatch) {
  Store s;
  const Tensor a = s.of(DType::f32, {2, 3}, {1, 2, 3, 4, 5, 6});
  EXPECT_FALSE(compare(a, s.of(DType::f32, {2, 2}, {1, 2, 3, 4}), 0.1).ok);
  EXPECT_FALSE(compare(a, s.of(DType::f64, {2, 3}, {1, 2, 3, 4, 5, 6}), 0.1).ok);
  EXPECT_FALSE(compare(a, s.of(DType::f32, {3, 2}, {1, 2, 3, 4, 5, 6}), 0.1).ok)
      << "as many numbers, another shape";
  EXPECT_TRUE(compare(a, s.of(DType::f32, {2, 3}, {1, 2, 3, 4, 5, 6}), 0.1).ok);
}

TEST(Compare, UsedShareAndWarning) {
  const Comparison c = compare_values({1.75, 5}, {1, 5}, 1);
  EXPECT_TRUE(c.ok);
  EXPECT_DOUBLE_EQ(c.worst_used, 0.75);
  EXPECT_NE(c.message.find("75 % of allowed"), std::string::npos) << c.message;
  EXPECT_NE(c.message.find("warning"), std::string::npos) << c.message;
  EXPECT_EQ(compare_values({1.25, 5}, {1, 5}, 1).message.find("warning"), std::string::npos);
}

TEST(Compare, ToleranceFormula) {
  EXPECT_DOUBLE_EQ(tolerance_of(DType::f32, 16, 3), 4 * 4 * 3 * 0x1p-23);
  EXPECT_DOUBLE_EQ(tolerance_of(DType::f64, 9, 1), 4 * 3 * 0x1p-52);
  EXPECT_DOUBLE_EQ(tolerance_of(DType::f32, 0, 1), 4 * 0x1p-23);
}

}  // namespace
TEST(Bf16, RoundsToTheNearestTiesToEven) {
  const auto round = [](float v) { return to_float(to_bf16(v)); };
  EXPECT_EQ(round(1), 1);
  EXPECT_EQ(round(-0x1.02p0f), -0x1.02p0f);    // 8 bits of significand are kept
  EXPECT_EQ(round(0x1.01p0f), 1);              // a tie goes to the even one, down
  EXPECT_EQ(round(0x1.03p0f), 0x1.04p0f);      // and up
  EXPECT_EQ(round(0x1.010002p0f), 0x1.02p0f);  // above a tie
  EXPECT_EQ(round(0x1.fffp127f), std::numeric_limits<float>::infinity());
  EXPECT_EQ(round(-std::numeric_limits<float>::infinity()),
            -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(round(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(round(std::bit_cast<float>(0x7f800001u))));  // payload in the lower half
}

}  // namespace lte::testing
