#include <fmt/format.h>

#include <chrono>

#include "app/commands.h"
#include "core/files.h"
#include "core/hash.h"

namespace lte {
namespace {

using Clock = std::chrono::steady_clock;

// Shows the steps of one stage as stage 1 of 1.
std::function<void(const StepLog&)> watcher(ProgressLine& line, const std::string& what,
                                            Clock::time_point start) {
  return [&line, what, start](const StepLog& l) {
    Progress p{.stage = 1,
               .stages = 1,
               .what = what,
               .step = l.step,
               .steps = l.steps,
               .loss = l.loss,
               .tokens_per_s = l.tokens_per_s};
    p.elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    p.remaining = p.elapsed / static_cast<double>(l.step) * static_cast<double>(l.steps - l.step);
    p.finished = l.step == l.steps;
    line.show(p);
  };
}

}  // namespace

int cmd_train(const CommonArgs& c, const TrainArgs& a) {
  LTE_CHECK(!a.out.empty(), "train: --out names the run folder to write");
  LTE_CHECK(!is_run(a.out),
            fmt::format("{}: holds a finished run; choose another --out or remove it", a.out));
  ModelConfig cfg = parse_model(a.model);
  LTE_CHECK(
      a.seq <= cfg.max_seq,
      fmt::format("train: --seq {} is longer than the model's max_seq {}", a.seq, cfg.max_seq));
  LTE_CHECK(
      cfg.vocab == 0,
      fmt::format("model {} is a shape for latency suites only; it is not trained here", a.model));
  LTE_CHECK(a.steps > 0 && a.batch > 0 && a.accum > 0,
            "train: --steps, --batch and --accum want positive numbers");
  make_folder(a.out);
  const Dataset d = load_dataset(a.data, a.tokenizer, data_paths(c));
  cfg.vocab = static_cast<int>(d.tokenizer.vocab.size());
  const Plan plan = dense_plan(cfg);
  Params params = make_params(cfg, plan);
  init_params(params, a.seed);
  TrainSpec s;
  s.steps = a.steps, s.batch = a.batch, s.accum = a.accum, s.lr = a.lr;
  s.seq = a.seq > 0 ? a.seq : std::min(d.default_seq, cfg.max_seq);
  s.warmup = a.warmup, s.clip = a.clip, s.decay = a.decay, s.seed = a.seed;
  const std::string key = sha256_hex(fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {} {} {}", kTrainerRevision, a.model, d.sha256,
      d.tokenizer.spec, s.steps, s.batch, s.seq, s.accum, s.lr, s.decay, s.clip, s.warmup, s.seed));
  Backend be = open_backend("cpu", c.threads);
  ProgressLine line;
  const auto start = Clock::now();
  fmt::print(stderr, "{}: {} parameters; {} tokens of {}, {} a step\n", a.model,
             count_params(params), d.train.tokens.size(), a.data,
             static_cast<int64_t>(s.batch) * s.seq * s.accum);
  train(be, params, plan, d.train, d.valid, s,
        run_hooks(a.out, "train", key, watcher(line, "train " + a.model, start)));
  line.close();
  const int64_t tokens = s.steps * s.batch * s.seq * s.accum;
  const RunInfo info{
      .kind = "base",
      .dataset = d.name,
      .data_sha256 = d.sha256,
      .base_of = "",
      .seed = a.seed,
      .seq = s.seq,
      .train_tokens = tokens,
      .calibration_tokens = 0,
      .train_flops = static_cast<double>(tokens) * train_flops(cfg, plan, s.seq, false),
      .train_seconds = logged_seconds(a.out),
      .histograms = {}};
  save_run(a.out, params, plan, d.tokenizer, info);
  clear_checkpoints(a.out);
  fmt::print("{}\n", a.out);
  return 0;
}

int cmd_fit(const CommonArgs& c, const FitArgs& a) {
  LTE_CHECK(!a.out.empty() && !a.from.empty(), "fit: wants --from BASE_RUN and --out RUN");
  LTE_CHECK(!is_run(a.out),
            fmt::format("{}: holds a finished run; choose another --out or remove it", a.out));
  Knobs knobs;
  for (const std::string& item : a.set) {
    const size_t equal = item.find('=');
    LTE_CHECK(equal != item.npos && equal > 0, fmt::format("--set {}: wants knob=value", item));
    knobs[item.substr(0, equal)] = item.substr(equal + 1);
  }
  resolve_knobs(a.method, all_knobs(find_method(a.method)), knobs);  // fail before loading anything
  const LoadedRun base = load_run(a.from);
  Dataset d =
      load_dataset(a.data.empty() ? base.info.dataset : a.data, base.tokenizer.spec, data_paths(c));
  LTE_CHECK(
      !a.data.empty() || d.sha256 == base.info.data_sha256,
      fmt::format(
          "{}: has changed since {} was trained on it; name it with --data to use it all the same",
          d.name, a.from));
  retokenize(d, base.tokenizer);
  Backend be = open_backend("cpu", c.threads);
  ProgressLine line;
  const auto start = Clock::now();
  fit_method(be, base, d, a.method, knobs, a.seed, a.out,
             [&](const std::string& stage, const StepLog& l) {
               watcher(line, a.method + " " + stage, start)(l);
             });
  line.close();
  fmt::print("{}\n", a.out);
  return 0;
}

}  // namespace lte
