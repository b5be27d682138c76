// Cross-entropy, distillation and AdamW on the CPU.
#include "core/cpu.h"

namespace lte {
namespace {

void cross_entropy(Ctx& ctx, Tensor loss, Tensor dlogits, Tensor logits, Tensor targets,
                   double scale, int64_t V) {
  const int32_t* target = targets.as<int32_t>();
  LTE_CHECK(logits.cols() == V, "cross_entropy: shapes do not fit");
  with_type(logits, [&]<class T>() {
    const auto z = matrix<T>(logits);
    for_ranges(ctx, z.rows(), row_grain(V), [&](int64_t begin, int64_t end, int thread) {
      RowMap<T> p(cpu(ctx).workspace<T>(thread, V), V);
      for (int64_t n = begin; n < end; ++n) {
        const bool counted = target[n] >= 0;
        if (counted) {
          const T top = z.row(n).maxCoeff();
          p.array() = (z.row(n).array() - top).exp();
          const T sum = p.sum();
          loss.as<T>()[n] = std::log(sum) + top - z(n, target[n]);
          p *= static_cast<T>(scale) / sum;
        } else {
          loss.as<T>()[n] = 0;
        }
        if (!dlogits) continue;
        RowMap<T> d(dlogits.as<T>() + n * V, V);
        if (!counted) {
          d.setZero();
          continue;
        }
        d = p;
        d[target[n]] -= static_cast<T>(scale);
      }
    });
  });
}

void distill_add(Ctx& ctx, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                 double w) {
  const int32_t* target = targets.as<int32_t>();
  with_type(logits, [&]<class T>() {
    const auto z = matrix<T>(logits), y = matrix<T>(teacher);
    auto d = matrix<T>(dlogits);
    const int64_t V = z.cols();
    for_ranges(ctx, z.rows(), row_grain(V), [&](int64_t begin, int64_t end, int thread) {
      RowMap<T> p(cpu(ctx).workspace<T>(thread, 2 * V), V), q(p.data() + V, V);
      for (int64_t n = begin; n < end; ++n) {
        if (target[n] < 0) continue;
        p.array() = (z.row(n).array() - z.row(n).maxCoeff()).exp();
        q.array() = (y.row(n).array() - y.row(n).maxCoeff()).exp();
        d.row(n) += static_cast<T>(w) * (p / p.sum() - q / q.sum());
      }
    });
  });
}

void adamw(Ctx& ctx, Tensor p, Tensor grad, Tensor m, Tensor v, AdamW a) {
  const double correct1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correct2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  with_type(p, [&]<class T>() {
    const T b1 = static_cast<T>(a.beta1), b2 = static_cast<T>(a.beta2), eps = static_cast<T>(a.eps);
    const T rate = static_cast<T>(a.lr / correct1), root = static_cast<T>(1 / std::sqrt(correct2));
    const T keep = static_cast<T>(1 - a.lr * a.decay), scale = static_cast<T>(a.grad_scale);
    for_ranges(ctx, p.size(), 16384, [&](int64_t begin, int64_t end, int) {
      const int64_t size = end - begin;
      const VecMap<T> g(grad.as<T>() + begin, size);
      VecMap<T> w(p.as<T>() + begin, size), m1(m.as<T>() + begin, size),
          m2(v.as<T>() + begin, size);
      m1 = b1 * m1 + (T(1) - b1) * scale * g;
      m2 = b2 * m2 + (T(1) - b2) * (scale * g).square();
      w = keep * w - rate * m1 / (m2.sqrt() * root + eps);
    });
  });
}

}  // namespace

void fill_loss(Ops& ops) {
  ops.cross_entropy = cross_entropy;
  ops.distill_add = distill_add;
  ops.adamw = adamw;
}

}  // namespace lte
