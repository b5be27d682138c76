// A pool of threads that runs numbered pieces of work. The pieces are cut by the caller from the
// shape of the work alone, and every piece is computed by one thread: results have the same bits
// for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lte {

// How many threads are meant: at most 0 stands for one for each core.
int thread_count(int threads);

struct ThreadPool {
  explicit ThreadPool(int threads);  // as of thread_count; the caller counts as one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers.size()) + 1; }

  // Calls fn(piece, thread) for every piece in [0, pieces) and returns when all are done. One
  // caller at a time; fn may not throw.
  template <class Fn>
  void run(int64_t pieces, Fn&& fn) {
    if (pieces == 1 || workers.empty()) {
      for (int64_t i = 0; i < pieces; ++i) fn(i, 0);
      return;
    }
    using F = std::remove_reference_t<Fn>;
    run_erased(
        pieces, [](void* self, int64_t i, int thread) { (*static_cast<F*>(self))(i, thread); },
        &fn);
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  // Two slots in turn: a thread that is late reads a stale slot, but then fails to claim a piece.
  struct Job {
    std::atomic<Call> call{nullptr};
    std::atomic<void*> self{nullptr};
    std::atomic<int64_t> pieces{0};
  };
  void run_erased(int64_t pieces, Call, void* self);
  bool work_once(int thread);
  void worker(int thread);

  Job jobs[2];
  std::atomic<uint64_t> ticket{0};      // generation << 32 | next piece to claim
  std::atomic<uint32_t> generation{0};  // what idle workers sleep on
  std::atomic<int64_t> remaining{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
};

// fn(i) for every i in [0, n), by at most so many threads (as of thread_count); throws what one of them threw.
template <class Fn>
void for_each_piece(int threads, int64_t n, Fn&& fn) {
  ThreadPool pool(static_cast<int>(std::clamp<int64_t>(n, 1, thread_count(threads))));
  std::exception_ptr thrown;
  std::mutex mutex;
  pool.run(n, [&](int64_t i, int) {
    try {
      fn(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace lte
