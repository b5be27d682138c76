#include "core/profile.h"

#include <time.h>

#include <chrono>

namespace lte {
namespace {

// The place of an entry in the list.
template <auto kEntry>
constexpr size_t place_of() {
  size_t place = 0, at = 0;
  visit_ops([&]<auto kOther>(const char*) {
    if constexpr (std::is_same_v<decltype(kOther), decltype(kEntry)>) {
      if (kOther == kEntry) place = at;
    }
    ++at;
  });
  return place;
}

// Adds the time of a scope to a row.
struct Stop {
  double (*now)();
  OpTime& row;
  double start = now();

  ~Stop() { row.seconds += now() - start, ++row.calls; }
};

template <auto kEntry, class Fn>
struct Timed;

template <auto kEntry, class R, class... Args>
struct Timed<kEntry, R (*Ops::*)(Ctx&, Args...)> {
  static R call(Ctx& ctx, Args... args) {
    auto& p = static_cast<ProfileCtx&>(ctx);
    constexpr size_t kPlace = place_of<kEntry>();
    const Stop stop{p.now, p.times[kPlace]};
    if constexpr (std::is_void_v<R>) {
      (p.inner.ops.*kEntry)(*p.inner.ctx, args...);
      p.inner.finish();  // a GPU has only enqueued it
    } else {
      const R result = (p.inner.ops.*kEntry)(*p.inner.ctx, args...);
      p.inner.finish();
      return result;
    }
  }
};

}  // namespace

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

Profiled profiled(const Backend& inner) {
  Profiled p{.backend = {.name = inner.name,
                         .ops = {},
                         .ctx = {},
                         .memory = inner.memory,
                         .threads = inner.threads},
             .clock = std::make_shared<ProfileCtx>()};
  p.clock->inner = inner;
  visit_ops([&]<auto kEntry>(const char* name) {
    if (inner.ops.*kEntry) p.backend.ops.*kEntry = Timed<kEntry, decltype(kEntry)>::call;
    p.clock->times.push_back({.name = name});
  });
  p.backend.ops.record = nullptr, p.backend.ops.replay = nullptr;
  p.backend.ctx = p.clock;
  return p;
}

}  // namespace lte
