// Metrics of generated text.
#pragma once

#include <span>
#include <string>

namespace lte {

// ROUGE-L as in coco-caption: with LCS the longest common subsequence of tokens,
//   P = max over references of LCS / |candidate|,  R = max over references of LCS / |reference|,
//   F = (1 + beta^2) P R / (R + beta^2 P),  beta = 1.2.
// The two maxima may come from different references. Tokens: lower-cased (ASCII) runs of letters,
// digits and bytes from 128 up; every other mark is a token; white space separates. 0 without
// overlap.
double rouge_l(const std::string& candidate, std::span<const std::string> references);

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
