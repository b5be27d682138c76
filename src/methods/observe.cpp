// What routers are fitted on: a layer's inputs and what its experts contribute.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "methods/in_order.h"
#include "methods/predictor.h"

namespace lte {
namespace {

// Norms of the outputs of all experts, expert by expert: [N,E] appended.
void append_output_norms(Backend& be, const LayerParams& w, const FfnPlan& plan,
                         const LayerState& s, Contributions& c) {
  const int64_t N = s.act.rows(), F = s.act.cols(), G = plan.group, D = s.mid.cols();
  c.output.resize(static_cast<size_t>((c.n + N) * c.E));
  Floats block(be.memory), output(be.memory);
  std::vector<float> norms(static_cast<size_t>(N));
  Tensor act = view(block, {N, G}), y = view(output, {N, D}), down = shape(DType::f32, {G, D});
  for (int64_t e = 0; e < c.E; ++e) {
    for (int64_t n = 0; n < N; ++n) {
      std::copy_n(s.act.as<float>() + n * F + e * G, G, &block[static_cast<size_t>(n * G)]);
    }
    down.data = w.down_w.as<float>() + e * G * D;
    be.ops.gemm(*be.ctx, y, act, false, down, false);
    be.finish();
    row_norms(norms.data(), output.data(), N, D);
    for (int64_t n = 0; n < N; ++n)
      c.output[static_cast<size_t>((c.n + n) * c.E + e)] = norms[static_cast<size_t>(n)];
  }
}

void append_measured(Backend& be, const LayerParams& w, const FfnPlan& plan, const LayerState& s,
                     Contributions& c) {
  Floats memory(be.memory);
  const Tensor scores = view(memory, {s.act.rows(), c.E});
  be.ops.measure(*be.ctx, scores, s.act, plan.weighted ? w.down_w : Tensor{}, plan.measure);
  be.finish();
  c.output.insert(c.output.end(), memory.begin(), memory.end());
}

void append_input(Backend& be, const FfnPlan& plan, const LayerState& s, const LayerState& below,
                  Contributions& c) {
  Tensor x = plan.input == RouterInput::residual ? s.mid
             : plan.input == RouterInput::ahead  ? below.norm2
                                                 : s.norm2;
  Floats memory(be.memory);
  if (plan.input == RouterInput::unit) {
    const Tensor unit = view(memory, {x.rows(), x.cols()});
    be.ops.unit_rows(*be.ctx, unit, x);
    be.finish();
    x = unit;
  }
  c.input.insert(c.input.end(), x.as<float>(), x.as<float>() + x.size());
}

}  // namespace

Observed observe(const FitInput& in, const Params& p, const Plan& plan, int64_t tokens,
                 Contribution what) {
  // Every gate open, whatever the routers say. That is a dense forward but for `scaled`, which stays: open gates
  // then weigh experts by scores of routers that may not be trained yet (LTE in one stage, at its warm start).
  Plan open = plan;
  for (FfnPlan& f : open.layer) {
    f.rule = Rule::all;
    if (f.router == RouterKind::gate) f.router = RouterKind::activation;
    if (f.squash == Squash::kept_softmax) f.squash = Squash::none;
  }
  Observed seen{.layer = std::vector<Contributions>(p.layer.size())};
  // Norms of outputs are summed on the host: a GPU's outputs would have to move there, D numbers for each expert and
  // token, so the host multiplies, too.
  Backend host = on_host(in.backend, in.backend.threads);
  seen.tokens = calibrate(in, p, open, tokens, [&](const State& state) {
    for (size_t i = 0; i < p.layer.size(); ++i) {
      Contributions& c = seen.layer[i];
      const FfnPlan& f = plan.layer[i];
      const LayerState& s = state.layer[i];
      c.D = s.mid.cols(), c.E = s.act.cols() / f.group;
      append_input(in.backend, f, s, state.layer[i > 0 ? i - 1 : 0], c);
      if (what == Contribution::output_norm) {
        append_output_norms(host, p.layer[i], f, s, c);
      } else {
        append_measured(in.backend, p.layer[i], f, s, c);
      }
      c.n += s.act.rows();
    }
  });
  return seen;
}

}  // namespace lte
