// Runs the tests in the order of threads that the environment names: forward (default), reverse, or
// random:<seed>.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "simt.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const char* text = std::getenv("LTE_SIMT_SCHEDULE");
  try {
    if (text) lte::simt::set_schedule(lte::simt::parse_schedule(text));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "LTE_SIMT_SCHEDULE: %s\n", e.what());
    return 2;
  }
  return RUN_ALL_TESTS();
}
