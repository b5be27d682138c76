// A backend that behaves as a GPU does, on the CPU: its operations run only when they are waited for, and
// see only memory of their own, tokens and targets excepted. What the host reads or writes too early
// comes out wrong and is counted, whatever tensor of that memory it is; one from elsewhere is an error.
#pragma once

#include <signal.h>
#include <sys/mman.h>

#include <map>

#include "core/profile.h"
#include "testing.h"

namespace lte::testing {

struct Late : Ctx {
  Backend cpu = open_backend("cpu", 1);
  std::vector<std::function<void()>> queue;
};

// The memory: pages of one range of addresses, closed to the host up to `closed` while work is enqueued.
// Memory is two plain functions, so it is known to the test program alone.
struct LateMemory {
  static constexpr size_t kPage = 4096, kRange = size_t{4} << 30;
  char* base = static_cast<char*>(mmap(nullptr, kRange, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  size_t used = 0, closed = 0;
  std::map<char*, size_t> blocks = {};         // that are alive
  std::multimap<size_t, char*> released = {};  // by size
  bool pending = false;                        // work is enqueued
  int64_t waits = 0, replays = 0;
  int touches = 0;  // how often the host touched it while work was enqueued; it is then opened

  // Not at every wait of a long run, which would take minutes: its code is the same again and again.
  bool closes() const { return waits < 1000 || waits % 31 == 0; }
  void close() {
    pending = true;
    if (!closes()) return;
    if (closed < used) mprotect(base + closed, used - closed, PROT_NONE);
    closed = used;
  }
  void open() {
    if (closed > 0) mprotect(base, closed, PROT_READ | PROT_WRITE);
    closed = 0;
  }
};
inline LateMemory& late_memory() {
  static LateMemory memory;
  return memory;
}
inline void* late_make(size_t bytes) {
  LateMemory& m = late_memory();
  bytes = (bytes + m.kPage - 1) / m.kPage * m.kPage;
  const auto old = m.pending ? m.released.end() : m.released.find(bytes);
  char* block = m.base + m.used;
  if (old != m.released.end()) {
    block = old->second;
    std::memset(block, 0, bytes);
    m.released.erase(old);
  } else {
    if (m.base == MAP_FAILED || m.used + bytes > m.kRange) return nullptr;
    m.used += bytes;
  }
  m.blocks[block] = bytes;
  return block;
}
inline void late_release(void* block) {
  LateMemory& m = late_memory();
  const auto found = m.blocks.find(static_cast<char*>(block));
  m.released.emplace(found->second, found->first);
  m.blocks.erase(found);
}
inline int& late_touches() { return late_memory().touches; }
inline void late_fault(int signal_number, siginfo_t* info, void*) {
  LateMemory& m = late_memory();
  const auto* at = static_cast<const char*>(info->si_addr);
  if (at >= m.base && at < m.base + m.closed) {
    ++m.touches;
    m.open();
  } else {
    signal(signal_number, SIG_DFL);  // not ours: comes again
  }
}

template <class T>
T checked(T value) {
  return value;
}
inline Tensor checked(Tensor t) {
  if (!t) return t;
  char* at = static_cast<char*>(t.data);
  const auto& blocks = late_memory().blocks;
  const auto next = blocks.upper_bound(at);
  const bool known =
      next != blocks.begin() && at + t.bytes() <= std::prev(next)->first + std::prev(next)->second;
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

inline Draws checked(Draws d) {
  return {checked(d.token), checked(d.step), checked(d.tokens), checked(d.uniform)};
}
inline std::vector<Tensor> checked(std::vector<Tensor> all) {
  for (const Tensor& t : all) checked(t);
  return all;
}

inline void late_enqueue(Late& late, std::function<void()> work) {
  late.queue.push_back(std::move(work));
  late_memory().close();
}

template <auto kEntry>
struct Later;
template <class... A, void (*Ops::*kEntry)(Ctx&, A...)>
struct Later<kEntry> {
  static void call(Ctx& ctx, A... a) {
    auto& late = static_cast<Late&>(ctx);
    late_enqueue(late,
                 [&late, ... v = checked(a)] { (late.cpu.ops.*kEntry)(*late.cpu.ctx, v...); });
  }
};
inline bool of_host(const Tensor& t) {
  const LateMemory& m = late_memory();
  return t.data < m.base || t.data >= m.base + m.kRange;
}
// The same where argument number kList may be a list of the host, which is copied at once.
template <auto kEntry, size_t kList>
struct LaterListed;
template <class... A, void (*Ops::*kEntry)(Ctx&, A...), size_t kList>
struct LaterListed<kEntry, kList> {
  static void call(Ctx& ctx, A... a) {
    auto& late = static_cast<Late&>(ctx);
    std::tuple<A...> all(a...);
    const Tensor list = std::get<kList>(all);
    if (!of_host(list)) return Later<kEntry>::call(ctx, a...);
    std::string copy = bits(list);
    late_enqueue(late, [&late, all, copy]() mutable {
      std::get<kList>(all).data = copy.data();
      std::apply([&](A... v) { (late.cpu.ops.*kEntry)(*late.cpu.ctx, v...); }, all);
    });
  }
};

inline void late_finish(Ctx& ctx) {
  auto& late = static_cast<Late&>(ctx);
  late_memory().open();
  for (const auto& work : late.queue) work();
  late.queue.clear();
  late_memory().pending = false, ++late_memory().waits;
}

inline void late_copy(Ctx& ctx, Tensor to, Tensor from) {
  if (of_host(to)) {
    late_finish(ctx);
    std::memcpy(to.data, checked(from).data, to.bytes());
  } else if (of_host(from)) {
    late_enqueue(static_cast<Late&>(ctx), [to = checked(to), copy = bits(from)] {
      std::memcpy(to.data, copy.data(), to.bytes());
    });
  } else {
    late_enqueue(static_cast<Late&>(ctx), [to = checked(to), from = checked(from)] {
      std::memcpy(to.data, from.data, to.bytes());
    });
  }
}

// A graph is what was enqueued.
inline std::shared_ptr<void> late_record(Ctx& ctx, const std::function<void()>& work) {
  auto& late = static_cast<Late&>(ctx);
  auto before = std::exchange(late.queue, {});
  const int64_t waits = late_memory().waits;
  work();
  LTE_CHECK(late_memory().waits == waits, "work that is recorded has waited");
  return std::make_shared<decltype(before)>(std::exchange(late.queue, std::move(before)));
}
inline void late_replay(Ctx& ctx, void* graph) {
  for (const auto& work : *static_cast<decltype(Late::queue)*>(graph))
    late_enqueue(static_cast<Late&>(ctx), work);
  ++late_memory().replays;
}

inline Backend open_late() {
  struct sigaction on_fault = {};
  on_fault.sa_sigaction = late_fault, on_fault.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &on_fault, nullptr);
  sigaction(SIGBUS, &on_fault, nullptr);
  late_memory().open();
  late_memory().pending = false, late_touches() = 0,
  late_memory().waits = late_memory().replays = 0;
  Backend b{.name = "late", .ops = {}, .ctx = std::make_shared<Late>(), .memory = {}};
  b.memory = {late_make, late_release};
  visit_ops([&]<auto kEntry>(const char*) {
    using Entry = decltype(kEntry);
    if constexpr (!std::is_same_v<Entry, decltype(&Ops::keeps_row_sums)> &&
                  !std::is_same_v<Entry, decltype(&Ops::kept_type)> &&
                  !std::is_same_v<Entry, decltype(&Ops::record)> &&
                  !std::is_same_v<Entry, decltype(&Ops::replay)> &&
                  !std::is_same_v<Entry, decltype(&Ops::route_linear)> &&
                  !std::is_same_v<Entry, decltype(&Ops::ffn_token)> &&
                  !std::is_same_v<Entry, decltype(&Ops::norm_ffn_token)> &&
                  !std::is_same_v<Entry, decltype(&Ops::norm_route_linear)> &&
                  !std::is_same_v<Entry, decltype(&Ops::attend_token)> &&
                  !std::is_same_v<Entry, decltype(&Ops::linear_activate)> &&
                  !std::is_same_v<Entry, decltype(&Ops::linear_activate_backward)> &&
                  !std::is_same_v<Entry, decltype(&Ops::linear_backward)>) {
      b.ops.*kEntry = Later<kEntry>::call;
    }
  });
  b.ops.finish = late_finish, b.ops.copy_list = late_copy;
  b.ops.record = late_record, b.ops.replay = late_replay;
  b.ops.keeps_row_sums = [](Ctx&) { return false; };
  b.ops.kept_type = [](Ctx&) { return DType::f32; };
  b.ops.route_linear = [](Ctx&, Tensor, ExpertLists, Tensor, Tensor, Tensor, double) {
    return false;
  };
  b.ops.linear = [](Ctx& ctx, Tensor out, Tensor x, Tensor w, bool tw, Tensor bias) {
    Later<&Ops::gemm>::call(ctx, out, x, false, w, tw);
    Later<&Ops::bias_add>::call(ctx, out, bias);
  };
  b.ops.ffn_token = [](Ctx&, Tensor, Tensor, FfnWeights, Act) { return false; };
  b.ops.norm_ffn_token = [](Ctx&, Tensor, AddNorm, FfnWeights, Act) { return false; };
  b.ops.norm_route_linear = [](Ctx&, Tensor, ExpertLists, AddNorm, Tensor, Tensor, double) {
    return false;
  };
  b.ops.attend_token = [](Ctx& ctx, Tensor out, Tensor qkv, Tensor k, Tensor v, Chunk c,
                          HeadShape h, double theta) {
    auto& late = static_cast<Late&>(ctx);
    late_enqueue(late, [&late, out, qkv, k, v, c, h, theta] {
      std::string copy = bits(qkv);
      Tensor own = qkv;
      own.data = copy.data();
      const Ops& o = late.cpu.ops;
      Ctx& x = *late.cpu.ctx;
      if (theta > 0) o.rope(x, own, c, h.H + h.K, h.C, theta, false);
      o.store_kv(x, k, v, own, c, h);
      o.attention(x, out, {}, own, k, v, c, h);
    });
  };
  b.ops.linear_activate = [](Ctx&, Tensor, Tensor, Tensor, Tensor, Tensor, Act) { return false; };
  b.ops.linear_activate_backward = [](Ctx&, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Act) {
    return false;
  };
  b.ops.add_norm = [](Ctx& ctx, Tensor out, Tensor stats, Tensor sum, Tensor x, Tensor y, Tensor w,
                      Tensor bias, double eps) {
    Later<&Ops::add>::call(ctx, sum, x, y);
    Later<&Ops::norm>::call(ctx, out, stats, sum, w, bias, eps);
  };
  b.ops.linear_backward = [](Ctx& ctx, Tensor dx, bool add_dx, Tensor dw, Tensor dout, Tensor x,
                             Tensor w, bool tw) {
    (add_dx ? Later<&Ops::gemm_add>::call : Later<&Ops::gemm>::call)(ctx, dx, dout, false, w, !tw);
    Later<&Ops::gemm_add>::call(ctx, dw, tw ? dout : x, true, tw ? x : dout, false);
  };
  b.ops.embed = LaterListed<&Ops::embed, 1>::call;
  b.ops.embed_backward_add = LaterListed<&Ops::embed_backward_add, 3>::call;
  b.ops.cross_entropy = LaterListed<&Ops::cross_entropy, 3>::call;
  b.ops.distill_add = LaterListed<&Ops::distill_add, 3>::call;
  return b;
}

}  // namespace lte::testing
