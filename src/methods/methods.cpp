#include "methods/methods.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/rng.h"
#include "model/batches.h"
#include "model/score.h"

namespace lte {
namespace {

const Method* const kMethods[] = {
    &kDense, &kRelu, &kLte,       &kLteOneStage, &kMoefication,  &kDejaVu, &kD2dmoe,
    &kCats,  &kTeal, &kPrunePath, &kNoisyTopK,   &kRandomRouter, &kOracle, &kPrune};

}  // namespace

std::span<const Method* const> methods() { return kMethods; }

const Method& find_method(std::string_view name) {
  std::vector<std::string> known;
  for (const Method* m : methods()) {
    if (m->name == name) return *m;
    known.push_back(m->name);
  }
  fail(fmt::format("unknown method '{}'; known: {}", name, fmt::join(known, ", ")));
}

std::vector<KnobRow> all_knobs(const Method& m) {
  std::vector<KnobRow> rows(m.knobs.begin(), m.knobs.end());
  rows.insert(rows.end(), std::begin(kTrainingKnobs), std::end(kTrainingKnobs));
  return rows;
}

namespace {

// Steps before predictors are fitted have no teacher (see without_teacher): some must be left.
void check_distill(const Knobs& k) {
  if (get_number(k, "distill", 0, 1) == 0) return;
  const int64_t steps = get_whole(k, "steps", 0, 1'000'000'000);
  const double before = k.contains("before") ? get_number(k, "before", 0, 1) : 0;
  LTE_CHECK(static_cast<int64_t>(before * static_cast<double>(steps)) < steps,
            fmt::format("knob distill: no step would be distilled with steps={}{}", steps,
                        before > 0 ? ", all of them before predictors are fitted (before)" : ""));
}

}  // namespace

Fitted fit(const FitInput& in, std::string_view name, const Knobs& set) {
  const Method& method = find_method(name);
  const Knobs knobs = resolve_knobs(name, all_knobs(method), set);
  check_distill(knobs);
  Fitted out = method.fit(in, knobs);
  // Looking at calibration tokens is one forward each, a third of a training step.
  const double forward = train_flops(out.params.cfg, dense_plan(out.params.cfg), in.seq, false) / 3;
  out.train_flops += static_cast<double>(out.calibration_tokens) * forward;
  out.plan.method = name;
  out.plan.knobs = knobs;
  return out;
}

namespace {

FitInput altered(const FitInput& in, const Params& dense, uint64_t seed) {
  return {.backend = in.backend,
          .dense = dense,
          .train = in.train,
          .valid = in.valid,
          .seq = in.seq,
          .seed = seed,
          .hooks = in.hooks};
}

}  // namespace

FitInput with_dense(const FitInput& in, const Params& p) { return altered(in, p, in.seed); }
FitInput with_seed(const FitInput& in, uint64_t seed) { return altered(in, in.dense, seed); }

namespace {

TrainExec train_exec(const Knobs& k) {
  static constexpr const char* kNames[] = {"masked", "gathered", "measured"};
  const std::string name = get_choice(k, "exec", kNames);
  return name == "masked"     ? TrainExec::masked
         : name == "gathered" ? TrainExec::gathered
                              : TrainExec::measured;
}

}  // namespace

TrainSpec training(const FitInput& in, const Knobs& k, int64_t steps) {
  TrainSpec s;
  s.steps = steps;
  s.batch = static_cast<int>(get_whole(k, "batch", 1, 65536));
  const auto seq = static_cast<int>(get_whole(k, "seq", 0, 1 << 20));
  LTE_CHECK(
      seq <= in.dense.cfg.max_seq,
      fmt::format("knob seq={}: longer than the model's max_seq {}", seq, in.dense.cfg.max_seq));
  s.seq = seq > 0 ? seq : std::min(in.seq, in.dense.cfg.max_seq);
  s.lr = get_number(k, "lr", 0, 10);
  s.clip = get_number(k, "clip", 0, 1e9);
  s.decay = get_number(k, "decay", 0, 10);
  s.exec = train_exec(k);
  s.terms.distill = get_number(k, "distill", 0, 1);
  if (s.terms.distill > 0) s.teacher = &in.dense;
  s.seed = in.seed;
  s.first = uint64_t{1} << 32;  // batches that the base model was not trained on in this order
  return s;
}

TrainSpec without_teacher(TrainSpec s) {
  s.teacher = nullptr, s.terms.distill = 0;
  return s;
}

void run_stage(const FitInput& in, Fitted& f, const TrainSpec& spec, const std::string& stage) {
  if (spec.steps == 0) return;
  train(in.backend, f.params, f.plan, in.train, in.valid, spec,
        in.hooks ? in.hooks(stage) : TrainHooks{});
  const int64_t tokens = trained_tokens(spec, in.train);
  f.train_tokens += tokens;
  f.train_flops += static_cast<double>(tokens) *
                   train_flops(f.params.cfg, f.plan, static_cast<int>(trained_seq(spec, in.train)),
                               spec.teacher != nullptr);
}

int64_t calibrate(const FitInput& in, const Params& p, const Plan& plan, int64_t tokens,
                  const std::function<void(const State&)>& see) {
  const int64_t T =
      std::min<int64_t>({in.seq, p.cfg.max_seq, static_cast<int64_t>(in.train.tokens.size()) - 1});
  const int64_t B = 8, batches = std::max<int64_t>(1, tokens / (B * T));
  State state = make_state(p, plan, B, T, T, Keep::all_layers);
  std::vector<int32_t> inputs(static_cast<size_t>(B * T)), targets(inputs.size());
  Tensor view = shape(DType::i32, {B * T});
  view.data = inputs.data();
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t row = 0; row < B; ++row) {
      const Window w = train_window(in.train, static_cast<int>(T), hash64(in.seed, 0xca1),
                                    static_cast<uint64_t>(batch), static_cast<uint64_t>(row));
      fill_row(in.train, w, row, T, inputs, targets);
    }
    forward(in.backend, p, plan, view, {B, T, 0}, {Gate::hard, Exec::masked}, state);
    in.backend.finish();
    see(state);
  }
  return batches * B * T;
}

void add_histogram(const FitInput& in, Fitted& f, Gate gate, const std::string& stage) {
  const std::vector<Window> windows =
      test_windows(in.valid, std::min(in.seq, f.params.cfg.max_seq), 16);
  f.histograms.push_back(
      {stage, score_histogram(in.backend, f.params, f.plan, in.valid, windows, gate)});
}

RouterInput router_input(const Knobs& k) {
  static constexpr const char* kInputs[] = {"normed", "residual"};
  return get_choice(k, "router_input", kInputs) == "normed" ? RouterInput::normed
                                                            : RouterInput::residual;
}

void init_routers(Params& p, double std, double bias, uint64_t seed) {
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LTE_CHECK(p.layer[i].router_w, "init_routers: a layer has no router");
    Rng rng(hash64(seed, 0x407e4, i));
    Tensor &w = p.layer[i].router_w, &b = p.layer[i].router_b;
    for (int64_t k = 0; k < w.size(); ++k)
      w.as<float>()[k] = static_cast<float>(std * rng.normal());
    for (int64_t k = 0; b && k < b.size(); ++k) b.as<float>()[k] = static_cast<float>(bias);
  }
}

}  // namespace lte
