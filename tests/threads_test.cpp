// The thread pool: every piece once, whatever the timing.
#include "core/threads.h"

#include "testing.h"

namespace lte::testing {
namespace {

class Threads : public ::testing::TestWithParam<int> {};

TEST_P(Threads, EveryPieceRunsExactlyOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.size(), GetParam());
  for (int64_t pieces : {0, 1, 2, 3, 5, 7, 8, 16, 63, 64, 65, 1000, 4096}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(pieces));
    std::atomic<int> bad_thread{0};
    pool.run(pieces, [&](int64_t i, int thread) {
      ++runs[static_cast<size_t>(i)];
      if (thread < 0 || thread >= GetParam()) ++bad_thread;
    });
    for (const auto& r : runs) EXPECT_EQ(r.load(), 1);
    EXPECT_EQ(bad_thread.load(), 0);
  }
}

// Plain memory, not atomics: what a piece writes is seen by the caller and by the next job. Under
// -fsanitize=thread this is where a missing edge would show.
TEST_P(Threads, ThousandsOfTinyJobsInARow) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> cells(9);
  int64_t expected = 0;
  for (int64_t job = 0; job < 20000; ++job) {
    const int64_t pieces = 2 + job % 8;
    pool.run(pieces, [&](int64_t i, int) {
      cells[static_cast<size_t>(i)] += cells[static_cast<size_t>(i)] % 3 + i + 1;
    });
    expected += pieces;
  }
  std::vector<int64_t> want(9);
  int64_t ran = 0;
  for (int64_t job = 0; job < 20000; ++job) {
    for (int64_t i = 0; i < 2 + job % 8; ++i, ++ran) {
      want[static_cast<size_t>(i)] += want[static_cast<size_t>(i)] % 3 + i + 1;
    }
  }
  EXPECT_EQ(cells, want);
  EXPECT_EQ(ran, expected);
}

// Jobs of changing functions and lifetimes: a late worker must never call a job that is over.
TEST_P(Threads, LateWorkersNeverRunAnOldJob) {
  ThreadPool pool(GetParam());
  for (int job = 0; job < 3000; ++job) {
    std::vector<int> own(static_cast<size_t>(2 + job % 5), 0);
    if (job % 2) {
      pool.run(static_cast<int64_t>(own.size()),
               [&own, job](int64_t i, int) { own[static_cast<size_t>(i)] += job; });
    } else {
      pool.run(static_cast<int64_t>(own.size()),
               [&own, job](int64_t i, int) { own[static_cast<size_t>(i)] -= -job; });
    }
    for (int value : own) ASSERT_EQ(value, job);
  }
}

TEST_P(Threads, PoolsComeAndGo) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(GetParam());
    std::atomic<int64_t> sum{0};
    if (i % 3) pool.run(i % 7, [&](int64_t k, int) { sum += k + 1; });
    const int64_t n = i % 3 ? i % 7 : 0;
    ASSERT_EQ(sum.load(), n * (n + 1) / 2);
  }
}

TEST_P(Threads, ResultsDoNotDependOnTheNumberOfThreads) {
  const auto result = [](int threads) {
    ThreadPool pool(threads);
    std::vector<float> part(257);
    pool.run(257, [&](int64_t i, int) {
      float sum = 0;
      for (int k = 1; k < 500; ++k) sum += 1.0f / static_cast<float>(i * k + 1);
      part[static_cast<size_t>(i)] = sum;
    });
    return part;
  };
  EXPECT_EQ(result(GetParam()), result(1));
}

INSTANTIATE_TEST_SUITE_P(Counts, Threads, ::testing::Values(1, 2, 3, 7));

TEST(ThreadPool, ZeroMeansAllCores) {
  ThreadPool pool(0);
  EXPECT_EQ(pool.size(), std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
}

TEST(ThreadPool, ForEachPieceDoesAllAndThrowsWhatOneThrew) {
  for (int threads : {1, 3}) {
    std::vector<std::atomic<int>> done(17);
    for_each_piece(threads, 17, [&](int64_t i) { ++done[static_cast<size_t>(i)]; });
    for (const auto& times : done) EXPECT_EQ(times, 1);
    for_each_piece(threads, 0, [&](int64_t) { FAIL(); });
    EXPECT_THROW(for_each_piece(threads, 5, [](int64_t i) { LTE_CHECK(i != 3, "three"); }), Error);
  }
}

}  // namespace
}  // namespace lte::testing
