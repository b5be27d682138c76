// Attention that keeps log(sum of exp) of every row in place of its probabilities, forward and backward,
// against the form that stores them.
#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

#ifdef LTE_TEST_BACKEND
const char* const kSpecs[] = {LTE_TEST_BACKEND "+fused"};
const char* const kRounded[] = {LTE_TEST_BACKEND "+bf16+fused"};
#else
const char* const kSpecs[] = {"cpu+fused", "cpu+onednn+fused", "cuda+fused"};
const char* const kRounded[] = {"cuda+bf16+fused"};
#endif

class RowSums : public OpsTest {};

TEST_P(RowSums, AttentionForwardAndBackward) {
  struct {
    Chunk c;
    HeadShape h;
    int64_t S;
  } const cases[] = {
      {{1, 1, 0}, {1, 1, 1}, 1},    {{2, 3, 0}, {4, 2, 5}, 7},      {{2, 9, 4}, {4, 2, 16}, 13},
      {{1, 5, 0}, {3, 3, 7}, 5},    {{2, 70, 0}, {6, 3, 9}, 70},    {{1, 33, 30}, {2, 1, 17}, 64},
      {{2, 64, 0}, {4, 4, 32}, 64}, {{1, 131, 0}, {4, 1, 16}, 140}, {{1, 257, 0}, {2, 2, 40}, 257}};
  const Backend cpu = open_backend("cpu", 1);
  ASSERT_TRUE(backends[0].ops.keeps_row_sums(*backends[0].ctx));
  for (const auto& one : cases) {
    const Chunk c = one.c;
    const HeadShape h = one.h;
    const int64_t S = one.S;
    SCOPED_TRACE(fmt::format("B {} T {} pos {} H {} K {} C {}", c.B, c.T, c.pos, h.H, h.K, h.C));
    const int64_t N = c.B * c.T, R = c.pos + c.T, W = (h.H + 2 * h.K) * h.C, HC = h.H * h.C;
    const Tensor qkv = normal({N, W}), k = normal({c.B, h.K, S, h.C}),
                 v = normal({c.B, h.K, S, h.C});
    const Tensor want = blank({N, HC}), probs = blank({c.B, h.H, c.T, R});
    cpu.ops.store_kv(*cpu.ctx, k, v, qkv, c, h);
    // What lies in the cache beyond the chunk is never read.
    for (int64_t i = 0; i < k.size(); ++i) {
      if (i / h.C % S >= R) put(k, i, NAN), put(v, i, NAN);
    }
    cpu.ops.attention(*cpu.ctx, want, probs, qkv, k, v, c, h);
    const Tensor out = blank({N, HC}), bare = blank({N, HC}), sums = blank({c.B, h.H, c.T});
    run({out, sums}, [&](const Ops& o, Ctx& x) { o.attention(x, out, sums, qkv, k, v, c, h); });
    run({bare}, [&](const Ops& o, Ctx& x) { o.attention(x, bare, {}, qkv, k, v, c, h); });
    expect_close(out, values(want), tol(h.C + R, 2), "attention");
    expect_close(bare, values(want), tol(h.C + R, 2), "attention that keeps nothing");
    Values log_sums;
    for (int64_t n = 0; n < sums.size(); ++n) {
      const int64_t b = n / c.T / h.H, q = n / c.T % h.H, t = n % c.T,
                    at_q = (b * c.T + t) * W + q * h.C;
      double sum = 0;
      for (int64_t j = 0; j <= c.pos + t; ++j) {
        double dot = 0;
        for (int64_t i = 0; i < h.C; ++i)
          dot += at(qkv, at_q + i) * at(k, ((b * h.K + q * h.K / h.H) * S + j) * h.C + i);
        sum += std::exp(dot / std::sqrt(static_cast<double>(h.C)));
      }
      log_sums.push_back(std::log(sum));
    }
    expect_close(sums, log_sums, tol(h.C + R, 4), "row sums");
    if (c.pos > 0) continue;
    const Tensor dout = normal({N, HC}), grad = blank({N, W}), dqkv = blank({N, W});
    cpu.ops.attention_backward(*cpu.ctx, grad, dout, want, qkv, k, v, probs, c, h);
    run({dqkv}, [&](const Ops& o, Ctx& x) {
      o.attention_backward(x, dqkv, dout, out, qkv, k, v, sums, c, h);
    });
    const Values g = values(grad);
    expect_close(dqkv, g, tol(h.C + R, std::max(1.0, std::min(10.0, largest(g)))), "its gradient");
  }
}

// Attention on tensor cores, whose inputs are numbers that bf16 has, in tensors of f32 or of bf16: then scores are
// exact, and what is rounded are the probabilities, the gradients of the scores, and results of bf16, by 2^-8 of each
// at most.
class RoundedRowSums : public OpsTest {
 protected:
  const bool half = dtype == DType::bf16;

  Tensor full(std::initializer_list<int64_t> dims) { return s.blank(DType::f32, dims); }
  Tensor halves(std::initializer_list<int64_t> dims) {
    const Tensor t = full(dims);
    for (int64_t i = 0; i < t.size(); ++i)
      put(t, i, static_cast<double>(to_float(to_bf16(static_cast<float>(rng.normal())))));
    return t;
  }
  // The numbers in the type that is tested.
  Tensor kept(const Tensor& t) {
    const Tensor copy = s.blank(dtype, {t.dim[0], t.dim[1], t.dim[2], t.dim[3]});
    for (int64_t i = 0; i < t.size(); ++i) put(copy, i, at(t, i));
    Tensor same = copy;
    same.rank = t.rank;
    return same;
  }
  // What a number, known up to 2^-8 `off`, may be off by in a result, in 2^-8.
  double off_in_result(double number, double off) const {
    return half ? off + std::abs(number) + off / 256 : off;
  }
  // |got - want| <= 2^-8 sum, the sum being that of the absolute terms, what results are rounded by, and what sums in
  // f32 differ by.
  void expect_within(const Tensor& got, const Tensor& want, const Values& sum, double rest,
                     const char* what) {
    for (int64_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(at(got, i) - at(want, i)),
                   allowed = off_in_result(at(want, i), sum[static_cast<size_t>(i)]) / 256 + rest;
      ASSERT_TRUE(error <= allowed) << what << "[" << i << "]: " << at(got, i) << " against "
                                    << at(want, i) << ", allowed " << allowed;
    }
  }
};

TEST_P(RoundedRowSums, AttentionForwardAndBackward) {
  struct {
    Chunk c;
    HeadShape h;
    int64_t S;
  } const cases[] = {{{1, 1, 0}, {1, 1, 1}, 1},      {{2, 9, 4}, {4, 2, 16}, 13},
                     {{1, 70, 0}, {6, 3, 9}, 70},    {{1, 33, 70}, {2, 1, 40}, 110},
                     {{2, 64, 0}, {2, 2, 64}, 64},   {{1, 65, 0}, {3, 3, 72}, 65},
                     {{1, 131, 0}, {4, 1, 64}, 140}, {{1, 129, 0}, {2, 1, 128}, 129},
                     {{2, 140, 0}, {4, 2, 48}, 150}, {{1, 193, 0}, {4, 4, 64}, 193},
                     {{1, 67, 0}, {2, 1, 90}, 67},   {{1, 1, 130}, {2, 2, 64}, 140}};
  const Backend cpu = open_backend("cpu", 1);
  for (const auto& one : cases) {
    const Chunk c = one.c;
    const HeadShape h = one.h;
    SCOPED_TRACE(fmt::format("B {} T {} pos {} H {} K {} C {}", c.B, c.T, c.pos, h.H, h.K, h.C));
    const int64_t N = c.B * c.T, R = c.pos + c.T, W = (h.H + 2 * h.K) * h.C, HC = h.H * h.C;
    const Tensor qkv = halves({N, W}), k = halves({c.B, h.K, one.S, h.C}),
                 v = halves({c.B, h.K, one.S, h.C}), dout = halves({N, HC});
    const Tensor want = full({N, HC}), probs = full({c.B, h.H, c.T, R});
    cpu.ops.store_kv(*cpu.ctx, k, v, qkv, c, h);
    for (int64_t i = 0; i < k.size(); ++i) {
      if (i / h.C % one.S >= R) put(k, i, NAN), put(v, i, NAN);
    }
    cpu.ops.attention(*cpu.ctx, want, probs, qkv, k, v, c, h);
    const Tensor out = blank({N, HC}), bare = blank({N, HC}), sums = full({c.B, h.H, c.T});
    const Tensor own = kept(qkv), keys = kept(k), vals = kept(v), down = kept(dout);
    run({out, sums},
        [&](const Ops& o, Ctx& x) { o.attention(x, out, sums, own, keys, vals, c, h); });
    run({bare}, [&](const Ops& o, Ctx& x) { o.attention(x, bare, {}, own, keys, vals, c, h); });
    // Absolute terms of out, and of the gradients by q, k and v; those of ds as well, as far as rowsum(dout * out) is
    // off by what out is.
    Values of_out(static_cast<size_t>(N * HC)), of_grad(static_cast<size_t>(N * W));
    const double scale = 1 / std::sqrt(static_cast<double>(h.C));
    for (int64_t row = 0; row < c.B * h.H * c.T; ++row) {
      const int64_t b = row / c.T / h.H, q = row / c.T % h.H, t = row % c.T, g = q * h.K / h.H,
                    n = b * c.T + t;
      const auto key = [&](int64_t j, int64_t i) { return ((b * h.K + g) * one.S + j) * h.C + i; };
      Values dp(static_cast<size_t>(R));
      double mean = 0, mean_off = 0;
      for (int64_t j = 0; j <= c.pos + t; ++j) {
        for (int64_t i = 0; i < h.C; ++i) {
          dp[static_cast<size_t>(j)] += at(dout, n * HC + q * h.C + i) * at(v, key(j, i));
          of_out[static_cast<size_t>(n * HC + q * h.C + i)] +=
              at(probs, row * R + j) * std::abs(at(v, key(j, i)));
        }
        mean += at(probs, row * R + j) * dp[static_cast<size_t>(j)];
      }
      for (int64_t i = 0; i < h.C; ++i) {
        const int64_t to = n * HC + q * h.C + i;
        mean_off +=
            std::abs(at(dout, to)) * off_in_result(at(want, to), of_out[static_cast<size_t>(to)]);
      }
      for (int64_t j = 0; c.pos == 0 && j <= t; ++j) {
        const double p = at(probs, row * R + j),
                     ds = p * (std::abs(dp[static_cast<size_t>(j)] - mean) + mean_off) * scale;
        for (int64_t i = 0; i < h.C; ++i) {
          const auto grad = [&](int64_t m, int64_t head) -> double& {
            return of_grad[static_cast<size_t>((b * c.T + m) * W + head * h.C + i)];
          };
          grad(t, q) += ds * std::abs(at(k, key(j, i)));
          grad(j, h.H + g) += ds * std::abs(at(qkv, n * W + q * h.C + i));
          grad(j, h.H + h.K + g) += p * std::abs(at(dout, n * HC + q * h.C + i));
        }
      }
    }
    expect_within(out, want, of_out, tol(h.C + R, 4), "out");
    // The kernels for a few queries of floats round nothing.
    expect_within(bare, want, of_out, tol(h.C + R, 4), "out, nothing kept");
    const Tensor there = s.ints({static_cast<int32_t>(c.pos)}), late = blank({N, HC});
    const Chunk moved{c.B, c.T, 0, there.as<int32_t>()};
    run({late}, [&](const Ops& o, Ctx& x) { o.attention(x, late, {}, own, keys, vals, moved, h); });
    expect_same_bits(late, bare, "a position that the device knows");
    if (c.pos > 0) continue;
    const Tensor grad = full({N, W}), dqkv = blank({N, W});
    cpu.ops.attention_backward(*cpu.ctx, grad, dout, want, qkv, k, v, probs, c, h);
    run({dqkv}, [&](const Ops& o, Ctx& x) {
      o.attention_backward(x, dqkv, down, out, own, keys, vals, sums, c, h);
    });
    expect_within(dqkv, grad, of_grad,
                  tol(h.C + R, std::max(1.0, std::min(10.0, largest(values(grad))))), "gradient");
  }
}

// A NaN in one query reaches its own results and those of the keys that it sees, and no other head's.
TEST_P(RoundedRowSums, NanStaysInItsHead) {
  const Chunk c{1, 70, 0};
  const HeadShape h{4, 2, 16};
  const int64_t W = (h.H + 2 * h.K) * h.C, HC = h.H * h.C;
  const Tensor qkv = kept(halves({c.T, W})), k = blank({1, h.K, c.T, h.C}),
               v = blank({1, h.K, c.T, h.C}), dout = kept(halves({c.T, HC}));
  put(qkv, 50 * W + 2 * h.C + 3, NAN);  // the query of head 2 at 50
  const Tensor out = blank({c.T, HC}), sums = full({1, h.H, c.T}), dqkv = blank({c.T, W});
  run({k, v, out, sums, dqkv}, [&](const Ops& o, Ctx& x) {
    o.store_kv(x, k, v, qkv, c, h);
    o.attention(x, out, sums, qkv, k, v, c, h);
    o.attention_backward(x, dqkv, dout, out, qkv, k, v, sums, c, h);
  });
  for (int64_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(std::isnan(at(out, i)), i / HC == 50 && i % HC / h.C == 2) << i;
  }
  for (int64_t i = 0; i < dqkv.size(); ++i) {
    const int64_t t = i / W, head = i % W / h.C;
    const bool key = head == 5 || head == 7;
    if (key && t > 50) continue;  // in a tile with it: 0 times NaN
    ASSERT_EQ(std::isnan(at(dqkv, i)), key || (head == 2 && t == 50)) << i;
  }
}

TEST_P(RoundedRowSums, RotaryPositionsAndCache) {
  const Backend cpu = open_backend("cpu", 1);
  for (const int64_t C : {2, 6, 16, 64}) {
    const Chunk c{2, 5, 3};
    const HeadShape h{4, 2, C};
    const int64_t N = c.B * c.T, W = (h.H + 2 * h.K) * C, S = 9;
    const Tensor want = halves({N, W}), x = kept(want);
    for (const bool inverse : {false, true}) {
      cpu.ops.rope(*cpu.ctx, want, c, h.H + h.K, C, 10000, inverse);
      run({x}, [&](const Ops& o, Ctx& t) { o.rope(t, x, c, h.H + h.K, C, 10000, inverse); });
      for (int64_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(std::abs(at(x, i) - at(want, i)),
                  off_in_result(at(want, i), 0) / 256 + tol(2, largest(values(want))))
            << C << ": " << i;
        put(want, i, at(x, i));
      }
    }
    const Tensor k = blank({c.B, h.K, S, C}), v = blank({c.B, h.K, S, C});
    run({k, v}, [&](const Ops& o, Ctx& t) { o.store_kv(t, k, v, x, c, h); });
    for (int64_t i = 0; i < k.size(); ++i) {
      const int64_t b = i / (h.K * S * C), head = i / (S * C) % h.K, t = i / C % S - c.pos;
      const bool inside = t >= 0 && t < c.T;
      ASSERT_EQ(std::isnan(at(k, i)), !inside) << C << ": " << i;
      if (!inside) continue;
      const int64_t from = (b * c.T + t) * W + (h.H + head) * C + i % C;
      ASSERT_EQ(at(k, i), at(x, from));
      ASSERT_EQ(at(v, i), at(x, from + h.K * C));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, RoundedRowSums,
                         ::testing::Combine(::testing::ValuesIn(kRounded),
                                            ::testing::Values(DType::f32, DType::bf16)),
                         [](const auto& info) { return spec_and_type(info.param); });
INSTANTIATE_TEST_SUITE_P(Every, RowSums,
                         ::testing::Combine(::testing::ValuesIn(kSpecs),
                                            ::testing::Values(DType::f32, DType::f64)),
                         [](const auto& info) { return spec_and_type(info.param); });

}  // namespace
}  // namespace lte::testing
