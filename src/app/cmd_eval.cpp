#include <fmt/format.h>

#include "app/commands.h"
#include "bench/labels.h"
#include "model/generate.h"

namespace lte {
namespace {

// What the dataset's task is scored by, on one line.
void print_task(const Record& r) {
  std::string line;
  const auto add = [&](const char* name, const std::optional<double>& value) {
    if (value) line += fmt::format("{}{} {:.4f}", line.empty() ? "" : ", ", name, *value);
  };
  add("BLEU (E2E)", r.bleu);
  add("ROUGE-L (coco)", r.rouge_l);
  add("slot error", r.slot_error);
  add("exact match", r.exact_match);
  if (!line.empty()) fmt::print("task         {}\n", line);
}

void print_record(const Record& r) {
  const Outcome& o = r.quality;
  fmt::print("{}\nstatus       {} {}\n", r.name, r.status, r.why);
  fmt::print("loss         {:.4f} nats a token over {} tokens (window {}, stride {})\n", o.loss,
             o.scored, r.window, r.stride);
  fmt::print("perplexity   {:.4f} token, {:.4f} byte, {:.4f} word\n", r.token_ppl, r.byte_ppl,
             r.word_ppl);
  if (r.excess) fmt::print("distance     {:.4f} nats above the source\n", *r.excess);
  print_task(r);
  std::string layers;
  for (double a : o.active_layer) layers += fmt::format(" {:.3f}", a);
  fmt::print("active       {:.4f} mean, {:.4f} p50, {:.4f} p99 over tokens; layers{}\n", o.active,
             o.active_p50, o.active_p99, layers);
  fmt::print("union        ");
  for (size_t i = 0; i < kUnions.size(); ++i)
    fmt::print("{}{}: {:.3f}", i ? ", " : "", kUnions[i], o.active_union[i]);
  fmt::print(" (of the neurons, over so many tokens)\n");
  fmt::print("FLOPs/token  {:.4g} paper ({:.3f} of dense), {:.4g} full ({:.3f})\n",
             o.cost.flops_paper, o.cost.flops_paper / r.dense_cost.flops_paper, o.cost.flops_full,
             o.cost.flops_full / r.dense_cost.flops_full);
  fmt::print("bytes/token  {:.4g} in decode ({:.3f} of dense)\n", o.cost.bytes,
             o.cost.bytes / r.dense_cost.bytes);
  if (r.decode)
    fmt::print("decode       {:.2f} us a token (MAD {:.2f}, {} repetitions)\n", r.decode->median,
               r.decode->mad, r.decode->repetitions);
  if (r.prefill)
    fmt::print("prefill      {:.2f} us a token (MAD {:.2f})\n", r.prefill->median, r.prefill->mad);
}

}  // namespace

int cmd_eval(const CommonArgs& c, const EvalArgs& a) {
  Backend be = open_backend(c.backend, c.threads);
  const LoadedRun run = load_run(a.run, be.memory);
  Dataset data = dataset_of(run, a.run, a.data, c);
  if (!a.labels.empty()) save_labels(a.labels, be, run, data);
  use_split(data, a.split);
  Experiment e;
  e.base = {.model = run.params.cfg.name,
            .dataset = data.name,
            .steps = run.info.base_steps,
            .batch = run.info.base_batch,
            .lr = run.info.base_lr,
            .seed = run.info.base_seed};
  e.method = run.plan.method, e.knobs = run.plan.knobs, e.seed = run.info.seed;
  e.backend = be.name;
  e.protocol = "ad hoc";
  Record r = measure(run, data, e, a.windows, c.threads);
  r.split = a.split;
  if (a.repetitions > 0) {
    Timed timed{&run, &r};
    time_group(run, {&timed, 1}, data, a.time_windows, a.repetitions, e.backend, c.threads, {});
    r.decode_speedup = r.prefill_speedup = {};  // a ratio wants a dense run beside it
  }
  if (c.json) {
    fmt::print("{}\n", to_json(r));
  } else {
    print_record(r);
  }
  return r.status == "ok" ? 0 : 1;
}

int cmd_generate(const CommonArgs& c, const GenerateArgs& a) {
  const bool half = a.dtype == "bf16";
  Backend be =
      open_backend(half && c.backend == "auto" ? fastest_inference() : c.backend, c.threads);
  LoadedRun run = load_run(a.run, be.memory);
  if (half) run.params = to_bf16(run.params);
  LTE_CHECK(!a.prompt.empty(), "generate: --prompt wants a text");
  LTE_CHECK(a.tokens > 0 && a.temperature >= 0 && a.top_k >= 0 && a.top_p > 0 && a.top_p <= 1,
            "generate: wants --tokens > 0, --temperature >= 0, --top-k >= 0 and 0 < --top-p <= 1");
  check_utf8(a.prompt, "--prompt");
  const std::vector<int32_t> prompt = encode(run.tokenizer, a.prompt);
  int32_t stop = -1;
  if (a.to_newline) stop = encode(run.tokenizer, "\n").at(0);
  fmt::print("{}", a.prompt);
  const Generated g =
      generate(be, run.params, run.plan, prompt, a.tokens, stop,
               {.temperature = a.temperature, .top_k = a.top_k, .top_p = a.top_p, .seed = a.seed},
               [&](int32_t t) {
                 fmt::print("{}", decode(run.tokenizer, {&t, 1}));
                 std::fflush(stdout);
               });
  fmt::print("\n");
  if (g.prompt < static_cast<int64_t>(prompt.size())) {
    fmt::print(stderr, "the prompt is longer than the context: its last {} tokens were read\n",
               g.prompt);
  }
  fmt::print(stderr, "{} tokens, {:.3f} of the FFN neurons active{}\n", g.tokens.size(), g.active,
             g.full ? "; stopped because the context is full" : "");
  return g.full ? 1 : 0;
}

}  // namespace lte
