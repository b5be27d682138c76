#include "bench/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/fit_json.h"
#include "core/files.h"

namespace lte {
namespace {

using Json = nlohmann::ordered_json;

// Nine digits of every number: the digest holds the bits, and a line stays short.
void shorten(Json& j) {
  if (j.is_number_float()) {
    const double v = j.get<double>();
    if (std::isfinite(v)) j = std::strtod(fmt::format("{:.9g}", v).c_str(), nullptr);
  } else if (j.is_structured()) {
    for (auto& part : j) shorten(part);
  }
}

Json cost_json(const Cost& c) {
  return {{"flops_paper", c.flops_paper}, {"flops_full", c.flops_full}, {"bytes", c.bytes}};
}
// JSON has no NaN and no infinity: they are written as null, and read back as NaN.
double number(const Json& j) {
  return j.is_null() ? std::numeric_limits<double>::quiet_NaN() : j.get<double>();
}
Cost cost_from(const Json& j) {
  return {number(j.at("flops_paper")), number(j.at("flops_full")), number(j.at("bytes"))};
}

Json timing_json(const std::optional<Timing>& t) {
  if (!t) return nullptr;
  return {{"us_per_token", t->median}, {"mad", t->mad}, {"repetitions", t->repetitions}};
}
std::optional<Timing> timing_from(const Json& j) {
  if (j.is_null()) return {};
  return Timing{j.at("us_per_token"), j.at("mad"), j.at("repetitions")};
}

Json optional_json(const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); }
std::optional<double> optional_from(const Json& j) {
  if (j.is_null()) return {};
  return j.get<double>();
}

Json quality_json(const Record& r) {
  const Outcome& o = r.quality;
  return {{"loss", o.loss},
          {"token_ppl", r.token_ppl},
          {"byte_ppl", r.byte_ppl},
          {"word_ppl", r.word_ppl},
          {"scored_tokens", o.scored},
          {"computed_tokens", o.tokens},
          {"split", r.split},
          {"window", r.window},
          {"stride", r.stride},
          {"text_sha256", r.text_sha256},
          {"excess_over_source", optional_json(r.excess)},
          {"rouge_l_coco", optional_json(r.rouge_l)},
          {"slot_error", optional_json(r.slot_error)},
          {"bleu_e2e", optional_json(r.bleu)},
          {"exact_match", optional_json(r.exact_match)},
          {"reference_loss", r.reference_loss},
          {"checked_loss", r.checked_loss},
          {"digest", fmt::format("{:016x}", o.digest)}};
}

Json active_json(const Outcome& o) {
  Json unions = Json::object();
  for (size_t i = 0; i < kUnions.size(); ++i)
    unions[std::to_string(kUnions[i])] = o.active_union[i];
  return {{"mean", o.active},         {"p50", o.active_p50}, {"p99", o.active_p99},
          {"layers", o.active_layer}, {"union", unions},     {"context", o.context}};
}

Json time_json(const Record& r) {
  return {{"prefill", timing_json(r.prefill)},
          {"decode", timing_json(r.decode)},
          {"prefill_x_dense", optional_json(r.prefill_speedup)},
          {"decode_x_dense", optional_json(r.decode_speedup)},
          {"decode_x_ideal", optional_json(r.ideal_decode)},
          {"digest_ok", r.digest_ok},
          {"loss", r.timed_loss},
          {"active", r.timed_active}};
}

Json training_json(const Record& r) {
  return {{"tokens", r.train_tokens},
          {"calibration_tokens", r.calibration_tokens},
          {"flops", r.train_flops},
          {"seconds", r.train_seconds},
          {"score_histograms", histograms_json(r.histograms)},
          {"predictors", predictors_json(r.predictors)}};
}

uint64_t digest_from(const Json& j) {
  const auto hex = j.get<std::string>();
  uint64_t digest = 0;
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), digest, 16);
  LTE_CHECK(error == std::errc() && end == hex.data() + hex.size(),
            fmt::format("record: digest '{}' is not a hexadecimal number", hex));
  return digest;
}

void quality_from(const Json& j, Record& r) {
  Outcome& o = r.quality;
  o.loss = number(j.at("loss")), o.scored = j.at("scored_tokens"),
  o.tokens = j.at("computed_tokens");
  r.token_ppl = number(j.at("token_ppl")), r.byte_ppl = number(j.at("byte_ppl")),
  r.word_ppl = number(j.at("word_ppl"));
  r.split = j.at("split");
  r.window = j.at("window"), r.stride = j.at("stride"), r.text_sha256 = j.at("text_sha256");
  r.excess = optional_from(j.at("excess_over_source")),
  r.rouge_l = optional_from(j.at("rouge_l_coco"));
  r.slot_error = optional_from(j.at("slot_error"));
  r.bleu = optional_from(j.value("bleu_e2e", Json()));  // older records lack these two
  r.exact_match = optional_from(j.value("exact_match", Json()));
  r.reference_loss = number(j.at("reference_loss")), r.checked_loss = number(j.at("checked_loss"));
  o.digest = digest_from(j.at("digest"));
}

void active_from(const Json& j, Outcome& o) {
  o.active = j.at("mean"), o.active_p50 = j.at("p50"), o.active_p99 = j.at("p99"),
  o.context = j.at("context");
  o.active_layer = j.at("layers").get<std::vector<double>>();
  for (size_t i = 0; i < kUnions.size(); ++i) {
    o.active_union[i] = number(j.at("union").at(std::to_string(kUnions[i])));
  }
}

}  // namespace

std::string to_json(const Record& r) {
  Json j = {{"name", r.name},
            {"protocol", r.what.protocol},
            {"trials", r.what.trials},
            {"status", r.status},
            {"why", r.why},
            {"seed", r.what.seed},
            {"quality", quality_json(r)},
            {"active", active_json(r.quality)},
            {"cost", cost_json(r.quality.cost)},
            {"dense_cost", cost_json(r.dense_cost)},
            {"time", time_json(r)},
            {"training", training_json(r)},
            {"machine", r.machine}};
  shorten(j);
  return j.dump();
}

Record record_from_json(std::string_view line) {
  try {
    const Json j = Json::parse(line);
    Record r;
    r.name = j.at("name"), r.what = parse_name(r.name);
    r.what.protocol = j.at("protocol"), r.what.trials = j.at("trials");
    r.status = j.at("status"), r.why = j.at("why");
    quality_from(j.at("quality"), r);
    active_from(j.at("active"), r.quality);
    r.quality.cost = cost_from(j.at("cost")), r.dense_cost = cost_from(j.at("dense_cost"));
    const Json& t = j.at("time");
    r.prefill = timing_from(t.at("prefill")), r.decode = timing_from(t.at("decode"));
    r.prefill_speedup = optional_from(t.at("prefill_x_dense")),
    r.decode_speedup = optional_from(t.at("decode_x_dense"));
    r.ideal_decode = optional_from(t.at("decode_x_ideal")), r.digest_ok = t.at("digest_ok");
    r.timed_loss = number(t.at("loss")), r.timed_active = number(t.at("active"));
    const Json& train = j.at("training");
    r.train_tokens = train.at("tokens"), r.calibration_tokens = train.at("calibration_tokens");
    r.train_flops = train.at("flops"), r.train_seconds = train.at("seconds");
    r.histograms = histograms_from(train.at("score_histograms"));
    r.predictors = predictors_from(train.value("predictors", Json::array()));
    r.machine = j.at("machine").get<std::map<std::string, std::string>>();
    return r;
  } catch (const nlohmann::json::exception& e) {
    fail(fmt::format("record: {}", e.what()));
  }
}

namespace {

// Calls read(line) for every line that is not empty; an error names the file and the line.
template <class F>
void each_line(const std::string& path, F&& read) {
  if (!std::filesystem::exists(path)) return;
  const std::string text = read_file(path);
  int line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    ++line_number;
    if (end > at) {
      try {
        read(std::string_view(text).substr(at, end - at));
      } catch (const Error& e) {
        fail(fmt::format("{}:{}: {}; remove that line", path, line_number, e.what()));
      }
    }
    at = end + 1;
  }
}

}  // namespace

std::vector<Record> read_records(const std::string& path) {
  std::vector<Record> records;
  each_line(path, [&](std::string_view line) { records.push_back(record_from_json(line)); });
  return records;
}

std::map<std::string, Expected> read_expected(const std::string& path) {
  std::map<std::string, Expected> all;
  each_line(path, [&](std::string_view line) {
    try {
      const Json j = Json::parse(line);
      all[j.at("name")] = {number(j.at("loss")), j.at("active"), digest_from(j.at("digest"))};
    } catch (const nlohmann::json::exception& e) {
      fail(fmt::format("expected: {}", e.what()));
    }
  });
  return all;
}

std::string expected_lines(std::span<const Record> records) {
  std::string lines;
  for (const Record& r : records) {
    if (r.status != "ok") continue;
    Json j = {{"name", r.name},
              {"loss", r.quality.loss},
              {"active", r.quality.active},
              {"digest", fmt::format("{:016x}", r.quality.digest)}};
    shorten(j);
    lines += j.dump() + "\n";
  }
  return lines;
}

std::string records_path(const std::string& results, const std::string& split) {
  return results + (split == "test" ? "/records.jsonl" : "/trials.jsonl");
}

std::vector<Record> read_results(const std::string& results) {
  std::vector<std::string> paths;
  std::error_code missing;  // a missing folder has none
  for (const auto& entry : std::filesystem::directory_iterator(results, missing)) {
    const std::string name = entry.path().filename().string();
    const bool kept = name.starts_with("records-") || name.starts_with("trials-");
    if (kept && name.ends_with(".jsonl")) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const char* split : {"test", "valid"}) paths.push_back(records_path(results, split));
  std::vector<Record> all;
  for (const std::string& path : paths) {
    for (Record& r : read_records(path)) all.push_back(std::move(r));
  }
  return all;
}

std::vector<Record> latest(std::vector<Record> all) {
  std::map<std::string, size_t> place;
  std::vector<Record> out;
  for (Record& r : all) {
    const auto [at, fresh] = place.try_emplace(r.name, out.size());
    if (fresh) {
      out.push_back(std::move(r));
    } else {
      out[at->second] = std::move(r);
    }
  }
  return out;
}

}  // namespace lte
