#include "methods/cluster.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "methods/in_order.h"

namespace lte {
namespace {

struct Clustering {
  int64_t F, D, k, group;
  std::vector<float> x, centre;  // [F,D] [k,D]
  std::vector<float> distance;   // [F,k] squared
  std::vector<int> label;

  // sums[r] = squared distance of row r of `many`, n rows turned [D,n], to `one`[D]: each over the columns in
  // order, side by side.
  void squared(float* sums, const std::vector<float>& many, int64_t n, const float* one) const {
    std::fill_n(sums, n, 0.f);
    for (int64_t i = 0; i < D; ++i) {
      const float* column = &many[static_cast<size_t>(i * n)];
      for (int64_t r = 0; r < n; ++r) sums[r] += (column[r] - one[i]) * (column[r] - one[i]);
    }
  }
  float& at(int64_t j, int64_t c) { return distance[static_cast<size_t>(j * k + c)]; }

  // k-means++ (Arthur and Vassilvitskii, 2007).
  void seed_centres(Rng& rng) {
    std::vector<double> nearest(static_cast<size_t>(F), 1e30);
    const std::vector<float> columns = transposed(x.data(), F, D);
    std::vector<float> away(static_cast<size_t>(F));
    int64_t pick = static_cast<int64_t>(rng.below(static_cast<uint64_t>(F)));
    for (int64_t c = 0; c < k; ++c) {
      std::copy_n(x.begin() + pick * D, D, centre.begin() + c * D);
      squared(away.data(), columns, F, &centre[static_cast<size_t>(c * D)]);
      double total = 0;
      for (int64_t j = 0; j < F; ++j) {
        double& n = nearest[static_cast<size_t>(j)];
        n = std::min<double>(n, away[static_cast<size_t>(j)]);
        total += n;
      }
      double target = rng.uniform() * total;
      for (pick = 0; pick + 1 < F && target > nearest[static_cast<size_t>(pick)]; ++pick) {
        target -= nearest[static_cast<size_t>(pick)];
      }
    }
  }

  void measure() {
    const std::vector<float> columns = transposed(centre.data(), k, D);
    for (int64_t j = 0; j < F; ++j) squared(&at(j, 0), columns, k, &x[static_cast<size_t>(j * D)]);
  }

  // Nearest pairs first, as long as the cluster has room.
  void assign_greedily() {
    std::vector<int32_t> pairs(static_cast<size_t>(F * k));
    std::iota(pairs.begin(), pairs.end(), 0);
    std::stable_sort(pairs.begin(), pairs.end(), [&](int32_t a, int32_t b) {
      return distance[static_cast<size_t>(a)] < distance[static_cast<size_t>(b)];
    });
    std::vector<int64_t> room(static_cast<size_t>(k), group);
    std::fill(label.begin(), label.end(), -1);
    for (int32_t pair : pairs) {
      const auto j = static_cast<size_t>(pair / k), c = static_cast<size_t>(pair % k);
      if (label[j] >= 0 || room[c] == 0) continue;
      label[j] = static_cast<int>(c);
      --room[c];
    }
  }

  // Exchanges the clusters of two rows while the sum of distances falls.
  void exchange() {
    for (bool changed = true; changed;) {
      changed = false;
      for (int64_t a = 0; a < F; ++a) {
        for (int64_t b = a + 1; b < F; ++b) {
          int &la = label[static_cast<size_t>(a)], &lb = label[static_cast<size_t>(b)];
          if (la == lb || at(a, la) + at(b, lb) <= at(a, lb) + at(b, la) + 1e-6f) continue;
          std::swap(la, lb);
          changed = true;
        }
      }
    }
  }

  void move_centres() {
    std::fill(centre.begin(), centre.end(), 0.f);
    for (int64_t j = 0; j < F; ++j) {
      for (int64_t i = 0; i < D; ++i) {
        centre[static_cast<size_t>(label[static_cast<size_t>(j)] * D + i)] +=
            x[static_cast<size_t>(j * D + i)] / static_cast<float>(group);
      }
    }
  }
};

// The rows cluster by cluster.
std::vector<int> by_label(const std::vector<int>& label) {
  std::vector<int> order(label.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return label[static_cast<size_t>(a)] < label[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<int> balanced_kmeans(const Tensor& features, int group, uint64_t seed, int rounds) {
  const int64_t F = features.rows(), D = features.cols(), k = group < 1 ? 0 : F / group;
  LTE_CHECK(group >= 1 && k * group == F,
            "balanced_kmeans: the group size does not divide the rows");
  const auto elements = static_cast<size_t>(F * D);
  Clustering c{.F = F,
               .D = D,
               .k = k,
               .group = group,
               .x = std::vector<float>(elements),
               .centre = std::vector<float>(static_cast<size_t>(k * D)),
               .distance = std::vector<float>(static_cast<size_t>(F * k)),
               .label = std::vector<int>(static_cast<size_t>(F))};
  for (int64_t j = 0; j < F; ++j) {
    const float* row = features.as<float>() + j * D;
    const float norm = std::sqrt(std::inner_product(row, row + D, row, 0.f));
    for (int64_t i = 0; i < D; ++i)
      c.x[static_cast<size_t>(j * D + i)] = norm > 0 ? row[i] / norm : 0;
  }
  Rng rng(seed);
  c.seed_centres(rng);
  for (int round = 0; round < rounds; ++round) {
    const std::vector<int> before = c.label;
    c.measure();
    c.assign_greedily();
    c.exchange();
    c.move_centres();
    if (c.label == before) break;
  }
  return by_label(c.label);
}

std::vector<int> balanced_partition(const std::vector<float>& together, int64_t F, int group,
                                    uint64_t seed) {
  LTE_CHECK(group >= 1 && F % group == 0 && together.size() == static_cast<size_t>(F * F),
            "balanced_partition: the group size does not divide the nodes");
  const int64_t k = F / group;
  std::vector<int> label(static_cast<size_t>(F));
  for (int64_t j = 0; j < F; ++j) label[static_cast<size_t>(j)] = static_cast<int>(j / group);
  Rng rng(seed);
  shuffle(label, rng);
  const auto weight = [&](int64_t i, int64_t j) {
    return together[static_cast<size_t>(i * F + j)];
  };
  std::vector<double> to(static_cast<size_t>(F * k));  // weight of a node's edges into a group
  for (int64_t i = 0; i < F; ++i) {
    for (int64_t j = 0; j < F; ++j) {
      if (i != j) to[static_cast<size_t>(i * k + label[static_cast<size_t>(j)])] += weight(i, j);
    }
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (int64_t a = 0; a < F; ++a) {
      for (int64_t b = a + 1; b < F; ++b) {
        int &la = label[static_cast<size_t>(a)], &lb = label[static_cast<size_t>(b)];
        if (la == lb) continue;
        const double *ta = &to[static_cast<size_t>(a * k)], *tb = &to[static_cast<size_t>(b * k)];
        const double gain = ta[lb] - ta[la] + tb[la] - tb[lb] - 2.0 * weight(a, b);
        if (!(gain > 1e-6 * (std::abs(ta[la]) + std::abs(tb[lb]) + 1e-12))) continue;
        for (int64_t i = 0; i < F; ++i) {
          double* t = &to[static_cast<size_t>(i * k)];
          const double wa = i == a ? 0 : weight(i, a), wb = i == b ? 0 : weight(i, b);
          t[la] += wb - wa, t[lb] += wa - wb;
        }
        std::swap(la, lb);
        changed = true;
      }
    }
  }
  return by_label(label);
}

}  // namespace lte
