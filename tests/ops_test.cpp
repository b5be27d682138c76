// Every operation against plain loops in double, for every backend and variant, f32 and f64, shapes
// that no tile likes, and 1, 2 and 7 threads with the same bits.
#include "core/ops.h"

#include <fmt/format.h>

#include "core/profile.h"
#include "testing.h"

namespace lte::testing {
namespace {

TEST_P(OpsTest, NoEntryIsEmpty) {
  static_assert(sizeof(Ops) % sizeof(void*) == 0);
  const Ops& ops = backends[0].ops;
  const bool cpu = std::string_view(spec).starts_with("cpu");
  visit_ops([&]<auto kEntry>(const std::string& name) {
    const bool training = name == "ffn_train" || name == "ffn_train_backward_add";
    const bool graphs = name == "record" || name == "replay";
    const bool both = name.starts_with("linear") || name == "add_norm";
    const bool token = name.ends_with("_token") || name.ends_with("route_linear");
    const bool optional = both || (cpu ? graphs || token : training);
    EXPECT_TRUE(ops.*kEntry != nullptr || optional) << name;
  });
  EXPECT_EQ(ops.record == nullptr, ops.replay == nullptr);
  EXPECT_EQ(ops.ffn_train == nullptr, ops.ffn_train_backward_add == nullptr);
}

TEST_P(OpsTest, Embed) {
  struct {
    Chunk c;
    int64_t D, V;
  } const cases[] = {{{1, 1, 0}, 7, 11},   {{2, 3, 4}, 7, 11},   {{5, 26, 0}, 300, 11},
                     {{1, 3, 0}, 301, 11}, {{2, 3, 0}, 1100, 4}, {{40, 15, 0}, 7, 150},
                     {{40, 15, 1}, 8, 150}};
  for (const auto& one : cases) {
    const Chunk c = one.c;
    const int64_t D = one.D, V = one.V;
    for (bool positions : {true, false}) {
      const int64_t N = c.B * c.T;
      const Tensor wte = normal({V, D}), wpe = positions ? normal({30, D}) : Tensor{};
      const Tensor tokens = s.ints(N, V, rng), out = blank({N, D}), dout = normal({N, D});
      run({out}, [&](const Ops& o, Ctx& x) { o.embed(x, out, tokens, wte, wpe, c); });
      const Tensor dwte = normal({V, D}), dwpe = positions ? normal({30, D}) : Tensor{};
      Values want, dw = values(dwte), dp = positions ? values(dwpe) : Values{};
      for (int64_t i = 0; i < N * D; ++i) {
        const int64_t n = i / D, d = i % D, token = tokens.as<int32_t>()[n], p = c.pos + n % c.T;
        want.push_back(at(wte, token * D + d) + (positions ? at(wpe, p * D + d) : 0));
        dw[static_cast<size_t>(token * D + d)] += at(dout, i);
        if (positions) dp[static_cast<size_t>(p * D + d)] += at(dout, i);
      }
      expect_close(out, want, tol(1, 1), "embed");
      const auto back = [&](const Ops& o, Ctx& x) {
        o.embed_backward_add(x, dwte, dwpe, dout, tokens, c);
      };
      positions ? run({dwte, dwpe}, back) : run({dwte}, back);
      expect_close(dwte, dw, tol(N, 1), "embed_backward_add wte");
      if (positions) expect_close(dwpe, dp, tol(N, 1), "embed_backward_add wpe");
    }
  }
}

TEST_P(OpsTest, Norm) {
  std::vector<Size> sizes(std::begin(kSizes), std::end(kSizes));
  sizes.push_back({2, 301}), sizes.push_back({3, 1100});  // longer than a block of a GPU is wide
  for (const auto [N, D] : sizes) {
    for (bool layer : {true, false}) {
      SCOPED_TRACE(fmt::format("{} x {} {}", N, D, layer ? "LayerNorm" : "RMSNorm"));
      const Tensor x = normal({N, D}, 2), w = normal({D}), b = layer ? normal({D}) : Tensor{};
      const Tensor out = blank({N, D}), stats = blank({N, 2});
      const double eps = 0.01;
      run({out, stats}, [&](const Ops& o, Ctx& c) { o.norm(c, out, stats, x, w, b, eps); });
      const Tensor dout = normal({N, D}), dx = normal({N, D}), dw = normal({D}),
                   db = layer ? normal({D}) : Tensor{};
      Values want, st, gx = values(dx), gw = values(dw), gb = layer ? values(db) : Values{};
      for (int64_t n = 0; n < N; ++n) {
        const auto D_ = static_cast<double>(D);
        double mean = 0, square = 0, mean_g = 0, mean_gx = 0;
        for (int64_t d = 0; layer && d < D; ++d) mean += at(x, n * D + d) / D_;
        for (int64_t d = 0; d < D; ++d) square += std::pow(at(x, n * D + d) - mean, 2) / D_;
        const double rstd = 1 / std::sqrt(square + eps);
        st.push_back(mean), st.push_back(rstd);
        for (int64_t d = 0; d < D; ++d) {
          const int64_t i = n * D + d;
          const double xh = (at(x, i) - mean) * rstd, g = at(dout, i) * at(w, d);
          want.push_back(xh * at(w, d) + (layer ? at(b, d) : 0));
          mean_g += layer ? g / D_ : 0, mean_gx += g * xh / D_;
          gw[static_cast<size_t>(d)] += at(dout, i) * xh;
          if (layer) gb[static_cast<size_t>(d)] += at(dout, i);
        }
        for (int64_t d = 0; d < D; ++d) {
          const int64_t i = n * D + d;
          const double xh = (at(x, i) - mean) * rstd;
          gx[static_cast<size_t>(i)] += rstd * (at(dout, i) * at(w, d) - mean_g - xh * mean_gx);
        }
      }
      // A row of width 1 has rstd = 1 / sqrt(eps) = 10: errors are magnified by it.
      expect_close(out, want, tol(D, 8), "norm");
      expect_close(stats, st, tol(D, 2), "norm stats");
      const auto back = [&](const Ops& o, Ctx& c) {
        o.norm_backward_add(c, dx, dw, db, dout, stats, x, w);
      };
      layer ? run({dx, dw, db}, back) : run({dx, dw}, back);
      expect_close(dx, gx, tol(D, 20), "norm_backward_add dx");
      expect_close(dw, gw, tol(N, std::min(20.0, 10 * largest(gw))), "norm_backward_add dw");
      if (layer) expect_close(db, gb, tol(N, 4), "norm_backward_add db");
    }
  }
}

TEST_P(OpsTest, Gemm) {
  struct {
    int64_t n, m, k;
  } const cases[] = {{1, 1, 1},  {1, 17, 5},  {3, 1, 9},      {7, 5, 3},
                     {16, 8, 1}, {33, 31, 2}, {130, 257, 67}, {1, 300, 129}};
  for (const auto [n, m, k] : cases) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool ta = flags & 1, tb = flags & 2, add = flags & 4;
      SCOPED_TRACE(fmt::format("{}x{}x{} ta {} tb {} add {}", n, m, k, ta, tb, add));
      const Tensor a = ta ? normal({k, n}) : normal({n, k}),
                   b = tb ? normal({m, k}) : normal({k, m});
      const Tensor out = add ? normal({n, m}) : blank({n, m});
      Values want(static_cast<size_t>(n * m));
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < m; ++j) {
          double sum = add ? at(out, i * m + j) : 0;
          for (int64_t q = 0; q < k; ++q)
            sum += at(a, ta ? q * n + i : i * k + q) * at(b, tb ? j * k + q : q * m + j);
          want[static_cast<size_t>(i * m + j)] = sum;
        }
      }
      run({out}, [&](const Ops& o, Ctx& c) { (add ? o.gemm_add : o.gemm)(c, out, a, ta, b, tb); });
      // A rounding error is as large as the partial sum it happens in, up to the result.
      expect_close(out, want, tol(k, std::max(0.5, largest(want) / 2)), "gemm");
    }
  }
  const Tensor out = blank({2, 3}), a = normal({2, 4});
  Backend& be = backends[0];
  if (std::string(spec) != "cpu+naive") {
    EXPECT_THROW(be.ops.gemm(*be.ctx, out, a, false, normal({5, 3}), false), Error);
  }
}

// Weights of bf16: a few rows of x are multiplied as they are, by the backends that do so many rows are
// rounded to bf16 first. On tensor cores 2 to 16 rows of whole steps are, by 16 rows of weights or more.
TEST_P(OpsTest, GemmWithWeightsOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec)) GTEST_SKIP() << "no weights of bf16 here";
  struct {
    int64_t m, k;
  } const shapes[] = {{1, 1},  {17, 5},  {9, 8},   {33, 264},  {40, 67},  {264, 301},
                      {9, 32}, {16, 32}, {65, 96}, {47, 2144}, {11, 4608}};
  for (int64_t n : {1, 2, 3, 8, 9, 16, 17}) {
    for (const auto [m, k] : shapes) {
      for (int flags = 0; flags < 4; ++flags) {
        const bool tb = flags & 1, add = flags & 2;
        SCOPED_TRACE(fmt::format("{}x{}x{} tb {} add {}", n, m, k, tb, add));
        const Tensor a = normal({n, k}), b = tb ? normal({m, k}) : normal({k, m});
        const Tensor out = add ? normal({n, m}) : blank({n, m}), half = s.half(b);
        const bool cores = n <= 16 && m >= 16 && k % 32 == 0;
        const bool rounds =
            std::string_view(spec).starts_with("cuda") && (tb ? n > 8 && !cores : n > 1);
        Values want(static_cast<size_t>(n * m));
        for (int64_t i = 0; i < n * m; ++i) {
          double& sum = want[static_cast<size_t>(i)] = add ? at(out, i) : 0;
          for (int64_t q = 0; q < k; ++q) {
            const auto x = static_cast<float>(at(a, i / m * k + q));
            sum += (rounds ? to_float(to_bf16(x)) : x) * at(b, tb ? i % m * k + q : q * m + i % m);
          }
        }
        run({out},
            [&](const Ops& o, Ctx& c) { (add ? o.gemm_add : o.gemm)(c, out, a, false, half, tb); });
        expect_close(out, want, tol(k, std::max(0.5, largest(want) / 2)), "gemm");
        s.blocks.clear();
      }
    }
  }
}

TEST_P(OpsTest, GemmOfWhatIsNotFiniteByWeightsOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec)) GTEST_SKIP() << "no weights of bf16 here";
  const int64_t m = 33, k = 64;
  for (int64_t n : {1, 2, 9, 16}) {
    const Tensor x = normal({n, k}), w = normal({m, k}), half = s.half(w), out = blank({n, m});
    put(x, 5, INFINITY);
    if (n > 1) put(x, k + 7, NAN);
    run({out}, [&](const Ops& o, Ctx& c) { o.gemm(c, out, x, false, half, true); });
    for (int64_t i = 0; i < n * m; ++i) EXPECT_EQ(std::isfinite(at(out, i)), i >= 2 * m) << i;
    s.blocks.clear();
  }
}

// Both ways round the same factors, so that only the order of sums may differ.
TEST_P(OpsTest, LinearIsGemmAndBias) {
  if (!backends[0].ops.linear) GTEST_SKIP() << "no such entry";
  struct {
    int64_t n, m, k;
  } const shapes[] = {{1, 5, 3}, {16, 32, 32}, {17, 8, 8}, {33, 12, 40}, {40, 64, 24}, {18, 7, 8}};
  for (const int flags : {0, 1, 2, 3}) {
    const bool half = flags & 1, tw = flags & 2;
    if (half && (dtype != DType::f32 || !takes_bf16(spec))) continue;
    for (const auto& shape : shapes) {
      const int64_t n = shape.n, m = shape.m, k = shape.k;
      SCOPED_TRACE(fmt::format("{}x{}x{} bf16 {} tw {}", n, m, k, half, tw));
      const Tensor x = normal({n, k}), w = tw ? normal({m, k}) : normal({k, m}), b = normal({m});
      const Tensor mine = half ? s.half(w) : w, out = blank({n, m}), want = blank({n, m});
      run({want}, [&](const Ops& o, Ctx& c) {
        o.gemm(c, want, x, false, mine, tw), o.bias_add(c, want, b);
      });
      run({out}, [&](const Ops& o, Ctx& c) { o.linear(c, out, x, mine, tw, b); });
      expect_close(out, values(want), tol(k, 8), "linear");
    }
  }
}

// More columns than 65535 blocks of eight: those of a large vocabulary. Too slow where the CPU plays the GPU.
TEST_P(OpsTest, GemmOfOneRowByManyOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec) || kSlow) GTEST_SKIP() << "no weights of bf16 here";
  const int64_t m = 65535 * 8 + 9;
  const Tensor x = normal({1, 1}), w = normal({m, 1}), out = blank({1, m}), half = s.half(w);
  Values want;
  for (int64_t j = 0; j < m; ++j) want.push_back(at(x, 0) * at(w, j));
  run({out}, [&](const Ops& o, Ctx& c) { o.gemm(c, out, x, false, half, true); });
  expect_close(out, want, tol(1, 4), "gemm");
}

TEST_P(OpsTest, ElementWiseSums) {
  for (const auto [N, M] : kSizes) {
    const Tensor x = normal({N, M}), y = normal({N, M}), b = normal({M}), db = normal({M});
    const Values x0 = values(x), y0 = values(y);
    Values biased = x0, sum = x0, gb = values(db);
    double square = 0;
    for (int64_t i = 0; i < N * M; ++i) {
      const auto k = static_cast<size_t>(i);
      biased[k] += at(b, i % M), sum[k] += y0[k], gb[static_cast<size_t>(i % M)] += x0[k];
      square += x0[k] * x0[k];
    }
    run({db}, [&](const Ops& o, Ctx& c) { o.bias_backward_add(c, db, x); });
    expect_close(db, gb, tol(N, largest(gb) / 2), "bias_backward_add");
    const Tensor total = s.blank(DType::f64, {1}), out = blank({N, M});
    run({total}, [&](const Ops& o, Ctx& c) { o.sum_squares(c, total, x); });
    // The sum is f64 whatever x is: this is rounding in double.
    expect_close(total, Values{square}, tolerance_of(DType::f64, N * M, square / 2), "sum_squares");
    run({out}, [&](const Ops& o, Ctx& c) { o.add(c, out, x, y); });
    expect_close(out, sum, tol(1, 1), "add");
    const Tensor x2 = s.of(dtype, {N, M}, x0);
    run({x2}, [&](const Ops& o, Ctx& c) { o.add(c, x2, x2, y); });
    expect_same_bits(x2, out, "add with out = a");
    run({y}, [&](const Ops& o, Ctx& c) { o.add(c, y, x, y); });
    expect_same_bits(y, out, "add with out = b");
    if (N * M > 1) {  // arrays that begin between multiples of 16 bytes
      const auto later = [](Tensor t) {
        t.data = static_cast<char*>(t.data) + size_of(t.dtype), t.rank = 1, t.dim[0] = t.size() - 1;
        t.dim[1] = 1;
        return t;
      };
      const Tensor other = blank({N, M});
      put(other, 0, at(out, 0));
      run({other}, [&](const Ops& o, Ctx& c) { o.add(c, later(other), later(x), later(x2)); });
      for (int64_t i = 1; i < N * M; ++i) put(x2, i, x0[static_cast<size_t>(i)] + at(x2, i));
      put(x2, 0, at(out, 0));
      expect_close(other, values(x2), tol(1, 1), "add of unaligned arrays");
    }
    run({x}, [&](const Ops& o, Ctx& c) { o.bias_add(c, x, b); });
    expect_close(x, biased, tol(1, 1), "bias_add");
    run({out}, [&](const Ops& o, Ctx& c) { o.fill(c, out, -1.5); });
    EXPECT_EQ(values(out), Values(static_cast<size_t>(N * M), -1.5)) << "fill";
  }
}

TEST_P(OpsTest, Rope) {
  for (const Chunk c : {Chunk{1, 1, 0}, Chunk{2, 3, 5}, Chunk{3, 40, 2}}) {
    const int64_t heads = 3, C = c.T > 20 ? 34 : 6, width = heads * C + 5, N = c.B * c.T;
    const Tensor x = normal({N, width});
    const Values x0 = values(x);
    Values want = x0;
    for (int64_t i = 0; i < N * heads * C / 2; ++i) {
      const int64_t k = i % (C / 2), h = i / (C / 2) % heads, n = i / (C / 2) / heads;
      const double angle =
          static_cast<double>(c.pos + n % c.T) *
          std::pow(10000.0, -2.0 * static_cast<double>(k) / static_cast<double>(C));
      const auto a = static_cast<size_t>(n * width + h * C + k), b = a + static_cast<size_t>(C / 2);
      want[a] = x0[a] * std::cos(angle) - x0[b] * std::sin(angle);
      want[b] = x0[a] * std::sin(angle) + x0[b] * std::cos(angle);
    }
    run({x}, [&](const Ops& o, Ctx& t) { o.rope(t, x, c, heads, C, 10000, false); });
    expect_close(x, want, tol(2, 2), "rope");
    run({x}, [&](const Ops& o, Ctx& t) { o.rope(t, x, c, heads, C, 10000, true); });
    expect_close(x, x0, tol(4, 2), "rope turned back");
  }
}

TEST_P(OpsTest, Attention) {
  struct {
    Chunk c;
    HeadShape h;
    int64_t S;
  } const cases[] = {{{1, 1, 0}, {1, 1, 1}, 1},    {{2, 3, 0}, {4, 2, 5}, 7},
                     {{2, 3, 4}, {4, 2, 5}, 7},    {{3, 1, 6}, {6, 2, 8}, 9},
                     {{1, 5, 0}, {3, 3, 7}, 5},    {{4, 70, 0}, {6, 3, 9}, 70},
                     {{1, 33, 30}, {2, 1, 17}, 64}};
  for (const auto& one : cases) {
    const Chunk c = one.c;
    const HeadShape h = one.h;
    const int64_t S = one.S;
    SCOPED_TRACE(fmt::format("B {} T {} pos {} H {} K {}", c.B, c.T, c.pos, h.H, h.K));
    const int64_t N = c.B * c.T, R = c.pos + c.T, W = (h.H + 2 * h.K) * h.C, HC = h.H * h.C;
    const Tensor qkv = normal({N, W}), out = blank({N, HC}), bare = blank({N, HC});
    const Tensor k = normal({c.B, h.K, S, h.C}), v = normal({c.B, h.K, S, h.C});
    const Tensor probs = blank({c.B, h.H, c.T, R});
    Values k0 = values(k), v0 = values(v);
    const auto cell = [&](int64_t b, int64_t head, int64_t t, int64_t i) {
      return static_cast<size_t>(((b * h.K + head) * S + t) * h.C + i);
    };
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < h.K * h.C; ++i) {
        const size_t to = cell(n / c.T, i / h.C, c.pos + n % c.T, i % h.C);
        k0[to] = at(qkv, n * W + HC + i), v0[to] = at(qkv, n * W + HC + h.K * h.C + i);
      }
    }
    run({k, v}, [&](const Ops& o, Ctx& x) { o.store_kv(x, k, v, qkv, c, h); });
    EXPECT_EQ(values(k), k0) << "store_kv";
    EXPECT_EQ(values(v), v0) << "store_kv";
    run({out, probs}, [&](const Ops& o, Ctx& x) { o.attention(x, out, probs, qkv, k, v, c, h); });
    run({bare}, [&](const Ops& o, Ctx& x) { o.attention(x, bare, {}, qkv, k, v, c, h); });
    const Tensor dout = normal({N, HC}), dqkv = blank({N, W});
    Values want(static_cast<size_t>(N * HC)), p(static_cast<size_t>(probs.size())),
        grad(static_cast<size_t>(N * W));
    const double scale = 1 / std::sqrt(static_cast<double>(h.C));
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t q = 0; q < h.H; ++q) {
        for (int64_t t = 0; t < c.T; ++t) {
          const int64_t n = b * c.T + t, kv = q / (h.H / h.K), row = ((b * h.H + q) * c.T + t) * R;
          double sum = 0, mean = 0;
          Values dp(static_cast<size_t>(R));
          for (int64_t j = 0; j <= c.pos + t; ++j) {
            double dot = 0;
            for (int64_t i = 0; i < h.C; ++i)
              dot += at(qkv, n * W + q * h.C + i) * k0[cell(b, kv, j, i)];
            sum += p[static_cast<size_t>(row + j)] = std::exp(dot * scale);
          }
          for (int64_t j = 0; j <= c.pos + t; ++j) {
            double& share = p[static_cast<size_t>(row + j)];
            share /= sum;
            for (int64_t i = 0; i < h.C; ++i) {
              want[static_cast<size_t>(n * HC + q * h.C + i)] += share * v0[cell(b, kv, j, i)];
              dp[static_cast<size_t>(j)] += at(dout, n * HC + q * h.C + i) * v0[cell(b, kv, j, i)];
            }
            mean += share * dp[static_cast<size_t>(j)];
          }
          for (int64_t j = 0; c.pos == 0 && j <= t; ++j) {
            const double share = p[static_cast<size_t>(row + j)];
            const double ds = share * (dp[static_cast<size_t>(j)] - mean) * scale;
            const int64_t from = (b * c.T + j) * W + HC + kv * h.C, dq = n * W + q * h.C;
            for (int64_t i = 0; i < h.C; ++i) {
              grad[static_cast<size_t>(dq + i)] += ds * k0[cell(b, kv, j, i)];
              grad[static_cast<size_t>(from + i)] += ds * at(qkv, dq + i);
              grad[static_cast<size_t>(from + h.K * h.C + i)] +=
                  share * at(dout, n * HC + q * h.C + i);
            }
          }
        }
      }
    }
    // exp magnifies the rounding of a score by the score's size, about 5 here.
    expect_close(probs, p, tol(h.C, 2), "probs");
    expect_close(out, want, tol(h.C + R, 2), "attention");
    expect_close(bare, want, tol(h.C + R, 2), "attention without probs");
    if (c.pos > 0) continue;
    run({dqkv}, [&](const Ops& o, Ctx& x) {
      o.attention_backward(x, dqkv, dout, out, qkv, k, v, probs, c, h);
    });
    expect_close(dqkv, grad, tol(h.C + R, std::max(1.0, std::min(10.0, largest(grad)))),
                 "attention_backward");
  }
  Backend& be = backends[0];
  EXPECT_THROW(be.ops.store_kv(*be.ctx, blank({1, 1, 4, 2}), blank({1, 1, 4, 2}), normal({3, 6}),
                               {1, 3, 2}, {1, 1, 2}),
               Error)
      << "the cache is full";
}

double act_of(Act a, double x) {
  switch (a) {
    case Act::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Act::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Act::relu:
      return x > 0 ? x : 0;
    case Act::silu:
      return x / (1 + std::exp(-x));
    case Act::tanh:
      return std::tanh(x);
  }
  return 0;
}
double slope_of(Act a, double x) {  // by a fourth-order difference: its error is below 1e-11
  if (a == Act::relu) return x > 0;
  const double h = 1e-3;
  return (8 * (act_of(a, x + h) - act_of(a, x - h)) - act_of(a, x + 2 * h) + act_of(a, x - 2 * h)) /
         (12 * h);
}

TEST_P(OpsTest, Activations) {
  for (Act a : {Act::gelu_tanh, Act::gelu_erf, Act::relu, Act::silu, Act::tanh}) {
    for (const auto [N, F] : kSizes) {
      for (bool gated : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} x {} gated {}", name_of(a), N, F, gated));
        const Tensor pre = normal({N, F}, 2), up = gated ? normal({N, F}) : Tensor{};
        if (N * F > 8) put(pre, 0, 60), put(pre, 1, -60), put(pre, 2, 0);
        const Tensor out = blank({N, F}), dout = normal({N, F}), dup = blank({N, F});
        Values want, dpre, du;
        for (int64_t i = 0; i < N * F; ++i) {
          const double u = gated ? at(up, i) : 1, f = act_of(a, at(pre, i));
          want.push_back(f * u), du.push_back(at(dout, i) * f);
          dpre.push_back(at(dout, i) * slope_of(a, at(pre, i)) * u);
        }
        run({out}, [&](const Ops& o, Ctx& c) { o.activate(c, out, pre, up, a); });
        // Eigen's tanh and exp in f32 are good to a few units in the last place. The reference for
        // the slope is itself only good to 1e-11, hence the addend.
        expect_close(out, want, tol(1, 8), "activate");
        const Tensor d = blank({N, F});
        const auto back = [&](const Tensor& dp, const Tensor& from) {
          const auto f = [&](const Ops& o, Ctx& c) {
            o.activate_backward(c, dp, gated ? dup : Tensor{}, from, pre, up, a);
          };
          gated ? run({dp, dup}, f) : run({dp}, f);
        };
        back(d, dout);
        // 1 - tanh^2 cancels, and at |x| = 5 its error is multiplied by 9, then by dout and up.
        expect_close(d, dpre, tol(4, 16) + 1e-10, "activate_backward dpre");
        if (gated) expect_close(dup, du, tol(1, 8), "activate_backward dup");
        back(dout, dout);
        expect_same_bits(dout, d, "dpre may alias dout");
      }
    }
  }
}

TEST_P(OpsTest, Sigmoid) {
  for (const auto [N, E] : kSizes) {
    const Tensor x = normal({N, E}, 3), d = normal({N, E}), dz = blank({N, E});
    if (N * E > 8) put(x, 0, 200), put(x, 1, -200), put(x, 2, 0);
    Values want, grad;
    for (int64_t i = 0; i < N * E; ++i) want.push_back(1 / (1 + std::exp(-at(x, i))));
    run({x}, [&](const Ops& o, Ctx& c) { o.sigmoid(c, x); });
    expect_close(x, want, tol(1, 1), "sigmoid");
    for (int64_t i = 0; i < N * E; ++i) grad.push_back(at(d, i) * at(x, i) * (1 - at(x, i)));
    run({dz}, [&](const Ops& o, Ctx& c) { o.sigmoid_backward(c, dz, d, x); });
    if (largest(grad) > 0)
      expect_close(dz, grad, std::min(tol(1, 1), largest(grad) / 2), "sigmoid_backward");
    run({d}, [&](const Ops& o, Ctx& c) { o.sigmoid_backward(c, d, d, x); });
    expect_same_bits(d, dz, "dz may alias dscore");
  }
}

LTE_EVERY_BACKEND(OpsTest);

}  // namespace
}  // namespace lte::testing
