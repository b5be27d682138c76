#include <fmt/format.h>

#include <chrono>

#include "app/commands.h"
#include "core/files.h"

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
  const Dataset d = load_dataset(a.data, a.tokenizer, data_paths(c));
  make_folder(a.out);
  TrainSpec s;
  s.steps = a.steps, s.batch = a.batch, s.accum = a.accum, s.lr = a.lr;
  s.seq = a.seq > 0 ? a.seq : std::min(d.default_seq, cfg.max_seq);
  s.warmup = a.warmup, s.clip = a.clip, s.decay = a.decay, s.seed = a.seed;
  fmt::print(stderr, "{}: {} tokens of {}, {} in all\n", a.model, d.train.tokens.size(), a.data,
             trained_tokens(s, d.train));
  Backend be = open_backend(c.backend, c.threads);
  ProgressLine line;
  train_base(be, a.model, s, d, a.out, watcher(line, "train " + a.model, Clock::now()));
  line.close();
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
  Backend be = open_backend(c.backend, c.threads);
  const LoadedRun base = load_run(a.from, be.memory);
  const Dataset d = dataset_of(base, a.from, a.data, c);
  ProgressLine line;
  auto start = Clock::now();
  std::string current, chosen;
  fit_method(be, base, d, a.method, knobs, a.seed, a.out,
             [&](const std::string& stage, const StepLog& l) {
               if (stage != current) current = stage, start = Clock::now();
               if (l.gathered_gain > 0 && stage != chosen) {
                 chosen = stage, line.close();
                 fmt::print(stderr, "{}: gathered steps are {:.2f} times as fast as masked\n",
                            stage, l.gathered_gain);
               }
               watcher(line, a.method + " " + stage, start)(l);
             });
  line.close();
  fmt::print("{}\n", a.out);
  return 0;
}

}  // namespace lte
