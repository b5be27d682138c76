// A folder for a test's files, and what the tests of names, suites and records share.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "bench/record.h"
#include "core/files.h"
#include "errors.h"

namespace lte {

namespace fs = std::filesystem;

inline void expect_in(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

struct Bench : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_bench_test_" + std::to_string(getpid());
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }

  std::string file(const std::string& name, const std::string& text) const {
    const std::string path = folder + "/" + name;
    write_file(path, text);
    return path;
  }
  SuiteSpec suite(const std::string& text) const { return load_suite(file("s.toml", text)); }
  std::string suite_error(const std::string& text) const {
    return error_of([&] { suite(text); });
  }
};

inline void expect_same(const Experiment& a, const Experiment& b) {
  EXPECT_EQ(a.suite, b.suite);
  EXPECT_TRUE(a.base == b.base);
  EXPECT_EQ(a.method, b.method);
  EXPECT_EQ(a.knobs, b.knobs);
  EXPECT_EQ(a.backend, b.backend);
  EXPECT_EQ(name_of(a.shape), name_of(b.shape));
  EXPECT_EQ(a.seed, b.seed);
}

}  // namespace lte
