// How the choices of trained routers agree with the experts that matter.
#include <algorithm>

#include "core/rng.h"
#include "methods/aligned.h"
#include "methods/predictor.h"

namespace lte {

std::vector<float> predict(Backend& be, const LayerParams& w, const FfnPlan& plan,
                           const Contributions& c, int64_t first, int64_t rows) {
  Floats z(be.memory), hidden(be.memory), in(be.memory);
  const Tensor scores = view(z, {rows, c.E});
  Tensor x = view(in, {rows, c.D});
  std::copy_n(c.input.begin() + first * c.D, x.size(), in.begin());
  if (plan.router == RouterKind::two_layer) {
    const Tensor inner = view(hidden, {rows, plan.width});
    be.ops.gemm(*be.ctx, inner, x, false, w.router_in, true);
    if (plan.inner != Inner::none) {
      be.ops.activate(*be.ctx, inner, inner, {}, plan.inner == Inner::relu ? Act::relu : Act::tanh);
    }
    x = inner;
  }
  be.ops.gemm(*be.ctx, scores, x, false, w.router_w, true);
  if (w.router_b) be.ops.bias_add(*be.ctx, scores, w.router_b);
  if (plan.squash == Squash::sigmoid) be.ops.sigmoid(*be.ctx, scores);
  if (plan.squash == Squash::softmax) be.ops.softmax(*be.ctx, scores);
  if (plan.squash == Squash::absolute) be.ops.absolute(*be.ctx, scores);
  be.finish();
  return {z.begin(), z.end()};
}

Labelled label_predictions(Backend& be, const LayerParams& w, const FfnPlan& plan,
                           const Contributions& c, double label) {
  const std::vector<float> z = predict(be, w, plan, c, 0, c.n);
  Floats scores(be.memory, z.size()), worth(be.memory);
  std::copy(z.begin(), z.end(), scores.begin());
  Labelled l{.open = Floats(be.memory, z.size()),
             .matters = Floats(be.memory, z.size()),
             .n = c.n,
             .E = c.E};
  const Tensor gates = view(l.open, {c.n, c.E});
  Tensor s = gates, row = view(worth, {1, c.E}), truth = row;
  s.data = scores.data();
  be.ops.gate(*be.ctx, gates, s, plan.rule, plan.cut);
  be.finish();
  for (int64_t n = 0; n < c.n; ++n) {
    const float *open = &l.open[static_cast<size_t>(n * c.E)],
                *y = &c.output[static_cast<size_t>(n * c.E)];
    float* matters = &l.matters[static_cast<size_t>(n * c.E)];
    if (label < 0) {
      std::copy_n(y, c.E, worth.begin()), truth.data = matters;
      const auto k = static_cast<double>(std::count(open, open + c.E, 1.f));
      be.ops.gate(*be.ctx, truth, row, Rule::top_k, k);
      be.finish();
    } else {
      for (int64_t e = 0; e < c.E; ++e) matters[e] = y[e] > static_cast<float>(label);
    }
  }
  return l;
}

Prediction judge_predictor(Backend& be, const LayerParams& w, const FfnPlan& plan,
                           const Contributions& c, double label) {
  const Labelled l = label_predictions(be, w, plan, c, label);
  double hits = 0, opened = 0, wanted = 0;
  for (size_t i = 0; i < l.open.size(); ++i) {
    hits += l.open[i] * l.matters[i], opened += l.open[i], wanted += l.matters[i];
  }
  return {.recall = wanted > 0 ? hits / wanted : 1,
          .precision = opened > 0 ? hits / opened : 1,
          .density = opened / static_cast<double>(l.open.size()),
          .label = label};
}

Observed observe_apart(const FitInput& in, const Params& p, const Plan& plan, Contribution what) {
  constexpr int64_t kTokens = 16384;
  return observe(with_seed(in, hash64(in.seed, 0x1d6e)), p, plan, kTokens, what);
}

void judge_predictors(const FitInput& in, Fitted& f, Contribution what,
                      std::span<const double> labels) {
  const Observed seen = observe_apart(in, f.params, f.plan, what);
  for (size_t i = 0; i < seen.layer.size(); ++i) {
    f.predictors.push_back(judge_predictor(in.backend, f.params.layer[i], f.plan.layer[i],
                                           seen.layer[i], labels.empty() ? -1 : labels[i]));
    f.predictors.back().output_norm = what == Contribution::output_norm;
  }
}

}  // namespace lte
