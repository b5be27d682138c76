// What this machine can do at most, measured: the bounds that a step is held against.
#pragma once

#include <string>
#include <vector>

#include "core/profile.h"

namespace lte {

// FLOP/s of one product of n x n floats through the backend's own entry. The best of `rounds`, by the
// given clock.
double gemm_rate(Backend&, int64_t n, int rounds, double (*now)() = wall_seconds);
// Bytes a second that the threads read of a block beyond the caches, one sequential stream each. The best
// of `rounds`.
double stream_rate(int threads, size_t bytes, int rounds);

struct Ceiling {
  std::string what;  // "gemm f32", "gemm bf16", "stream read"
  int threads;
  double rate;  // FLOP/s or bytes/s
};
// Each on one and on all threads; a second or two. A backend that this build or machine lacks has no row.
std::vector<Ceiling> measure_ceilings(int threads);

}  // namespace lte
