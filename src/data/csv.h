// Comma-separated values, as RFC 4180 has them: fields in quotes may hold commas, newlines and
// doubled quotes; lines end in LF or CRLF.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lte {

struct Csv {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as many fields each as the header has
  std::vector<int> lines;                      // where each row begins, counted from 1
};

// The first row is the header. A byte-order mark before it is skipped. Throws Error with `what` and
// the line: for a quote that is not closed, a quote where none may be, another number of fields, no
// header.
Csv parse_csv(std::string_view text, const std::string& what);

// The place of a column. Throws Error with `what` and the columns that there are.
size_t column_of(const Csv&, std::string_view name, const std::string& what);

}  // namespace lte
