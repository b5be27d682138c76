// Grouping of FFN neurons into experts of equal size.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace lte {

// Balanced k-means (after Malinen and Franti, 2014): clusters of exactly `group` rows of
// features[F,D], each row normalised to length 1 as MoEfication's code does. Returns the rows
// cluster by cluster. The balanced assignment is greedy by distance and then improved by exchanging
// pairs until no exchange helps, where the original solves it exactly in O(F^3). Deterministic by
// seed.
std::vector<int> balanced_kmeans(const Tensor& features, int group, uint64_t seed, int rounds = 20);

// A balanced partition of the graph whose edge i-j weighs together[i * F + j] (symmetric): groups of
// exactly `group` nodes with much weight inside, from a random one by exchanging pairs until no
// exchange helps (Kernighan and Lin, 1970; MoEfication's code uses METIS). Deterministic by seed.
std::vector<int> balanced_partition(const std::vector<float>& together, int64_t F, int group,
                                    uint64_t seed);

}  // namespace lte
