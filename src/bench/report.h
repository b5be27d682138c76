// The results as one page: Markdown with plots beside it, a self-contained HTML page, and a table
// for the terminal. The same records and verdicts give the same text.
#pragma once

#include <map>
#include <span>
#include <string>

#include "bench/claims.h"
#include "bench/record.h"

namespace lte {

struct Report {
  std::string markdown, html;
  std::map<std::string, std::string> svg;  // file name -> text; Markdown looks for plots/NAME
};

// Of the latest records, possibly of several suites.
Report make_report(std::span<const Record>, std::span<const Verdict>);

std::string console_table(std::span<const Record>);

}  // namespace lte
