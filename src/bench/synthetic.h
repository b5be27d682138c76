// Models of random weights at work: tokens, and thresholds that open a given share of their experts.
#pragma once

#include "model/forward.h"

namespace lte {

// Independent numbers of standard deviation `std`, uniform, drawn from `seed` and the place, the same for any number
// of threads: a billion in a second or so of a few cores. For f32 and bf16. threads <= 0: one for each core.
void fill_uniform(const Tensor&, double std, uint64_t seed, int threads = 0);
// A model for which only time and size matter: fill_uniform with init_params' deviations, routers with scores that
// differ.
void fill_params(Params&, uint64_t seed, int threads = 0);

std::vector<int32_t> random_tokens(int64_t n, int vocab);

// `plan` with thresholds that open about `density` of the experts of every layer: quantiles of the scores
// on random tokens. 1 opens all. The routers must not be zeros.
Plan with_density(Backend&, const Params&, Plan, double density);

// Share of gates that are open, and of experts that some token of the chunk opens; by layer. 1 where a
// layer has no router.
struct Open {
  std::vector<double> active, loaded;
};
Open open_gates(const Plan&, const State&, int64_t rows);

}  // namespace lte
