#include "bench/report.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <limits>
#include <set>

#include "bench/report_parts.h"
#include "bench/svg.h"
#include "bench/svg_parts.h"

namespace lte {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Empty if every tag is closed in order and every ampersand starts an entity; else what is wrong.
std::string markup_error(std::string_view text, const std::set<std::string>& void_tags = {}) {
  std::vector<std::string> open;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '&') {
      const size_t end = text.find(';', i);
      if (end == std::string_view::npos || end > i + 8) return "a bare ampersand";
    }
    if (text[i] == '>') return "a bare >";
    if (text[i] != '<') continue;
    const size_t end = text.find('>', i);
    if (end == std::string_view::npos) return "an open tag";
    const std::string_view tag = text.substr(i + 1, end - i - 1);
    i = end;
    if (tag.find('<') != std::string_view::npos) return "< in a tag";
    if (tag[0] == '!') continue;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return fmt::format("stray <{}>", tag);
      open.pop_back();
    } else if (tag.back() != '/') {
      const std::string name(tag.substr(0, tag.find_first_of(" \n")));
      if (!void_tags.contains(name)) open.push_back(name);
    }
  }
  return open.empty() ? "" : "never closed: " + open.back();
}

// Whether `word` stands anywhere in the text on its own, in any case.
bool has_word(std::string text, std::string_view word) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const bool starts = at == 0 || !std::isalpha(static_cast<unsigned char>(text[at - 1]));
    const size_t end = at + word.size();
    if (starts && (end == text.size() || !std::isalpha(static_cast<unsigned char>(text[end])))) {
      return true;
    }
  }
  return false;
}

void expect_good_svg(const std::string& svg) {
  EXPECT_EQ(markup_error(svg), "") << svg;
  EXPECT_TRUE(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  EXPECT_FALSE(has_word(svg, "nan") || has_word(svg, "inf")) << svg;
}

size_t count(std::string_view text, std::string_view part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

Record record(std::string method, Knobs knobs, uint64_t seed, double loss, double active) {
  Record r;
  r.what.suite = "tradeoff";
  r.what.method = std::move(method), r.what.knobs = std::move(knobs), r.what.seed = seed;
  r.status = "ok";
  r.quality.loss = loss, r.quality.active = active;
  r.quality.active_layer = {active, active};
  r.quality.active_union = {active, active, active, active, active};
  r.quality.cost = {.flops_paper = 1000 + 1000 * active, .flops_full = 3000, .bytes = 500};
  r.dense_cost = {.flops_paper = 2000, .flops_full = 4000, .bytes = 1000};
  r.token_ppl = std::exp(loss);
  r.decode = Timing{.median = 50, .mad = 1, .repetitions = 9};
  r.decode_speedup = 1.6, r.ideal_decode = 2.0;
  r.machine = {{"cpu", "a processor"}, {"date", fmt::format("day {}", seed)}};
  return r;
}

std::vector<Record> some_records() {
  std::vector<Record> all = {record("dense", {}, 0, 1.0, 1.0)};
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (const char* active : {"0.5", "0.25"}) {
      const double a = std::stod(active);
      all.push_back(record("lte-one-stage", {{"active", active}, {"steps", "600"}}, seed,
                           1.1 + 0.1 * static_cast<double>(seed), a));
      all.push_back(record("prune", {{"active", active}, {"score", "wanda"}}, seed, 2 - a, a));
      all.back().what.protocol = "paper";
    }
    all[all.size() - 2].histograms = {{"before", {{1, 2}, {3, 4}}}, {"train", {{5, 0}, {0, 0}}}};
  }
  return all;
}

std::vector<const Record*> pointers(const std::vector<Record>& records) {
  std::vector<const Record*> all;
  for (const Record& r : records) all.push_back(&r);
  return all;
}

TEST(Svg, IsWellFormedAndRepeatable) {
  const Plot p{
      .title = "a < b & \"c\"",
      .x = {.label = "x"},
      .y = {.label = "y>"},
      .series = {{.name = "one", .x = {0, 1}, .y = {2, 3}, .y_low = {1, 2}, .y_high = {3, 4}}},
      .levels = {{"level", 2.5, Stroke::dashed}}};
  expect_good_svg(draw(p));
  EXPECT_EQ(draw(p), draw(p));
  EXPECT_NE(draw(p).find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
}

TEST(Svg, LeavesOutWhatIsNotFinite) {
  const Series s{.name = "s",
                 .x = {0, 1, 2, kNan, 4},
                 .y = {1, kNan, kInf, 1, 2},
                 .y_low = {kNan, 0, 0, 0, -kInf},
                 .y_high = {1, 1, 1, 1, 3}};
  const std::string svg =
      draw(Plot{.title = "t", .series = {s}, .levels = {{"lost", kNan}, {"far", kInf}}});
  expect_good_svg(svg);
  EXPECT_EQ(count(svg, "<circle"), 3u);  // two points, and the legend's
}

TEST(Svg, SurvivesLittleData) {
  expect_good_svg(draw(Plot{}));
  EXPECT_NE(draw(Plot{}).find("no data"), std::string::npos);
  const Series empty{.name = "empty"}, point{.name = "point", .x = {3}, .y = {0}};
  expect_good_svg(draw(Plot{.series = {empty}}));
  expect_good_svg(draw(Plot{.series = {point, empty}}));
  for (double huge : {1e300, -1e300, 1e-300, 5e-324}) {
    const Series s{.x = {huge, huge, 1}, .y = {huge, 0, 1}};
    expect_good_svg(draw(Plot{.series = {s}}));
    expect_good_svg(draw(Plot{.x = {.log = true}, .y = {.log = true}, .series = {s}}));
  }
  const Series below{.x = {-1, 0, 1}, .y = {-1, 0, 1}};  // a log axis has no place for two of them
  expect_good_svg(draw(Plot{.x = {.log = true}, .y = {.log = true}, .series = {below}}));
  expect_good_svg(draw(Bars{}));
  expect_good_svg(draw(Bars{.groups = {"a", "b"}, .names = {"s"}, .values = {{kNan}}}));
  expect_good_svg(draw(Histograms{}));
  expect_good_svg(draw(Histograms{.columns = 0, .panels = {{"none", {}}, {"zero", {0, 0}}}}));
}

TEST(Svg, MarksPointsBeyondTheAxis) {
  Plot p{.series = {{.x = {0, 1}, .y = {1, 9}}}};
  EXPECT_EQ(draw(p).find("beyond the axis"), std::string::npos);
  p.y.range = {0.0, 2.0};
  EXPECT_NE(draw(p).find("beyond the axis"), std::string::npos);
}

TEST(Svg, TicksAreRound) {
  EXPECT_EQ(svg::tick_labels(svg::ticks_of({.low = 0, .high = 1.02}, 6)),
            (std::vector<std::string>{"0.0", "0.2", "0.4", "0.6", "0.8", "1.0"}));
  EXPECT_EQ(svg::tick_labels(svg::ticks_of({.low = 1.31, .high = 1.38}, 4)),
            (std::vector<std::string>{"1.32", "1.34", "1.36", "1.38"}));
  EXPECT_EQ(svg::tick_labels(svg::ticks_of({.low = 1, .high = 60, .log = true}, 6)),
            (std::vector<std::string>{"1", "2", "5", "10", "20", "50"}));
}

TEST(Rows, MeanAndDeviationOverSeeds) {
  const std::vector<double> values = {1.0, 2.0, kNan, 6.0};
  const Stat s = stat_of(values);  // mean 3, squares 4 + 1 + 9 = 14, sd = sqrt(14 / 2)
  EXPECT_EQ(s.n, 3);
  EXPECT_DOUBLE_EQ(s.mean, 3);
  EXPECT_DOUBLE_EQ(s.sd, std::sqrt(7.0));
  EXPECT_EQ(s.low, 1);
  EXPECT_EQ(s.high, 6);
  EXPECT_EQ(stat_of({}).n, 0);
  EXPECT_EQ(median_of({4, 1, kInf, 3}), 3);

  const std::vector<Record> records = some_records();
  const std::vector<Group> groups = group_records(records);
  ASSERT_EQ(groups.size(), 1u);
  ASSERT_EQ(groups[0].rows.size(), 5u);
  const Row& row = groups[0].rows[1];
  EXPECT_EQ(row.label, "lte-one-stage active=0.5");
  const Stat loss = over_seeds(row, [](const Record& r) { return r.quality.loss; });
  EXPECT_NEAR(loss.mean, 1.2, 1e-12);
  EXPECT_NEAR(loss.sd, 0.1, 1e-12);
  EXPECT_NE(make_report(records, {}).markdown.find("| 1.2000 ± 0.1000 (3) |"), std::string::npos);
}

TEST(Rows, LabelsNameOnlyWhatDiffers) {
  std::vector<Record> r = some_records();
  EXPECT_EQ(row_label(r[0], pointers(r)), "dense");
  EXPECT_EQ(row_label(r[1], pointers(r)), "lte-one-stage active=0.5");
  EXPECT_EQ(curve_label(r[1], pointers(r)), "lte-one-stage");
  EXPECT_EQ(row_label(r[2], pointers(r)), "prune active=0.5");
  r[2].what.knobs["score"] = "magnitude";
  EXPECT_EQ(row_label(r[2], pointers(r)), "prune active=0.5 score=magnitude");
  EXPECT_EQ(curve_label(r[2], pointers(r)), "prune score=magnitude");
  r[1].what.knobs["steps"] = "9";
  r[1].what.protocol = "paper";  // now the only one of its method and protocol
  EXPECT_EQ(row_label(r[1], pointers(r)), "lte-one-stage");
  r[0].what.backend = "cpu+simd";
  EXPECT_EQ(row_label(r[0], pointers(r)), "dense backend=cpu+simd");
}

TEST(Rows, SharedKnobsAreListedOnce) {
  const std::vector<Record> records = some_records();
  const std::string page = make_report(records, {}).markdown;
  EXPECT_EQ(count(page, "steps=600"), 1u);
  EXPECT_EQ(count(page, "- lte-one-stage (equal budget): steps=600\n"), 1u);
}

TEST(Rows, BackendsAndSuitesDoNotMix) {
  std::vector<Record> r = {record("dense", {}, 0, 1, 1), record("dense", {}, 0, 1, 1)};
  r[1].what.backend = "cuda";
  EXPECT_EQ(group_records(r)[0].rows.size(), 2u);
  r[1].what.suite = "other";
  EXPECT_EQ(group_records(r).size(), 2u);
}

TEST(Svg, CompactKeepsTextAndNumbers) {
  EXPECT_EQ(svg::compact("<text x=\"1.0\" y=\"2.05\" text-anchor=\"start\">1.0 of 2.0</text>"),
            "<text x=\"1\" y=\"2.05\">1.0 of 2.0</text>");
  EXPECT_EQ(svg::compact("<path d=\"M0.0 10.0v-1.05\"/>"), "<path d=\"M0 10v-1.05\"/>");
}

TEST(Report, FailedRecordsAreRows) {
  std::vector<Record> r = some_records();
  r[1].status = "failed", r[1].why = "digest differs", r[1].quality.loss = kNan;
  const Report report = make_report(r, {});
  for (const std::string& text : {report.markdown, report.html, console_table(r)}) {
    EXPECT_NE(text.find("failed: digest differs"), std::string::npos) << text;
    EXPECT_NE(text.find("lte-one-stage active=0.5 (seed 0, failed)"), std::string::npos) << text;
    EXPECT_NE(text.find("1.2500 ± 0.0707 (2)"), std::string::npos);  // of the other two seeds
  }
  for (Record& record : r) record.status = "failed";
  EXPECT_TRUE(make_report(r, {}).svg.empty());
}

TEST(Report, LossThatIsNotFiniteShows) {
  std::vector<Record> r = some_records();
  r[1].quality.loss = kNan;
  EXPECT_NE(make_report(r, {}).markdown.find("1.2500 ± 0.0707 (2), not finite (1)"),
            std::string::npos);
}

// A column is there only where a record fills it.
TEST(Report, TaskMetricsAreColumns) {
  std::vector<Record> r = some_records();
  const std::string without = make_report(r, {}).markdown;
  EXPECT_EQ(without.find("BLEU"), std::string::npos);
  EXPECT_EQ(without.find("exact match"), std::string::npos);
  r[0].bleu = 0.61234, r[0].exact_match = 0.875;
  const std::string with = make_report(r, {}).markdown;
  for (const char* text : {"BLEU (E2E)", "0.6123 (1)", "exact match", "0.875 (1)"}) {
    EXPECT_NE(with.find(text), std::string::npos) << text;
  }
}

TEST(Report, IsWellFormedAndRepeatable) {
  const std::vector<Record> records = some_records();
  const std::vector<Verdict> verdicts = {{.id = "c1",
                                          .statement = "it works",
                                          .expected = "> 0",
                                          .measured = "1",
                                          .verdict = "not reproduced",
                                          .suite = "tradeoff"}};
  const Report a = make_report(records, verdicts), b = make_report(records, verdicts);
  EXPECT_EQ(a.markdown, b.markdown);
  EXPECT_EQ(a.html, b.html);
  EXPECT_EQ(a.svg, b.svg);
  EXPECT_NE(a.html.find("<span class=\"bad\">not reproduced</span>"), std::string::npos);
  EXPECT_GE(a.svg.size(), 6u);
  for (const auto& [name, svg] : a.svg) {
    expect_good_svg(svg);
    EXPECT_NE(a.html.find(svg), std::string::npos) << name;
    EXPECT_NE(a.markdown.find(fmt::format("](plots/{})", name)), std::string::npos);
  }
  const size_t style = a.html.find("<style>"), end = a.html.find("</style>");
  const std::string page = a.html.substr(0, style + 7) + a.html.substr(end);
  EXPECT_EQ(markup_error(page, {"meta"}), "");
  for (const char* link : {"src=", "<script", "<link", "url("}) {
    EXPECT_EQ(a.html.find(link), std::string::npos) << link;
  }
}

TEST(Report, FarRowsDoNotHideTheOthers) {
  std::vector<Record> r = some_records();
  for (Record& record : r) {
    if (record.what.protocol == "paper") record.quality.loss *= 10;
  }
  const Report report = make_report(r, {});
  const std::string name = "tradeoff-gpt2-nano-dialects-loss-active";
  EXPECT_NE(report.svg.at(name + ".svg").find("beyond the axis"), std::string::npos);
  EXPECT_EQ(report.svg.at(name + "-all.svg").find("beyond the axis"), std::string::npos);
}

TEST(Report, RankingIsByLossAndNamesWhatDiffers) {
  std::vector<Record> r = some_records();
  for (const char* group : {"4", "32"})
    r.push_back(record("moefication", {{"active", "0.25"}, {"group", group}}, 0,
                       group[0] == '4' ? 1.05 : 1.5, 0.25));
  const std::string svg = make_report(r, {}).svg.at("tradeoff-gpt2-nano-dialects-ranking.svg");
  const size_t first = svg.find(">moefication group=4 · "), second = svg.find(">lte-one-stage · "),
               third = svg.find(">moefication group=32 · ");
  EXPECT_TRUE(first < second && second < third && third != std::string::npos) << svg;
  EXPECT_EQ(svg.find("active="), std::string::npos) << svg;
  EXPECT_EQ(svg.find("prune"), std::string::npos) << "a row of the paper's protocol";
}

// The names of a ranking stand right-aligned before its axis: a long one moves the axis.
TEST(Report, RankingHasRoomForItsNames) {
  const auto axis = [](const std::string& name) {
    const std::string drawn = draw(Ranking{.title = "t", .lines = {{name, 1, 1, 1, false}}});
    const size_t end = drawn.find("\" y=", drawn.rfind("<text", drawn.find(">" + name)));
    return std::stod(drawn.substr(drawn.rfind('"', end - 1) + 1));
  };
  EXPECT_LT(axis("short"), 400);
  EXPECT_GT(axis(std::string(70, 'm')), 500);
}

// A knob that is searched for makes a curve of its own where a row stands beside it that differs in that alone.
TEST(Report, SearchedLabelsAreACurveOfTheirOwn) {
  std::vector<Record> r = {record("dense", {}, 0, 1.0, 1.0)};
  for (const char* active : {"0.5", "0.25"}) {
    const double a = std::stod(active);
    r.push_back(record("deja-vu", {{"active", active}, {"label_share", "0.25"}}, 0, 1.5 - a, a));
    r.push_back(record("lte-one-stage", {{"active", active}, {"label_share", "0.5"}}, 0, 1, a));
  }
  r.push_back(record("deja-vu", {{"active", "0.25"}}, 0, 9, 0.25));
  const std::string page = make_report(r, {}).markdown;
  EXPECT_NE(page.find("deja-vu label_share (equal budget)"), std::string::npos) << page;
  EXPECT_NE(page.find("deja-vu (equal budget)"), std::string::npos);
  EXPECT_NE(page.find("lte-one-stage (equal budget)"), std::string::npos);
}

TEST(Report, EscapesOddNames) {
  Record r = record("a|b<script>&'\"", {{"active", "0.5"}}, 0, 1, 0.5);
  r.what.suite = "s|x", r.what.base.dataset = "text:<d>/*\nnew*", r.status = "failed";
  r.why = "x < y | z\nnext";
  Record ok = record("a|b<script>", {}, 0, 1, 0.25);
  ok.what.suite = "s|x", ok.what.base.dataset = r.what.base.dataset;
  ok.histograms = {{"<stage>", {{1, 2}}}};
  const std::vector<Record> records = {r, ok};
  const std::vector<Verdict> verdicts = {{.id = "<i>",
                                          .statement = "a | b",
                                          .expected = "`c`",
                                          .measured = "",
                                          .verdict = "not run",
                                          .suite = ""}};
  const Report report = make_report(records, verdicts);
  EXPECT_EQ(report.html.find("<script>"), std::string::npos);
  EXPECT_EQ(report.markdown.find("<script>"), std::string::npos);
  EXPECT_NE(report.markdown.find("failed: x &lt; y \\| z next |"), std::string::npos);
  EXPECT_NE(report.markdown.find("| &lt;i&gt; | a \\| b | \\`c\\` | – | not run |"),
            std::string::npos);
  for (const auto& [name, svg] : report.svg) {
    expect_good_svg(svg);
    EXPECT_EQ(name.find_first_of("/|<>:*\n "), std::string::npos) << name;
  }
}

TEST(Report, OfNothingIsAClearPage) {
  const Report report = make_report({}, {});
  for (const std::string& text : {report.markdown, report.html}) {
    EXPECT_NE(text.find("There are no records yet"), std::string::npos);
    EXPECT_NE(text.find("No claims were judged."), std::string::npos);
  }
  EXPECT_TRUE(report.svg.empty());
  EXPECT_EQ(console_table({}), "no records\n");
}

TEST(Report, ConsoleTableIsAligned) {
  std::vector<Record> r = some_records();
  r.back().status = "failed", r.back().why = std::string(200, 'x');
  const std::string table = console_table(r);
  std::set<size_t> widths;
  size_t lines = 0;
  for (size_t at = table.find('\n') + 1, end; at < table.size(); at = end + 1, ++lines) {
    end = table.find('\n', at);
    widths.insert(svg::length(table.substr(at, end - at)));
  }
  EXPECT_EQ(widths.size(), 1u) << table;
  EXPECT_EQ(lines, 10u);  // three rules, the head, five rows and the failed one
  EXPECT_EQ(table.find(std::string(60, 'x')), std::string::npos);  // long reasons are cut
}

}  // namespace
}  // namespace lte
