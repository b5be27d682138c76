// The lte program: reads the command line, calls one command, turns an error into one line and
// exit 1.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>

#include "app/commands.h"

namespace lte {
namespace {

struct Args {
  CommonArgs common;
  DataArgs data;
  TrainArgs train;
  FitArgs fit;
  EvalArgs eval;
  GenerateArgs generate;
  RunArgs run;
  ReportArgs report;
  CompareArgs compare;
  StepSpec step;
  bool profile = false, ceilings = false;
};

// CLI11's own checks of ranges let NaN pass.
const CLI::Validator kFinite(
    [](const std::string& text) -> std::string {
      double v = 0;
      const bool number = CLI::detail::lexical_cast(text, v);
      return number && v >= 0 && v < 1e30 ? "" : text + ": wants a finite number of at least 0";
    },
    "");

const CLI::Range kPositive(1, 1'000'000'000), kNotNegative(0, 1'000'000'000);

// What a command prints is a path or a text: asked for JSON, it would have to say something else.
void no_json(const CommonArgs& c, const char* command) {
  LTE_CHECK(!c.json,
            fmt::format("{}: has no --json; data, eval, claims, compare and info have", command));
}

void add_data(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand("data", "List the datasets, or load one and show what it holds");
  c->add_option("name", a.data.name,
                "dialects, restaurants, sums, e2e, tinyshakespeare, wikitext-2 or text:PATH");
  c->add_option("--tokenizer", a.data.tokenizer,
                "bytes, chars or bpe:N; the dataset's own if left out");
  c->add_option("--samples", a.data.samples, "samples of the test split to print")
      ->capture_default_str();
  c->callback([&] { code = cmd_data(a.common, a.data); });
}

void add_train(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand("train", "Train a dense base model into a run folder");
  TrainArgs& t = a.train;
  c->add_option("--model", t.model, "preset[:key=value,...], see `lte info`")
      ->capture_default_str();
  c->add_option("--data", t.data, "dataset, see `lte data`")->capture_default_str();
  c->add_option("--tokenizer", t.tokenizer, "bytes, chars or bpe:N; the dataset's own if left out");
  c->add_option("--steps", t.steps, "AdamW steps")->check(kPositive)->capture_default_str();
  c->add_option("--batch", t.batch, "sequences in a micro-batch")
      ->check(kPositive)
      ->capture_default_str();
  c->add_option("--accum", t.accum, "micro-batches in a step")
      ->check(kPositive)
      ->capture_default_str();
  c->add_option("--seq", t.seq, "tokens of a sequence; 0: the dataset's own")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--lr", t.lr, "peak learning rate")->check(kFinite)->capture_default_str();
  c->add_option("--decay", t.decay, "weight decay")->check(kFinite)->capture_default_str();
  c->add_option("--clip", t.clip, "global gradient norm; 0: no clipping")
      ->check(kFinite)
      ->capture_default_str();
  c->add_option("--warmup", t.warmup, "share of the steps that warms up")
      ->check(kFinite & CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--seed", t.seed, "seed of weights and batches")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--out", t.out, "run folder to write; a stopped run in it is taken up again")
      ->required();
  c->callback([&] { no_json(a.common, "train"), code = cmd_train(a.common, a.train); });
}

void add_fit(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand("fit", "Fit a sparsity method to a base run, into a run folder");
  c->add_option("--method", a.fit.method, "see `lte info`")->capture_default_str();
  c->add_option("--from", a.fit.from, "run folder of the base model")->required();
  c->add_option("--set", a.fit.set, "knob=value; may be repeated; `lte info` lists the knobs");
  c->add_option("--seed", a.fit.seed, "seed of clustering, routers and batches")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--data", a.fit.data, "another dataset than the base's");
  c->add_option("--out", a.fit.out, "run folder to write; a stopped run in it is taken up again")
      ->required();
  c->callback([&] { no_json(a.common, "fit"), code = cmd_fit(a.common, a.fit); });
}

void add_eval(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand(
      "eval", "Score a run on its test split: quality, active fraction, FLOPs, bytes, time");
  c->add_option("--run", a.eval.run, "run folder")->required();
  c->add_option("--data", a.eval.data, "another dataset, with the same vocabulary");
  c->add_option("--split", a.eval.split, "what is scored: test, valid, train, or all of the text")
      ->check(CLI::IsMember({"test", "valid", "train", "all"}))
      ->capture_default_str();
  c->add_option("--windows", a.eval.windows, "test windows to score; 0: all")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--repetitions", a.eval.repetitions, "timed repetitions; 0: no timing")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--time-windows", a.eval.time_windows, "test windows that timing walks over")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--labels", a.eval.labels,
                "also write, for trained predictors, which gates were open and which experts "
                "mattered on windows of the dataset's training text, whatever --split is "
                "(safetensors)");
  c->callback([&] { code = cmd_eval(a.common, a.eval); });
}

void add_generate(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand("generate", "Continue a prompt with the sparse model");
  GenerateArgs& g = a.generate;
  c->add_option("--run", g.run, "run folder")->required();
  c->add_option("--prompt", g.prompt, "text to continue")->required();
  c->add_option("--tokens", g.tokens, "tokens to generate")->capture_default_str();
  c->add_option("--temperature", g.temperature, "0: greedy")->check(kFinite)->capture_default_str();
  c->add_option("--top-k", g.top_k, "sample from the k likeliest; 0: all")->capture_default_str();
  c->add_option("--top-p", g.top_p, "sample from the smallest set of this probability")
      ->capture_default_str();
  c->add_option("--seed", g.seed, "seed of the samples")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_flag("--to-newline", g.to_newline, "stop at the end of the line");
  c->add_option("--dtype", g.dtype, "of the matrices: f32, or bf16 with a backend like cpu+simd")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  c->callback([&] { no_json(a.common, "generate"), code = cmd_generate(a.common, a.generate); });
}

void add_results(CLI::App& app, Args& a, int& code) {
  CLI::App* run = app.add_subcommand(
      "run", "Run a suite of experiments (suites/*.toml), resume it, write the report");
  run->add_option("spec", a.run.spec, "suite file")->required();
  run->add_option("--work", a.run.work, "where run folders are kept between calls")
      ->capture_default_str();
  run->add_option("--results", a.run.results, "where records and the report go")
      ->capture_default_str();
  run->add_option("--shard", a.run.shard, "i/n: only every n-th experiment, from the i-th on")
      ->capture_default_str();
  run->callback([&] { no_json(a.common, "run"), code = cmd_run(a.common, a.run); });
  const auto results = [&](const char* name, const char* about) {
    CLI::App* c = app.add_subcommand(name, about);
    c->add_option("--results", a.report.results, "folder of records.jsonl and claims.toml")
        ->capture_default_str();
    c->add_option("--suite", a.report.suite, "only the records of this suite");
    return c;
  };
  CLI::App* report = results("report", "Make tables, plots and pages from the records");
  report->add_flag("--expect", a.report.expect,
                   "also write expected.jsonl: what later runs are held against");
  report->callback([&] { no_json(a.common, "report"), code = cmd_report(a.common, a.report); });
  results("claims", "Hold the claims against the records")->callback([&] {
    code = cmd_claims(a.common, a.report);
  });
  CLI::App* compare = app.add_subcommand(
      "compare", "Hold two timings of the benchmark programs against each other, row by row");
  compare->add_option("a", a.compare.a, "result file (JSON), or a folder of them")->required();
  compare->add_option("b", a.compare.b, "the one that may have become slower")->required();
  compare->callback([&] { code = cmd_compare(a.common, a.compare); });
  CLI::App* info = app.add_subcommand(
      "info", "List methods with their knobs, datasets, models, backends, and this machine");
  info->add_flag("--ceilings", a.ceilings, "measure what the machine can do at most");
  info->callback([&] { code = cmd_info(a.common, a.ceilings); });
}

void add_bench_step(CLI::App& app, Args& a, int& code) {
  CLI::App* c = app.add_subcommand(
      "bench-step", "Time a training or decode step of a preset with random weights");
  StepSpec& s = a.step;
  c->add_option("--model", s.model, "preset[:key=value,...], see `lte info`")
      ->capture_default_str();
  c->add_option("--compare", s.backends, "backends that take turns; the first is the ratios' base")
      ->capture_default_str();
  const auto positive = [&](const char* name, int& value, const char* about) {
    c->add_option(name, value, about)->check(kPositive)->capture_default_str();
  };
  positive("--batch", s.batch, "sequences");
  positive("--seq", s.seq, "tokens of a sequence");
  positive("--vocab", s.vocab, "symbols, where the preset has none");
  positive("--rounds", s.rounds, "turns of each backend");
  positive("--steps", s.steps, "timed steps of a turn, after one that warms up");
  c->add_option("--group", s.group, "experts of so many neurons behind routers; 0: a dense model")
      ->check(kNotNegative)
      ->capture_default_str();
  c->add_option("--active", s.active, "share of experts that are open, with --group")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  c->add_flag("--decode", s.decode, "one token at the end of the sequence, in place of training");
  c->add_flag("--bf16", s.bf16, "weights of bf16; wants --decode and a backend like cpu+simd");
  c->add_flag("--cpu-time", s.cpu_time,
              "count time on the processor, not the wall clock's; wants --threads 1");
  c->add_flag("--profile", a.profile, "show where the time goes, by operation");
  c->callback([&] {
    if (a.common.backend != "auto") s.backends = {a.common.backend};
    code = cmd_bench_step(a.common, s, a.profile);
  });
}

// What `lte COMMAND --help` ends with.
constexpr std::pair<const char*, const char*> kExamples[] = {
    {"data",
     "  lte data                      what there is\n"
     "  lte data dialects             tokens, splits, two samples, the best possible loss\n"
     "  lte data text:my.txt --tokenizer bpe:512"},
    {"train",
     "  lte train --model gpt2-nano --data dialects --steps 800 --out runs/base\n"
     "  lte train --model llama-nano:layers=3 --data text:my.txt --lr 1e-3 --out runs/mine\n"
     "A run that was stopped goes on where it was when the same line is typed again."},
    {"fit",
     "  lte fit --method lte --from runs/base --set eta=0.5 --out runs/lte\n"
     "  lte fit --method lte-one-stage --from runs/base --set active=0.25 --set group=4 --out "
     "runs/one\n"
     "  lte fit --method prune --from runs/base --set score=wanda --set active=0.25 --set "
     "steps=600 "
     "--out runs/wanda\n"
     "With steps=0 a method stays as published; with steps it is trained on for that budget."},
    {"eval",
     "  lte eval --run runs/lte                        a table\n"
     "  lte eval --run runs/lte --json                 the whole record\n"
     "  lte eval --run runs/lte --data text:other.txt --split all --repetitions 0"},
    {"generate",
     "  lte generate --run runs/lte --prompt \"The \" --tokens 60\n"
     "  lte generate --run runs/lte --prompt \"The \" --temperature 0.8 --top-p 0.95 --seed 3"},
    {"run",
     "  lte run suites/smoke.toml                      what `make reproduce PROFILE=smoke` does\n"
     "  lte run suites/quality.toml --shard 0/2        every other experiment; 1/2 does the rest\n"
     "Interrupted, the same line goes on where it stopped."},
    {"report",
     "  lte report                    tables, plots and page from results/records.jsonl\n"
     "  lte report --expect           also what later runs are held against"},
    {"claims",
     "  lte claims                    a verdict each: reproduced, not reproduced, not run\n"
     "  lte claims --json | jq -r '.[] | [.id, .verdict] | @tsv'"},
    {"compare",
     "  lte compare results/raw/old results/raw/new    medians, ratio with its interval, verdict\n"
     "Exit code 0: no row is slower; 1: some are, beyond noise and 3 %; 2: other rows or machine."},
    {"bench-step",
     "  lte bench-step --model gpt2-nano --profile     where a training step spends its time\n"
     "  lte bench-step --model gpt2-nano --group 4 --compare cpu+onednn cpu+onednn+fused\n"
     "  lte bench-step --model gpt2-medium --decode --profile"},
    {"info",
     "  lte info --ceilings           also what this machine can do at most, measured now\n"
     "  lte info | less               every method with its knobs\n"
     "  lte info --json | jq '.machine'"},
};

bool known_command(CLI::App& app, const std::string& name) {
  for (const CLI::App* c : app.get_subcommands({})) {
    if (c->check_name(name)) return true;
  }
  return false;
}

int run(int argc, char** argv) {
  CLI::App app{
      "lte: Learn To be Efficient, and what it is compared with, on one from-scratch transformer.\n"
      "A first run:\n"
      "  lte train --model gpt2-nano --data dialects --steps 800 --out runs/base\n"
      "  lte fit --method lte-one-stage --from runs/base --set active=0.25 --set group=8 --out "
      "runs/lte\n"
      "  lte eval --run runs/lte\n"
      "  lte generate --run runs/lte --prompt \"...\"\n"
      "`make reproduce` runs the whole comparison."};
  Args a;
  int code = 0;
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--threads", a.common.threads,
                 "threads; 0: one for each core. The results do not depend on it")
      ->check(kNotNegative);
  app.add_flag("--json", a.common.json,
               "print one JSON document (data, eval, claims, compare, info)");
  app.add_option("--manifest", a.common.manifest, "the list of downloadable datasets");
  app.add_option("--cache", a.common.cache, "where downloaded datasets lie")->capture_default_str();
  app.add_option("--backend", a.common.backend,
                 "backend[+variant] that computes, see `lte info`; auto: the fastest of this build")
      ->capture_default_str();
  add_data(app, a, code), add_train(app, a, code), add_fit(app, a, code), add_eval(app, a, code);
  add_generate(app, a, code), add_results(app, a, code);
  add_bench_step(app, a, code);
  for (const auto& [name, lines] : kExamples) {
    app.get_subcommand(name)->footer(
        fmt::format("Examples:\n{}\nOptions of every command: --threads N, --backend NAME, --json, "
                    "--manifest FILE, --cache DIR (see lte --help)",
                    lines));
  }
  try {
    if (argc > 1 && argv[1][0] != '-' && !known_command(app, argv[1])) {
      fail(
          fmt::format("unknown command '{}'; known: data, train, fit, eval, generate, run, report, "
                      "claims, compare, info, bench-step",
                      argv[1]));
    }
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    fail(e.what());
  }
  if (std::fflush(stdout) != 0) fail("standard output cannot be written");
  return code;
}

}  // namespace
}  // namespace lte

int main(int argc, char** argv) {
  try {
    return lte::run(argc, argv);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "lte: not enough memory\n");
  } catch (const std::exception& e) {
    fmt::print(stderr, "lte: {}\n", e.what());
  }
  return 1;
}
