// The report before it is written as Markdown or HTML. All texts are plain, not escaped.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/claims.h"
#include "bench/report_rows.h"

namespace lte {

struct Column {
  std::string title;
  bool number = false;  // aligned right
};
struct Table {
  std::string caption;
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> rows;
};
struct Figure {
  std::string name, caption, svg;  // name without folder and ".svg"
};
using Facts = std::vector<std::pair<std::string, std::string>>;

struct Section {
  std::string title, anchor;
  std::vector<Table> tables;
  std::vector<std::string> notes;
  std::vector<Figure> figures;
  Facts machine;
};

struct Page {
  std::string title, about;
  Table claims;
  std::string no_records;  // said in place of sections, if there are none
  std::vector<Section> sections;
  Facts guide;  // terms and what they mean
};

// For file names and anchors: small letters, digits, dots and dashes.
std::string slug(std::string_view);
// Columns that no row fills are left out.
std::vector<Table> tables_of(const Group&);
// Of a search: methods x learning rates.
Table trials_table(const Group&);
Table console_columns(const Group&);
Table claims_table(std::span<const Verdict>);
// `prefix` starts every figure's name.
std::vector<Figure> figures_of(const Group&, const std::string& prefix);

std::string page_markdown(const Page&);
std::string page_html(const Page&);

}  // namespace lte
