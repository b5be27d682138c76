// The harness's floor: what a row reads when there is next to nothing to do. Rows near these say
// more about the clock and the threads than about their subject.
#include <chrono>
#include <cmath>
#include <thread>

#include "core/digest.h"
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
  return {{"null/call", nothing},
          {"null/add/elements:1", one_element},
          {"null/pool/awake", [](Session& s) { return wake(s, false); }},
          {"null/pool/asleep", [](Session& s) { return wake(s, true); }},
          {"null/forward/layers:1/dim:8", empty_forward}};
}

}  // namespace lte
