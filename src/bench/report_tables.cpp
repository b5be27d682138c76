// The tables of a report: one list of columns each, from which unfilled ones drop out.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "bench/report_parts.h"

namespace lte {
namespace {

// An empty cell is one that the row has nothing to say in.
struct ColumnRule {
  const char* title;
  bool number;
  std::string (*cell)(const Row&);
};

std::string scaled(double value) {
  constexpr std::pair<double, const char*> kUnits[] = {{1e15, " P"}, {1e12, " T"}, {1e9, " G"},
                                                       {1e6, " M"},  {1e3, " k"},  {1, ""}};
  if (!std::isfinite(value)) return "not finite";
  for (const auto& [unit, name] : kUnits) {
    if (value < unit * 0.9995) continue;
    const double v = value / unit;
    return fmt::format("{:.{}f}{}", v, v < 9.995 ? 2 : (v < 99.95 ? 1 : 0), name);
  }
  return fmt::format("{:.3g}", value);
}

std::string short_number(double v) {
  if (v >= 99999.5) return fmt::format("{:.2g}", v);
  return fmt::format("{:.{}f}", v, v < 99.95 ? 2 : 0);
}

std::string micros(double value) {
  return fmt::format("{:.{}f}", value, value < 9.995 ? 2 : (value < 99.95 ? 1 : 0));
}

std::string with_sd(const Stat& s, int digits) {
  if (s.n == 0) return "";
  if (s.n == 1) return fmt::format("{:.{}f} (1)", s.mean, digits);
  return fmt::format("{:.{}f} ± {:.{}f} ({})", s.mean, digits, s.sd, digits, s.n);
}

// Loss that is not finite must be seen, not averaged away.
std::string loss_cell(const Row& row) {
  int lost = 0;
  for (const Record* r : row.records) lost += !row.failed && !std::isfinite(r->quality.loss);
  const std::string mean =
      with_sd(over_seeds(row, [](const Record& r) { return r.quality.loss; }), 4);
  if (lost == 0) return mean;
  return fmt::format("{}{}not finite ({})", mean, mean.empty() ? "" : ", ", lost);
}

std::string mean_of(const Row& row, const Number& number, int digits) {
  const Stat s = over_seeds(row, number);
  return s.n == 0 ? "" : fmt::format("{:.{}f}", s.mean, digits);
}

std::string amount_of(const Row& row, const Number& number) {
  const Stat s = over_seeds(row, number);
  return s.n == 0 ? "" : scaled(s.mean);
}

std::optional<double> ratio(double a, double b) {
  if (b <= 0) return std::nullopt;
  return a / b;
}

std::string perplexity(const Row& row) {
  std::string cell;
  for (double Record::*form : {&Record::token_ppl, &Record::byte_ppl, &Record::word_ppl}) {
    const Stat s = over_seeds(row, [form](const Record& r) {
      return r.*form > 0 ? std::optional(r.*form) : std::nullopt;
    });
    if (!cell.empty()) cell += " / ";
    cell += s.n == 0 ? "–" : short_number(s.mean);
  }
  return cell == "– / – / –" ? "" : cell;
}

std::string status(const Row& row) {
  const Record& r = *row.records.front();
  if (!row.failed) return "ok";
  return r.why.empty() ? r.status : fmt::format("{}: {}", r.status, r.why);
}

std::string time_cell(const std::optional<RowTiming>& t) {
  return t ? fmt::format("{} ({})", micros(t->median), micros(t->mad)) : "";
}

std::string speedup_cell(const Row& row, const std::optional<RowTiming>& t) {
  if (!t || t->speedup <= 0) return "";
  if (row.records.size() == 1) return fmt::format("{:.2f}", t->speedup);
  return fmt::format("{:.2f} ({:.2f}–{:.2f})", t->speedup, t->speedup_low, t->speedup_high);
}

constexpr ColumnRule kLabel = {"method", false, [](const Row& r) { return r.label; }};
constexpr ColumnRule kProtocol = {"protocol", false,
                                  [](const Row& r) { return r.what().protocol; }};
constexpr ColumnRule kActive = {"active", true, [](const Row& row) {
                                  return mean_of(
                                      row, [](const Record& r) { return r.quality.active; }, 3);
                                }};
constexpr ColumnRule kLoss = {"loss ± sd (seeds)", true, loss_cell};
constexpr ColumnRule kFlopsRatio = {"FLOPs × dense", true, [](const Row& row) {
                                      return mean_of(
                                          row,
                                          [](const Record& r) {
                                            return ratio(r.quality.cost.flops_paper,
                                                         r.dense_cost.flops_paper);
                                          },
                                          3);
                                    }};
constexpr ColumnRule kDecode = {"decode µs/token (MAD)", true,
                                [](const Row& r) { return time_cell(decode_of(r)); }};
constexpr ColumnRule kDecodeSpeedup = {"decode speed-up", true,
                                       [](const Row& r) { return speedup_cell(r, decode_of(r)); }};
constexpr ColumnRule kIdeal = {"bound", true, [](const Row& row) {
                                 return mean_of(
                                     row, [](const Record& r) { return r.ideal_decode; }, 2);
                               }};
constexpr ColumnRule kStatus = {"status", false, status};

// Mean over the layers of a figure of their predictors.
std::optional<double> over_layers(const Record& r, double Prediction::*field) {
  if (r.predictors.empty()) return {};
  double sum = 0;
  for (const Prediction& p : r.predictors) sum += p.*field;
  return sum / static_cast<double>(r.predictors.size());
}

constexpr ColumnRule kQuality[] = {
    kLabel,
    kProtocol,
    {"trained tokens", true,
     [](const Row& row) {
       return amount_of(row, [](const Record& r) { return static_cast<double>(r.train_tokens); });
     }},
    {"calibration tokens", true,
     [](const Row& row) {
       return amount_of(row, [](const Record& r) {
         return r.calibration_tokens > 0 ? std::optional(static_cast<double>(r.calibration_tokens))
                                         : std::nullopt;
       });
     }},
    {"settings tried", true,
     [](const Row& row) {
       return row.what().trials > 1 ? fmt::format("{}", row.what().trials) : std::string();
     }},
    kActive,
    kLoss,
    {"perplexity token / byte / word", true, perplexity},
    {"excess over source", true,
     [](const Row& row) {
       return with_sd(over_seeds(row, [](const Record& r) { return r.excess; }), 4);
     }},
    {"ROUGE-L", true,
     [](const Row& row) {
       return with_sd(over_seeds(row, [](const Record& r) { return r.rouge_l; }), 3);
     }},
    {"slot error", true,
     [](const Row& row) {
       return with_sd(over_seeds(row, [](const Record& r) { return r.slot_error; }), 3);
     }},
    {"BLEU (E2E)", true,
     [](const Row& row) {
       return with_sd(over_seeds(row, [](const Record& r) { return r.bleu; }), 4);
     }},
    {"exact match", true,
     [](const Row& row) {
       return with_sd(over_seeds(row, [](const Record& r) { return r.exact_match; }), 3);
     }},
    {"predictor recall / precision", true,
     [](const Row& row) {
       const std::string recall = mean_of(
           row, [](const Record& r) { return over_layers(r, &Prediction::recall); }, 2);
       if (recall.empty()) return recall;
       return recall + " / " +
              mean_of(
                  row, [](const Record& r) { return over_layers(r, &Prediction::precision); }, 2);
     }},
    {"FLOPs/token", true,
     [](const Row& row) {
       return amount_of(row, [](const Record& r) { return r.quality.cost.flops_paper; });
     }},
    kFlopsRatio,
    {"FLOPs/token full", true,
     [](const Row& row) {
       return amount_of(row, [](const Record& r) { return r.quality.cost.flops_full; });
     }},
    {"bytes × dense", true,
     [](const Row& row) {
       return mean_of(
           row, [](const Record& r) { return ratio(r.quality.cost.bytes, r.dense_cost.bytes); }, 3);
     }},
    kStatus,
};

constexpr ColumnRule kTime[] = {
    kLabel,
    kProtocol,
    kActive,
    kDecode,
    kDecodeSpeedup,
    kIdeal,
    {"prefill µs/token (MAD)", true, [](const Row& r) { return time_cell(prefill_of(r)); }},
    {"prefill speed-up", true, [](const Row& r) { return speedup_cell(r, prefill_of(r)); }},
};

constexpr ColumnRule kConsole[] = {kLabel,  kProtocol,      kActive, kLoss,  kFlopsRatio,
                                   kDecode, kDecodeSpeedup, kIdeal,  kStatus};

Table make_table(std::string caption, std::span<const ColumnRule> rules,
                 const std::vector<Row>& rows) {
  Table t{.caption = std::move(caption), .columns = {}, .rows = {}};
  t.rows.resize(rows.size());
  for (const ColumnRule& rule : rules) {
    std::vector<std::string> cells;
    bool filled = false;
    for (const Row& row : rows) {
      const bool measured = rule.number && row.failed;
      cells.push_back(measured ? "" : rule.cell(row));
      filled |= !cells.back().empty();
    }
    if (!filled) continue;
    t.columns.push_back({rule.title, rule.number});
    for (size_t i = 0; i < cells.size(); ++i) {
      t.rows[i].push_back(cells[i].empty() ? "–" : std::move(cells[i]));
    }
  }
  return t;
}

}  // namespace

std::vector<Table> tables_of(const Group& g) {
  std::vector<Table> tables = {make_table("Quality and work", kQuality, g.rows)};
  std::vector<Row> timed;
  for (const Row& row : g.rows) {
    if (decode_of(row) || prefill_of(row)) timed.push_back(row);
  }
  if (!timed.empty()) {
    tables.push_back(make_table("Time, and the speed-up over dense", kTime, timed));
  }
  return tables;
}

Table trials_table(const Group& g) {
  std::vector<std::string> rates, methods;
  std::map<std::pair<std::string, std::string>, double> losses;
  std::map<std::string, double> best;
  for (const Row& row : g.rows) {
    const Knobs& knobs = row.what().knobs;
    const auto rate = knobs.find("lr"), score = knobs.find("score");
    if (rate == knobs.end() || row.failed) continue;
    const std::string method =
        row.what().method + (score == knobs.end() ? "" : " score=" + score->second);
    const double loss = over_seeds(row, [](const Record& r) { return r.quality.loss; }).mean;
    if (std::find(rates.begin(), rates.end(), rate->second) == rates.end())
      rates.push_back(rate->second);
    if (best.try_emplace(method, loss).second) methods.push_back(method);
    losses[{method, rate->second}] = loss, best[method] = std::min(best[method], loss);
  }
  std::sort(rates.begin(), rates.end(), [](const std::string& a, const std::string& b) {
    return std::strtod(a.c_str(), nullptr) < std::strtod(b.c_str(), nullptr);
  });
  Table t{.caption = "Validation loss by learning rate; *: the best, which the other suites use",
          .columns = {{"method"}},
          .rows = {}};
  for (const std::string& rate : rates) t.columns.push_back({rate, true});
  for (const std::string& method : methods) {
    std::vector<std::string> cells = {method};
    for (const std::string& rate : rates) {
      const auto loss = losses.find({method, rate});
      cells.push_back(loss == losses.end() ? "–"
                                           : fmt::format("{:.4f}{}", loss->second,
                                                         loss->second == best[method] ? " *" : ""));
    }
    t.rows.push_back(std::move(cells));
  }
  return t;
}

Table console_columns(const Group& g) {
  return make_table(fmt::format("{} / {} / {}", g.suite, g.model, g.dataset), kConsole, g.rows);
}

Table claims_table(std::span<const Verdict> verdicts) {
  Table t{.caption = "Claims",
          .columns = {{"claim"}, {"statement"}, {"expected"}, {"measured"}, {"verdict"}},
          .rows = {}};
  for (const Verdict& v : verdicts) {
    t.rows.push_back(
        {v.id, v.statement, v.expected, v.measured.empty() ? "–" : v.measured, v.verdict});
  }
  return t;
}

}  // namespace lte
