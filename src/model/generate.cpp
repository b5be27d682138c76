#include "model/generate.h"

#include <algorithm>
#include <numeric>

namespace lte {
namespace {

// Neurons computed for the last chunk, over the dense model's.
double active_of(const Params& p, const Plan& plan, const State& s, int64_t tokens) {
  double sum = 0;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const double kept = static_cast<double>(kept_neurons(p.cfg, plan.layer[i])) / p.cfg.ffn;
    if (plan.layer[i].router == RouterKind::none) {
      sum += kept * static_cast<double>(tokens);
      continue;
    }
    const int64_t E = experts(p.cfg, plan.layer[i]);
    const float* g = s.layer[i].gates.as<float>();
    const double neurons =
        kept *
        static_cast<double>(std::count_if(g, g + tokens * E, [](float v) { return v != 0; })) /
        static_cast<double>(E);
    const Tensor& in = s.layer[i].kept;
    const double n = p.cfg.gated ? 2 : 1;
    for (int64_t t = 0; in && t < tokens; ++t) sum += n / (n + 1) * in.as<float>()[t];
    sum += in ? neurons / (n + 1) : neurons;
  }
  return sum / static_cast<double>(plan.layer.size());
}

}  // namespace

int32_t sample(std::span<const float> logits, const Sampling& how, Rng& rng) {
  if (how.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (how.top_k > 0 && static_cast<size_t>(how.top_k) < order.size())
    order.resize(static_cast<size_t>(how.top_k));
  std::vector<double> p;
  const double top = logits[static_cast<size_t>(order[0])];
  for (int32_t t : order)
    p.push_back(std::exp((logits[static_cast<size_t>(t)] - top) / how.temperature));
  const double all = std::accumulate(p.begin(), p.end(), 0.0);
  double kept = 0;
  size_t n = 0;
  while (n < p.size() && (n == 0 || kept < how.top_p * all)) kept += p[n++];
  double target = rng.uniform() * kept;
  size_t pick = 0;
  while (pick + 1 < n && target >= p[pick]) target -= p[pick++];
  return order[pick];
}

Generated generate(Backend& be, const Params& p, const Plan& plan, std::span<const int32_t> prompt,
                   int most, int32_t stop, const Sampling& how,
                   const std::function<void(int32_t)>& each) {
  LTE_CHECK(!prompt.empty(), "generate: the prompt is empty");
  LTE_CHECK(p.cfg.max_seq >= 2, "generate: wants a model with max_seq of 2 or more");
  // Of a prompt that is too long the end is kept: room for what is to come, but half of the context.
  const int64_t S = p.cfg.max_seq, given = static_cast<int64_t>(prompt.size()),
                keep = given < S ? given : std::clamp<int64_t>(S + 1 - most, S / 2, S - 1);
  std::vector<int32_t> chunk(prompt.end() - keep, prompt.end());
  State state = make_state(p, plan, 1, keep, S, Keep::one_layer);
  Rng rng(how.seed);
  Generated out{.tokens = {}, .active = 0, .prompt = keep};
  int64_t pos = 0;
  for (int i = 0; i < most; ++i) {
    const auto T = static_cast<int64_t>(chunk.size());
    if (pos + T > S) {
      out.full = true;
      break;
    }
    Tensor in = shape(DType::i32, {T});
    in.data = chunk.data();
    forward(be, p, plan, in, {1, T, pos}, {Gate::hard, Exec::gathered}, state);
    be.finish();
    out.active += active_of(p, plan, state, T);
    pos += T;
    const float* last = state.logits.as<float>() + (T - 1) * p.cfg.vocab;
    const int32_t token = sample({last, static_cast<size_t>(p.cfg.vocab)}, how, rng);
    if (token == stop) break;
    out.tokens.push_back(token);
    if (each) each(token);
    chunk.assign(1, token);
  }
  if (pos > 0) out.active /= static_cast<double>(pos);
  return out;
}

}  // namespace lte
