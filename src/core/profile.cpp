#include "core/profile.h"

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
  using Clock = std::chrono::steady_clock;
  OpTime& row;
  Clock::time_point start = Clock::now();

  explicit Stop(OpTime& r) : row(r) {}
  ~Stop() {
    row.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    ++row.calls;
  }
};

template <auto kEntry, class Fn>
struct Timed;

template <auto kEntry, class R, class... Args>
struct Timed<kEntry, R (*Ops::*)(Ctx&, Args...)> {
  static R call(Ctx& ctx, Args... args) {
    auto& p = static_cast<ProfileCtx&>(ctx);
    constexpr size_t kPlace = place_of<kEntry>();
    const Stop stop(p.times[kPlace]);
    return (p.inner.ops.*kEntry)(*p.inner.ctx, args...);
  }
};

}  // namespace

Profiled profiled(const Backend& inner) {
  Profiled p{.backend = {.name = inner.name, .ops = {}, .ctx = {}},
             .clock = std::make_shared<ProfileCtx>()};
  p.clock->inner = inner;
  visit_ops([&]<auto kEntry>(const char* name) {
    p.backend.ops.*kEntry = Timed<kEntry, decltype(kEntry)>::call;
    p.clock->times.push_back({.name = name});
  });
  p.backend.ctx = p.clock;
  return p;
}

}  // namespace lte
