// Training and fitting into run folders.
#include <fmt/format.h>

#include "bench/runner.h"
#include "core/hash.h"

namespace lte {
namespace {

std::string knobs_text(const Knobs& knobs) {
  std::string text;
  for (const auto& [key, value] : knobs) text += fmt::format("{}={},", key, value);
  return text;
}

}  // namespace

TrainSpec base_training(const BaseSpec& b, int seq, int max_seq) {
  TrainSpec s;
  s.steps = b.steps, s.batch = b.batch, s.seq = std::min(seq, max_seq), s.lr = b.lr, s.decay = 0.1;
  s.seed = b.seed;
  return s;
}

LoadedRun train_base(Backend& be, const std::string& model, const TrainSpec& spec,
                     const Dataset& data, const std::string& folder,
                     const std::function<void(const StepLog&)>& watch) {
  if (is_run(folder)) return load_run(folder, be.memory);
  ModelConfig cfg = parse_model(model);
  cfg.vocab = static_cast<int>(data.tokenizer.vocab.size());
  const Plan plan = dense_plan(cfg);
  LoadedRun run{.params = make_params(cfg, plan, DType::f32, be.memory),
                .plan = plan,
                .tokenizer = data.tokenizer,
                .info = {}};
  init_params(run.params, spec.seed);
  const std::string key = sha256_hex(
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {} {}", kTrainerRevision, be.name, model,
                  data.sha256, data.tokenizer.spec, spec.steps, spec.batch, spec.seq, spec.accum,
                  spec.lr, spec.decay, spec.clip, spec.warmup, spec.seed));
  train(be, run.params, run.plan, data.train, data.valid, spec,
        run_hooks(folder, "base", key, watch));
  const int64_t tokens = trained_tokens(spec, data.train), seq = trained_seq(spec, data.train);
  run.info = {.kind = "base",
              .backend = be.name,
              .dataset = data.name,
              .data_sha256 = data.sha256,
              .base_of = "",
              .seed = spec.seed,
              .base_steps = spec.steps,
              .base_batch = spec.batch * spec.accum,
              .base_lr = spec.lr,
              .base_seed = spec.seed,
              .seq = static_cast<int>(seq),
              .train_tokens = tokens,
              .calibration_tokens = 0,
              .train_flops = static_cast<double>(tokens) *
                             train_flops(cfg, plan, static_cast<int>(seq), false),
              .train_seconds = logged_seconds(folder),
              .histograms = {},
              .predictors = {}};
  save_run(folder, run.params, run.plan, run.tokenizer, run.info);
  clear_checkpoints(folder);
  return run;
}

LoadedRun fit_method(Backend& be, const LoadedRun& base, const Dataset& data,
                     const std::string& method, const Knobs& knobs, uint64_t seed,
                     const std::string& folder,
                     const std::function<void(const std::string&, const StepLog&)>& watch) {
  if (is_run(folder)) return load_run(folder, be.memory);
  LTE_CHECK(base.info.kind == "base",
            "a method is fitted to a base model, and this run is a fit itself");
  const Knobs all = resolve_knobs(method, all_knobs(find_method(method)), knobs);
  const std::string key = sha256_hex(fmt::format("{} {} {} {} {} {} {}", kTrainerRevision, be.name,
                                                 weights_sha256(base.params), data.sha256, method,
                                                 knobs_text(all), seed));
  FitInput in{.backend = be,
              .dense = base.params,
              .train = data.train,
              .valid = data.valid,
              .seq = base.info.seq,
              .seed = seed,
              .hooks = {}};
  in.hooks = [&](const std::string& stage) {
    return run_hooks(folder, stage, key, [&watch, stage](const StepLog& l) {
      if (watch) watch(stage, l);
    });
  };
  Fitted f = fit(in, method, all);
  LoadedRun run{.params = std::move(f.params),
                .plan = std::move(f.plan),
                .tokenizer = base.tokenizer,
                .info = {}};
  run.info = {.kind = "fit",
              .backend = be.name,
              .dataset = data.name,
              .data_sha256 = data.sha256,
              .base_of = weights_sha256(base.params),
              .seed = seed,
              .base_steps = base.info.base_steps,
              .base_batch = base.info.base_batch,
              .base_lr = base.info.base_lr,
              .base_seed = base.info.base_seed,
              .seq = base.info.seq,
              .train_tokens = f.train_tokens,
              .calibration_tokens = f.calibration_tokens,
              .train_flops = f.train_flops,
              .train_seconds = logged_seconds(folder),
              .histograms = std::move(f.histograms),
              .predictors = std::move(f.predictors)};
  save_run(folder, run.params, run.plan, run.tokenizer, run.info);
  clear_checkpoints(folder);
  return run;
}

}  // namespace lte
