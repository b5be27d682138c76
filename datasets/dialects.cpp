#include "datasets/dialects.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/check.h"
#include "core/hash.h"
#include "core/rng.h"

namespace lte {
namespace {

constexpr int kDialects = 64, kSymbols = 64, kLength = 120, kRanks = 4;
constexpr std::array<double, kRanks> kProbability = {0.4, 0.3, 0.2, 0.1};
constexpr uint64_t kSeed = 0x6469616c65637473;  // the language is part of the data set
enum Stream : uint64_t { kLanguage, kTrain, kValid, kTest };

using Successors = std::array<uint8_t, kRanks>;
using Language = std::array<std::array<Successors, kSymbols>, kDialects>;

Language make_language() {
  Language language;
  Rng rng(hash64(kSeed, kLanguage));
  for (auto& dialect : language) {
    for (Successors& next : dialect) {
      for (int rank = 0; rank < kRanks; ++rank) {
        bool fresh = false;
        while (!fresh) {
          next[rank] = static_cast<uint8_t>(rng.below(kSymbols));
          fresh = true;
          for (int other = 0; other < rank; ++other) fresh = fresh && next[other] != next[rank];
        }
      }
    }
  }
  return language;
}

// Ids 0..63 are the symbols in the order of their code points, 64..127 the dialects' names, which
// are U+0400..U+043F. This is what train_tokenizer("chars") gives, without reading the text.
Tokenizer make_tokenizer() {
  Tokenizer t;
  t.spec = "chars";
  for (char c : std::string_view("+-0123456789")) t.vocab.emplace_back(1, c);
  for (char c = 'A'; c <= 'Z'; ++c) t.vocab.emplace_back(1, c);
  for (char c = 'a'; c <= 'z'; ++c) t.vocab.emplace_back(1, c);
  for (int i = 0; i < kDialects; ++i) {
    t.vocab.push_back({static_cast<char>(0xd0), static_cast<char>(0x80 + i)});
  }
  for (size_t i = 0; i < t.vocab.size(); ++i) t.ids[t.vocab[i]] = static_cast<int32_t>(i);
  return t;
}

int draw_rank(Rng& rng) {
  double u = rng.uniform();
  int rank = 0;
  while (rank + 1 < kRanks && u >= kProbability[rank]) u -= kProbability[rank++];
  return rank;
}

// Returns the mean of -log p over the scored tokens.
double make_split(const Language& language, Stream stream, int sequences, TokenSet& set) {
  Rng rng(hash64(kSeed, stream));
  std::array<int64_t, kRanks> drawn = {};
  set.tokens.reserve(static_cast<size_t>(sequences) * kLength);
  for (int s = 0; s < sequences; ++s) {
    set.starts.push_back(static_cast<int64_t>(set.tokens.size()));
    const auto dialect = static_cast<int32_t>(rng.below(kDialects));
    auto symbol = static_cast<int32_t>(rng.below(kSymbols));
    set.tokens.push_back(kSymbols + dialect);
    set.tokens.push_back(symbol);
    set.scored.insert(set.scored.end(), {0, 0});
    for (int i = 2; i < kLength; ++i) {
      const int rank = draw_rank(rng);
      ++drawn[rank];
      symbol = language[dialect][symbol][rank];
      set.tokens.push_back(symbol);
      set.scored.push_back(1);
    }
  }
  double sum = 0, count = 0;
  for (int rank = 0; rank < kRanks; ++rank) {
    sum -= static_cast<double>(drawn[rank]) * std::log(kProbability[rank]);
    count += static_cast<double>(drawn[rank]);
  }
  return sum / count;
}

}  // namespace

Dataset load_dialects(const std::string& name, const std::string& tokenizer, const DataPaths&) {
  LTE_CHECK(tokenizer == "chars",
            fmt::format("{}: its only tokenizer is chars, since its floor is counted in symbols; "
                        "\"{}\" is not possible",
                        name, tokenizer));
  Dataset d;
  d.name = name;
  d.tokenizer = make_tokenizer();
  const Language language = make_language();
  make_split(language, kTrain, 50000, d.train);
  make_split(language, kValid, 500, d.valid);
  d.test_floor = make_split(language, kTest, 1000, d.test);
  for (double p : kProbability) d.entropy -= p * std::log(p);
  d.default_seq = kLength - 1;
  std::string text;
  for (const TokenSet* set : {&d.train, &d.valid, &d.test}) {
    text += decode(d.tokenizer, set->tokens);
  }
  d.sha256 = sha256_hex(text);
  return d;
}

}  // namespace lte
