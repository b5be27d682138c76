#include <fmt/format.h>

#include "bench/report_parts.h"

namespace lte {
namespace {

// One line of plain text, with nothing that Markdown or its HTML would take for markup.
std::string plain(std::string_view raw) {
  std::string out;
  for (char c : raw) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else if (std::string_view("|*`[]\\").find(c) != std::string_view::npos) {
      out += '\\', out += c;
    } else {
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

void add_table(std::string& out, const Table& t) {
  std::string rule = "|";
  for (const Column& c : t.columns) {
    out += fmt::format("| {} ", plain(c.title));
    rule += c.number ? "---:|" : "---|";
  }
  out += fmt::format("|\n{}\n", rule);
  for (const auto& row : t.rows) {
    for (const std::string& cell : row) out += fmt::format("| {} ", plain(cell));
    out += "|\n";
  }
  out += "\n";
}

void add_facts(std::string& out, const Facts& facts) {
  for (const auto& [term, meaning] : facts) {
    out += fmt::format("- **{}**: {}\n", plain(term), plain(meaning));
  }
  out += "\n";
}

void add_section(std::string& out, const Section& s) {
  out += fmt::format("## {}\n\n", plain(s.title));
  for (const Table& t : s.tables) {
    out += fmt::format("**{}**\n\n", plain(t.caption));
    add_table(out, t);
  }
  if (!s.notes.empty()) {
    out += "Settings that the rows share:\n\n";
    for (const std::string& note : s.notes) out += fmt::format("- {}\n", plain(note));
    out += "\n";
  }
  for (const Figure& f : s.figures) {
    out += fmt::format("![{0}](plots/{1}.svg)\n\n{0}\n\n", plain(f.caption), f.name);
  }
  if (!s.machine.empty()) {
    out += "Measured on:\n\n";
    add_facts(out, s.machine);
  }
}

}  // namespace

std::string page_markdown(const Page& p) {
  std::string out = fmt::format("# {}\n\n{}\n\n## {}\n\n", plain(p.title), plain(p.about),
                                plain(p.claims.caption));
  if (p.claims.rows.empty()) {
    out += "No claims were judged.\n\n";
  } else {
    add_table(out, p.claims);
  }
  if (p.sections.empty()) out += fmt::format("## Results\n\n{}\n\n", plain(p.no_records));
  for (const Section& s : p.sections) add_section(out, s);
  out += "## How to read this page\n\n";
  add_facts(out, p.guide);
  out.pop_back();
  return out;
}

}  // namespace lte
