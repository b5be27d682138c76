// Sampling on the CPU: by a sort.
#include "core/cpu.h"
#include "core/sampling.h"

namespace lte {
namespace {

int32_t draw(const float* logits, int64_t V, const Sampling& how, const double* uniform) {
  std::vector<uint64_t> order(static_cast<size_t>(V));  // the rank, then the token
  for (int64_t v = 0; v < V; ++v)
    order[static_cast<size_t>(v)] =
        uint64_t{falling_rank(logits[v])} << 32 | static_cast<uint32_t>(v);
  const auto token = [&](size_t i) { return static_cast<int32_t>(order[i] & 0xffffffff); };
  if (how.temperature <= 0) {
    std::iter_swap(order.begin(), std::min_element(order.begin(), order.end()));
    return token(0);
  }
  size_t kept = order.size();
  if (how.top_k > 0) kept = std::min(kept, static_cast<size_t>(how.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(kept), order.end());
  std::vector<uint64_t> sums(kept);  // of the weights up to here
  const float top = sampled_logit(logits[token(0)]);
  for (size_t i = 0; i < kept; ++i) {
    const float z = sampled_logit(logits[token(i)]);
    const double share =
        z == top ? 1
                 : std::exp((static_cast<double>(z) - static_cast<double>(top)) / how.temperature);
    sums[i] = whole_weight(share) + (i ? sums[i - 1] : 0);
  }
  const auto last = std::lower_bound(sums.begin(), sums.end(), least_sum(how.top_p, sums.back()));
  const auto found = std::upper_bound(sums.begin(), sums.end(), drawn_sum(*uniform, *last));
  return token(static_cast<size_t>(found - sums.begin()));
}

void sample(Ctx&, Draws d, Tensor logits, Sampling how) {
  int32_t& step = *d.step.as<int32_t>();
  LTE_CHECK(logits.size() > 0 && logits.size() <= kMostVocab, "sample: too many logits, or none");
  LTE_CHECK(step < d.tokens.size(), "sample: all tokens are drawn");
  const double* uniform = d.uniform ? d.uniform.as<double>() + step : nullptr;
  LTE_CHECK(uniform || how.temperature <= 0, "sample: wants uniform numbers");
  const int32_t token = draw(logits.as<float>(), logits.size(), how, uniform);
  d.token.as<int32_t>()[0] = d.tokens.as<int32_t>()[step++] = token;
}

}  // namespace

void fill_sample(Ops& ops) { ops.sample = sample; }

}  // namespace lte
