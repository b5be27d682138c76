// A backend that behaves as a GPU does, on the CPU: its operations run only when they are waited for, and
// see only memory of their own, tokens and targets excepted. What the host reads or writes too early
// comes out wrong, and a tensor from elsewhere is an error.
#pragma once

#include <map>

#include "core/profile.h"
#include "testing.h"

namespace lte::testing {

struct Late : Ctx {
  Backend cpu = open_backend("cpu", 1);
  std::vector<std::function<void()>> queue;
};

// The blocks that are alive. Memory is two plain functions, so they are known to the test program alone.
inline std::map<const char*, size_t>& late_blocks() {
  static std::map<const char*, size_t> blocks;
  return blocks;
}
inline void* late_make(size_t bytes) {
  void* block = std::calloc(bytes, 1);
  late_blocks()[static_cast<const char*>(block)] = bytes;
  return block;
}
inline void late_release(void* block) {
  late_blocks().erase(static_cast<const char*>(block));
  std::free(block);
}

template <class T>
T checked(T value) {
  return value;
}
inline Tensor checked(Tensor t) {
  if (!t) return t;
  const char* at = static_cast<const char*>(t.data);
  const auto next = late_blocks().upper_bound(at);
  const bool known = next != late_blocks().begin() &&
                     at + t.bytes() <= std::prev(next)->first + std::prev(next)->second;
  LTE_CHECK(known, "a tensor does not lie in the backend's memory");
  return t;
}
inline FfnWeights checked(FfnWeights w) {
  return {checked(w.up), checked(w.up_bias), checked(w.gate_w), checked(w.down)};
}
inline ExpertLists checked(ExpertLists l) {
  return {checked(l.gates), checked(l.index), checked(l.count)};
}
inline PackedRows checked(PackedRows r) { return {checked(r.up), checked(r.gate), checked(r.act)}; }

template <auto kEntry>
struct Later;
template <class... A, void (*Ops::*kEntry)(Ctx&, A...)>
struct Later<kEntry> {
  static void call(Ctx& ctx, A... a) {
    auto& late = static_cast<Late&>(ctx);
    late.queue.push_back(
        [&late, ... v = checked(a)] { (late.cpu.ops.*kEntry)(*late.cpu.ctx, v...); });
  }
};
// The same where argument number kList is a list of the host, which is copied at once.
template <auto kEntry, size_t kList>
struct LaterListed;
template <class... A, void (*Ops::*kEntry)(Ctx&, A...), size_t kList>
struct LaterListed<kEntry, kList> {
  static void call(Ctx& ctx, A... a) {
    auto& late = static_cast<Late&>(ctx);
    std::tuple<A...> all(a...);
    const Tensor list = std::get<kList>(all);
    std::string copy = bits(list);
    late.queue.push_back([&late, all, copy]() mutable {
      std::get<kList>(all).data = copy.data();
      std::apply([&](A... v) { (late.cpu.ops.*kEntry)(*late.cpu.ctx, v...); }, all);
    });
  }
};

inline void late_finish(Ctx& ctx) {
  auto& late = static_cast<Late&>(ctx);
  for (const auto& work : late.queue) work();
  late.queue.clear();
}

inline Backend open_late() {
  Backend b{.name = "late", .ops = {}, .ctx = std::make_shared<Late>(), .memory = {}};
  b.memory = {late_make, late_release};
  visit_ops([&]<auto kEntry>(const char*) {
    using Entry = decltype(kEntry);
    if constexpr (!std::is_same_v<Entry, decltype(&Ops::keeps_row_sums)>) {
      b.ops.*kEntry = Later<kEntry>::call;
    }
  });
  b.ops.finish = late_finish;
  b.ops.keeps_row_sums = [](Ctx&) { return false; };
  b.ops.embed = LaterListed<&Ops::embed, 1>::call;
  b.ops.embed_backward_add = LaterListed<&Ops::embed_backward_add, 3>::call;
  b.ops.cross_entropy = LaterListed<&Ops::cross_entropy, 3>::call;
  b.ops.distill_add = LaterListed<&Ops::distill_add, 3>::call;
  return b;
}

}  // namespace lte::testing
