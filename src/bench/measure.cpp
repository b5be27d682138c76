#include "bench/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/statistics.h"
#include "data/metrics.h"
#include "model/batches.h"
#include "model/generate.h"

namespace lte {
namespace {

// The reference sums in another order and in double: a loss is a mean over tokens of values near 1,
// and a score next to the threshold may fall on its other side for single tokens.
constexpr double kReferenceTolerance = 2e-3;
constexpr int kReferenceWindows = 2, kMostNewTokens = 96;

void check_reference(const LoadedRun& run, const Dataset& data, Backend& be,
                     std::span<const Window> all, Shape shape, int threads, Record& r) {
  const auto few = all.first(std::min<size_t>(all.size(), kReferenceWindows));
  Backend naive = open_backend("cpu+naive", threads);
  r.reference_loss = score(naive, run.params, run.plan, data.test, few, shape, Exec::masked).loss;
  r.checked_loss = score(be, run.params, run.plan, data.test, few, shape, Exec::gathered).loss;
  const double off = std::abs(r.reference_loss - r.checked_loss);
  if (!(off <= kReferenceTolerance * std::max(1.0, r.reference_loss))) {
    r.status = "failed";
    r.why = fmt::format("loss {:.6f} against {:.6f} of the masked plain-loop reference",
                        r.checked_loss, r.reference_loss);
  }
  if (!std::isfinite(r.quality.loss)) r.status = "failed", r.why = "the loss is not finite";
}

// Greedy continuations of the examples, up to the newline.
std::vector<std::string> continuations(const LoadedRun& run, const Dataset& data, Backend& be) {
  const std::vector<int32_t> newline = encode(run.tokenizer, "\n");
  std::vector<std::string> texts;
  for (const Example& e : data.examples) {
    const std::vector<int32_t> prompt = encode(run.tokenizer, e.prompt);
    const Generated g =
        generate(be, run.params, run.plan, prompt, kMostNewTokens, newline.at(0), {});
    texts.push_back(decode(run.tokenizer, g.tokens));
  }
  return texts;
}

double mean_rouge(const Dataset& data, const std::vector<std::string>& texts) {
  double sum = 0;
  for (size_t i = 0; i < texts.size(); ++i) sum += rouge_l(texts[i], data.examples[i].references);
  return sum / static_cast<double>(texts.size());
}

double slot_error_rate(const Dataset& data, const std::vector<std::string>& texts) {
  int64_t slots = 0, errors = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const SlotErrors s = slot_errors(data.examples[i].prompt, texts[i]);
    slots += s.slots, errors += s.missing + s.added;
  }
  return static_cast<double>(errors) / static_cast<double>(std::max<int64_t>(1, slots));
}

double exact_rate(const Dataset& data, const std::vector<std::string>& texts) {
  int64_t right = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    right += exact_match(texts[i], data.examples[i].references);
  }
  return static_cast<double>(right) / static_cast<double>(texts.size());
}

// The metrics of the dataset's task, where it has one.
void run_task(const LoadedRun& run, const Dataset& data, Backend& be, Record& r) {
  if (data.task.empty() || data.examples.empty()) return;
  const std::vector<std::string> texts = continuations(run, data, be);
  if (data.task == "slots") {
    r.rouge_l = mean_rouge(data, texts);
    r.slot_error = slot_error_rate(data, texts);
  } else if (data.task == "e2e") {
    std::vector<std::vector<std::string>> references;
    for (const Example& e : data.examples) references.push_back(e.references);
    r.bleu = bleu_e2e(texts, references);
    r.rouge_l = mean_rouge(data, texts);
  } else {
    LTE_CHECK(data.task == "exact", fmt::format("{}: unknown task {}", data.name, data.task));
    r.exact_match = exact_rate(data, texts);
  }
}

Timing timing_of(const std::vector<double>& seconds) {
  Timing t{.median = 1e6 * median_of(seconds), .repetitions = static_cast<int>(seconds.size())};
  t.mad = 1e6 * mad_of(seconds);
  return t;
}

// Repetitions of one run: seconds a token, the digest, and whether it held.
struct Series {
  const LoadedRun* run;
  std::vector<double> prefill, decode;
  Outcome timed = {},
          quality = {};  // in the timed shape and in the scored one, over the same tokens
  bool digest_ok = true;
};

// Decode goes through other kernels than prefill: the timed run must have the quality that is reported.
void check_timed(const Outcome& timed, const Outcome& quality, Record& r) {
  r.timed_loss = timed.loss, r.timed_active = timed.active;
  const double loss_off = std::abs(timed.loss - quality.loss);
  const double active_off = std::abs(timed.active - quality.active);
  if (loss_off <= kReferenceTolerance * std::max(1.0, quality.loss) &&
      active_off <= kReferenceTolerance)
    return;
  r.status = "failed";
  r.why = fmt::format(
      "decode gives loss {:.6f} and active {:.4f}, prefill {:.6f} and {:.4f} on the same tokens",
      timed.loss, timed.active, quality.loss, quality.active);
}

}  // namespace

Record measure(const LoadedRun& run, const Dataset& data, Experiment e, int64_t limit,
               int threads) {
  Backend be = open_backend(e.backend, threads);
  const int seq = std::min(run.info.seq, run.params.cfg.max_seq);
  const std::vector<Window> windows = test_windows(data.test, seq, limit);
  LTE_CHECK(!windows.empty(), fmt::format("{}: the test split has nothing to score", data.name));
  e.shape = {.b = 8, .p = seq, .d = 0};
  Record r;
  r.what = e, r.name = name_of(e), r.status = "ok";
  r.quality = score(be, run.params, run.plan, data.test, windows, e.shape, Exec::gathered);
  LTE_CHECK(r.quality.scored > 0, fmt::format("{}: the test split has no scored token", data.name));
  const TextSize size = text_size(data.tokenizer, data.test, windows);
  const double total = r.quality.loss * static_cast<double>(r.quality.scored);
  r.token_ppl = std::exp(r.quality.loss);
  r.byte_ppl = size.bytes ? std::exp(total / static_cast<double>(size.bytes)) : 0;
  r.word_ppl = size.words ? std::exp(std::min(700.0, total / static_cast<double>(size.words))) : 0;
  r.window = r.stride = seq, r.text_sha256 = data.sha256;
  if (data.test_floor && limit == 0) r.excess = r.quality.loss - *data.test_floor;
  const std::vector<double> all(run.plan.layer.size(), 1.0);
  r.dense_cost = cost_of(run.params.cfg, dense_plan(run.params.cfg), all, r.quality.context);
  check_reference(run, data, be, windows, e.shape, threads, r);
  run_task(run, data, be, r);
  r.train_tokens = run.info.train_tokens, r.calibration_tokens = run.info.calibration_tokens;
  r.train_flops = run.info.train_flops, r.train_seconds = run.info.train_seconds;
  r.histograms = run.info.histograms, r.predictors = run.info.predictors;
  r.machine = describe_machine(threads);
  return r;
}

void time_group(const LoadedRun& dense, std::span<Timed> group, const Dataset& data, int64_t limit,
                int repetitions, const std::string& backend, int threads,
                const std::function<void(int)>& round) {
  Backend be = open_backend(backend, threads);
  const int seq = std::min(dense.info.seq, dense.params.cfg.max_seq);
  const Shape shape{.b = 1, .p = seq / 2, .d = seq - seq / 2};
  const std::vector<Window> windows = test_windows(data.test, seq, limit);
  std::vector<Series> series(1, {.run = &dense, .prefill = {}, .decode = {}});
  for (const Timed& t : group) series.push_back({.run = t.run, .prefill = {}, .decode = {}});
  const auto pass = [&](Series& s, Stopwatch* watch) {
    return score(be, s.run->params, s.run->plan, data.test, windows, shape, Exec::gathered, watch);
  };
  for (Series& s : series) {
    s.timed = pass(s, nullptr);  // also the warm-up
    s.quality = score(be, s.run->params, s.run->plan, data.test, windows,
                      {.b = 8, .p = seq, .d = 0}, Exec::gathered);
  }
  for (int r = 0; r < repetitions; ++r) {
    for (Series& s : series) {
      Stopwatch watch;
      s.digest_ok &= pass(s, &watch).digest == s.timed.digest;
      s.prefill.push_back(median_of(watch.prefill));
      if (!watch.decode.empty()) s.decode.push_back(median_of(watch.decode));
    }
    if (round) round(r + 1);
  }
  const Timing dense_prefill = timing_of(series[0].prefill),
               dense_decode = timing_of(series[0].decode);
  for (size_t i = 0; i < group.size(); ++i) {
    Record& r = *group[i].record;
    const Series& s = series[i + 1];
    r.prefill = timing_of(s.prefill), r.decode = timing_of(s.decode);
    r.prefill_speedup = dense_prefill.median / r.prefill->median;
    r.decode_speedup = dense_decode.median / r.decode->median;
    r.ideal_decode = r.dense_cost.bytes / r.quality.cost.bytes;
    r.digest_ok = s.digest_ok;
    check_timed(s.timed, s.quality, r);
    if (!s.digest_ok)
      r.status = "failed", r.why = "the timed run's digest differs from the untimed run's";
  }
}

}  // namespace lte
