// Linear algebra and element-wise sums on the CPU.
#include "core/cpu.h"

namespace lte {
namespace {

template <class T, bool kAdd, class Out, class A, class B>
void product(Out&& out, const A& a, const B& b) {
  if constexpr (kAdd) {
    out.noalias() += a * b;
  } else {
    out.noalias() = a * b;
  }
}

// One tile of out: rows [r, r+nr), columns [c, c+nc).
template <class T, bool kAdd>
void gemm_tile(const MatMap<T>& out, const MatMap<T>& a, bool ta, const MatMap<T>& b, bool tb,
               int64_t r, int64_t nr, int64_t c, int64_t nc) {
  auto o =
      matrix(const_cast<T*>(out.data()) + r * out.outerStride() + c, nr, nc, out.outerStride());
  const auto at = a.transpose().middleRows(ta ? r : 0, ta ? nr : 0);
  const auto an = a.middleRows(ta ? 0 : r, ta ? 0 : nr);
  const auto bt = b.transpose().middleCols(tb ? c : 0, tb ? nc : 0);
  const auto bn = b.middleCols(tb ? 0 : c, tb ? 0 : nc);
  if (ta && tb) return product<T, kAdd>(o, at, bt);
  if (ta) return product<T, kAdd>(o, at, bn);
  if (tb) return product<T, kAdd>(o, an, bt);
  return product<T, kAdd>(o, an, bn);
}

template <bool kAdd>
void gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb) {
  with_type(out, [&]<class T>() {
    const auto o = matrix<T>(out), am = matrix<T>(a), bm = matrix<T>(b);
    for_gemm_tiles(ctx, out, a, ta, b, tb, [&](int64_t r, int64_t nr, int64_t c, int64_t nc, int) {
      gemm_tile<T, kAdd>(o, am, ta, bm, tb, r, nr, c, nc);
    });
  });
}

void bias_add(Ctx& ctx, Tensor x, Tensor b) {
  with_type(x, [&]<class T>() {
    auto m = matrix<T>(x);
    const RowMap<T> bias(b.as<T>(), b.size());
    for_ranges(ctx, x.rows(), row_grain(x.cols()), [&](int64_t begin, int64_t end, int) {
      m.middleRows(begin, end - begin).rowwise() += bias;
    });
  });
}

void bias_backward_add(Ctx& ctx, Tensor db, Tensor dout) {
  with_type(dout, [&]<class T>() {
    const auto m = matrix<T>(dout);
    RowMap<T> sum(db.as<T>(), db.size());
    for_ranges(ctx, m.cols(), kColumns, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = 0; n < m.rows(); ++n) {
        look_ahead(m, n, begin, end);
        sum.segment(begin, end - begin) += m.row(n).segment(begin, end - begin);
      }
    });
  });
}

void add(Ctx& ctx, Tensor out, Tensor a, Tensor b) {
  with_type(out, [&]<class T>() {
    VecMap<T> o(out.as<T>(), out.size());
    const VecMap<T> x(a.as<T>(), a.size()), y(b.as<T>(), b.size());
    for_ranges(ctx, out.size(), 32768, [&](int64_t begin, int64_t end, int) {
      o.segment(begin, end - begin) = x.segment(begin, end - begin) + y.segment(begin, end - begin);
    });
  });
}

void fill(Ctx& ctx, Tensor out, double value) {
  with_type(out, [&]<class T>() {
    VecMap<T> o(out.as<T>(), out.size());
    for_ranges(ctx, out.size(), 65536, [&](int64_t begin, int64_t end, int) {
      o.segment(begin, end - begin).setConstant(static_cast<T>(value));
    });
  });
}

// sums[i] = the sum of squares of piece i of kChains pieces of `size`. Each is one chain of additions of what is
// exact in double; side by side they hide the time of an addition.
constexpr int64_t kChains = 8;
void chains(double* sums, const float* x, int64_t size) {
  double sum[kChains] = {};
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t c = 0; c < kChains; ++c) {
      const double v = x[c * size + i];
      sum[c] += v * v;
    }
  }
  std::copy_n(sum, kChains, sums);
}

void sum_squares(Ctx& ctx, Tensor sum, Tensor x) {
  with_type(x, [&]<class T>() {
    const VecMap<T> v(x.as<T>(), x.size());
    const int64_t size = 65536, pieces = (x.size() + size - 1) / size;
    std::vector<double> part(static_cast<size_t>(pieces));
    const int64_t grain = pieces < 2 * kChains ? 1 : kChains;
    for_ranges(ctx, pieces, grain, [&](int64_t begin, int64_t end, int) {
      if constexpr (sizeof(T) == 4) {
        if (end - begin == kChains && end * size <= x.size())
          return chains(&part[static_cast<size_t>(begin)], v.data() + begin * size, size);
      }
      for (int64_t i = begin; i < end; ++i) {
        const auto piece = v.segment(i * size, std::min(size, x.size() - i * size));
        part[static_cast<size_t>(i)] = piece.template cast<double>().square().sum();
      }
    });
    double total = 0;
    for (double p : part) total += p;
    *sum.as<double>() = total;
  });
}

void sums_add(Ctx&, Tensor sums, std::vector<Tensor> x) {
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (int64_t k = 0; x[i] && k < x[i].size(); ++k) {
      sum += x[i].dtype == DType::i32 ? x[i].as<int32_t>()[k] : x[i].as<float>()[k];
    }
    sums.as<double>()[i] += sum;
  }
}

void embed_bf16(Ctx& ctx, Tensor out, Tensor tokens, Tensor wte, Tensor wpe, Chunk chunk) {
  chunk = placed(chunk);
  const int64_t D = out.cols();
  for_ranges(ctx, out.rows(), row_grain(D), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const Bf16* word = wte.as<Bf16>() + tokens.as<int32_t>()[n] * D;
      const Bf16* place = wpe ? wpe.as<Bf16>() + (chunk.pos + n % chunk.T) * D : nullptr;
      float* o = out.as<float>() + n * D;
      for (int64_t d = 0; d < D; ++d) {
        o[d] = place ? to_float(word[d]) + to_float(place[d]) : to_float(word[d]);
      }
    }
  });
}

void embed(Ctx& ctx, Tensor out, Tensor tokens, Tensor wte, Tensor wpe, Chunk chunk) {
  if (wte.dtype == DType::bf16) return embed_bf16(ctx, out, tokens, wte, wpe, chunk);
  chunk = placed(chunk);
  const int32_t* token = tokens.as<int32_t>();
  with_type(out, [&]<class T>() {
    auto o = matrix<T>(out);
    const auto table = matrix<T>(wte);
    for_ranges(ctx, out.rows(), row_grain(out.cols()), [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        o.row(n) = table.row(token[n]);
        if (wpe) o.row(n) += matrix<T>(wpe).row(chunk.pos + n % chunk.T);
      }
    });
  });
}

// Cut by columns: two tokens may share a row of the table, two columns never meet.
void embed_backward_add(Ctx& ctx, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens,
                        Chunk chunk) {
  const int32_t* token = tokens.as<int32_t>();
  with_type(dout, [&]<class T>() {
    const auto d = matrix<T>(dout);
    auto table = matrix<T>(dwte);
    for_ranges(ctx, d.cols(), 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = 0; n < d.rows(); ++n) {
        const auto part = d.row(n).segment(begin, end - begin);
        table.row(token[n]).segment(begin, end - begin) += part;
        if (dwpe) {
          matrix<T>(dwpe).row(chunk.pos + n % chunk.T).segment(begin, end - begin) += part;
        }
      }
    });
  });
}

}  // namespace

void eigen_gemm(Ctx& ctx, Tensor out, Tensor a, bool ta, Tensor b, bool tb, bool add) {
  add ? gemm<true>(ctx, out, a, ta, b, tb) : gemm<false>(ctx, out, a, ta, b, tb);
}

void fill_linear(Ops& ops) {
  ops.gemm = gemm<false>;
  ops.gemm_add = gemm<true>;
  ops.bias_add = bias_add;
  ops.bias_backward_add = bias_backward_add;
  ops.add = add;
  ops.fill = fill;
  ops.sum_squares = sum_squares;
  ops.sums_add = sums_add;
  ops.embed = embed;
  ops.embed_backward_add = embed_backward_add;
}

}  // namespace lte
