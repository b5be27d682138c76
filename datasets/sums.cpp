#include "datasets/sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "core/check.h"
#include "core/hash.h"
#include "data/documents.h"

namespace lte {
namespace {

constexpr uint64_t kSeed = 0x73756d73;
constexpr int kMostInWords = 999;
constexpr int kWindow = 64;       // the longest document fits
constexpr double kInSigns = 0.5;  // of the documents are short, so that a minute shows many answers
constexpr double kInWords = 0.5;  // of the others, stories aside

constexpr std::string_view kOnes[] = {"zero",    "one",     "two",       "three",    "four",
                                      "five",    "six",     "seven",     "eight",    "nine",
                                      "ten",     "eleven",  "twelve",    "thirteen", "fourteen",
                                      "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
constexpr std::string_view kTens[] = {"",      "",      "twenty",  "thirty", "forty",
                                      "fifty", "sixty", "seventy", "eighty", "ninety"};
constexpr std::string_view kNames[] = {"Ann", "Ben", "Mia", "Tom"};
constexpr std::string_view kThings[] = {"books", "coins", "nuts", "pears"};

// {0}, {1} and {2} are the numbers without their signs, {3} a name and {4} a thing. The first
// phrasing of some signs is the one in signs; one that begins with a name is a story.
struct Phrasing {
  std::string_view signs;  // of the terms after the first
  std::string_view text;   // ends in a mark
};
constexpr Phrasing kPhrasings[] = {
    {"+", "{0} + {1} ="},        {"+", "{0} plus {1} ="},
    {"+", "add {1} to {0}:"},    {"+", "{3} has {0} {4} and buys {1}. how many?"},
    {"-", "{0} - {1} ="},        {"-", "{0} minus {1} ="},
    {"-", "take {1} from {0}:"}, {"-", "{3} has {0} {4} and loses {1}. how many?"},
    {"++", "{0} + {1} + {2} ="}, {"++", "{3} has {0} {4}, buys {1} and finds {2}. how many?"},
    {"+-", "{0} + {1} - {2} ="}, {"+-", "{3} has {0} {4}, buys {1} and loses {2}. how many?"},
    {"-+", "{0} - {1} + {2} ="}, {"-+", "{3} has {0} {4}, loses {1} and finds {2}. how many?"},
    {"--", "{0} - {1} - {2} ="}, {"--", "{3} has {0} {4}, loses {1} and sells {2}. how many?"},
};

// What the terms of a problem are drawn from: below the limits, the first not below `least`.
struct Kind {
  double share;
  int least, first, second, third;  // third 0: one step
};
constexpr Kind kKinds[] = {
    {0.25, 0, 10, 10, 0},     // 7 + 5
    {0.40, 10, 100, 10, 0},   // 47 + 5
    {0.20, 10, 100, 100, 0},  // 47 + 25
    {0.15, 0, 10, 10, 10},    // 7 + 5 - 3
};

std::string signs_of(const Sum& sum) {
  std::string signs;
  for (size_t i = 1; i < sum.size(); ++i) signs += sum[i] < 0 ? '-' : '+';
  return signs;
}

bool is_possible(const Sum& sum) {
  int partial = 0;
  for (int term : sum) {
    partial += term;
    if (partial < 0) return false;
  }
  return true;
}

Documents make_documents(SumSplit split, int count, std::vector<Example>* examples) {
  Documents d;
  Rng rng(hash64(kSeed, 1 + static_cast<uint64_t>(split)));
  std::set<std::string> seen;
  while (static_cast<int>(d.starts.size()) < count) {
    const Sum sum = draw_sum(rng);
    if (split_of(sum) != split) continue;
    const WrittenSum written = write_sum(sum, rng);
    if (split != SumSplit::train && !seen.insert(written.prompt).second) continue;
    add_document(d, written.prompt, written.answer);
    if (examples) examples->push_back({written.prompt, {written.answer}});
  }
  return d;
}

}  // namespace

std::string number_words(int n) {
  LTE_CHECK(n >= 0 && n <= kMostInWords,
            fmt::format("{} is not between 0 and {}", n, kMostInWords));
  std::string words;
  if (n >= 100) {
    words = fmt::format("{} hundred", kOnes[n / 100]);
    n %= 100;
    if (n == 0) return words;
    words += ' ';
  }
  if (n < 20) return words + std::string(kOnes[n]);
  words += kTens[n / 10];
  return n % 10 == 0 ? words : fmt::format("{}-{}", words, kOnes[n % 10]);
}

// A twentieth of all problems is for testing, and another for validation.
SumSplit split_of(const Sum& sum) {
  Sum terms = sum;
  std::sort(terms.begin(), terms.end());
  uint64_t h = hash64(kSeed, terms.size());
  for (int term : terms) h = hash64(h, static_cast<uint64_t>(term));
  return h % 20 == 0 ? SumSplit::test : h % 20 == 1 ? SumSplit::valid : SumSplit::train;
}

Sum draw_sum(Rng& rng) {
  double u = rng.uniform();
  const Kind* kind = kKinds;
  while (kind + 1 < std::end(kKinds) && u >= kind->share) u -= (kind++)->share;
  const auto below = [&](int limit) { return static_cast<int>(rng.below(limit)); };
  for (;;) {
    Sum sum = {kind->least + below(kind->first - kind->least)};
    for (int limit : {kind->second, kind->third}) {
      if (limit > 0) sum.push_back(below(limit) * (rng.below(2) == 0 ? 1 : -1));
    }
    if (is_possible(sum)) return sum;
  }
}

WrittenSum write_sum(const Sum& sum, Rng& rng) {
  const std::string signs = signs_of(sum);
  std::vector<std::string_view> texts;
  for (const Phrasing& p : kPhrasings) {
    if (p.signs == signs) texts.push_back(p.text);
  }
  const bool in_signs = rng.uniform() < kInSigns;
  const std::string_view text = in_signs ? texts[0] : texts[1 + rng.below(texts.size() - 1)];
  const bool in_words = !in_signs && !text.starts_with("{3}") && rng.uniform() < kInWords;
  const auto write = [&](int n) { return in_words ? number_words(n) : std::to_string(n); };
  std::array<std::string, 3> numbers;
  for (size_t i = 0; i < sum.size(); ++i) numbers[i] = write(std::abs(sum[i]));
  const std::string_view name = kNames[rng.below(std::size(kNames))],
                         thing = kThings[rng.below(std::size(kThings))];
  return {fmt::format(fmt::runtime(text), numbers[0], numbers[1], numbers[2], name, thing),
          write(std::accumulate(sum.begin(), sum.end(), 0))};
}

Dataset load_sums(const std::string& name, const std::string& tokenizer, const DataPaths&) {
  const Documents train = make_documents(SumSplit::train, 60000, nullptr);
  const Documents valid = make_documents(SumSplit::valid, 500, nullptr);
  std::vector<Example> examples;
  const Documents test = make_documents(SumSplit::test, 1000, &examples);
  Dataset d = make_document_dataset(name, tokenizer, train, valid, test);
  d.task = "exact";
  d.default_seq = kWindow;
  d.examples = std::move(examples);
  return d;
}

}  // namespace lte
