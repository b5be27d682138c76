#include "core/files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/check.h"

namespace lte {
namespace {

namespace fs = std::filesystem;

struct Files : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_files_test_" + std::to_string(getpid());
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }
  int count() const {
    return static_cast<int>(
        std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
  }
};

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST_F(Files, RoundTripOfAllBytes) {
  std::string bytes;
  for (int i = 0; i < 200000; ++i) bytes += static_cast<char>(i * 7);
  const std::string path = folder + "/a";
  write_file(path, bytes);
  EXPECT_EQ(read_file(path), bytes);
  write_file(path, "");
  EXPECT_EQ(read_file(path), "");
  EXPECT_EQ(count(), 1);
}

TEST_F(Files, AppendsWholeLines) {
  const std::string path = folder + "/log";
  append_line(path, "one");
  append_line(path, "");
  append_line(path, "two");
  EXPECT_EQ(read_file(path), "one\n\ntwo\n");
}

TEST_F(Files, MakesFoldersWithParents) {
  make_folder(folder + "/x/y/z");
  make_folder(folder + "/x/y/z");
  EXPECT_TRUE(fs::is_directory(folder + "/x/y/z"));
  write_file(folder + "/file", "");
  EXPECT_NE(message_of([&] { make_folder(folder + "/file"); }).find(folder + "/file: "),
            std::string::npos);
}

TEST_F(Files, NamesThePathAndTheReason) {
  EXPECT_EQ(message_of([&] { read_file(folder + "/none"); }),
            folder + "/none: cannot be read: No such file or directory");
  EXPECT_EQ(message_of([&] { read_file(folder); }), folder + ": cannot be read: Is a directory");
  EXPECT_EQ(message_of([&] { write_file(folder, "x"); }),
            folder + ": cannot be written: Is a directory");
  EXPECT_EQ(message_of([&] { write_file(folder + "/no/such", "x"); }),
            folder + "/no/such: cannot be written: No such file or directory");
  EXPECT_EQ(message_of([&] { append_line(folder + "/no/such", "x"); }),
            folder + "/no/such: cannot be appended to: No such file or directory");
}

TEST_F(Files, FullDevice) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  EXPECT_EQ(message_of([] { write_file("/dev/full", "x"); }),
            "/dev/full: cannot be written: No space left on device");
  EXPECT_EQ(message_of([] { append_line("/dev/full", "x"); }),
            "/dev/full: cannot be appended to: No space left on device");
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

// A limit on the size of files stands for a disk that fills up in the middle of a write.
TEST_F(Files, FailureKeepsTheOldFileAndLeavesNoTemporary) {
  const std::string path = folder + "/a";
  write_file(path, "old");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of([&] { write_file(path, std::string(10000, 'x')); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(message, path + ": cannot be written: File too large");
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(count(), 1);
}

}  // namespace
}  // namespace lte
