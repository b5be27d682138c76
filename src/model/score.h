// The one path for quality and speed: `score` walks the test windows, with or without a stopwatch.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/tokens.h"
#include "model/cost.h"
#include "model/forward.h"

namespace lte {

// b windows at a time; of each the first p tokens in one chunk, then d tokens one by one.
struct Shape {
  int b = 8, p = 128, d = 0;
};
std::string name_of(const Shape&);         // "b8.p128.d0"
Shape parse_shape(std::string_view text);  // throws Error

inline constexpr std::array<int, 5> kUnions = {1, 2, 4, 8, 16};

struct Outcome {
  double loss = 0;     // nats a scored token
  int64_t scored = 0;  // targets
  int64_t tokens = 0;  // inputs computed
  double active =
      1;  // mean over tokens and layers of neurons computed / neurons of the dense model
  double active_p50 = 1, active_p99 = 1;  // over tokens
  std::vector<double> active_layer;
  std::array<double, 5> active_union{1, 1, 1, 1, 1};  // over runs of kUnions consecutive tokens
  double context = 0;                                 // mean number of positions attended to
  Cost cost;
  uint64_t digest = 0;  // of all logits and gates, in order
};

// Seconds a token, one entry a window (a batch of them).
struct Stopwatch {
  std::vector<double> prefill, decode;
};

Outcome score(Backend&, const Params&, const Plan&, const TokenSet&, std::span<const Window>, Shape,
              Exec, Stopwatch* = nullptr);

// Runs every window as one masked chunk of its own and shows the state to `see`.
void each_window(Backend&, const Params&, const Plan&, const TokenSet&, std::span<const Window>,
                 Gate, const std::function<void(const State&)>& see);

// Router scores over the windows, one histogram a layer of `bins` equal bins over [0, 1].
std::vector<std::vector<int64_t>> score_histogram(Backend&, const Params&, const Plan&,
                                                  const TokenSet&, std::span<const Window>, Gate,
                                                  int bins = 40);

}  // namespace lte
