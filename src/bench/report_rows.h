// Records to rows: groups of one suite, model and dataset; in them one row over the seeds of the
// same experiment.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/record.h"
#include "core/statistics.h"

namespace lte {

// Mean and sample standard deviation; values that are not finite do not count.
struct Stat {
  int n = 0;
  double mean = 0, sd = 0, low = 0, high = 0;
};
Stat stat_of(std::span<const double>);

struct Row {
  std::string label;                   // method and the knobs that tell its rows apart
  std::string curve;                   // the same without the knobs that a curve sweeps over
  std::vector<const Record*> records;  // of all seeds; or one, if it failed
  bool failed = false;

  const Experiment& what() const { return records.front()->what; }
};

struct Group {
  std::string suite, model, dataset;
  std::vector<const Record*> records;
  std::vector<Row> rows;           // dense first; by method and protocol; densest first
  std::vector<std::string> fixed;  // "method (protocol): knobs that all of its rows share"
};

// In order of first appearance. The records must outlive the groups.
std::vector<Group> group_records(std::span<const Record>);

// The method and those knobs (and backend, shape, base) in which it differs from the others of the
// same method and protocol in `peers`. A knob that is not set has its default and is not written.
std::string row_label(const Record&, std::span<const Record* const> peers);
// The same, but without the knobs that a curve sweeps over.
std::string curve_label(const Record&, std::span<const Record* const> peers);

// Over the row's seeds; records without the number do not count.
using Number = std::function<std::optional<double>(const Record&)>;
Stat over_seeds(const Row&, const Number&);

// A row's decode or prefill: medians over the seeds.
struct RowTiming {
  double median = 0, mad = 0, speedup = 0, speedup_low = 0, speedup_high = 0;
};
std::optional<RowTiming> decode_of(const Row&);
std::optional<RowTiming> prefill_of(const Row&);

}  // namespace lte
