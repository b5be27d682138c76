#include "bench/claims.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/files.h"
#include "core/statistics.h"
#include "model/score.h"

namespace lte {
namespace {

// As a knob's value in a selection: the experiment does not set it.
constexpr const char* kUnset = "unset";

// Which records a side of a claim speaks of, of those on a test split: every key that is given must agree.
struct Selection {
  std::string suite, dataset, model, method, protocol;
  Knobs knobs;

  bool matches(const Record& r) const {
    const Experiment& e = r.what;
    const auto agrees = [](const std::string& want, const std::string& got) {
      return want.empty() || want == got;
    };
    if (r.status != "ok" || r.split != "test" || !agrees(suite, e.suite) ||
        !agrees(dataset, e.base.dataset) || !agrees(model, e.base.model) ||
        !agrees(method, e.method) || !agrees(protocol, e.protocol)) {
      return false;
    }
    return std::all_of(knobs.begin(), knobs.end(), [&](const auto& k) {
      const auto found = e.knobs.find(k.first);
      if (k.second == kUnset) return found == e.knobs.end();
      return found != e.knobs.end() && found->second == k.second;
    });
  }
};

std::vector<const Record*> select(std::span<const Record> records, const Selection& s) {
  std::vector<const Record*> out;
  for (const Record& r : records) {
    if (s.matches(r)) out.push_back(&r);
  }
  return out;
}

// Mean and 95 % interval by Student's t; one value has no interval.
struct Interval {
  double mean = 0, low = 0, high = 0;
  size_t n = 0;
};

// Seeds are what an interval is over: two records of one seed would be two different experiments.
size_t distinct_seeds(const std::vector<const Record*>& records) {
  std::set<uint64_t> seeds;
  for (const Record* r : records) seeds.insert(r->what.seed);
  return seeds.size();
}

Interval interval_of(const std::vector<const Record*>& records) {
  static constexpr double kT[] = {12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262};
  Interval i{.n = records.size()};
  for (const Record* r : records) i.mean += r->quality.loss / static_cast<double>(i.n);
  double square = 0;
  for (const Record* r : records) square += std::pow(r->quality.loss - i.mean, 2);
  if (i.n < 2) return i.low = i.high = i.mean, i;
  const auto n = static_cast<double>(i.n);
  const double t = kT[std::min<size_t>(i.n - 2, std::size(kT) - 1)];
  const double half = t * std::sqrt(square / (n - 1) / n);
  i.low = i.mean - half, i.high = i.mean + half;
  return i;
}

struct Claim {
  const toml::table& t;
  const std::string& path;
  Verdict v;

  std::string text(const char* key, const char* otherwise = "") const {
    return t[key].value_or(std::string(otherwise));
  }
  double number(const char* key) const {
    const auto value = t[key].value<double>();
    LTE_CHECK(value, fmt::format("{}:{}: claim {} wants a number '{}'", path, t.source().begin.line,
                                 v.id, key));
    return *value;
  }
  std::set<std::string> names(const char* key) const {
    std::set<std::string> found;
    const toml::array* list = t[key].as_array();
    for (const toml::node& n : list ? *list : toml::array{})
      found.insert(n.value_or(std::string()));
    return found;
  }
  Selection selection(const char* key) const {
    Selection s{.suite = text("suite"),
                .dataset = text("dataset"),
                .model = text("model"),
                .method = "",
                .protocol = "",
                .knobs = {}};
    const toml::table* side = t[key].as_table();
    LTE_CHECK(side, fmt::format("{}:{}: claim {} wants a table '{}'", path, t.source().begin.line,
                                v.id, key));
    for (const auto& [name, node] : *side) {
      const auto value = node.value<std::string>();
      LTE_CHECK(value, fmt::format("{}:{}: claim {}: {}.{} wants a string", path,
                                   node.source().begin.line, v.id, key, name.str()));
      if (name == "method") {
        s.method = *value;
      } else if (name == "protocol") {
        s.protocol = *value;
      } else if (name == "dataset") {
        s.dataset = *value;
      } else if (name == "model") {
        s.model = *value;
      } else {
        s.knobs[std::string(name.str())] = *value;
      }
    }
    return s;
  }
};

double mean_of(const std::vector<const Record*>& records, double (*value)(const Record&)) {
  std::vector<double> all;
  for (const Record* r : records) all.push_back(value(*r));
  return lte::mean_of(all);
}

double mean_active(const std::vector<const Record*>& records) {
  return mean_of(records, [](const Record& r) { return r.quality.active; });
}

// `better` has a lower loss than `than`, with disjoint 95 % intervals over at least three seeds
// each.
void judge_better(Claim& c, std::span<const Record> records) {
  const auto left = select(records, c.selection("better")),
             right = select(records, c.selection("than"));
  const Interval a = interval_of(left), b = interval_of(right);
  c.v.expected = "lower loss, disjoint 95 % intervals, at least 3 seeds each";
  if (a.n == 0 || b.n == 0) return;
  if (distinct_seeds(left) < a.n || distinct_seeds(right) < b.n) {
    c.v.measured =
        "several experiments fit this claim; it must name more knobs, the model or the dataset";
    return;
  }
  c.v.measured = fmt::format(
      "{:.3f} [{:.3f}, {:.3f}] (n={}, active {:.3f}) against {:.3f} [{:.3f}, {:.3f}] (n={}, "
      "active {:.3f})",
      a.mean, a.low, a.high, a.n, mean_active(left), b.mean, b.low, b.high, b.n,
      mean_active(right));
  if (a.n < 3 || b.n < 3) return;
  c.v.verdict = a.high < b.low ? "reproduced" : "not reproduced";
}

// The seeds of one experiment, by its name without them.
std::map<std::string, std::vector<const Record*>> rows_of(
    const std::vector<const Record*>& records) {
  std::map<std::string, std::vector<const Record*>> rows;
  for (const Record* r : records) {
    Experiment e = r->what;
    e.seed = e.base.seed = 0;
    rows[name_of(e)].push_back(r);
  }
  return rows;
}

// `better` has a lower loss than every row of `than` of another method, with disjoint 95 % intervals. Rows of
// fewer than three seeds, the methods of `except` and rows of more than `flops` times its FLOPs are not judged.
void judge_ahead(Claim& c, std::span<const Record> records) {
  const auto left = select(records, c.selection("better"));
  const Interval a = interval_of(left);
  const std::set<std::string> except = c.names("except");
  const double most = c.t.contains("flops") ? c.number("flops") : INFINITY;
  c.v.expected =
      fmt::format("lower loss than each of the others{}, disjoint 95 % intervals, at least 3 seeds",
                  std::isfinite(most) ? fmt::format(" of at most {} times its FLOPs", most) : "");
  if (a.n < 3 || distinct_seeds(left) < a.n) return;
  const auto flops = [](const Record& r) { return r.quality.cost.flops_paper; };
  int judged = 0, beaten = 0, few = 0, costly = 0;
  Interval closest;
  std::string name;
  for (const auto& [key, row] : rows_of(select(records, c.selection("than")))) {
    const Experiment& e = row[0]->what;
    if (e.method == left[0]->what.method || except.contains(e.method)) continue;
    const Interval b = interval_of(row);
    if (b.n < 3) {
      ++few;
      continue;
    }
    if (mean_of(row, flops) > most * mean_of(left, flops)) {
      ++costly;
      continue;
    }
    ++judged, beaten += a.high < b.low;
    if (name.empty() || b.mean < closest.mean) {
      closest = b, name = e.method;
      if (e.knobs.contains("score")) name += " " + e.knobs.at("score");
    }
  }
  if (judged == 0) return;
  c.v.measured = fmt::format(
      "{:.3f} [{:.3f}, {:.3f}] (n={}): ahead of {} of {}; the best of them {} with {:.3f} [{:.3f}, "
      "{:.3f}]{}{}",
      a.mean, a.low, a.high, a.n, beaten, judged, name, closest.mean, closest.low, closest.high,
      few > 0 ? fmt::format("; {} with fewer seeds", few) : "",
      costly > 0 ? fmt::format("; {} cost more", costly) : "");
  c.v.verdict = beaten == judged ? "reproduced" : "not reproduced";
}

// For every row of `than` of another method some row of `better` computes no more FLOPs (paper convention, selectors
// counted) and has a lower loss, with disjoint 95 % intervals. Rows of fewer than three seeds, rows that cost less than
// any of `better` and the methods of `except` are not judged.
void judge_frontier(Claim& c, std::span<const Record> records) {
  struct Point {
    Interval loss;
    double flops;  // over the dense model's
  };
  const auto point = [](const std::vector<const Record*>& row) {
    return Point{interval_of(row), mean_of(row, [](const Record& r) {
                   return r.quality.cost.flops_paper / r.dense_cost.flops_paper;
                 })};
  };
  std::vector<Point> ours;
  std::set<std::string> except = c.names("except");
  for (const auto& [key, row] : rows_of(select(records, c.selection("better")))) {
    except.insert(row[0]->what.method);
    if (row.size() >= 3) ours.push_back(point(row));
  }
  c.v.expected =
      "for each of the others a row of no more FLOPs and lower loss, disjoint 95 % intervals, "
      "at least 3 seeds each";
  int judged = 0, beaten = 0, cheaper = 0;
  std::string open;
  double most = -1e300;
  for (const auto& [key, row] : rows_of(select(records, c.selection("than")))) {
    if (row.size() < 3 || except.contains(row[0]->what.method)) continue;
    const Point theirs = point(row);
    const Point* best = nullptr;
    bool ahead = false;
    for (const Point& p : ours) {
      if (p.flops > theirs.flops * (1 + 1e-9)) continue;
      if (!best || p.loss.mean < best->loss.mean) best = &p;
      ahead |= p.loss.high < theirs.loss.low;
    }
    if (!best) {
      ++cheaper;
      continue;
    }
    ++judged, beaten += ahead;
    if (ahead || best->loss.mean - theirs.loss.mean < most) continue;
    most = best->loss.mean - theirs.loss.mean;
    open = fmt::format(
        "; not of {} with {:.3f} [{:.3f}, {:.3f}] at {:.3f} of the FLOPs: {:.3f} [{:.3f}, {:.3f}] "
        "at {:.3f}",
        row[0]->what.method, theirs.loss.mean, theirs.loss.low, theirs.loss.high, theirs.flops,
        best->loss.mean, best->loss.low, best->loss.high, best->flops);
  }
  if (judged == 0) return;
  c.v.measured = fmt::format("below {} of {} rows{}{}", beaten, judged, open,
                             cheaper > 0 ? fmt::format("; {} cost less than any", cheaper) : "");
  c.v.verdict = beaten == judged ? "reproduced" : "not reproduced";
}

// The active fraction falls with a knob, and spans at least [low, high].
void judge_monotone(Claim& c, std::span<const Record> records) {
  const std::string knob = c.text("knob");
  LTE_CHECK(!knob.empty(),
            fmt::format("{}:{}: claim {} wants a 'knob'", c.path, c.t.source().begin.line, c.v.id));
  const double low = c.number("low"), high = c.number("high");
  c.v.expected =
      fmt::format("active fraction falls with {} from at least {} to at most {}", knob, high, low);
  std::map<double, std::pair<double, int>> points;  // knob -> sum, count
  for (const Record* r : select(records, c.selection("select"))) {
    const auto found = r->what.knobs.find(knob);
    if (found == r->what.knobs.end()) continue;
    const Knobs one{{knob, found->second}};
    auto& [sum, n] = points[get_number(one, knob, -1e300, 1e300)];
    sum += r->quality.active, ++n;
  }
  if (points.size() < 3) return;
  bool falls = true;
  double first = 0, last = 2;
  for (const auto& [value, point] : points) {
    const double active = point.first / point.second;
    c.v.measured +=
        fmt::format("{}{}={}: {:.3f}", c.v.measured.empty() ? "" : ", ", knob, value, active);
    if (last > 1.5) first = active;
    falls &= active < last;
    last = active;
  }
  c.v.verdict = falls && first >= high && last <= low ? "reproduced" : "not reproduced";
}

// What a permitted loss is told in: a share of the dense control's mean loss, or as in LTE's Table 1 a rise of the
// perplexity by tokens, or a fall of ROUGE-L.
struct Permitted {
  const char* key;
  double (*value)(const Record&);  // NaN: the record has none
  double sign;                     // of what is worse
  bool relative;                   // told in per cent of the dense control's
  const char *expected, *measured;
};
constexpr Permitted kPermitted[] = {
    {"loss", [](const Record& r) { return r.quality.loss; }, 1, true, "{:.3g} % of its loss",
     "{:+.2f} % loss"},
    {"ppl", [](const Record& r) { return r.token_ppl; }, 1, false, "{:.3g} of its perplexity",
     "perplexity {:+.3f}"},
    {"rouge_l", [](const Record& r) { return r.rouge_l.value_or(NAN); }, -1, false,
     "{:.3g} of its ROUGE-L", "ROUGE-L {:+.4f}"},
};

// Some row of at least three seeds computes at most 1/ratio of the dense FLOPs (paper convention), and
// loses at most what is permitted to `reference`, over at least three seeds too: the mean of `loss`, `ppl` or `rouge_l`.
void judge_within(Claim& c, std::span<const Record> records) {
  const double ratio = c.number("ratio");
  const auto* unit = std::find_if(std::begin(kPermitted), std::end(kPermitted),
                                  [&](const Permitted& p) { return c.t.contains(p.key); });
  LTE_CHECK(unit != std::end(kPermitted),
            fmt::format("{}:{}: claim {} wants a number 'loss', 'ppl' or 'rouge_l'", c.path,
                        c.t.source().begin.line, c.v.id));
  const double permitted = c.number(unit->key), told = unit->relative ? 100 : 1;
  c.v.expected = fmt::format("FLOPs at most 1/{} of dense within {}", ratio,
                             fmt::format(fmt::runtime(unit->expected), permitted * told));
  double best_off = 0, best_ratio = 0;
  bool decidable = false;
  const Record* best = nullptr;
  for (const auto& [name, row] : rows_of(select(records, c.selection("select")))) {
    Selection same = c.selection("reference");
    same.dataset = row[0]->what.base.dataset, same.model = row[0]->what.base.model;
    const auto dense = select(records, same);
    const double was = mean_of(dense, unit->value), is = mean_of(row, unit->value);
    if (dense.size() < 3 || row.size() < 3 || !std::isfinite(is - was)) continue;
    const double flops = mean_of(row, [](const Record& r) { return r.quality.cost.flops_paper; });
    const double reached = row[0]->dense_cost.flops_paper / flops;
    decidable = true;
    if (reached < ratio) continue;
    const double off = unit->relative ? is / was - 1 : is - was;
    if (!best || off * unit->sign < best_off * unit->sign)
      best = row[0], best_off = off, best_ratio = reached;
  }
  if (best) {
    c.v.measured = fmt::format(
        "{} on {}: {} at 1/{:.2f} of the FLOPs", best->what.method, best->what.base.dataset,
        fmt::format(fmt::runtime(unit->measured), best_off * told), best_ratio);
    c.v.verdict = best_off * unit->sign <= permitted ? "reproduced" : "not reproduced";
  } else if (decidable) {
    c.v.measured =
        fmt::format("no row of three seeds computes at most 1/{} of the dense FLOPs", ratio);
  }
}

// Mean losses of two sides, over at least three seeds each, differ by at most `within` of them.
void judge_close(Claim& c, std::span<const Record> records) {
  const double within = c.number("within");
  const auto left = select(records, c.selection("left")),
             right = select(records, c.selection("right"));
  const Interval a = interval_of(left), b = interval_of(right);
  c.v.expected = fmt::format("mean losses within {:.3g} %, at least 3 seeds each", 100 * within);
  if (a.n < 3 || b.n < 3 || distinct_seeds(left) < a.n || distinct_seeds(right) < b.n) return;
  c.v.measured = fmt::format("{:.4f} (n={}) against {:.4f} (n={})", a.mean, a.n, b.mean, b.n);
  c.v.verdict = std::abs(a.mean / b.mean - 1) <= within ? "reproduced" : "not reproduced";
}

// Over the selected records, the mean difference between the densest and the sparsest layer, and
// between the 99th percentile and the median of tokens, are at least `layers` and `tokens`.
void judge_varies(Claim& c, std::span<const Record> records) {
  const double layers = c.number("layers"), tokens = c.number("tokens");
  c.v.expected = fmt::format("layers differ by at least {}, tokens (p99 - p50) by at least {}",
                             layers, tokens);
  double layer = 0, token = 0, n = 0;
  for (const Record* r : select(records, c.selection("select"))) {
    const auto& all = r->quality.active_layer;
    if (all.size() < 2) continue;
    const auto [low, high] = std::minmax_element(all.begin(), all.end());
    layer += *high - *low, token += r->quality.active_p99 - r->quality.active_p50, ++n;
  }
  if (n < 3) return;
  c.v.measured = fmt::format("layers {:.3f}, tokens {:.3f} (n={})", layer / n, token / n, n);
  c.v.verdict = layer / n >= layers && token / n >= tokens ? "reproduced" : "not reproduced";
}

// What 16 consecutive tokens activate together is smaller by the factor `ratio` at least: than if each chose by itself,
// 1 - (1 - p)^16 at a mean fraction of p, or, with `reference`, than what is activated there.
void judge_union(Claim& c, std::span<const Record> records) {
  const double ratio = c.number("ratio");
  const bool other = c.t.contains("reference");
  const auto unions = [](const Record& r) { return r.quality.active_union.back(); };
  const auto rows = select(records, c.selection("select"));
  const auto against = other ? select(records, c.selection("reference")) : rows;
  const double many = mean_of(rows, unions);
  const double bound = other ? mean_of(against, unions) : mean_of(rows, [](const Record& r) {
    return 1 - std::pow(1 - r.quality.active_union.front(), kUnions.back());
  });
  c.v.expected = fmt::format(
      "union of {} tokens at most 1/{} of that of {}", kUnions.back(), ratio,
      other ? against.empty() ? "the other" : against[0]->what.method : "independent choices");
  if (rows.size() < 3 || against.size() < 3 || !std::isfinite(many + bound)) return;
  c.v.measured = fmt::format("{:.3f} of the neurons (active {:.3f}, n={}) against {:.3f}", many,
                             mean_active(rows), rows.size(), bound);
  c.v.verdict = many * ratio <= bound ? "reproduced" : "not reproduced";
}

constexpr struct {
  const char* name;
  void (*judge)(Claim&, std::span<const Record>);
} kKinds[] = {{"better", judge_better},     {"ahead", judge_ahead},   {"frontier", judge_frontier},
              {"monotone", judge_monotone}, {"within", judge_within}, {"close", judge_close},
              {"varies", judge_varies},     {"union", judge_union}};

Verdict judge_one(const toml::table& t, const std::string& path, const std::string& suite,
                  std::span<const Record> records) {
  Claim c{.t = t, .path = path, .v = {}};
  c.v = {.id = c.text("id"),
         .statement = c.text("statement"),
         .expected = "",
         .measured = "",
         .verdict = "not run",
         .suite = suite};
  static const std::set<std::string> kKeys = {
      "id",        "statement", "kind",  "dataset", "model",  "better", "than",  "select",
      "reference", "knob",      "low",   "high",    "ratio",  "loss",   "ppl",   "rouge_l",
      "flops",     "left",      "right", "within",  "layers", "tokens", "except"};
  for (const auto& [key, node] : t) {
    const std::string name(key.str());
    LTE_CHECK(kKeys.contains(name), fmt::format("{}:{}: unknown key '{}' of a claim", path,
                                                node.source().begin.line, name));
    const bool text = name == "id" || name == "statement" || name == "kind" || name == "dataset" ||
                      name == "model" || name == "knob";
    LTE_CHECK(!text || node.is_string(),
              fmt::format("{}:{}: '{}' wants a text", path, node.source().begin.line, name));
  }
  LTE_CHECK(!c.v.id.empty(), fmt::format("{}:{}: a claim has no id", path, t.source().begin.line));
  const std::string kind = c.text("kind");
  std::string known;
  for (const auto& k : kKinds) {
    if (kind == k.name) return k.judge(c, records), c.v;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", k.name);
  }
  fail(fmt::format("{}:{}: claim {}: unknown kind '{}'; known: {}", path, t.source().begin.line,
                   c.v.id, kind, known));
}

// The suites that have records, the one with most of them first.
std::vector<std::pair<std::string, std::vector<Record>>> by_suite(std::span<const Record> records) {
  std::map<std::string, std::vector<Record>> suites;
  for (const Record& r : records) suites[r.what.suite].push_back(r);
  std::vector<std::pair<std::string, std::vector<Record>>> list(suites.begin(), suites.end());
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  if (list.empty()) list.emplace_back();
  return list;
}

bool of_any_text(const toml::table& claim) {
  return claim["kind"].value_or(std::string()) == "within" && !claim.contains("dataset");
}

}  // namespace

std::vector<Verdict> judge(const std::string& path, std::span<const Record> records) {
  toml::table root;
  try {
    root = toml::parse(read_file(path), path);
  } catch (const toml::parse_error& e) {
    fail(fmt::format("{}:{}: {}", path, e.source().begin.line, e.description()));
  }
  const toml::array* list = root["claim"].as_array();
  LTE_CHECK(list, fmt::format("{}: has no [[claim]]", path));
  const auto suites = by_suite(records);
  std::vector<Verdict> verdicts;
  for (const toml::node& node : *list) {
    LTE_CHECK(node.is_table(), fmt::format("{}: claim wants [[claim]] tables", path));
    Verdict v;
    for (const auto& [suite, own] : suites) {  // on any text: the first suite where it holds
      const Verdict one = judge_one(*node.as_table(), path, suite, own);
      const bool says_more = one.verdict != "not run" || v.measured.empty();
      if (v.verdict == "not reproduced" ? one.verdict == "reproduced" : says_more) v = one;
      if (v.verdict == "reproduced") break;
      if (v.verdict == "not reproduced" && !of_any_text(*node.as_table())) break;
    }
    verdicts.push_back(std::move(v));
  }
  return verdicts;
}

}  // namespace lte
