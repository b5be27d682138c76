#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "lte_build.h"

namespace lte {

DataPaths data_paths(const CommonArgs& c) {
  DataPaths paths;
  paths.manifest = c.manifest;
  if (paths.manifest.empty()) {
    const std::string here = "datasets/manifest.toml",
                      source = LTE_BUILD_SOURCE "/datasets/manifest.toml";
    paths.manifest = std::filesystem::exists(here) ? here : source;
  }
  const char* mirror = std::getenv("LTE_DATA_MIRROR");
  paths.mirror = mirror ? mirror : "";
  paths.cache = c.cache;
  return paths;
}

Dataset dataset_of(const LoadedRun& run, const std::string& folder, const std::string& other,
                   const CommonArgs& c) {
  Dataset d =
      load_dataset(other.empty() ? run.info.dataset : other, run.tokenizer.spec, data_paths(c));
  LTE_CHECK(
      !other.empty() || d.sha256 == run.info.data_sha256,
      fmt::format(
          "{}: has changed since {} was trained on it; name it with --data to use it all the same",
          d.name, folder));
  retokenize(d, run.tokenizer);
  return d;
}

namespace {

// The begin of the i-th document of the test split, or the i-th stretch of a text.
std::string sample_of(const Dataset& d, size_t i) {
  constexpr size_t kMost = 160;  // tokens
  const std::vector<int64_t>& starts = d.test.starts;
  const size_t n = d.test.tokens.size(), width = std::min(n, kMost);
  size_t begin = std::min(n - width, i * width), end = begin + width;
  if (!starts.empty()) {
    i = std::min(i, starts.size() - 1);
    begin = static_cast<size_t>(starts[i]);
    end = std::min(begin + width, i + 1 < starts.size() ? static_cast<size_t>(starts[i + 1]) : n);
  }
  return decode(d.tokenizer, std::span(d.test.tokens).subspan(begin, end - begin));
}

}  // namespace

int cmd_data(const CommonArgs& c, const DataArgs& a) {
  if (a.name.empty() && c.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const DatasetRow& row : datasets())
      list.push_back({{"name", row.name}, {"tokenizer", row.tokenizer}, {"about", row.about}});
    fmt::print("{}\n", list.dump());
    return 0;
  }
  if (a.name.empty()) {
    for (const DatasetRow& row : datasets())
      fmt::print("{:<16} {:<9} {}\n", row.name, row.tokenizer, row.about);
    return 0;
  }
  const Dataset d = load_dataset(a.name, a.tokenizer, data_paths(c));
  if (c.json) {
    const nlohmann::ordered_json j = {
        {"name", d.name},
        {"sha256", d.sha256},
        {"tokenizer", d.tokenizer.spec},
        {"vocab", d.tokenizer.vocab.size()},
        {"train_tokens", d.train.tokens.size()},
        {"valid_tokens", d.valid.tokens.size()},
        {"test_tokens", d.test.tokens.size()},
        {"entropy", d.entropy},
        {"test_floor", d.test_floor ? nlohmann::ordered_json(*d.test_floor) : nullptr},
        {"examples", d.examples.size()},
        {"window", d.default_seq}};
    fmt::print("{}\n", j.dump());
    return 0;
  }
  fmt::print("{}: tokenizer {}, vocabulary {}, window {}\n", d.name, d.tokenizer.spec,
             d.tokenizer.vocab.size(), d.default_seq);
  fmt::print("tokens: {} train, {} valid, {} test\nsha256 {}\n", d.train.tokens.size(),
             d.valid.tokens.size(), d.test.tokens.size(), d.sha256);
  if (d.test_floor)
    fmt::print("source: entropy {:.4f} nats a token, {:.4f} on the test split\n", d.entropy,
               *d.test_floor);
  for (int i = 0; i < a.samples; ++i) {
    fmt::print("sample {}: {}\n", i + 1, sample_of(d, static_cast<size_t>(i)));
  }
  return 0;
}

}  // namespace lte
