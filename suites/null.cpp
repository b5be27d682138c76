// The harness's floor: what a row reads when there is next to nothing to do, and what reading alone costs
// where it jumps. Rows near these say more about the clock, the threads and the memory than about their subject.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "bench/ceilings.h"
#include "core/digest.h"
#include "core/rng.h"
#include "models.h"

namespace lte {
namespace {

// What was counted against what is known.
Checked exactly(float got, float want) {
  return {.comparison = {.ok = got == want, .worst_used = 0, .message = "other than known"},
          .rows = 1};
}

Work nothing(Session&) {
  Work w;
  auto calls = std::make_shared<int>(0);
  w.call = [calls] { ++*calls; };
  w.output = [] { return uint64_t{0}; };
  w.check = [calls] { return exactly(static_cast<float>(*calls), 1); };
  return w;
}

// out = a + b on one element.
Work one_element(Session& s) {
  const Tensor one = shape(DType::f32, {1, 1});
  auto b = std::make_shared<Block>(make_block({one, one, one}, s.backend.memory));
  b->tensor[1].as<float>()[0] = 1, b->tensor[2].as<float>()[0] = 2;
  Work w;
  w.memory = {&b->memory};
  w.call = [&s, b] { s.backend.ops.add(*s.backend.ctx, b->tensor[0], b->tensor[1], b->tensor[2]); };
  w.output = [b] { return digest(b->tensor[0].data, sizeof(float)); };
  w.check = [b] { return exactly(*b->tensor[0].as<float>(), 3); };
  return w;
}

// One piece for every thread, which waits until all have begun: just after the last call, or when the
// others have fallen asleep.
Work wake(Session& s, bool asleep) {
  struct Pool {
    ThreadPool pool;
    std::atomic<int> pieces{0};
    explicit Pool(int threads) : pool(threads) {}
  };
  auto p = std::make_shared<Pool>(s.options.threads);
  Work w;
  w.load = [p, asleep](int64_t) {
    p->pieces = 0;
    if (asleep) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  };
  w.call = [p] {
    p->pool.run(p->pool.size(), [&](int64_t, int) {
      ++p->pieces;
      while (p->pieces < p->pool.size()) std::this_thread::yield();
    });
  };
  w.output = [p] { return static_cast<uint64_t>(p->pieces); };
  w.check = [p] {
    return exactly(static_cast<float>(p->pieces), static_cast<float>(p->pool.size()));
  };
  w.counters = [p] {
    return std::map<std::string, double>{{"threads", static_cast<double>(p->pool.size())}};
  };
  return w;
}

// Numbers in blocks, each read front to back, as one matrix of an expert is (32 rows of bf16 of LLaMA-2 7B: 256
// KiB), the blocks in any order. Beside it the same loop reads them in order: the ratio is what jumps leave of the
// machine's rate, whoever reads.
struct Blocks {
  ThreadPool pool;
  StreamBlock memory;
  int64_t length, count;  // numbers of a block, blocks
  std::vector<int64_t> shuffled, sorted;
  std::vector<uint64_t> sums;  // of every thread

  Blocks(int threads, int64_t bytes, int64_t block_bytes)
      : pool(threads),
        memory(bytes),
        length(block_bytes / static_cast<int64_t>(sizeof(uint64_t))),
        count(bytes / block_bytes),
        sorted(static_cast<size_t>(count)),
        sums(static_cast<size_t>(pool.size())) {
    std::iota(sorted.begin(), sorted.end(), 0);
    shuffled = sorted;
    Rng rng(1);
    shuffle(shuffled, rng);
  }
  const uint64_t* at(int64_t i) const { return memory.numbers.data() + i * length; }
  // The sum of the block at p, while the one at `next` is asked for ahead: one line of every 256 bytes, which
  // is enough for the processor to bring the others.
  uint64_t sum(const uint64_t* p, const uint64_t* next) const {
    constexpr int64_t kLanes = 32, kAhead = 4096;
    uint64_t sum[kLanes] = {};
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t to = i + kAhead;
      __builtin_prefetch(to < length ? p + to : next + (to - length), 0, 2);
      for (int64_t k = 0; k < kLanes; ++k) sum[k] += p[i + k];
    }
    return std::accumulate(sum, sum + kLanes, uint64_t{0});
  }
  void read(const std::vector<int64_t>& order) {
    const int64_t threads = pool.size();
    pool.run(threads, [&](int64_t t, int) {
      uint64_t all = 0;
      for (int64_t i = count * t / threads, end = count * (t + 1) / threads; i < end; ++i) {
        const uint64_t* here = at(order[static_cast<size_t>(i)]);
        all += sum(here, i + 1 < end ? at(order[static_cast<size_t>(i + 1)]) : here);
      }
      sums[static_cast<size_t>(t)] = all;
    });
  }
  uint64_t total() const { return std::accumulate(sums.begin(), sums.end(), uint64_t{0}); }
};
Work jumps(Session& s, int64_t block_bytes) {
  if (s.options.device) throw Skip{"reads by the host's threads"};
  const int64_t bytes = int64_t{s.options.smoke ? 4 : 256} << 20;
  auto b = std::make_shared<Blocks>(s.options.threads, bytes, block_bytes);
  Work w;
  w.call = [b] { b->read(b->shuffled); };
  w.beside = [b] { b->read(b->sorted); };
  w.beside_counter = "x_in_order";
  w.output = [b] { return b->total(); };
  w.check = [b] {  // each number is 1; as whole numbers, for floats end at 2^24
    const auto missing = b->length * b->count - static_cast<int64_t>(b->total());
    return exactly(static_cast<float>(missing), 0);
  };
  w.look = [bytes] {
    return Seen{.traffic = {.bytes = static_cast<double>(bytes), .flops = 0, .weights = {}}};
  };
  return w;
}

// One token through one layer of eight numbers: what forward costs before it computes.
Work empty_forward(Session& s) {
  ModelConfig c = parse_model("gpt2-nano:layers=1,dim=8,heads=1,ffn=8,max_seq=8");
  c.vocab = 8;
  Params params = make_params(c, dense_plan(c), DType::f32, s.backend.memory);
  init_params(params, 1);
  auto shared = std::make_shared<const Params>(std::move(params));
  auto w = std::make_shared<Whole>(
      Whole{.params = shared,
            .reference = shared,
            .plan = dense_plan(c),
            .dense = dense_plan(c),
            .state = make_state(*shared, dense_plan(c), 1, 1, 1, Keep::one_layer),
            .chunk = {.B = 1, .T = 1, .pos = 0},
            .tokens = {3}});
  return whole_work(s, w, true);
}

}  // namespace

const bool kInference = false;

std::vector<Case> cases(const Options&) {
  std::vector<Case> all = {{"null/call", nothing},
                           {"null/add/elements:1", one_element},
                           {"null/pool/awake", [](Session& s) { return wake(s, false); }},
                           {"null/pool/asleep", [](Session& s) { return wake(s, true); }},
                           {"null/forward/layers:1/dim:8", empty_forward}};
  for (const int64_t kib : {64, 256, 1024}) {
    all.push_back({fmt::format("null/read/jumps/block_kib:{}", kib),
                   [kib](Session& s) { return jumps(s, kib << 10); }});
  }
  return all;
}

}  // namespace lte
