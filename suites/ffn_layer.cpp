// The FFN of one layer as forward runs it (norm, router, gate, compaction, gathered products), on
// activations that a trained model had on text that it was not trained on.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/digest.h"
#include "model/batches.h"
#include "model/rows.h"
#include "reference.h"

namespace lte {
namespace {

constexpr int64_t kWindows = 4;  // of test text, whose activations are captured

// A trained model and the FFN inputs [rows, D] of every layer.
struct Captured {
  Trained model;
  State state;  // all layers kept
  Chunk chunk;
  Block zeros;  // [chunk, D]
};

Captured capture(Session& s, double active) {
  Captured c{.model = make_trained(s, active), .state = {}, .chunk = {}, .zeros = {}};
  const LoadedRun& run = c.model.run;
  const int T = std::min(run.params.cfg.max_seq, 128);
  const std::vector<Window> windows = test_windows(c.model.text, T, kWindows);
  c.chunk = {.B = static_cast<int64_t>(windows.size()), .T = T, .pos = 0};
  std::vector<int32_t> tokens(static_cast<size_t>(c.chunk.B * T)), targets(tokens.size());
  for (size_t i = 0; i < windows.size(); ++i) {
    fill_row(c.model.text, windows[i], static_cast<int64_t>(i), T, tokens, targets);
  }
  c.state = make_state(run.params, run.plan, c.chunk.B, T, T, Keep::all_layers);
  Tensor in = shape(DType::i32, {c.chunk.B * T});
  in.data = tokens.data();
  forward(s.backend, run.params, run.plan, in, c.chunk, {Gate::hard, Exec::masked}, c.state);
  s.backend.finish();
  c.zeros = make_block({c.state.layer[0].mid}, s.backend.memory);
  return c;
}

// One layer at work on N rows at a time.
struct Layer {
  std::shared_ptr<Captured> from;
  size_t layer;
  int64_t N;
  FfnPlan dense;
  State state;

  const Params& params() const { return from->model.run.params; }
  const FfnPlan& plan() const { return from->model.run.plan.layer[layer]; }
  LayerState run(Backend& be, const FfnPlan& p, Exec exec, State& s) const {
    LayerState rows = rows_of(s.layer[layer], {1, N, 0});
    ffn_layer(be, params().cfg, params().layer[layer], p, {Gate::hard, exec}, rows);
    return rows;
  }
  // By the backend: a device's memory is not moved.
  void load(Backend& be, State& s, int64_t i) const {
    be.ops.add(*be.ctx, first_rows(s.layer[layer].mid, N),
               some_rows(from->state.layer[layer].mid, i * N, N),
               first_rows(from->zeros.tensor[0], N));
  }
};

Checked check(const Session& s, const Layer& l, const FfnPlan& p) {
  State other = make_state(l.params(), l.from->model.run.plan, 1, l.N, l.N, Keep::one_layer);
  LayerState got = rows_of(l.state.layer[l.layer], {1, l.N, 0});
  std::memcpy(other.layer[l.layer].mid.data, got.mid.data, got.mid.bytes());
  Backend reference = reference_backend(s, DType::f32);
  const LayerState want = l.run(reference, p, Exec::masked, other);
  if (p.router != RouterKind::none &&
      !std::equal(got.gates.as<float>(), got.gates.as<float>() + got.gates.size(),
                  want.gates.as<float>(), [](float a, float b) { return (a != 0) == (b != 0); })) {
    return {.comparison = {}, .decided = false};
  }
  const ModelConfig& c = l.params().cfg;
  return {.comparison = compare_rows(s, got.delta, want.delta, DType::f32, c.dim + c.ffn, 1),
          .rows = l.N};
}

Seen look(const Layer& l) {
  const LayerState s = rows_of(l.state.layer[l.layer], {1, l.N, 0});
  const auto on = [](auto* p, int64_t n) {
    return static_cast<double>(std::count_if(p, p + n, [](auto v) { return v != 0; })) /
           static_cast<double>(n);
  };
  Seen seen{.active = on(s.gates.as<float>(), s.gates.size()),
            .loaded = on(s.count.as<int32_t>(), s.count.size()),
            .traffic = {}};
  seen.traffic = ffn_traffic(l.params().cfg, l.plan(), seen.active, seen.loaded, l.N);
  return seen;
}

Work make_row(Session& s, std::shared_ptr<Captured> from, size_t layer, int64_t N,
              bool dense_only) {
  const LoadedRun& run = from->model.run;
  auto l = std::make_shared<Layer>(
      Layer{.from = from,
            .layer = layer,
            .N = N,
            .dense = {},
            .state = make_state(run.params, run.plan, 1, N, N, Keep::one_layer)});
  Work w;
  w.inputs = std::min<int64_t>(from->chunk.B * from->chunk.T / N, 32), w.tokens = N;
  w.load = [&s, l](int64_t i) { l->load(s.backend, l->state, i); };
  w.memory = {&run.params.memory, &from->state.memory, &from->zeros.memory, &l->state.memory};
  w.call = [&s, l] { l->run(s.backend, l->plan(), Exec::gathered, l->state); };
  w.beside = [&s, l] { l->run(s.backend, l->dense, Exec::gathered, l->state); };
  w.output = [l, N] {
    const Tensor delta = first_rows(l->state.layer[l->layer].delta, N);
    return digest(delta.data, delta.bytes());
  };
  w.check = [&s, l] { return check(s, *l, l->plan()); };
  w.look = [l] { return look(*l); };
  w.dense = ffn_traffic(run.params.cfg, l->dense, 1, 1, N);
  w.counters = [from] { return trained_counters(from->model); };
  if (dense_only) {
    w.call = w.beside, w.beside = {};
    w.check = [&s, l] { return check(s, *l, l->dense); };
    w.look = [dense = w.dense] { return Seen{.active = 1, .loaded = 1, .traffic = dense}; };
  }
  return w;
}

}  // namespace

const bool kInference = true;

std::vector<Case> cases(const Options& o) {
  std::vector<Case> all;
  auto made = std::make_shared<Latest<Captured>>();
  const size_t layers = o.run.empty() ? 2 : load_run(o.run).plan.layer.size();
  for (double active : trained_fractions(o)) {
    const std::string model = trained_name(o, active);
    for (size_t layer = 0; layer < layers; ++layer) {
      for (int64_t N : {1, 4, 16, 64}) {
        for (bool dense_only : {true, false}) {
          all.push_back({fmt::format("ffn_layer/{}/layer:{}/{}/tokens:{}", model, layer,
                                     dense_only ? "dense" : "gathered", N),
                         [=](Session& s) {
                           auto from = made->get(model, [&] { return capture(s, active); });
                           return make_row(s, from, layer, N, dense_only);
                         },
                         true});
        }
      }
    }
  }
  return all;
}

}  // namespace lte
