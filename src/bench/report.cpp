#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "bench/permitted.h"
#include "bench/report_parts.h"
#include "bench/svg_parts.h"

namespace lte {
namespace {

Facts guide() {
  return {
      {"Row",
       "the mean over the seeds of one method with one setting, in one protocol. A label names "
       "only the knobs in which the rows differ. A failed run has a row of its own."},
      {"Protocol paper",
       "the method as its authors ran it: a static baseline is not trained further."},
      {"Protocol equal budget",
       "everything is trained on for the same number of tokens, the dense "
       "control too."},
      {"Active fraction",
       "FFN neurons computed / FFN neurons of the dense model, the mean over "
       "tokens and layers, measured in the run that is scored. Sparsity is 1 - "
       "active."},
      {"Loss",
       "nats per scored token of the test split, in searches of the validation split; ± is the "
       "sample standard deviation over "
       "seeds, with their number in brackets. Perplexity is its exponential per token, byte "
       "and word; excess is the loss above that of the true source of synthetic text."},
      {"FLOPs/token (paper convention)",
       "2 × multiply-adds of all linear layers of the blocks and of "
       "every router. FLOPs full adds attention scores and values, "
       "and the output head. × dense: divided by the dense model's."},
      {"Bytes", "what one decode step at batch 1 must read: weights, keys, values, activations."},
      {"Time",
       "microseconds per token of the same forward that is scored, the median of interleaved "
       "repetitions with the median absolute deviation in brackets; over seeds the median of "
       "both. Speed-up is dense / this of the same run, with its range over seeds."},
      {"Settings tried",
       "settings of this method that were tried on the validation split of this dataset: three "
       "learning rates, and what "
       "the suite `search` names beside; their losses are below. Empty: the rate is borrowed from "
       "a method that was "
       "searched, or nothing is trained. The head of suites/search.toml says what else was looked "
       "at: for "
       "one-stage LTE some thirty settings of its form, which are not recorded."},
      {"Active fraction at a permitted perplexity",
       "where a method's curve (loss over active fraction, linear between its points, the dense "
       "model of its protocol at 1) crosses the dense control's perplexity + p %, coming from the "
       "dense end; in brackets the 90 % interval of 1,000 bootstrap resamples of the seeds, which "
       "for a "
       "method run with one seed is the control's spread only. ~: the crossing lies above the "
       "densest fraction that was run, on the straight line to the dense model, and has no "
       "interval. ≤: the "
       "sparsest point is still within; none: no point is."},
      {"Predictor recall / precision",
       "on other windows drawn from the training text: of the experts that matter, those that were "
       "predicted; of those "
       "predicted, those that matter. The mean over layers, every layer seeing the layers below "
       "with all gates open; the "
       "predicted density comes near the active fraction."},
      {"Calibration tokens", "training text that was looked at without training on it."},
      {"Seeds",
       "the seeds of a row share one base model and differ in clustering, routers, calibration and "
       "batches."},
      {"Bound",
       "dense bytes / bytes: how many times faster a decode can get that is limited by "
       "memory."},
      {"Union",
       "the share of experts that at least one of 1, 2, 4, 8 or 16 consecutive tokens "
       "activates: what a batch of them has to load."},
      {"Triangle at the edge of a plot", "a point beyond the axis; its numbers are in the table."},
  };
}

std::string unique(std::string name, std::set<std::string>& taken) {
  const std::string first = name;
  for (int i = 2; !taken.insert(name).second; ++i) name = fmt::format("{}-{}", first, i);
  return name;
}

// What the group's records say of their machines; of differing values the first and the last.
Facts machine_of(const Group& g) {
  std::map<std::string, std::set<std::string>> values;
  for (const Record* r : g.records) {
    for (const auto& [key, value] : r->machine) values[key].insert(value);
  }
  Facts facts;
  for (const auto& [key, all] : values) {
    std::string text = *all.begin();
    if (all.size() == 2) text += fmt::format("; {}", *all.rbegin());
    if (all.size() > 2) text += fmt::format(" … {} ({} values)", *all.rbegin(), all.size());
    facts.emplace_back(key, text);
  }
  return facts;
}

Section section_of(const Group& g, std::set<std::string>& taken) {
  const bool search = g.records.front()->split != "test";  // settings, not results: no plots
  Section s{.title = fmt::format("{}: {} on {}{}", g.suite, g.model, g.dataset,
                                 search ? " (validation split)" : ""),
            .anchor = unique(slug(fmt::format("{}-{}-{}", g.suite, g.model, g.dataset)), taken),
            .tables = search ? std::vector{trials_table(g)} : tables_of(g),
            .notes = g.fixed,
            .figures = {},
            .machine = machine_of(g)};
  if (!search) s.figures = figures_of(g, s.anchor);
  return s;
}

Page page_of(std::span<const Record> records, std::span<const Verdict> verdicts) {
  Page p{.title = "Results of the LTE benchmark suite",
         .about =
             "Generated from the records; do not edit. Every number comes from runs in which "
             "one forward pass gave quality, active fraction, FLOPs, bytes and time together.",
         .claims = claims_table(verdicts),
         .no_records = "There are no records yet: run a suite, then generate this page again.",
         .sections = {},
         .guide = guide()};
  std::set<std::string> taken = {"claims", "guide", "results", "permitted"};
  const std::vector<Group> groups = group_records(records);
  if (Section s = permitted_section(groups); !s.tables.empty()) p.sections.push_back(std::move(s));
  for (const Group& g : groups) p.sections.push_back(section_of(g, taken));
  return p;
}

std::string padded(const std::string& cell, size_t width, bool right) {
  const std::string space(width - std::min(width, svg::length(cell)), ' ');
  return right ? space + cell : cell + space;
}

constexpr size_t kReasonChars = 46;  // of the last column, so that a line fits a terminal

std::string text_table(Table t) {
  for (auto& row : t.rows) row.back() = svg::shorten(row.back(), kReasonChars);
  std::vector<size_t> width;
  for (size_t c = 0; c < t.columns.size(); ++c) {
    width.push_back(svg::length(t.columns[c].title));
    for (const auto& row : t.rows) width[c] = std::max(width[c], svg::length(row[c]));
  }
  std::string rule = "+", head = "|", body;
  for (size_t c = 0; c < width.size(); ++c) {
    rule += std::string(width[c] + 2, '-') + "+";
    head += fmt::format(" {} |", padded(t.columns[c].title, width[c], t.columns[c].number));
  }
  for (const auto& row : t.rows) {
    body += "|";
    for (size_t c = 0; c < width.size(); ++c) {
      body += fmt::format(" {} |", padded(row[c], width[c], t.columns[c].number));
    }
    body += "\n";
  }
  return fmt::format("{0}\n{1}\n{2}\n{1}\n{3}{1}\n", t.caption, rule, head, body);
}

}  // namespace

std::string slug(std::string_view raw) {
  std::string out;
  for (char c : raw) {
    const bool capital = c >= 'A' && c <= 'Z';
    const bool kept = capital || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.';
    if (kept) {
      out += capital ? static_cast<char>(c - 'A' + 'a') : c;
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  while (!out.empty() && (out.back() == '-' || out.back() == '.')) out.pop_back();
  return out.empty() ? "results" : out;
}

Report make_report(std::span<const Record> records, std::span<const Verdict> verdicts) {
  const Page page = page_of(records, verdicts);
  Report report{.markdown = page_markdown(page), .html = page_html(page), .svg = {}};
  for (const Section& s : page.sections) {
    for (const Figure& f : s.figures) report.svg[f.name + ".svg"] = f.svg;
  }
  return report;
}

std::string console_table(std::span<const Record> records) {
  if (records.empty()) return "no records\n";
  std::string out;
  for (const Group& g : group_records(records)) {
    if (!out.empty()) out += "\n";
    out += text_table(console_columns(g));
  }
  return out;
}

}  // namespace lte
