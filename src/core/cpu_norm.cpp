// LayerNorm (Ba et al., 2016) and RMSNorm (Zhang and Sennrich, 2019) on the CPU.
#include "core/cpu.h"

namespace lte {
namespace {

void norm(Ctx& ctx, Tensor out, Tensor stats, Tensor x, Tensor w, Tensor b, double eps) {
  with_type(out, [&]<class T>() {
    const auto in = matrix<T>(x);
    auto o = matrix<T>(out), s = matrix<T>(stats);
    const RowMap<T> weight(w.as<T>(), w.size());
    for_ranges(ctx, x.rows(), row_grain(x.cols()), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        const T mean = b ? in.row(n).mean() : T(0);
        const T square = (in.row(n).array() - mean).square().mean();
        const T rstd = T(1) / std::sqrt(square + static_cast<T>(eps));
        o.row(n).array() = (in.row(n).array() - mean) * rstd * weight.array();
        if (b) o.row(n) += RowMap<T>(b.as<T>(), b.size());
        s(n, 0) = mean, s(n, 1) = rstd;
      }
    });
  });
}

// With xh = (x - mean) rstd and g = dout w:  dx = rstd (g - mean(g) - xh mean(g xh)), where mean(g)
// is left out for RMSNorm.
void norm_backward_add(Ctx& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dout, Tensor stats,
                       Tensor x, Tensor w) {
  with_type(dout, [&]<class T>() {
    const auto in = matrix<T>(x), d = matrix<T>(dout), s = matrix<T>(stats);
    auto o = matrix<T>(dx);
    const RowMap<T> weight(w.as<T>(), w.size());
    const int64_t width = x.cols();
    for_ranges(ctx, x.rows(), row_grain(width), [&](int64_t begin, int64_t end, int thread) {
      RowMap<T> g(cpu(ctx).workspace<T>(thread, 2 * width), width), xh(g.data() + width, width);
      for (int64_t n = begin; n < end; ++n) {
        xh.array() = (in.row(n).array() - s(n, 0)) * s(n, 1);
        g.array() = d.row(n).array() * weight.array();
        const T mean_g = db ? g.mean() : T(0), mean_gx = g.dot(xh) / static_cast<T>(width);
        o.row(n).array() += s(n, 1) * (g.array() - mean_g - xh.array() * mean_gx);
      }
    });
    RowMap<T> sum_w(dw.as<T>(), width);
    for_ranges(ctx, width, kColumns, [&](int64_t begin, int64_t end, int) {
      const int64_t size = end - begin;
      for (int64_t n = 0; n < in.rows(); ++n) {
        look_ahead(d, n, begin, end), look_ahead(in, n, begin, end);
        const auto part = d.row(n).segment(begin, size);
        sum_w.segment(begin, size).array() +=
            part.array() * (in.row(n).segment(begin, size).array() - s(n, 0)) * s(n, 1);
        if (db) RowMap<T>(db.as<T>(), width).segment(begin, size) += part;
      }
    });
  });
}

}  // namespace

void fill_norm(Ops& ops) {
  ops.norm = norm;
  ops.norm_backward_add = norm_backward_add;
}

}  // namespace lte
