// Sums that decide which experts a router learns to choose: term by term in order, products rounded before they are
// added, so that machines and compilers agree. Several sums are taken side by side.
#pragma once

#include <cstdint>
#include <vector>

namespace lte {

std::vector<float> transposed(const float* rows, int64_t n, int64_t m);  // [n,m] -> [m,n]

// sums[e] += sum over d of x[d] columns[d,e].                                               sums[E] x[D] columns[D,E]
void add_products(float* sums, const float* x, const float* columns, int64_t D, int64_t E);

// out[n] = length of row n.                                                                            out[N] x[N,D]
void row_norms(float* out, const float* x, int64_t N, int64_t D);

}  // namespace lte
