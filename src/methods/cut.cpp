// Cuts that open a given share of the experts.
#include <algorithm>
#include <cmath>

#include "methods/predictor.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte {

float quantile(std::vector<float> values, double share_above) {
  const auto keep =
      static_cast<size_t>(std::clamp(share_above, 0.0, 1.0) * static_cast<double>(values.size()));
  if (keep >= values.size()) return -1e30f;
  std::nth_element(values.begin(), values.end() - static_cast<std::ptrdiff_t>(keep) - 1,
                   values.end());
  return values[values.size() - keep - 1];
}

namespace {

// Share of the experts that the rule opens with this cut.
double opened(Backend& be, Floats& scores, int64_t E, Rule rule, double cut) {
  Floats memory(be.memory);
  const Tensor gates = view(memory, {static_cast<int64_t>(scores.size()) / E, E});
  Tensor s = gates;
  s.data = scores.data();
  be.ops.gate(*be.ctx, gates, s, rule, cut);
  be.finish();
  return static_cast<double>(std::count(memory.begin(), memory.end(), 1.f)) /
         static_cast<double>(memory.size());
}

// The cut at which the rule opens the share `active`.
double find_cut(Backend& be, const std::vector<float>& seen, int64_t E, Rule rule, double active) {
  if (rule == Rule::threshold) return quantile(seen, active);
  Floats scores(be.memory, seen.size());
  std::copy(seen.begin(), seen.end(), scores.begin());
  double low = 0, high = 1;  // more is opened as cumulative rises, and as relative_max falls
  for (int i = 0; i < 40; ++i) {
    const double cut = 0.5 * (low + high);
    const bool enough = opened(be, scores, E, rule, cut) >= active;
    (enough == (rule == Rule::cumulative) ? high : low) = cut;
  }
  return 0.5 * (low + high);
}

}  // namespace

int64_t calibrate_cut(const FitInput& in, const Params& p, Plan& plan, double active,
                      bool by_layer) {
  const std::vector<Window> windows = test_windows(in.train, std::min(in.seq, p.cfg.max_seq), 32);
  const auto E = [&](size_t i) { return experts(p.cfg, plan.layer[i]); };
  int64_t tokens = 0;
  // A layer's scores follow from the gates below it: a second look, under the first one's cuts.
  for (int look = 0; look < 2; ++look) {
    std::vector<std::vector<float>> scores(plan.layer.size());
    each_window(in.backend, p, plan, in.train, windows, Gate::hard, [&](const State& s) {
      tokens += s.T;
      for (size_t i = 0; i < scores.size(); ++i) {
        const Tensor& t = s.layer[i].scores;
        scores[i].insert(scores[i].end(), t.as<float>(), t.as<float>() + t.size());
      }
    });
    if (by_layer) {
      for (size_t i = 0; i < scores.size(); ++i) {
        FfnPlan& f = plan.layer[i];
        f.cut = find_cut(in.backend, scores[i], E(i), f.rule, active);
      }
      continue;
    }
    std::vector<float> all;
    for (size_t i = 0; i < scores.size(); ++i) {
      LTE_CHECK(E(i) == E(0), "calibrate_cut: layers have different numbers of experts");
      all.insert(all.end(), scores[i].begin(), scores[i].end());
    }
    const double cut = find_cut(in.backend, all, E(0), plan.layer[0].rule, active);
    for (FfnPlan& f : plan.layer) f.cut = cut;
  }
  return tokens;
}

}  // namespace lte
