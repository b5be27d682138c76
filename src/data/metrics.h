// Metrics of generated text.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace lte {

// ROUGE-L as in coco-caption: with LCS the longest common subsequence of tokens,
//   P = max over references of LCS / |candidate|,  R = max over references of LCS / |reference|,
//   F = (1 + beta^2) P R / (R + beta^2 P),  beta = 1.2.
// The two maxima may come from different references. Tokens: lower-cased (ASCII) runs of letters,
// digits and bytes from 128 up; every other mark is a token; white space separates. 0 without
// overlap.
double rouge_l(const std::string& candidate, std::span<const std::string> references);

// BLEU-4 of a corpus, 0..1, in the variant of the official E2E evaluation (pymteval of
// github.com/tuetschek/e2e-metrics): lower-cased, the words of mteval-v13a, n-grams clipped by the
// reference that has them most often, brevity against the closest reference length (the shorter of
// two that are equally close). Counts of 0 become 1e-15, so that it is never undefined. Case and
// white space are ASCII. Throws Error if there are no candidates or one has no reference.
double bleu_e2e(std::span<const std::string> candidates,
                std::span<const std::vector<std::string>> references);

// Whether the candidate is one of the references, white space at both ends aside.
bool exact_match(const std::string& candidate, std::span<const std::string> references);

// Against the tables of datasets/restaurants.h, whatever the case, at word bounds, the longest
// phrase first, so that "not family-friendly" does not count as "family-friendly".
struct SlotErrors {
  int slots = 0;    // in the meaning representation
  int missing = 0;  // slots of which no realisation is in the text
  int added = 0;    // values in the text that the meaning representation does not have
};

// Throws Error if `prompt` is not a meaning representation of restaurants.
SlotErrors slot_errors(const std::string& prompt, const std::string& text);

}  // namespace lte
