#include "data/dataset.h"

#include <fmt/format.h>

#include "core/check.h"
#include "data/e2e.h"
#include "data/text_data.h"
#include "datasets/dialects.h"
#include "datasets/restaurants.h"
#include "datasets/sums.h"

namespace lte {
namespace {

constexpr std::string_view kTextPrefix = "text:";

// THE list of datasets. "" as tokenizer: the loader chooses by the text.
constexpr DatasetRow kDatasets[] = {
    {"dialects", "64 dialects over 64 symbols, generated; entropy and floor are known", "chars",
     load_dialects},
    {"restaurants", "slots to sentence, generated; scored on the sentences", "bpe:512",
     load_restaurants},
    {"sums", "small sums in words and digits, generated; one exact answer each", "chars",
     load_sums},
    {"e2e", "restaurant data to text with several references; files", "bpe:512", load_e2e},
    {"tinyshakespeare", "1.1 MB of plays, 90/5/5 in order; file", "chars", load_tinyshakespeare},
    {"wikitext-2", "Wikipedia articles, word-level text with <unk>; files", "bpe:1024",
     load_wikitext2},
    {"text:PATH", "a UTF-8 text file of yours, 90/5/5 in order", "", load_text_file},
};

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string known_names() {
  std::string names;
  for (const DatasetRow& row : kDatasets)
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

}  // namespace

std::span<const DatasetRow> datasets() { return kDatasets; }

Dataset load_dataset(const std::string& name, const std::string& tokenizer,
                     const DataPaths& paths) {
  for (const DatasetRow& row : kDatasets) {
    const bool is_text = std::string_view(row.name).starts_with(kTextPrefix);
    if (is_text ? name.starts_with(kTextPrefix) : name == row.name) {
      return row.load(name, tokenizer.empty() ? row.tokenizer : tokenizer, paths);
    }
  }
  fail(fmt::format("dataset \"{}\" is not known; known are {}", name, known_names()));
}

void use_split(Dataset& d, const std::string& split) {
  if (split == "test") return;
  d.test_floor.reset();
  d.examples.clear(), d.task.clear();
  if (split == "train") {
    d.test = d.train;
  } else if (split == "valid") {
    d.test = d.valid;
  } else {
    LTE_CHECK(split == "all", "unknown split '" + split + "'; known: test, valid, train, all");
    LTE_CHECK(d.test.starts.empty(), d.name + ": has documents; choose test, valid or train");
    std::vector<int32_t> tokens = d.train.tokens;
    tokens.insert(tokens.end(), d.valid.tokens.begin(), d.valid.tokens.end());
    tokens.insert(tokens.end(), d.test.tokens.begin(), d.test.tokens.end());
    d.test.tokens = std::move(tokens);
  }
}

void retokenize(Dataset& d, const Tokenizer& tokenizer) {
  if (d.tokenizer.vocab == tokenizer.vocab) return;
  LTE_CHECK(d.train.starts.empty() && d.train.scored.empty(),
            fmt::format("{}: has another vocabulary than the model was trained with", d.name));
  for (TokenSet* split : {&d.train, &d.valid, &d.test}) {
    split->tokens = encode(tokenizer, decode(d.tokenizer, split->tokens));
  }
  d.tokenizer = tokenizer;
}

TextSize text_size(const Tokenizer& tokenizer, const TokenSet& set,
                   std::span<const Window> windows) {
  TextSize size;
  for (const Window& w : windows) {
    for (int64_t i = w.start + 1; i <= w.start + w.length; ++i) {
      if (!set.scored.empty() && !set.scored[i]) continue;
      const std::string& bytes = tokenizer.vocab[set.tokens[i]];
      ++size.tokens;
      size.bytes += static_cast<int64_t>(bytes.size());
      bool after_space = is_space(tokenizer.vocab[set.tokens[i - 1]].back());
      for (char c : bytes) {
        size.words += after_space && !is_space(c);
        after_space = is_space(c);
      }
    }
  }
  return size;
}

}  // namespace lte
