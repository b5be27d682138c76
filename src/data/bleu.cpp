// BLEU as the official E2E evaluation computes it (github.com/tuetschek/e2e-metrics, pymteval).
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "data/metrics.h"

namespace lte {
namespace {

constexpr int kMaxN = 4;
constexpr double kLeastHits = 1e-15, kLeastLength = 1e-9;

using Words = std::vector<std::string>;
using Counts = std::map<std::string, int64_t>;  // of n-grams, their words joined by spaces

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_stop(char c) { return c == '.' || c == ','; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
// Marks but ' , - and the full stop.
bool is_separate(char c) {
  return (c >= '!' && c <= '&') || (c >= '(' && c <= '+') || c == '/' || (c >= ':' && c <= '@') ||
         (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

// Puts a space between the two characters of every pair that `is_pair` accepts, and before or behind
// them; from the left, and a character that was in a pair begins no other.
template <class F>
std::string split_pairs(const std::string& text, bool before, F is_pair) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i + 1 == text.size() || !is_pair(text[i], text[i + 1])) {
      out += text[i];
      continue;
    }
    if (before) out += ' ';
    out += text[i];
    out += ' ';
    out += text[++i];
    if (!before) out += ' ';
  }
  return out;
}

// The rules of mteval-v13a in their order. An empty text is one empty word, as it is there.
Words words_of(const std::string& raw) {
  std::string text = raw;
  replace_all(text, "<skipped>", "");
  replace_all(text, "-\n", "");
  replace_all(text, "&quot;", "\"");
  replace_all(text, "&amp;", "&");
  replace_all(text, "&lt;", "<");
  replace_all(text, "&gt;", ">");
  std::string spaced = " ";
  for (char c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (is_separate(c)) {
      spaced += {' ', c, ' '};
    } else {
      spaced += is_space(c) ? ' ' : c;
    }
  }
  spaced += ' ';
  spaced = split_pairs(spaced, false, [](char a, char b) { return !is_digit(a) && is_stop(b); });
  spaced = split_pairs(spaced, true, [](char a, char b) { return is_stop(a) && !is_digit(b); });
  spaced = split_pairs(spaced, false, [](char a, char b) { return is_digit(a) && b == '-'; });
  Words words;
  for (size_t i = 0; i < spaced.size(); ++i) {
    if (spaced[i] == ' ') continue;
    if (i == 0 || spaced[i - 1] == ' ') words.emplace_back();
    words.back() += spaced[i];
  }
  if (words.empty()) words.emplace_back();
  return words;
}

Counts count_ngrams(const Words& words, size_t n) {
  Counts counts;
  for (size_t i = 0; i + n <= words.size(); ++i) {
    std::string ngram = words[i];
    for (size_t k = 1; k < n; ++k) ngram += ' ' + words[i + k];
    ++counts[ngram];
  }
  return counts;
}

// Each n-gram of the candidate counts as often as it is in the reference that has it most often.
int64_t count_hits(const Words& candidate, const std::vector<Words>& references, size_t n) {
  Counts most;
  for (const Words& reference : references) {
    for (const auto& [ngram, count] : count_ngrams(reference, n)) {
      most[ngram] = std::max(most[ngram], count);
    }
  }
  int64_t hits = 0;
  for (const auto& [ngram, count] : count_ngrams(candidate, n)) {
    const auto it = most.find(ngram);
    if (it != most.end()) hits += std::min(count, it->second);
  }
  return hits;
}

// Of two that are equally close, the shorter.
int64_t closest_length(const std::vector<Words>& references, int64_t length) {
  auto best = static_cast<int64_t>(references.front().size());
  for (const Words& reference : references) {
    const auto other = static_cast<int64_t>(reference.size());
    const int64_t off = std::abs(other - length), best_off = std::abs(best - length);
    if (off < best_off || (off == best_off && other < best)) best = other;
  }
  return best;
}

}  // namespace

double bleu_e2e(std::span<const std::string> candidates,
                std::span<const std::vector<std::string>> references) {
  LTE_CHECK(candidates.size() == references.size() && !candidates.empty(),
            "BLEU: wants texts, and as many sets of references");
  std::array<int64_t, kMaxN> hits = {}, lengths = {};
  int64_t reference_length = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    LTE_CHECK(!references[i].empty(), "BLEU: a text has no reference");
    const Words candidate = words_of(candidates[i]);
    std::vector<Words> others;
    for (const std::string& reference : references[i]) others.push_back(words_of(reference));
    const auto length = static_cast<int64_t>(candidate.size());
    for (int n = 0; n < kMaxN; ++n) {
      hits[n] += count_hits(candidate, others, n + 1);
      lengths[n] += length - n;  // below 0 for a text of fewer words, as it is there
    }
    reference_length += closest_length(others, length);
  }
  double sum = 0;
  for (int n = 0; n < kMaxN; ++n) {
    sum += std::log(std::max(static_cast<double>(hits[n]), kLeastHits) /
                    std::max(static_cast<double>(lengths[n]), kLeastLength));
  }
  const double ratio = static_cast<double>(reference_length) / static_cast<double>(lengths[0]);
  const double brevity = std::min(1.0, std::exp(1 - ratio));
  return brevity * std::exp(sum / kMaxN);
}

}  // namespace lte
