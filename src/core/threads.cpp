#include "core/threads.h"

#include <string>

#include "core/check.h"

namespace lte {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kSpins = 4000;  // some ten microseconds: longer than the gap between two operations

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int thread_count(int threads) {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  threads = thread_count(threads);
  LTE_CHECK(threads <= kMostThreads, "threads: " + std::to_string(threads) +
                                         " are too many; at most " + std::to_string(kMostThreads));
  for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  stop = true;
  generation.fetch_add(1);
  generation.notify_all();
  for (std::thread& w : workers) w.join();
}

// Claims and runs one piece of the current job. False: none is left.
bool ThreadPool::work_once(int thread) {
  uint64_t seen = ticket.load(std::memory_order_acquire);
  for (;;) {
    const Job& job = jobs[(seen >> 32) & 1];
    const Call call = job.call.load(std::memory_order_relaxed);
    void* self = job.self.load(std::memory_order_relaxed);
    const auto piece = static_cast<int64_t>(seen & 0xffffffffu);
    if (piece >= job.pieces.load(std::memory_order_relaxed)) return false;
    // Succeeds only while the job is still the one that was read: its slot is not reused before the
    // next generation, which changes the ticket.
    if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    call(self, piece, thread);
    remaining.fetch_sub(1, std::memory_order_release);
    return true;
  }
}

void ThreadPool::run_erased(int64_t pieces, Call call, void* self) {
  if (pieces <= 0) return;
  const uint64_t next = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
  Job& job = jobs[next & 1];
  job.call.store(call, std::memory_order_relaxed);
  job.self.store(self, std::memory_order_relaxed);
  job.pieces.store(pieces, std::memory_order_relaxed);
  remaining.store(pieces, std::memory_order_relaxed);
  ticket.store(next << 32, std::memory_order_release);
  generation.fetch_add(1, std::memory_order_release);
  generation.notify_all();
  while (work_once(0)) {
  }
  for (int spin = 0; remaining.load(std::memory_order_acquire) > 0; ++spin) {
    if (spin < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::worker(int thread) {
  uint32_t seen = 0;
  while (!stop) {
    while (work_once(thread)) {
    }
    int spin = 0;
    while (generation.load(std::memory_order_acquire) == seen && ++spin < kSpins) pause();
    generation.wait(seen, std::memory_order_acquire);
    seen = generation.load(std::memory_order_acquire);
  }
}

}  // namespace lte
