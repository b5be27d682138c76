// Statements that the records decide: results/claims.toml.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "bench/record.h"

namespace lte {

struct Verdict {
  std::string id, statement, expected, measured;
  std::string verdict;  // "reproduced", "not reproduced" or "not run"
  std::string suite;
};

// Throws Error on a malformed file. A claim is judged within one suite, the one with most records
// of those that can decide it, or where it is about any text ("within") the first in which it holds; without
// the records that it needs it is "not run".
std::vector<Verdict> judge(const std::string& claims_path, std::span<const Record>);

}  // namespace lte
