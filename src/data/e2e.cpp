#include "data/e2e.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "core/check.h"
#include "core/rng.h"
#include "data/csv.h"
#include "data/documents.h"
#include "data/manifest.h"

namespace lte {
namespace {

constexpr uint64_t kSeed = 0x653265;
constexpr size_t kExamples = 200;
constexpr int kWindow =
    128;  // by bpe:512, 99 % of the training documents and 97 % of the test's fit

std::string squeeze(std::string_view text) {
  std::string out;
  bool space = false;
  for (char c : text) {
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      space = true;
      continue;
    }
    if (space && !out.empty()) out += ' ';
    space = false;
    out += c;
  }
  return out;
}

std::string prompt_of(const E2eMeaning& m) { return m.mr + " =>"; }

Documents to_documents(const std::vector<E2eMeaning>& meanings) {
  Documents d;
  for (const E2eMeaning& m : meanings) {
    for (const std::string& reference : m.references) add_document(d, prompt_of(m), reference);
  }
  return d;
}

std::vector<Example> draw_examples(const std::vector<E2eMeaning>& meanings) {
  std::vector<size_t> order(meanings.size());
  std::iota(order.begin(), order.end(), size_t{0});
  Rng rng(kSeed);
  shuffle(order, rng);
  order.resize(std::min(order.size(), kExamples));
  std::sort(order.begin(), order.end());
  std::vector<Example> examples;
  for (size_t i : order) examples.push_back({prompt_of(meanings[i]), meanings[i].references});
  return examples;
}

}  // namespace

std::vector<E2eMeaning> read_e2e(std::string_view text, const std::string& what) {
  check_utf8(text, what);
  const Csv csv = parse_csv(text, what);
  const size_t mr = column_of(csv, "mr", what), ref = column_of(csv, "ref", what);
  LTE_CHECK(!csv.rows.empty(), what + ": holds no row below its header");
  std::unordered_map<std::string, size_t> places;
  std::vector<E2eMeaning> meanings;
  for (size_t i = 0; i < csv.rows.size(); ++i) {
    const std::string meaning = squeeze(csv.rows[i][mr]), reference = squeeze(csv.rows[i][ref]);
    LTE_CHECK(!meaning.empty() && !reference.empty(),
              fmt::format("{}: line {}: the {} is empty", what, csv.lines[i],
                          meaning.empty() ? "mr" : "ref"));
    const auto [at, is_new] = places.try_emplace(meaning, meanings.size());
    if (is_new) meanings.push_back({meaning, {}});
    meanings[at->second].references.push_back(reference);
  }
  return meanings;
}

Dataset load_e2e(const std::string& name, const std::string& tokenizer, const DataPaths& paths) {
  const auto rows = read_manifest(paths.manifest);
  const auto load = [&](const char* split) {
    return read_e2e(load_split(rows, name, split, paths), fmt::format("{}, {} split", name, split));
  };
  const auto train = load("train"), valid = load("valid"), test = load("test");
  Dataset d = make_document_dataset(name, tokenizer, to_documents(train), to_documents(valid),
                                    to_documents(test));
  d.task = "e2e";
  d.examples = draw_examples(test);
  d.default_seq = kWindow;
  return d;
}

}  // namespace lte
