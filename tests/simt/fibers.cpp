// The scheduler: runs one block's threads as fibers. A fiber runs threads to their end, one after
// another, until one of them has to wait; it then stays with that thread, and another fiber goes on.
// So a kernel that never waits runs on a single fiber.
#include "fibers.h"

#include <algorithm>
#include <bit>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <memory>

#include "core/check.h"

#ifdef LTE_SIMT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace lte::simt {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kMaxThreads = 1024;

// What resumes a suspended context, with the stacks' bounds where AddressSanitizer wants them.
struct Context {
  boost::context::fiber at;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

struct Fiber {
  Context self;
  int thread = -1;
};

struct Abandoned {};  // unwinds a thread that will never go on

struct Machine {
  Thread threads[kMaxThreads];
  Fiber* fiber_of[kMaxThreads] = {};
  uint64_t ready[kMaxThreads / 64] = {};
  std::vector<int> later;        // gave way: they run again when nobody else can
  std::function<void()> before;  // work that precedes the running block and is not done
  std::vector<int> await_it;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Context scheduler;
  Fiber* running = nullptr;
  int current = 0;
  Block block;
  uint64_t serial = 0;
  Schedule schedule;
  uint64_t random = 1;
  bool abandon = false, in_kernel = false;
  std::string error;
  Counts counts;
};

// The program's one simulated device; it lives until the end, with its stacks.
Machine& machine() {
  static Machine* m = new Machine;
  return *m;
}

uint64_t next_random(Machine& m) {  // xorshift64* (Vigna, 2016)
  m.random ^= m.random >> 12, m.random ^= m.random << 25, m.random ^= m.random >> 27;
  return m.random * 0x2545f4914f6cdd1dULL;
}

void start_switch([[maybe_unused]] Context& from, [[maybe_unused]] const Context& to) {
#ifdef LTE_SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
}
void finish_switch([[maybe_unused]] Context& to, [[maybe_unused]] Context* from) {
#ifdef LTE_SIMT_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(to.fake_stack, &bottom, &size);
  if (from) from->bottom = bottom, from->size = size;
#endif
}

// From the running fiber back to the scheduler; returns when the fiber is resumed.
void suspend(Machine& m, Fiber& f) {
  start_switch(f.self, m.scheduler);
  m.scheduler.at = std::move(m.scheduler.at).resume();
  finish_switch(f.self, &m.scheduler);
}

void resume(Machine& m, Fiber& f) {
  ++m.counts.switches;
  m.running = &f;
  start_switch(m.scheduler, f.self);
  f.self.at = std::move(f.self.at).resume();
  finish_switch(m.scheduler, nullptr);
  m.running = nullptr;
}

void set_ready(Machine& m, int t) { m.ready[t / 64] |= uint64_t{1} << (t % 64); }

// Takes the next of the ready threads, -1 if there is none.
int take_among_ready(Machine& m) {
  const int words = (m.block.threads + 63) / 64;
  int from = 0;
  if (m.schedule.order == Order::random) {
    from = static_cast<int>(next_random(m) % static_cast<uint64_t>(m.block.threads));
  }
  auto take = [&](int word, uint64_t among) {
    const int bit =
        m.schedule.order == Order::reverse ? 63 - std::countl_zero(among) : std::countr_zero(among);
    m.ready[word] &= ~(uint64_t{1} << bit);
    return word * 64 + bit;
  };
  if (m.schedule.order == Order::reverse) {
    for (int w = words - 1; w >= 0; --w) {
      if (m.ready[w]) return take(w, m.ready[w]);
    }
    return -1;
  }
  // Forward from `from`, then round: the word of `from` is met twice, first its upper part.
  for (int i = 0; i <= words; ++i) {
    const int w = (from / 64 + i) % words;
    const uint64_t among = i == 0 ? m.ready[w] & (~uint64_t{0} << (from % 64)) : m.ready[w];
    if (among) return take(w, among);
  }
  return -1;
}

// Takes the next thread that can run, -1 if none can.
int take_ready(Machine& m) {
  const int t = take_among_ready(m);
  if (t >= 0 || m.later.empty()) return t;
  for (const int waited : std::exchange(m.later, {})) set_ready(m, waited);
  return take_among_ready(m);
}

void enter_thread(Machine& m, Fiber& f, int t) {
  f.thread = m.current = t;
  m.fiber_of[t] = &f;
  threadIdx = m.threads[t].index;
}

// Runs thread after thread that has not begun; goes to the scheduler for everything else.
void fiber_main(Machine& m, Fiber& f) {
  for (;;) {
    for (int t = f.thread; t >= 0;) {
      Thread& thread = m.threads[t];
      try {
        (*m.block.body)();
      } catch (const Abandoned&) {
      } catch (const std::exception& e) {
        if (m.error.empty()) m.error = e.what();
      }
      thread.state = Thread::done;
      m.fiber_of[t] = nullptr;
      ++m.block.done;
      t = m.error.empty() ? take_ready(m) : -1;
      if (t >= 0 && m.fiber_of[t]) set_ready(m, t), t = -1;
      if (t >= 0) enter_thread(m, f, t);
    }
    f.thread = -1;
    m.idle.push_back(&f);
    suspend(m, f);
  }
}

Fiber& idle_fiber(Machine& m) {
  if (m.idle.empty()) {
    m.fibers.push_back(std::make_unique<Fiber>());
    Fiber& f = *m.fibers.back();
    boost::context::protected_fixedsize_stack allocator(kStack);
    const boost::context::stack_context stack = allocator.allocate();
    // The memory between the guard page and the top.
    f.self.size = stack.size, f.self.bottom = static_cast<char*>(stack.sp) - stack.size;
    f.self.at = boost::context::fiber(std::allocator_arg,
                                      boost::context::preallocated(stack.sp, stack.size, stack),
                                      allocator, [&m, &f](boost::context::fiber&& from) {
                                        m.scheduler.at = std::move(from);
                                        finish_switch(f.self, &m.scheduler);
                                        fiber_main(m, f);
                                        return std::move(m.scheduler.at);
                                      });
    return f;
  }
  Fiber& f = *m.idle.back();
  m.idle.pop_back();
  return f;
}

// Lets every thread that still waits unwind its stack.
void abandon_block(Machine& m) {
  m.abandon = true;
  for (int t = 0; t < m.block.threads; ++t) {
    if (!m.fiber_of[t]) continue;
    m.current = t;
    resume(m, *m.fiber_of[t]);
  }
  m.abandon = false;
  m.later.clear(), m.await_it.clear();
  std::fill(std::begin(m.ready), std::end(m.ready), 0);
}

}  // namespace

void wait_here() {
  Machine& m = machine();
  suspend(m, *m.running);
  if (m.abandon) throw Abandoned{};
}

void wake(int t) {
  machine().threads[t].state = Thread::running;
  set_ready(machine(), t);
}

void yield() {
  Machine& m = machine();
  m.later.push_back(m.current);
  wait_here();
}

Block& block() { return machine().block; }
Thread& thread(int t) { return machine().threads[t]; }
int current() { return machine().current; }
int lane() { return machine().current % 32; }

bool& awaited() { return thread(current()).awaited; }

void await_inputs() {
  Machine& m = machine();
  awaited() = true;
  if (!m.before) return;
  m.await_it.push_back(m.current);
  wait_here();
}

void begin_before(std::function<void()> work) { machine().before = std::move(work); }
bool by_chance() { return next_random(machine()) >> 63 == 0; }

namespace {

// The running block stands still meanwhile.
void do_what_precedes(Machine& m) {
  const auto work = std::exchange(m.before, nullptr);
  const std::vector<int> waiting = std::exchange(m.await_it, {});
  const std::vector<Thread> threads(m.threads, m.threads + m.block.threads);
  const std::vector<Fiber*> fibers(m.fiber_of, m.fiber_of + m.block.threads);
  const Block block = m.block;
  const auto index = blockIdx;
  const auto block_dim = blockDim, grid_dim = gridDim;
  std::fill(std::begin(m.fiber_of), std::end(m.fiber_of), nullptr);
  m.in_kernel = false;
  std::string error;
  try {
    work();
  } catch (const std::exception& e) {
    error = e.what();
  }
  std::copy(threads.begin(), threads.end(), m.threads);
  std::copy(fibers.begin(), fibers.end(), m.fiber_of);
  m.block = block, m.error = error, m.in_kernel = true;
  blockIdx = index, blockDim = block_dim, gridDim = grid_dim;
  for (const int t : waiting) set_ready(m, t);
}

}  // namespace

void fault(const std::string& what) {
  Machine& m = machine();
  if (!m.in_kernel) fail("simt: " + what);
  if (m.error.empty()) m.error = describe_thread(m.current) + ": " + what;
  throw Abandoned{};
}

std::string run_block() {
  Machine& m = machine();
  const int n = m.block.threads;
  m.block.done = 0;
  m.block.serial = ++m.serial, ++m.counts.blocks, m.counts.threads += n;
  for (int t = 0; t < n; ++t) m.threads[t].state = Thread::running, set_ready(m, t);
  m.error.clear();
  m.in_kernel = true;
  while (m.error.empty()) {
    const int t = take_ready(m);
    if (t < 0 && m.await_it.empty()) break;
    if (t < 0) {
      do_what_precedes(m);
      continue;
    }
    Fiber& f = m.fiber_of[t] ? *m.fiber_of[t] : idle_fiber(m);
    enter_thread(m, f, t);
    resume(m, f);
  }
  if (m.error.empty() && m.block.done < n) m.error = describe_deadlock();
  if (!m.error.empty()) abandon_block(m), m.before = nullptr;
  m.in_kernel = false;
  return std::exchange(m.error, {});
}

void start_launch() {
  Machine& m = machine();
  LTE_CHECK(!m.in_kernel, "simt: a kernel may not launch a kernel");
  ++m.counts.launches;
}

std::vector<int64_t> block_order(int64_t blocks) {
  Machine& m = machine();
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) {
    order[static_cast<size_t>(i)] = m.schedule.order == Order::reverse ? blocks - 1 - i : i;
  }
  if (m.schedule.order == Order::random) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random(m) % i]);
  }
  return order;
}

void set_schedule(Schedule s) {
  finish();
  machine().schedule = s;
  machine().random = (s.seed + 1) * 0x9e3779b97f4a7c15ULL | 1;
}
Schedule schedule() { return machine().schedule; }
Counts counts() { return machine().counts; }
void count_static(size_t bytes) {
  Block& b = block();
  b.static_bytes += bytes;
  if (!b.asked && b.static_bytes + b.dynamic_bytes > 48 * 1024)
    fault("more than 48 KiB of shared memory, static memory counted in, that were not asked for");
}
bool first_in_block(uint64_t& seen) {
  return std::exchange(seen, machine().block.serial) != machine().block.serial;
}

}  // namespace lte::simt
