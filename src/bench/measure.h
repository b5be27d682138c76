// From a fitted model to a record: quality, active fraction, costs, checks, and interleaved timing.
#pragma once

#include <span>

#include "bench/record.h"
#include "bench/run_folder.h"

namespace lte {

// Scores on the test split (at most `windows` windows; 0: all), runs the dataset's task, and holds
// the result against the plain-loop reference with masked execution. A check that fails gives a
// record with status "failed"; it does not throw. A backend that `e` names is opened with
// `threads`.
Record measure(const LoadedRun&, const Dataset&, Experiment, int64_t windows, int threads);

struct Timed {
  const LoadedRun* run;
  Record* record;  // filled in
};
// Decode and prefill time of all runs of one model and dataset, `repetitions` interleaved rounds at
// batch 1 over the first `windows` test windows: half of a window as the prompt, the rest token by
// token. The untimed and the timed runs' digests must agree. `dense` is the base: its time is the
// ratios' numerator. `round` is told after every repetition.
void time_group(const LoadedRun& dense, std::span<Timed>, const Dataset&, int64_t windows,
                int repetitions, const std::string& backend, int threads,
                const std::function<void(int)>& round);

// Where this program runs and how it was built: cpu, cores, threads, compiler, flags, revision,
// date.
std::map<std::string, std::string> describe_machine(int threads);

}  // namespace lte
