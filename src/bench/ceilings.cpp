#include "bench/ceilings.h"

#include <cstring>
#include <memory>

#include "core/rng.h"
#include "core/threads.h"

namespace lte {
namespace {

// Seconds of the fastest of `rounds` calls, after one that warms up.
template <class F>
double best_of(int rounds, double (*now)(), F&& f) {
  f();
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  }
  return best;
}

// Sum of whole words; several sums, so that the loads are what is waited for.
uint64_t read_words(const uint64_t* from, const uint64_t* to) {
  constexpr int kSums = 32;
  uint64_t sum[kSums] = {};
  for (; from + kSums <= to; from += kSums) {
    for (int i = 0; i < kSums; ++i) sum[i] += from[i];
  }
  uint64_t total = 0;
  for (uint64_t s : sum) total += s;
  return total;
}

}  // namespace

double gemm_rate(Backend& be, int64_t n, int rounds, double (*now)()) {
  Tensor a = shape(DType::f32, {n, n}), b = a, out = a;
  Arena memory;
  memory.reserve(3 * Arena::padded(a.bytes()));
  Rng rng(1);
  for (Tensor* t : {&a, &b, &out}) {
    memory.carve(*t);
    for (int64_t i = 0; i < t->size(); ++i) t->as<float>()[i] = static_cast<float>(rng.normal());
  }
  const double seconds =
      best_of(rounds, now, [&] { be.ops.gemm(*be.ctx, out, a, false, b, false); });
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

double stream_rate(int threads, size_t bytes, int rounds) {
  ThreadPool pool(threads);
  const size_t words = bytes / sizeof(uint64_t);
  const auto block = std::make_unique_for_overwrite<uint64_t[]>(words);
  const auto share = words / static_cast<size_t>(pool.size());
  const auto part = [&](int64_t i) { return block.get() + static_cast<size_t>(i) * share; };
  pool.run(pool.size(), [&](int64_t i, int) { std::memset(part(i), 1, share * sizeof(uint64_t)); });
  std::vector<uint64_t> sums(static_cast<size_t>(pool.size()));
  const double seconds = best_of(rounds, wall_seconds, [&] {
    pool.run(pool.size(), [&](int64_t i, int) {
      sums[static_cast<size_t>(i)] = read_words(part(i), part(i) + share);
    });
  });
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  LTE_CHECK(sum != 0, "stream read: the block was not read");
  return static_cast<double>(share * sizeof(uint64_t)) * pool.size() / seconds;
}

std::vector<Ceiling> measure_ceilings(int threads) {
  std::vector<int> counts = {1};
  const int all = ThreadPool(threads).size();
  if (all > 1) counts.push_back(all);
  std::vector<Ceiling> out;
  for (int n : counts) {
    Backend be = open_backend("auto", n);
    out.push_back({"gemm f32", n, gemm_rate(be, 1024, 5)});
  }
  for (int n : counts) out.push_back({"stream read", n, stream_rate(n, size_t{1} << 29, 5)});
  return out;
}

}  // namespace lte
