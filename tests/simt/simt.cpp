// Barriers, warp functions, launches, and what is said when they go wrong.
#include "simt.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/check.h"
#include "fibers.h"

namespace lte::simt {
namespace {

constexpr size_t kMaxShared = 227 * 1024;  // dynamic shared memory of a block, sm_90
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;

std::string triple(uint3 i) { return fmt::format("({},{},{})", i.x, i.y, i.z); }

std::string place(Site s) {
  const char* slash = std::strrchr(s.file, '/');
  return fmt::format("{}:{}", slash ? slash + 1 : s.file, s.line);
}

std::string waiting(const Thread& t) {
  if (t.state == Thread::done) return "has ended";
  return fmt::format("waits at {} ({})", t.waits_for, place(t.site));
}

bool same_place(const Thread& a, const Thread& b) {
  auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.state == b.state && a.site.line == b.site.line && a.mask == b.mask && a.meet == b.meet &&
         same(a.waits_for, b.waits_for) && same(a.site.file, b.site.file);
}

// The lanes that the warp which begins at thread `base` has.
unsigned lanes_of(int base) {
  const int n = block().threads - base;
  return n >= 32 ? ~0u : (1u << n) - 1;
}

// The first thread that keeps `t` from going on; -1 if none does.
int missing(int t) {
  const Thread& me = thread(t);
  const bool warp = me.state == Thread::at_warp;
  const int base = warp ? t / 32 * 32 : 0, count = warp ? 32 : block().threads;
  for (int i = 0; i < count; ++i) {
    if (warp && !((me.mask & lanes_of(base)) >> i & 1)) continue;
    if (!same_place(thread(base + i), me)) return base + i;
  }
  return -1;
}

void check_shape(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool ok = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.y >= 1 &&
                  grid.z >= 1 && grid.x <= kMaxGridX && grid.y <= kMaxGridYZ &&
                  grid.z <= kMaxGridYZ && shared_bytes <= kMaxShared;
  LTE_CHECK(ok, fmt::format("launch of {}: invalid configuration: grid {}, block {}, {} bytes of "
                            "shared memory",
                            function_name(kernel), triple({grid.x, grid.y, grid.z}),
                            triple({block.x, block.y, block.z}), shared_bytes));
}

void run_grid(const void* kernel, dim3 grid, dim3 block_dim, size_t shared_bytes,
              const std::function<void()>& body, bool asked) {
  start_launch();
  Block& b = block();
  b.dynamic_bytes = shared_bytes, b.asked = asked;
  gridDim = grid, blockDim = block_dim;
  b.kernel = kernel, b.body = &body;
  b.threads = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
  for (int t = 0; t < b.threads; ++t) {
    const unsigned u = static_cast<unsigned>(t), xy = block_dim.x * block_dim.y;
    thread(t).index = {u % block_dim.x, u / block_dim.x % block_dim.y, u / xy};
  }
  // Exactly as long as asked for, so that AddressSanitizer sees the first byte beyond.
  const std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
  b.shared = shared.get();
  const int64_t x = grid.x, y = grid.y;
  for (const int64_t i : block_order(x * y * grid.z)) {
    blockIdx = {static_cast<unsigned>(i % x), static_cast<unsigned>(i / x % y),
                static_cast<unsigned>(i / (x * y))};
    b.arrived = b.votes = 0, b.static_bytes = 0;
    std::fill(std::begin(b.waiting), std::end(b.waiting), 0u);
    unset(b.shared, shared_bytes);
    const std::string error = run_block();
    if (!error.empty()) fail(error);
  }
}

}  // namespace

std::string describe_thread(int t) {
  return fmt::format("kernel {}, block {}, thread {}", function_name(block().kernel),
                     triple(blockIdx), triple(thread(t).index));
}

std::string describe_deadlock() {
  int stuck = -1;  // a warp function that waits tells more than a barrier that waits for its lanes
  for (int t = block().threads - 1; t >= 0; --t) {
    const Thread::State s = thread(t).state;
    if (s == Thread::done ||
        (stuck >= 0 && thread(stuck).state == Thread::at_warp && s != Thread::at_warp)) {
      continue;
    }
    if (missing(t) >= 0) stuck = t;
  }
  if (stuck < 0) return describe_thread(0) + ": never goes on";
  const int other = missing(stuck);
  const Thread &me = thread(stuck), &it = thread(other);
  return fmt::format("{}: {}, but thread {} {}{}", describe_thread(stuck), waiting(me),
                     triple(it.index), waiting(it),
                     it.state == me.state && it.mask != me.mask ? " with another mask" : "");
}

int barrier(const char* name, Site site, bool predicate) {
  Block& b = block();
  const int t = current();
  Thread& me = thread(t);
  me.state = Thread::at_barrier, me.waits_for = name, me.site = site;
  me.mask = 0, me.meet = nullptr;
  ++b.arrived, b.votes += predicate;
  if (b.arrived < b.threads) {
    wait_here();
    return me.result;
  }
  for (int i = 0; i < b.threads; ++i) {
    if (!same_place(thread(i), me)) {
      fault(fmt::format("at {} ({}), but thread {} {}", name, place(site), triple(thread(i).index),
                        waiting(thread(i))));
    }
  }
  for (int i = 0; i < b.threads; ++i) {
    thread(i).result = b.votes;
    if (i != t) wake(i);
  }
  me.state = Thread::running;
  b.arrived = b.votes = 0;
  return me.result;
}

void warp_meet(const char* name, Site site, unsigned mask, Meet meet, void* data) {
  const int t = current(), l = t % 32, base = t - l;
  if (!(mask >> l & 1)) {
    fault(fmt::format("{} ({}): the calling lane {} is not in its mask", name, place(site), l));
  }
  Thread& me = thread(t);
  me.state = Thread::at_warp, me.waits_for = name, me.site = site;
  me.mask = mask, me.meet = meet, me.data = data;
  unsigned& waiting = block().waiting[t / 32];
  const unsigned needed = mask & lanes_of(base);
  waiting |= 1u << l;
  if ((waiting & needed) != needed || missing(t) >= 0) return wait_here();
  waiting &= ~needed;
  void* all[32] = {};
  for (int i = 0; i < 32; ++i) {
    if (needed >> i & 1) all[i] = thread(base + i).data;
  }
  meet(all, needed);
  for (int i = 0; i < 32; ++i) {
    if ((needed >> i & 1) && i != l) wake(base + i);
  }
  me.state = Thread::running;
}

void* dynamic_memory() { return block().shared; }

void unset(void* p, size_t bytes) { std::memset(p, 0xff, bytes); }

void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> thread, bool asked, bool early) {
  check_shape(kernel, grid, block, shared_bytes);
  const auto run = [=, thread = std::move(thread)] {
    run_grid(kernel, grid, block, shared_bytes, thread, asked);
  };
  submit(stream, {run, kernel, early});
}

std::string to_string(Schedule s) {
  if (s.order == Order::random) return fmt::format("random:{}", s.seed);
  return s.order == Order::forward ? "forward" : "reverse";
}

Schedule parse_schedule(const std::string& text) {
  if (text == "forward") return {Order::forward, 0};
  if (text == "reverse") return {Order::reverse, 0};
  const std::string seed = text.rfind("random:", 0) == 0 ? text.substr(7) : "";
  LTE_CHECK(!seed.empty() && seed.size() < 19 &&
                seed.find_first_not_of("0123456789") == std::string::npos,
            fmt::format("unknown schedule '{}'; known: forward, reverse, random:<seed>", text));
  return {Order::random, std::stoull(seed)};
}

std::vector<Schedule> schedules(int seeds) {
  std::vector<Schedule> all = {{Order::forward, 0}, {Order::reverse, 0}};
  for (int s = 0; s < seeds; ++s) all.push_back({Order::random, static_cast<uint64_t>(s)});
  return all;
}

std::string unstable(const std::function<std::vector<unsigned char>()>& result, int seeds) {
  struct Restore {
    Schedule before = schedule();
    ~Restore() { set_schedule(before); }
  } restore;
  std::vector<unsigned char> first;
  for (const Schedule s : schedules(seeds)) {
    set_schedule(s);
    const std::vector<unsigned char> bytes = result();
    if (s.order == Order::forward) first = bytes;
    if (bytes == first) continue;
    const auto at = std::mismatch(
        bytes.begin(),
        bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), first.size())),
        first.begin());
    return fmt::format("result depends on the order of threads: {} differs from forward at byte {}",
                       to_string(s), at.first - bytes.begin());
  }
  return "";
}

}  // namespace lte::simt
