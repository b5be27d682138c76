#include "datasets/sums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "data/dataset.h"
#include "documents.h"
#include "errors.h"

namespace lte {
namespace {

// Reads problems by cue words, knowing nothing of the generator's phrasings.
struct Reading {
  std::vector<int> terms;
  bool words = false;
};

int word_value(const std::string& word) {
  static const std::map<std::string, int> kValues = {
      {"zero", 0},     {"one", 1},      {"two", 2},        {"three", 3},     {"four", 4},
      {"five", 5},     {"six", 6},      {"seven", 7},      {"eight", 8},     {"nine", 9},
      {"ten", 10},     {"eleven", 11},  {"twelve", 12},    {"thirteen", 13}, {"fourteen", 14},
      {"fifteen", 15}, {"sixteen", 16}, {"seventeen", 17}, {"eighteen", 18}, {"nineteen", 19},
      {"twenty", 20},  {"thirty", 30},  {"forty", 40},     {"fifty", 50},    {"sixty", 60},
      {"seventy", 70}, {"eighty", 80},  {"ninety", 90},    {"hundred", 100}};
  const size_t hyphen = word.find('-');
  if (hyphen != std::string::npos && hyphen > 0) {
    const int tens = word_value(word.substr(0, hyphen)), ones = word_value(word.substr(hyphen + 1));
    return tens >= 20 && tens < 100 && ones > 0 && ones < 10 ? tens + ones : -1;
  }
  const auto it = kValues.find(word);
  return it == kValues.end() ? -1 : it->second;
}

Reading read_sum(const std::string& prompt) {
  Reading r;
  std::istringstream in(prompt);
  std::string word;
  int sign = 1;
  bool in_number = false;  // the word before belongs to the last term
  while (in >> word) {
    while (word.size() > 1 && std::string(",.?:").find(word.back()) != std::string::npos) {
      word.pop_back();
    }
    if (word[0] >= '0' && word[0] <= '9') {
      r.terms.push_back(sign * std::stoi(word));
      sign = 1, in_number = false;
    } else if (const int value = word_value(word); value >= 0) {
      r.words = true;
      if (!in_number) {
        r.terms.push_back(sign * value);
        in_number = true;
      } else if (value == 100) {
        r.terms.back() *= 100;
      } else {
        r.terms.back() += r.terms.back() < 0 ? -value : value;
      }
    } else {
      in_number = false;
      const std::set<std::string> minus = {"-", "minus", "take", "loses", "sells"};
      sign = minus.count(word) ? -1 : 1;
    }
  }
  return r;
}

const Dataset& sums() {
  static const Dataset d = load_dataset("sums", "", {});
  return d;
}

TEST(Sums, IsAlwaysTheSame) {
  const Dataset& d = sums();
  EXPECT_EQ(d.sha256, "13201e10629e6fc0e470a12dfabfbd7234e4ab3f7e73a00acecea30fcc26c0da");
  EXPECT_EQ(d.sha256, load_dataset("sums", "bytes", {}).sha256);
  EXPECT_EQ(d.tokenizer.spec, "chars");
  EXPECT_EQ(d.train.starts.size(), 60000u);
  EXPECT_EQ(d.valid.starts.size(), 500u);
  EXPECT_EQ(d.test.starts.size(), 1000u);
  EXPECT_EQ(d.task, "exact");
  EXPECT_EQ(d.examples.size(), 1000u);
}

TEST(Sums, EveryAnswerIsRight) {
  const Dataset& d = sums();
  int in_words = 0, two_steps = 0, documents = 0;
  for (const TokenSet* set : {&d.train, &d.valid, &d.test}) {
    const auto lines = document_lines(d, *set);
    for (size_t i = 0; i < lines.size(); ++i) {
      ASSERT_EQ(lines[i].find('\n'), lines[i].size() - 1) << lines[i];
      const std::string answer = scored_part(d, *set, i);
      const Reading asked = read_sum(lines[i].substr(0, lines[i].size() - answer.size()));
      const Reading said = read_sum(answer);
      ASSERT_TRUE(asked.terms.size() == 2 || asked.terms.size() == 3) << lines[i];
      ASSERT_EQ(said.terms.size(), 1u) << lines[i];
      const int sum = std::accumulate(asked.terms.begin(), asked.terms.end(), 0);
      ASSERT_EQ(said.terms[0], sum) << lines[i];
      ASSERT_EQ(said.words, asked.words) << lines[i];
      ASSERT_TRUE(sum >= 0 && sum <= 198) << lines[i];
      ASSERT_LE(lines[i].size(), 1u + d.default_seq) << lines[i];
      in_words += asked.words, two_steps += asked.terms.size() == 3, ++documents;
    }
  }
  EXPECT_NEAR(in_words, 0.14 * documents, 0.01 * documents);
  EXPECT_NEAR(two_steps, 0.15 * documents, 0.01 * documents);
}

// A problem is its terms in any order, whatever the words around them.
TEST(Sums, NoProblemOfTheTestIsInTraining) {
  const Dataset& d = sums();
  const auto problems = [&](const TokenSet& set) {
    std::set<std::vector<int>> found;
    const auto lines = document_lines(d, set);
    for (size_t i = 0; i < lines.size(); ++i) {
      const size_t answer = scored_part(d, set, i).size();
      auto terms = read_sum(lines[i].substr(0, lines[i].size() - answer)).terms;
      std::sort(terms.begin(), terms.end());
      found.insert(terms);
    }
    return found;
  };
  const auto train = problems(d.train), valid = problems(d.valid), test = problems(d.test);
  for (const auto& problem : valid) EXPECT_FALSE(train.count(problem) || test.count(problem));
  for (const auto& problem : test) EXPECT_FALSE(train.count(problem));
  EXPECT_GT(train.size(), 7000u);
  EXPECT_GT(test.size(), 250u);
}

TEST(Sums, ExamplesAreTheTestDocuments) {
  const Dataset& d = sums();
  const auto lines = document_lines(d, d.test);
  std::set<std::string> prompts;
  for (size_t i = 0; i < d.examples.size(); ++i) {
    const Example& e = d.examples[i];
    ASSERT_EQ(e.references.size(), 1u);
    EXPECT_EQ(e.prompt + " " + e.references[0] + "\n", lines[i]);
    EXPECT_TRUE(prompts.insert(e.prompt).second) << e.prompt;
  }
}

// Prompt and answer tokenised apart are the document.
TEST(Sums, PromptsEndWhereScoringBegins) {
  for (const char* spec : {"bytes", "chars", "bpe:300"}) {
    const Dataset d = load_dataset("sums", spec, {});
    for (size_t i = 0; i < d.examples.size(); ++i) {
      const auto prompt = encode(d.tokenizer, d.examples[i].prompt);
      const auto start = static_cast<size_t>(d.test.starts[i]);
      for (size_t k = 0; k < prompt.size(); ++k) {
        ASSERT_EQ(d.test.tokens[start + k], prompt[k]);
        ASSERT_FALSE(d.test.scored[start + k]);
      }
      ASSERT_EQ(scored_part(d, d.test, i), " " + d.examples[i].references[0] + "\n");
    }
  }
}

TEST(Sums, OrderDoesNotMakeAnotherProblem) {
  Rng rng(3);
  std::map<SumSplit, int> count;
  for (int i = 0; i < 4000; ++i) {
    Sum sum = draw_sum(rng);
    const SumSplit split = split_of(sum);
    ++count[split];
    std::reverse(sum.begin(), sum.end());
    ASSERT_EQ(split_of(sum), split);
  }
  EXPECT_NEAR(count[SumSplit::test], 200, 60);
  EXPECT_NEAR(count[SumSplit::valid], 200, 60);
}

TEST(NumberWords, ReadBack) {
  EXPECT_EQ(number_words(0), "zero");
  EXPECT_EQ(number_words(19), "nineteen");
  EXPECT_EQ(number_words(40), "forty");
  EXPECT_EQ(number_words(68), "sixty-eight");
  EXPECT_EQ(number_words(100), "one hundred");
  EXPECT_EQ(number_words(305), "three hundred five");
  EXPECT_EQ(number_words(999), "nine hundred ninety-nine");
  for (int n = 0; n <= 999; ++n) {
    const Reading r = read_sum(number_words(n));
    ASSERT_EQ(r.terms, std::vector<int>{n}) << number_words(n);
  }
  EXPECT_EQ(error_of([] { number_words(1000); }), "1000 is not between 0 and 999");
  EXPECT_EQ(error_of([] { number_words(-1); }), "-1 is not between 0 and 999");
}

}  // namespace
}  // namespace lte
