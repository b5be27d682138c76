// What tests of datasets with documents share.
#pragma once

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace lte {

inline std::vector<std::string> document_lines(const Dataset& d, const TokenSet& set) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < set.starts.size(); ++i) {
    const auto begin = static_cast<size_t>(set.starts[i]);
    const auto end =
        i + 1 < set.starts.size() ? static_cast<size_t>(set.starts[i + 1]) : set.tokens.size();
    lines.push_back(decode(d.tokenizer, std::span(set.tokens).subspan(begin, end - begin)));
  }
  return lines;
}

// What of a document is scored, as text.
inline std::string scored_part(const Dataset& d, const TokenSet& set, size_t document) {
  const auto end = document + 1 < set.starts.size() ? static_cast<size_t>(set.starts[document + 1])
                                                    : set.tokens.size();
  std::string text;
  for (auto i = static_cast<size_t>(set.starts[document]); i < end; ++i) {
    if (set.scored[i]) text += decode(d.tokenizer, {&set.tokens[i], 1});
  }
  return text;
}

}  // namespace lte
