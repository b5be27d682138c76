#include "methods/predictor_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lte {

void set_targets(Tensor target, const PredictorSpec& spec) {
  const auto size = static_cast<size_t>(target.size());
  float* t = target.as<float>();
  if (spec.loss == PredictorLoss::weighted) {
    for (size_t i = 0; i < size; ++i) t[i] = t[i] > static_cast<float>(spec.label) ? 1.f : 0.f;
  } else if (spec.loss == PredictorLoss::logistic) {
    // By the largest of the mini-batch, so that targets depend on its size: kept as published, knowingly (MoEfication).
    const float most = std::max(1e-12f, *std::max_element(t, t + size));
    for (size_t i = 0; i < size; ++i) t[i] /= most;
  } else if (spec.loss == PredictorLoss::softmax) {
    const int64_t E = target.cols();
    for (int64_t r = 0; r < target.rows(); ++r) {
      float* row = t + r * E;
      const float sum = std::max(1e-12f, std::accumulate(row, row + E, 0.f));
      for (int64_t e = 0; e < E; ++e) row[e] /= sum;
    }
  }
}

double predictor_loss(Backend& be, Tensor dz, Tensor z, Tensor target, PredictorLoss loss) {
  const auto size = static_cast<size_t>(z.size());
  const float *t = target.as<float>(), *s = z.as<float>();
  float* d = dz.as<float>();
  const float mean =
      static_cast<float>(std::accumulate(t, t + size, 0.0) / static_cast<double>(size));
  double sum = 0;
  std::copy_n(s, size, d);
  if (loss == PredictorLoss::softmax) {
    be.ops.softmax(*be.ctx, dz);
    be.finish();
    const int64_t rows = z.rows();
    for (size_t i = 0; i < size; ++i) {
      sum -= t[i] * std::log(std::max(1e-30f, d[i]));
      d[i] = (d[i] - t[i]) / static_cast<float>(rows);
    }
    return sum / static_cast<double>(rows);
  }
  if (loss != PredictorLoss::square) {
    const bool weighted = loss == PredictorLoss::weighted;
    const float scale = 1 / static_cast<float>(size);
    be.ops.sigmoid(*be.ctx, dz);
    be.finish();
    for (size_t i = 0; i < size; ++i) {
      const float weight = weighted ? t[i] + (1 - t[i]) * (mean + 0.005f) : 1;
      d[i] = weight * (d[i] - t[i]) * scale;
    }
    return 0;
  }
  for (size_t i = 0; i < size; ++i) {
    const double off = std::abs(static_cast<double>(s[i])) - t[i];
    sum += off * off;
    d[i] = static_cast<float>(2 * off * (s[i] < 0 ? -1 : 1)) / static_cast<float>(size);
  }
  return sum / static_cast<double>(size);
}

}  // namespace lte
