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
  Floats scores(be.memory, z.size()), worth(be.memory, z.size()), truth(be.memory, z.size());
  std::copy(z.begin(), z.end(), scores.begin());
  Labelled l{.open = Floats(be.memory, z.size()),
             .matters = Floats(be.memory, z.size()),
             .n = c.n,
             .E = c.E};
  const Tensor gates = view(l.open, {c.n, c.E});
  Tensor s = gates;
  s.data = scores.data();
  be.ops.gate(*be.ctx, gates, s, plan.rule, plan.cut);
  be.finish();
  if (label >= 0) {
    for (size_t i = 0; i < l.matters.size(); ++i)
      l.matters[i] = c.output[i] > static_cast<float>(label);
    return l;
  }
  // As many experts of a token matter as it opened: the tokens by that number, and those of one by one gate.
  const auto row = [&](auto& of, int64_t n) { return &of[static_cast<size_t>(n * c.E)]; };
  std::vector<std::pair<int64_t, int64_t>> order;
  for (int64_t n = 0; n < c.n; ++n)
    order.emplace_back(std::count(row(l.open, n), row(l.open, n) + c.E, 1.f), n);
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i)
    std::copy_n(row(c.output, order[i].second), c.E, row(worth, static_cast<int64_t>(i)));
  for (size_t from = 0, to = 0; from < order.size(); from = to) {
    while (to < order.size() && order[to].first == order[from].first) ++to;
    Tensor some = shape(DType::f32, {static_cast<int64_t>(to - from), c.E}), high = some;
    some.data = row(worth, static_cast<int64_t>(from));
    high.data = row(truth, static_cast<int64_t>(from));
    be.ops.gate(*be.ctx, high, some, Rule::top_k, static_cast<double>(order[from].first));
  }
  be.finish();
  for (size_t i = 0; i < order.size(); ++i)
    std::copy_n(row(truth, static_cast<int64_t>(i)), c.E, row(l.matters, order[i].second));
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
