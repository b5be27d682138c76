#include "data/metrics.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <vector>

#include "datasets/restaurants.h"

namespace lte {
namespace {

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || static_cast<unsigned char>(c) >= 128;
}

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string_view trimmed(std::string_view text) {
  const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)); };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string> words_of(const std::string& raw) {
  const std::string text = lower(raw);
  std::vector<std::string> words;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    while (is_word(text[i]) && end < text.size() && is_word(text[end])) ++end;
    if (!std::isspace(static_cast<unsigned char>(text[i])))
      words.push_back(text.substr(i, end - i));
    i = end;
  }
  return words;
}

int common_subsequence(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<int> best(b.size() + 1, 0);
  for (const std::string& word : a) {
    int diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const int above = best[j + 1];
      best[j + 1] = word == b[j] ? diagonal + 1 : std::max(above, best[j]);
      diagonal = above;
    }
  }
  return best.back();
}

struct Phrase {
  std::string text;
  int slot, value;
};

std::vector<Phrase> all_phrases() {
  std::vector<Phrase> phrases;
  for (int s = 0; s < kSlots; ++s) {
    const auto slot = static_cast<Slot>(s);
    for (int v = 0; v < value_count(slot); ++v) {
      for (const std::string& text : realisations(slot, v)) phrases.push_back({lower(text), s, v});
    }
  }
  return phrases;
}

// Whether `phrase` stands in `text` at word bounds; what it covers is blotted out.
bool take(std::string& text, const std::string& phrase) {
  bool found = false;
  for (size_t at = text.find(phrase); at != std::string::npos; at = text.find(phrase, at + 1)) {
    const size_t end = at + phrase.size();
    if ((at > 0 && is_word(text[at - 1])) || (end < text.size() && is_word(text[end]))) continue;
    std::fill(text.begin() + static_cast<long>(at), text.begin() + static_cast<long>(end), '\1');
    found = true;
  }
  return found;
}

}  // namespace

double rouge_l(const std::string& candidate, std::span<const std::string> references) {
  const auto words = words_of(candidate);
  double precision = 0, recall = 0;
  for (const std::string& reference : references) {
    const auto other = words_of(reference);
    if (words.empty() || other.empty()) continue;
    const double common = common_subsequence(words, other);
    precision = std::max(precision, common / static_cast<double>(words.size()));
    recall = std::max(recall, common / static_cast<double>(other.size()));
  }
  if (precision == 0 || recall == 0) return 0;
  constexpr double kBeta2 = 1.2 * 1.2;
  return (1 + kBeta2) * precision * recall / (recall + kBeta2 * precision);
}

bool exact_match(const std::string& candidate, std::span<const std::string> references) {
  const std::string_view text = trimmed(candidate);
  return std::any_of(references.begin(), references.end(),
                     [text](const std::string& r) { return trimmed(r) == text; });
}

SlotErrors slot_errors(const std::string& prompt, const std::string& text) {
  const Meaning meaning = parse_meaning(prompt);
  std::string left = lower(text);
  std::vector<Phrase> present;
  for (Phrase& phrase : all_phrases()) {
    if (left.find(phrase.text) != std::string::npos) present.push_back(std::move(phrase));
  }
  std::stable_sort(present.begin(), present.end(),
                   [](const Phrase& a, const Phrase& b) { return a.text.size() > b.text.size(); });
  std::vector<std::vector<bool>> said(kSlots);
  for (int s = 0; s < kSlots; ++s) said[s].resize(value_count(static_cast<Slot>(s)));
  for (const Phrase& phrase : present) {
    if (take(left, phrase.text)) said[phrase.slot][phrase.value] = true;
  }
  SlotErrors errors;
  for (int s = 0; s < kSlots; ++s) {
    const int wanted = meaning.value[s];
    errors.slots += wanted >= 0;
    errors.missing += wanted >= 0 && !said[s][wanted];
    for (int v = 0; v < static_cast<int>(said[s].size()); ++v)
      errors.added += said[s][v] && v != wanted;
  }
  return errors;
}

}  // namespace lte
