// The reference that rows are held against: plain loops for a CPU's rows; for a device's rows, whose models are
// large, the fastest kernels of the CPU, which tests hold against the plain loops.
#pragma once

#include "models.h"

namespace lte {

Backend reference_backend(const Session&, DType weights);

// What `layers` layers may be off by where the reference's largest element is `largest`: sums of `length` products,
// and with weights of bf16 on a device each factor's rounding to bf16, which halves of them may be off by.
double allowed(const Session&, DType weights, int64_t length, int64_t layers, double largest);

// A backend like `reference_backend` that opens the experts that `seen`'s rows from `first` on had open, layer by
// layer, whatever its own scores say: two roundings never choose all of thousands of experts alike. Where its own
// threshold would choose otherwise, its score must lie within `slack` of the largest score from the cut.
struct Replay {
  Backend backend;
  std::shared_ptr<std::string> wrong;  // what was chosen beyond that; "": nothing
};
Replay replay(const Session&, DType weights, const State& seen, int64_t first, double slack);

}  // namespace lte
