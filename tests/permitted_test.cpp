// The active fraction at a permitted perplexity, against hand-made curves.
#include "bench/permitted.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lte {
namespace {

const double kMargin = std::log(1.01);

TEST(Permitted, CrossesBetweenTwoPoints) {
  const std::vector<double> control = {1.0};
  const std::vector<CurvePoint> curve = {
      {{0.5}, {1.0 + 0.5 * kMargin}}, {{0.25}, {1.0 + 1.5 * kMargin}}, {{1.0}, {1.0}}};
  const auto p = permitted_active(curve, control, 1);
  ASSERT_TRUE(p);
  EXPECT_NEAR(p->active, 0.375, 1e-12);  // half way from 0.5 to 0.25
  EXPECT_EQ(p->low, p->active);
  EXPECT_EQ(p->high, p->active);
  EXPECT_FALSE(p->below);
  EXPECT_FALSE(p->never);
}

TEST(Permitted, SaysWhenTheCurveDoesNotCross) {
  const std::vector<double> control = {1.0};
  const auto within =
      permitted_active(std::vector<CurvePoint>{{{1}, {1}}, {{0.1}, {1.001}}}, control, 1);
  EXPECT_TRUE(within->below);
  EXPECT_DOUBLE_EQ(within->active, 0.1);
  const auto above =
      permitted_active(std::vector<CurvePoint>{{{1}, {2}}, {{0.1}, {3}}}, control, 1);
  EXPECT_TRUE(above->never);
  EXPECT_DOUBLE_EQ(above->active, 1);
  EXPECT_FALSE(permitted_active(std::vector<CurvePoint>{}, control, 1));
  EXPECT_FALSE(permitted_active(std::vector<CurvePoint>{{{1}, {1}}}, std::vector<double>{}, 1));
}

// A curve that rises above the limit and falls again counts from the dense end.
TEST(Permitted, WalksFromTheDenseEnd) {
  const std::vector<CurvePoint> curve = {
      {{1}, {1}}, {{0.5}, {1 + 2 * kMargin}}, {{0.25}, {1}}, {{0.1}, {3}}};
  EXPECT_NEAR(permitted_active(curve, std::vector<double>{1.0}, 1)->active, 0.75, 1e-12);
}

TEST(Permitted, SeedsGiveAnInterval) {
  const std::vector<CurvePoint> curve = {
      {{1, 1, 1}, {1, 1, 1}},
      {{0.5, 0.5, 0.5}, {1 + 1.8 * kMargin, 1 + 2 * kMargin, 1 + 2.2 * kMargin}}};
  const auto a = permitted_active(curve, std::vector<double>{1.0}, 1);
  EXPECT_NEAR(a->active, 0.75, 1e-12);
  EXPECT_LT(a->low, a->active);
  EXPECT_GT(a->high, a->active);
  EXPECT_GT(a->low, 0.72);
  EXPECT_LT(a->high, 0.78);
  const auto b = permitted_active(curve, std::vector<double>{1.0}, 1);
  EXPECT_EQ(a->low, b->low);
  EXPECT_EQ(a->high, b->high);
  EXPECT_LT(permitted_active(curve, std::vector<double>{1.0}, 5)->active, a->active);
}

}  // namespace
}  // namespace lte
