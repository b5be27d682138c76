// Compiled without contraction of products and sums (CMakeLists.txt).
#include "methods/in_order.h"

#include <algorithm>
#include <cmath>

namespace lte {

std::vector<float> transposed(const float* rows, int64_t n, int64_t m) {
  std::vector<float> t(static_cast<size_t>(n * m));
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < m; ++i) t[static_cast<size_t>(i * n + r)] = rows[r * m + i];
  }
  return t;
}

void add_products(float* sums, const float* x, const float* columns, int64_t D, int64_t E) {
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t e = 0; e < E; ++e) sums[e] += x[d] * columns[d * E + e];
  }
}

void row_norms(float* out, const float* x, int64_t N, int64_t D) {
  constexpr int64_t kSide = 8;
  for (int64_t n = 0; n < N; n += kSide) {
    float sums[kSide] = {};
    const int64_t rows = std::min(kSide, N - n);
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t r = 0; r < rows; ++r) sums[r] += x[(n + r) * D + d] * x[(n + r) * D + d];
    }
    for (int64_t r = 0; r < rows; ++r) out[n + r] = std::sqrt(sums[r]);
  }
}

}  // namespace lte
