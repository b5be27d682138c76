// The comparator that every numerical test uses. It accepts, it never rejects: a value passes only
// if |got - want| <= tolerance holds, so that a NaN cannot pass.
#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace lte {

// What a float sum of `length` products of magnitude `magnitude` may be off by.
//   tolerance = 4 epsilon(dtype) sqrt(length) magnitude, sqrt because rounding errors are
//   independent
double tolerance_of(DType, int64_t length, double magnitude);

struct Comparison {
  bool ok = false;
  double worst_used = 0;  // the largest |got - want| as a share of what is allowed; 1 = the limit
  int64_t worst_index = -1;
  std::string message;  // one line: where, got, want, "x % of allowed"
};

// Element by element over f32 or f64 tensors of one shape. NaN and infinities pass only where both
// are the same. A tolerance that is not below the largest |want| is itself an error (ok = false),
// unless want is all zero.
Comparison compare(const Tensor& got, const Tensor& want, double tolerance);

}  // namespace lte
