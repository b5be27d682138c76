#include "data/csv.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/check.h"

namespace lte {
namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr size_t kMostShown = 100;  // bytes of a header in a message

struct Reader {
  std::string_view text;
  const std::string& what;
  size_t at = 0;
  int line = 1;

  bool ended() const { return at == text.size(); }
  bool at_line_end() const { return ended() || text[at] == '\n' || text.substr(at, 2) == "\r\n"; }
  void check_here(bool holds, std::string_view wrong) const {
    LTE_CHECK(holds, fmt::format("{}: line {}: {}", what, line, wrong));
  }

  std::string quoted_field() {
    const int opened = line;
    std::string field;
    for (++at;; ++at) {
      LTE_CHECK(!ended(),
                fmt::format("{}: line {}: the quote is not closed: truncated?", what, opened));
      if (text[at] == '"') {
        if (text.substr(at, 2) != "\"\"") break;
        ++at;
      }
      line += text[at] == '\n';
      field += text[at];
    }
    ++at;
    check_here(at_line_end() || text[at] == ',', "a closing quote wants a comma or the line's end");
    return field;
  }

  std::string plain_field() {
    const size_t begin = at;
    while (!at_line_end() && text[at] != ',') {
      check_here(text[at] != '"', "a quote inside of a field that does not begin with one");
      ++at;
    }
    return std::string(text.substr(begin, at - begin));
  }

  std::vector<std::string> row() {
    std::vector<std::string> fields;
    for (;;) {
      const bool quoted = !ended() && text[at] == '"';
      fields.push_back(quoted ? quoted_field() : plain_field());
      if (at_line_end()) break;
      ++at;  // the comma
    }
    if (!ended()) at += text[at] == '\r' ? 2 : 1, ++line;
    return fields;
  }
};

}  // namespace

Csv parse_csv(std::string_view text, const std::string& what) {
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  LTE_CHECK(!text.empty(), what + ": is empty; a header line is expected");
  Reader reader{.text = text, .what = what};
  Csv csv;
  csv.header = reader.row();
  while (!reader.ended()) {
    csv.lines.push_back(reader.line);
    csv.rows.push_back(reader.row());
    LTE_CHECK(csv.rows.back().size() == csv.header.size(),
              fmt::format("{}: line {}: has {} fields, not the {} of the header", what,
                          csv.lines.back(), csv.rows.back().size(), csv.header.size()));
  }
  return csv;
}

size_t column_of(const Csv& csv, std::string_view name, const std::string& what) {
  for (size_t i = 0; i < csv.header.size(); ++i) {
    if (csv.header[i] == name) return i;
  }
  std::string columns = fmt::format("{}", fmt::join(csv.header, ", "));
  for (char& c : columns) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  if (columns.size() > kMostShown) columns = columns.substr(0, kMostShown) + " ...";
  fail(fmt::format("{}: has no column \"{}\"; its columns are {}", what, name, columns));
}

}  // namespace lte
