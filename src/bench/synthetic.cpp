#include "bench/synthetic.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "core/threads.h"

namespace lte {
namespace {

// The value that the share 1 - density of the scores does not exceed.
double quantile(const Tensor& scores, double density) {
  std::vector<float> v(scores.as<float>(), scores.as<float>() + scores.size());
  const auto at =
      v.begin() + static_cast<std::ptrdiff_t>((1 - density) * static_cast<double>(v.size() - 1));
  std::nth_element(v.begin(), at, v.end());
  return *at;
}

constexpr int64_t kPiece = 1 << 20;  // numbers that are drawn one after another

// xorshift64 (Marsaglia, 2003): cheap, and good enough for weights that only their size matters of.
template <class Put>
void draw(uint64_t seed, int64_t first, int64_t last, double std, const Put& put) {
  uint64_t x = splitmix64(seed) | 1;
  const auto scale = static_cast<float>(std * std::sqrt(12.0) * 0x1.0p-24);
  for (int64_t i = first; i < last; ++i) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    put(i, scale * static_cast<float>(static_cast<int32_t>(x >> 40) - (1 << 23)));
  }
}

void fill(ThreadPool& pool, const Tensor& t, double std, uint64_t seed) {
  LTE_CHECK(t.dtype == DType::f32 || t.dtype == DType::bf16, "fill_uniform: f32 or bf16");
  pool.run((t.size() + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t first = piece * kPiece, last = std::min(t.size(), first + kPiece);
    const uint64_t own = hash64(seed, static_cast<uint64_t>(piece));
    if (t.dtype == DType::bf16) {
      draw(own, first, last, std, [&](int64_t i, float v) { t.as<Bf16>()[i] = to_bf16(v); });
    } else {
      draw(own, first, last, std, [&](int64_t i, float v) { t.as<float>()[i] = v; });
    }
  });
}

}  // namespace

void fill_uniform(const Tensor& t, double std, uint64_t seed, int threads) {
  ThreadPool pool(t.size() > kPiece ? threads : 1);
  fill(pool, t, std, seed);
}

void fill_params(Params& p, uint64_t seed, int threads) {
  ThreadPool pool(threads);
  uint64_t place = 0;
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    const double std = info.router ? 1 / std::sqrt(static_cast<double>(p.cfg.dim)) : info.init_std;
    ++place;
    if (info.init_one) {
      std::fill_n(t.as<float>(), t.size(), 1.f);
    } else {
      fill(pool, t, std, hash64(seed, place));
    }
  });
}

std::vector<int32_t> random_tokens(int64_t n, int vocab) {
  std::vector<int32_t> v;
  Rng rng(11);
  while (static_cast<int64_t>(v.size()) < n) {
    v.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  }
  return v;
}

Plan with_density(Backend& be, const Params& params, Plan plan, double density) {
  for (FfnPlan& p : plan.layer) p.cut = -1;
  if (density >= 1) return plan;
  const int64_t T = std::min<int64_t>(64, params.cfg.max_seq);
  State state = make_state(params, plan, 1, T, T, Keep::one_layer);
  std::vector<int32_t> words = random_tokens(T, params.cfg.vocab);
  Tensor tokens = shape(DType::i32, {T});
  tokens.data = words.data();
  // Once with all experts on, once with the first thresholds: later layers see what they will see.
  for (int round = 0; round < 2; ++round) {
    forward(be, params, plan, tokens, {1, T, 0}, {Gate::hard, Exec::masked}, state);
    be.finish();
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      plan.layer[i].cut = quantile(state.layer[i].scores, density);
    }
  }
  return plan;
}

Open open_gates(const Plan& plan, const State& s, int64_t rows) {
  Open open;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    if (plan.layer[i].router == RouterKind::none) {
      open.active.push_back(1), open.loaded.push_back(1);
      continue;
    }
    const Tensor& gates = s.layer[i].gates;
    const int64_t E = gates.cols();
    std::vector<bool> wanted(static_cast<size_t>(E));
    int64_t on = 0;
    for (int64_t k = 0; k < rows * E; ++k) {
      if (gates.as<float>()[k] != 0) ++on, wanted[static_cast<size_t>(k % E)] = true;
    }
    open.active.push_back(static_cast<double>(on) / static_cast<double>(rows * E));
    open.loaded.push_back(static_cast<double>(std::count(wanted.begin(), wanted.end(), true)) /
                          static_cast<double>(E));
  }
  return open;
}

}  // namespace lte
