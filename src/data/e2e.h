// The E2E NLG dataset (Novikova, Dusek and Rieser, 2017): meaning representation to text about
// restaurants, with several human references for each meaning of the validation and the test split.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"

namespace lte {

// A meaning and the texts that people wrote for it.
struct E2eMeaning {
  std::string mr;
  std::vector<std::string> references;
};

// Reads the columns `mr` and `ref`; runs of white space become one space. Rows with the same meaning
// are one, at the place of the first. Throws Error with `what` and the line.
std::vector<E2eMeaning> read_e2e(std::string_view csv, const std::string& what);

// The files of the manifest. A document is one line, `name[Zizzi], eatType[pub] => TEXT`, for every
// reference. The meaning and "=>" are not scored. Examples: 200 test meanings, always the same, with
// all their references; task "e2e".
Dataset load_e2e(const std::string& name, const std::string& tokenizer, const DataPaths&);

}  // namespace lte
