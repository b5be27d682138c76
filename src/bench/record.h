// One line of results: what was run, both outcomes, and where. Records are appended, never edited.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/experiment.h"
#include "methods/methods.h"

namespace lte {

// Median and median absolute deviation of interleaved repetitions, microseconds a token.
struct Timing {
  double median = 0, mad = 0;
  int repetitions = 0;
};

struct Record {
  Experiment what;
  std::string name;    // name_of(what)
  std::string status;  // "ok" or "failed"
  std::string why;     // of a failure

  Outcome quality;
  double token_ppl = 0, byte_ppl = 0, word_ppl = 0;
  int window = 0, stride = 0;         // tokens
  std::string text_sha256;            // of the dataset
  std::optional<double> excess;       // loss above the true source's on the same tokens, nats
  std::optional<double> rouge_l;      // coco variant, 0..1
  std::optional<double> slot_error;   // (missing + added) / slots
  std::optional<double> bleu;         // corpus BLEU-4, E2E variant, 0..1
  std::optional<double> exact_match;  // share of the examples, 0..1
  Cost dense_cost;                    // of the dense model at the same context
  double reference_loss = 0,
         checked_loss = 0;  // masked plain-loop reference and this backend, same tokens

  std::optional<Timing> prefill, decode;
  std::optional<double> prefill_speedup, decode_speedup;  // dense of the same run / this
  std::optional<double> ideal_decode;  // dense bytes / bytes: the bound of a memory-bound decode
  bool digest_ok = false;              // timed digest == untimed digest
  double timed_loss = 0, timed_active = 0;  // of the timed run, over its windows
  std::string split = "test";               // what was scored

  int64_t train_tokens = 0, calibration_tokens = 0;
  double train_flops = 0,
         train_seconds = 0;  // of a suite's fits, which run side by side, on a share of the threads
  std::vector<Histogram> histograms;
  std::vector<Prediction> predictors;  // one a layer, on calibration text
  std::map<std::string, std::string>
      machine;  // cpu, cores, threads, compiler, flags, revision, date ...
};

std::string to_json(const Record&);                         // one line, numbers of nine digits
Record record_from_json(std::string_view line);             // throws Error on malformed input
std::vector<Record> read_records(const std::string& path);  // a missing file has none
// The file that a suite's records go to: results, or trials of settings on the validation split.
std::string records_path(const std::string& results, const std::string& split);
// The records of both, and before them those of files records-*.jsonl and trials-*.jsonl, where older ones of a folder may
// lie.
std::vector<Record> read_results(const std::string& results);
// The last record of every name, in order of first appearance.
std::vector<Record> latest(std::vector<Record>);

// What a later run of the same name is held against; a missing file has none.
struct Expected {
  double loss = 0, active = 0;
  uint64_t digest = 0;
};
std::map<std::string, Expected> read_expected(const std::string& path);
std::string expected_lines(std::span<const Record>);  // of the records that are ok

}  // namespace lte
