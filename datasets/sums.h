// Small word problems of addition and subtraction with one exact answer. Perplexity hides what
// sparsity does to an exact answer: here one wrong digit is a wrong answer.
#pragma once

#include <string>
#include <vector>

#include "core/rng.h"
#include "data/dataset.h"

namespace lte {

// The answer is the sum of the terms: 7 - 4 + 2 is {7, -4, 2}. No partial sum is below 0.
using Sum = std::vector<int>;

// English, 0 to 999: "seven", "forty-two", "one hundred five".
std::string number_words(int number);

// Equal for sums that differ only in the order of their terms: 3 + 5 and 5 + 3 are one problem.
enum class SumSplit { train, valid, test };
SumSplit split_of(const Sum&);

// A problem, in one of several phrasings, and its answer: both in digits, or, of some problems with
// two terms, both in words.
struct WrittenSum {
  std::string prompt, answer;
};
Sum draw_sum(Rng&);  // terms below 100; of three terms all are below 10
WrittenSum write_sum(const Sum&, Rng&);

// 60,000 / 500 / 1,000 documents, always the same; a problem is in one split only, however it is
// phrased. A document is one line, `add 23 to 45: 68`; just the answer is scored. Examples:
// every document of the test split; task "exact".
Dataset load_sums(const std::string& name, const std::string& tokenizer, const DataPaths&);

}  // namespace lte
