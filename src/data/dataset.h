// A dataset is named on the command line and loaded as token sets; the registry is one table.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokens.h"
#include "data/tokenizer.h"

namespace lte {

// A generation task: continue `prompt` up to a newline; score against `references`.
struct Example {
  std::string prompt;
  std::vector<std::string> references;
};

struct Dataset {
  std::string name;    // as on the command line, "dialects" or "text:my.txt"
  std::string sha256;  // of the raw text of all splits
  Tokenizer tokenizer;
  TokenSet train, valid, test;
  std::optional<double>
      test_floor;      // mean loss (nats) of the true source on the scored test tokens
  double entropy = 0;  // of the source, nats a token; 0: not known
  std::string task;    // what the test examples below are scored by: "" nothing, "slots" ROUGE-L
                       // and slot error, "e2e" BLEU and ROUGE-L, "exact" exact match
  std::vector<Example> examples;
  int default_seq = 128;  // a window length that suits the data
};

// Where files are looked for: first the mirror, then the cache; "" is none.
struct DataPaths {
  std::string manifest = "datasets/manifest.toml", mirror, cache = "data";
};

struct DatasetRow {
  const char* name;
  const char* about;  // one line
  const char* tokenizer;
  Dataset (*load)(const std::string& name, const std::string& tokenizer, const DataPaths&);
};
std::span<const DatasetRow> datasets();

// `name` is a row's name, or "text:PATH". `tokenizer` "" takes the dataset's own.
// Throws Error with one line that says what to do.
Dataset load_dataset(const std::string& name, const std::string& tokenizer, const DataPaths&);

// Encodes the splits again with another tokenizer, a trained model's; for continuous text only.
// Throws Error where the dataset has documents, or a character that the tokenizer does not know.
void retokenize(Dataset&, const Tokenizer&);

// Makes `split` ("test", "valid", "train" or "all") what is scored, without the test split's task and
// floor. "all" is the whole text, for one that the model was not trained on. Throws Error for another
// name, and for "all" of documents.
void use_split(Dataset&, const std::string& split);

// How much text the scored targets of `windows` are: what byte and word perplexity divide by.
struct TextSize {
  int64_t tokens = 0, bytes = 0, words = 0;
};
TextSize text_size(const Tokenizer&, const TokenSet&, std::span<const Window> windows);

}  // namespace lte
