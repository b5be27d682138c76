#include <fmt/format.h>

#include "bench/report_parts.h"
#include "bench/svg_parts.h"

namespace lte {
namespace {

using svg::escape;

constexpr const char* kStyle = R"(
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 88rem; padding: 1rem 1.25rem 4rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
p, dd { max-width: 80ch; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
a { color: #0059a0; }
nav ul { margin: .25rem 0; padding-left: 1.25rem; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #999; vertical-align: bottom; }
td.number, th.number { text-align: right; }
.results td { white-space: nowrap; }
.results td:last-child:not(.number) { white-space: normal; min-width: 15rem; }
.results th { max-width: 9rem; }
@media (min-width: 50rem) {
  .results th:first-child, .results td:first-child { position: sticky; left: 0; background: #fff; }
  .results tr.failed td:first-child { background: #fdf1ea; }
}
.claims td { min-width: 6.5rem; }
tr.failed td { background: #fdf1ea; }
.good, .bad, .open { display: inline-block; padding: 0 .5rem; border-radius: .25rem;
  white-space: nowrap; }
.good { background: #d8f0e6; color: #00543b; }
.bad { background: #fde0d0; color: #8a2f00; }
.open { background: #ececec; color: #444; }
figure { margin: 1.25rem 0; }
figure > div { overflow-x: auto; }
figure svg { display: block; max-width: 100%; min-width: 34rem; height: auto; }
figure svg svg { min-width: 0; max-width: none; }
figcaption { font-size: .875rem; color: #555; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0 0 0 1.25rem; }
.facts { font-size: .875rem; overflow-wrap: anywhere; }
.notes { font-size: .875rem; color: #444; }
)";

std::string verdict_class(const std::string& verdict) {
  if (verdict == "reproduced") return "good";
  return verdict == "not reproduced" ? "bad" : "open";
}

void add_head(std::string& out, const Table& t) {
  out += "<thead><tr>";
  for (const Column& c : t.columns) {
    out += fmt::format("<th scope=\"col\"{}>{}</th>", c.number ? " class=\"number\"" : "",
                       escape(c.title));
  }
  out += "</tr></thead>\n<tbody>\n";
}

void add_results(std::string& out, const Table& t) {
  out += fmt::format(
      "<h3>{0}</h3>\n<div class=\"wide\" tabindex=\"0\" role=\"region\" "
      "aria-label=\"{0}\"><table class=\"results\">\n",
      escape(t.caption));
  add_head(out, t);
  for (const auto& row : t.rows) {
    const bool failed = !row.empty() && t.columns.back().title == "status" && row.back() != "ok";
    out += failed ? "<tr class=\"failed\">" : "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      out += fmt::format("<td{}>{}</td>", t.columns[i].number ? " class=\"number\"" : "",
                         escape(row[i]));
    }
    out += "</tr>\n";
  }
  out += "</tbody></table></div>\n";
}

void add_claims(std::string& out, const Table& t) {
  out += fmt::format("<section id=\"claims\">\n<h2>{}</h2>\n", escape(t.caption));
  if (t.rows.empty()) {
    out += "<p>No claims were judged.</p>\n</section>\n";
    return;
  }
  out +=
      "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Claims\">"
      "<table class=\"claims\">\n";
  add_head(out, t);
  for (const auto& row : t.rows) {
    out += "<tr>";
    for (size_t i = 0; i + 1 < row.size(); ++i) out += fmt::format("<td>{}</td>", escape(row[i]));
    out += fmt::format("<td><span class=\"{}\">{}</span></td></tr>\n", verdict_class(row.back()),
                       escape(row.back()));
  }
  out += "</tbody></table></div>\n</section>\n";
}

void add_facts(std::string& out, const Facts& facts, const char* kind) {
  out += fmt::format("<dl class=\"{}\">\n", kind);
  for (const auto& [term, meaning] : facts) {
    out += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape(term), escape(meaning));
  }
  out += "</dl>\n";
}

void add_section(std::string& out, const Section& s) {
  out += fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n", escape(s.anchor), escape(s.title));
  for (const Table& t : s.tables) add_results(out, t);
  if (!s.notes.empty()) {
    out += "<div class=\"notes\"><p>Settings that the rows share:</p>\n<ul>\n";
    for (const std::string& note : s.notes) out += fmt::format("<li>{}</li>\n", escape(note));
    out += "</ul></div>\n";
  }
  for (const Figure& f : s.figures) {
    out += fmt::format("<figure><div>\n{}</div><figcaption>{}</figcaption></figure>\n", f.svg,
                       escape(f.caption));
  }
  if (!s.machine.empty()) {
    out += "<h3>Measured on</h3>\n";
    add_facts(out, s.machine, "facts");
  }
  out += "</section>\n";
}

void add_contents(std::string& out, const Page& p) {
  out += "<nav aria-label=\"Contents\">\n<ul>\n<li><a href=\"#claims\">Claims</a></li>\n";
  for (const Section& s : p.sections) {
    out += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", escape(s.anchor), escape(s.title));
  }
  out += "<li><a href=\"#guide\">How to read this page</a></li>\n</ul>\n</nav>\n";
}

}  // namespace

std::string page_html(const Page& p) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n<p>{2}</p>\n",
      escape(p.title), kStyle, escape(p.about));
  add_contents(out, p);
  add_claims(out, p.claims);
  if (p.sections.empty()) {
    out += fmt::format("<section id=\"results\">\n<h2>Results</h2>\n<p>{}</p>\n</section>\n",
                       escape(p.no_records));
  }
  for (const Section& s : p.sections) add_section(out, s);
  out += "<section id=\"guide\">\n<h2>How to read this page</h2>\n";
  add_facts(out, p.guide, "guide");
  return out + "</section>\n</main>\n</body>\n</html>\n";
}

}  // namespace lte
