// As ops_test.cpp, for gates, experts, losses and the update.
#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

// What gates a test looks at: nobody, everybody, one expert, random scores, a few of them.
enum class Open { none, all, one, random, few };
constexpr Open kOpen[] = {Open::none, Open::all, Open::one, Open::random, Open::few};

double open_gate(Open open, int64_t n, int64_t e, int64_t E, Rng& rng) {
  const double u = rng.uniform();
  if (open == Open::none) return 0;
  if (open == Open::all) return 1;
  if (open == Open::one) return e == n % std::min<int64_t>(E, 2);
  return u < (open == Open::few ? 0.15 : 0.5);
}

class ExpertsTest : public OpsTest {
 protected:
  Tensor make_gates(Open open, int64_t N, int64_t E, bool scaled = false) {
    const Tensor g = blank({N, E});
    for (int64_t i = 0; i < N * E; ++i) {
      put(g, i, open_gate(open, i / E, i % E, E, rng) * (scaled ? 0.5 + rng.uniform() : 1));
    }
    return g;
  }
};

TEST_P(ExpertsTest, Gate) {
  for (const auto [N, E] : kSizes) {
    const Tensor s0 = blank({N, E}), g = blank({N, E});
    for (int64_t i = 0; i < N * E; ++i) put(s0, i, static_cast<double>(rng.below(9)) / 8);  // ties
    struct {
      Rule rule;
      double cut;
    } const cases[] = {{Rule::all, 0.5},     {Rule::threshold, 0.5}, {Rule::threshold, -1},
                       {Rule::threshold, 1}, {Rule::top_k, 0},       {Rule::top_k, 1},
                       {Rule::top_k, 3},     {Rule::top_k, 1000}};
    for (const auto& one : cases) {
      const Rule rule = one.rule;
      const double cut = one.cut;
      run({g}, [&](const Ops& o, Ctx& c) { o.gate(c, g, s0, rule, cut); });
      Values want;
      for (int64_t i = 0; i < N * E; ++i) {
        int64_t better = 0;  // experts that come before this one
        for (int64_t e = 0; rule == Rule::top_k && N * E < 1000 && e < E; ++e) {
          const double other = at(s0, i / E * E + e);
          better += other > at(s0, i) || (other == at(s0, i) && e < i % E);
        }
        want.push_back(rule == Rule::all         ? 1
                       : rule == Rule::threshold ? at(s0, i) > cut
                                                 : static_cast<double>(better) < cut);
      }
      if (rule == Rule::top_k && N * E >= 1000) continue;
      EXPECT_TRUE(values(g) == want) << "rule " << static_cast<int>(rule) << " cut " << cut;
    }
  }
}

TEST_P(ExpertsTest, ScaleExperts) {
  for (const auto [N, E] : kSizes) {
    for (int64_t G : {1, 3, 8}) {
      for (Open open : kOpen) {
        const int64_t F = E * G;
        if (N * F > 1000000) continue;
        const Tensor a = normal({N, F}), dout = normal({N, F}), out = blank({N, F});
        const Tensor gates = make_gates(open, N, E, true), da = blank({N, F}), dg = blank({N, E});
        Values want, wda, wdg(static_cast<size_t>(N * E));
        for (int64_t i = 0; i < N * F; ++i) {
          const double g = at(gates, i / G);
          want.push_back(g * at(a, i)), wda.push_back(g * at(dout, i));
          wdg[static_cast<size_t>(i / G)] += at(dout, i) * at(a, i);
        }
        const auto back = [&](const Ops& o, Ctx& c) {
          o.scale_experts_backward(c, da, dg, dout, a, gates);
        };
        run({da, dg}, back);
        expect_close(da, wda, tol(1, 0.02), "da");
        expect_close(dg, wdg, tol(G, std::max(1.0, largest(wdg) / 2)), "dgates");
        const std::string da_bits = bits(da), dg_bits = bits(dg);
        run({dout, dg},
            [&](const Ops& o, Ctx& c) { o.scale_experts_backward(c, dout, dg, dout, a, gates); });
        EXPECT_TRUE(bits(dout) == da_bits && bits(dg) == dg_bits) << "da may alias dout";
        // Where the gate is closed the output is 0, even if the activation is not a number.
        for (int64_t i = 0; i < N * F; ++i) {
          if (at(gates, i / G) == 0) put(a, i, i % 2 ? NAN : INFINITY);
        }
        run({out}, [&](const Ops& o, Ctx& c) { o.scale_experts(c, out, a, gates); });
        expect_close(out, want, tol(1, 0.02), "scale_experts");
        run({a}, [&](const Ops& o, Ctx& c) { o.scale_experts(c, a, a, gates); });
        expect_same_bits(a, out, "out may alias a");
      }
    }
  }
}

TEST_P(ExpertsTest, GateLoss) {
  for (const auto [N, E] : kSizes) {
    for (const GateLoss l : {GateLoss{0.3, 0.2, 0.5, 1e-3, 0}, GateLoss{0.3, 0.2, 0.5, 1e-3, 40},
                             GateLoss{0, 0.7, 0.25, 1e-2, 0}, GateLoss{1.5, 0, 0.5, 0, 5}}) {
      const Tensor g = blank({N, E}), d = normal({N, E}), sums = s.blank(DType::f64, {3});
      for (int64_t i = 0; i < N * E; ++i) put(g, i, rng.uniform());
      Values want = values(d), total(3);
      for (int64_t i = 0; i < N * E; ++i) {
        const double G = at(g, i), off = G - l.tau, term = 1 / (off * off + l.eps);
        const bool clipped = l.clip > 0 && term > l.clip;
        total[0] += G * G, total[1] += clipped ? l.clip : term, total[2] += G > l.tau;
        want[static_cast<size_t>(i)] +=
            l.efficiency * 2 * G - (clipped ? 0 : l.separability * 2 * off * term * term);
      }
      run({d, sums}, [&](const Ops& o, Ctx& c) { o.gate_loss_add(c, d, sums, g, l); });
      // One rounding of the sum.
      expect_close(d, want, tol(1, std::max(1.0, largest(want) / 4)), "dscores");
      expect_close(sums, total, tolerance_of(DType::f64, N * E, largest(total)), "sums");
      EXPECT_EQ(at(sums, 2), total[2]) << "a count is exact";
      const Tensor again = s.blank(DType::f64, {3});
      run({again}, [&](const Ops& o, Ctx& c) { o.gate_loss_add(c, {}, again, g, l); });
      expect_same_bits(again, sums, "dscores absent");
    }
  }
}

TEST_P(ExpertsTest, Route) {
  for (const auto [N, E] : kSizes) {
    for (Open open : kOpen) {
      const Tensor gates = make_gates(open, N, E, true);
      const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
      run({index, count}, [&](const Ops& o, Ctx& c) { o.route(c, index, count, gates); });
      for (int64_t e = 0; e < E; ++e) {
        std::vector<int32_t> want;
        for (int64_t n = 0; n < N; ++n) {
          if (at(gates, n * E + e) != 0) want.push_back(static_cast<int32_t>(n));
        }
        ASSERT_EQ(count.as<int32_t>()[e], static_cast<int32_t>(want.size()));
        const int32_t* row = index.as<int32_t>() + e * N;
        ASSERT_TRUE(std::equal(want.begin(), want.end(), row)) << "expert " << e;
      }
    }
  }
}

// Gathered execution against the masked one of the same table, and with every row that no token
// selects set to NaN.
TEST_P(ExpertsTest, GatheredAgainstMaskedAndPoisoned) {
  struct {
    int64_t D, E, G;
  } const shapes[] = {{1, 1, 1}, {5, 3, 1}, {9, 4, 7}, {16, 8, 4}, {33, 40, 16}};
  for (int64_t N : {1, 3, 17, 70, 130}) {
    for (const auto& [D, E, G] : shapes) {
      if (too_large(N * D * E * G)) continue;
      for (Open open : kOpen) {
        for (int kind = 0; kind < 3; ++kind) {  // gated; with a bias; without
          const Act act = kind == 0 ? Act::silu : kind == 1 ? Act::gelu_tanh : Act::relu;
          SCOPED_TRACE(fmt::format("N {} D {} E {} G {} open {} kind {}", N, D, E, G,
                                   static_cast<int>(open), kind));
          const int64_t F = E * G;
          const double std = 1 / std::sqrt(static_cast<double>(D));
          const Tensor x = normal({N, D}), up = normal({F, D}, std), down = normal({F, D}, 0.5);
          const Tensor gate_w = kind == 0 ? normal({F, D}, std) : Tensor{};
          const Tensor up_b = kind == 1 ? normal({F}) : Tensor{};
          const Tensor gates = make_gates(open, N, E, true), out = blank({N, D});
          const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
          const Tensor u = blank({N, F}), g = blank({N, F}), h = blank({N, F}),
                       want = blank({N, D});
          const Ops& op = backends[0].ops;
          Ctx& ctx = *backends[0].ctx;
          op.gemm(ctx, u, x, false, up, true);
          if (up_b) op.bias_add(ctx, u, up_b);
          if (gate_w) op.gemm(ctx, g, x, false, gate_w, true);
          op.activate(ctx, h, gate_w ? g : u, gate_w ? u : Tensor{}, act);
          op.scale_experts(ctx, h, h, gates);
          op.gemm(ctx, want, h, false, down, false);
          op.route(ctx, index, count, gates);
          backends[0].finish();
          const auto gathered = [&](const Ops& o, Ctx& c) {
            o.ffn_gathered(c, out, x, gates, index, count, {}, up, up_b, gate_w, down, act);
          };
          run({out}, gathered);
          // A rounding error is as large as the partial sum it happens in, up to the result.
          expect_close(out, values(want), tol(D + F, std::max(0.5, largest(values(want)) / 2)),
                       "gathered against masked");
          const std::string clean = bits(out);
          for (int64_t j = 0; j < F; ++j) {
            if (count.as<int32_t>()[j / G] > 0) continue;
            if (up_b) put(up_b, j, NAN);
            for (int64_t d = 0; d < D; ++d) {
              put(up, j * D + d, NAN), put(down, j * D + d, NAN);
              if (gate_w) put(gate_w, j * D + d, NAN);
            }
          }
          run({out}, gathered);
          EXPECT_TRUE(bits(out) == clean) << "a row that nobody selects was read";
          s.blocks.clear();
        }
      }
    }
  }
}

// Matrices of bf16 and few tokens, the second of which has no expert: as with the same numbers as floats;
// what nobody selects is not read; a token that is not a number spoils its own row alone.
TEST_P(ExpertsTest, GatheredOfFewTokensByMatricesOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec)) GTEST_SKIP() << "no weights of bf16 here";
  struct {
    int64_t D, E, G;
  } const shapes[] = {{32, 7, 16}, {96, 4, 32}, {40, 3, 8}};
  for (int64_t N : {2, 8, 9, 16}) {
    for (const auto& shape : shapes) {
      for (int kind = 0; kind < 4; ++kind) {  // h known; act(x Wg) known; gated; with a bias
        const int64_t D = shape.D, E = shape.E, G = shape.G, F = E * G;
        SCOPED_TRACE(fmt::format("N {} D {} E {} G {} kind {}", N, D, E, G, kind));
        const double std = 1 / std::sqrt(static_cast<double>(D));
        const Tensor x = normal({N, D}), down = normal({F, D}, 0.5), hdown = s.half(down);
        const Tensor up = kind > 0 ? normal({F, D}, std) : Tensor{};
        const Tensor gate_w = kind == 2 ? normal({F, D}, std) : Tensor{};
        const Tensor hup = up ? s.half(up) : Tensor{}, hgate = gate_w ? s.half(gate_w) : Tensor{};
        const Tensor bias = kind == 3 ? normal({F}) : Tensor{};
        const Tensor known = kind < 2 ? normal({N, F}) : Tensor{};
        const Tensor gates = make_gates(Open::random, N, E), out = blank({N, D}),
                     want = blank({N, D});
        const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
        for (int64_t i = 0; i < N * E; ++i) {
          const bool closed = i / E == 1 || i % E == 1;  // and an expert that nobody has
          put(gates, i, closed ? 0 : i % E == 0 ? 1 : at(gates, i) * (0.5 + rng.uniform()));
        }
        const Ops& op = backends[0].ops;
        Ctx& ctx = *backends[0].ctx;
        op.route(ctx, index, count, gates);
        op.ffn_gathered(ctx, want, x, gates, index, count, known, up, bias, gate_w, down,
                        Act::silu);
        backends[0].finish();
        const auto gathered = [&](const Ops& o, Ctx& c) {
          o.ffn_gathered(c, out, x, gates, index, count, known, hup, bias, hgate, hdown, Act::silu);
        };
        run({out}, gathered);
        expect_close(out, values(want), tol(D + F, std::max(0.5, largest(values(want)) / 2)),
                     "bf16 against f32");
        for (int64_t d = 0; d < D; ++d) EXPECT_EQ(at(out, D + d), 0) << "no expert";
        const std::string clean = bits(out);
        for (int64_t j = 0; j < F; ++j) {
          for (int64_t n = 0; n < N && known; ++n) {
            if (at(gates, n * E + j / G) == 0) put(known, n * F + j, NAN);
          }
          for (int64_t d = 0; d < D && count.as<int32_t>()[j / G] == 0; ++d) {
            for (const Tensor& w : {hup, hgate, hdown}) {
              if (w) w.as<Bf16>()[j * D + d] = to_bf16(NAN);
            }
          }
        }
        run({out}, gathered);
        EXPECT_TRUE(bits(out) == clean) << "what nobody selects was read";
        put(x, D / 2, NAN), put(x, D + 1, NAN);
        run({out}, gathered);
        for (int64_t d = 0; d < D; ++d) EXPECT_EQ(std::isnan(at(out, d)), bool(up)) << d;
        const auto others = static_cast<size_t>(D) * sizeof(float);
        EXPECT_TRUE(bits(out).substr(others) == clean.substr(others))
            << "one token's input reached another";
        s.blocks.clear();
      }
    }
  }
}

// Matrices of bf16 with biases of floats, as models have them, against the same numbers as floats. Of more
// than 16 tokens x is rounded too, here beforehand, and h: each term of out by at most 2^-9 of it, and their
// errors add up as the terms do.
TEST_P(ExpertsTest, GatheredWithMatricesOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec)) GTEST_SKIP() << "no weights of bf16 here";
  struct {
    int64_t D, E, G;
  } const shapes[] = {{5, 3, 1},   {16, 9, 4},  {264, 6, 3},  {40, 7, 16},
                      {32, 5, 16}, {96, 3, 32}, {160, 2, 48}, {4112, 3, 8}};
  for (int64_t N : {1, 2, 3, 8, 9, 16, 17, 140}) {
    for (const auto& [D, E, G] : shapes) {
      for (int kind = 0; kind < 3; ++kind) {  // gated; with a bias; without
        SCOPED_TRACE(fmt::format("N {} D {} E {} G {} kind {}", N, D, E, G, kind));
        const int64_t F = E * G;
        const double std = 1 / std::sqrt(static_cast<double>(D));
        const Tensor x = normal({N, D}), up = normal({F, D}, std), down = normal({F, D}, 0.5);
        const Tensor gate_w = kind == 0 ? normal({F, D}, std) : Tensor{};
        const Tensor bias = kind == 1 ? normal({F}, 3) : Tensor{};
        const Tensor hup = s.half(up), hdown = s.half(down);
        const Tensor hgate = gate_w ? s.half(gate_w) : Tensor{};
        const Tensor gates = make_gates(Open::random, N, E, true);
        const Tensor out = blank({N, D}), want = blank({N, D});
        const bool rounds =
            std::string_view(spec).starts_with("cuda") && N > 16 && D % 8 == 0 && G % 8 == 0;
        if (rounds) s.half(x);
        const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
        Backend& be = backends[0];
        const Act act = kind == 0 ? Act::silu : Act::gelu_tanh;
        be.ops.route(*be.ctx, index, count, gates);
        be.ops.ffn_gathered(*be.ctx, want, x, gates, index, count, {}, up, bias, gate_w, down, act);
        be.finish();
        run({out}, [&](const Ops& o, Ctx& c) {
          o.ffn_gathered(c, out, x, gates, index, count, {}, hup, bias, hgate, hdown, act);
        });
        const double top = largest(values(want));
        expect_close(out, values(want),
                     tol(D + F, std::max(0.5, top / 2)) + (rounds ? top / 256 : 0),
                     "bf16 against f32");
        s.blocks.clear();
      }
    }
  }
}

TEST_P(ExpertsTest, CrossEntropyAndDistillation) {
  std::vector<Size> sizes(std::begin(kSizes), std::end(kSizes));
  sizes.push_back({9, 9001});  // longer than what a block reads at a time
  for (const auto [N, V] : sizes) {
    const Tensor z = normal({N, V}, 3), y = normal({N, V}, 3), loss = blank({N}), d = blank({N, V});
    const Tensor targets = s.ints(N, V, rng), alone = blank({N});
    for (int64_t n = 0; n < N; n += 3) {
      if (N > 1) targets.as<int32_t>()[n] = n % 2 ? -1 : -7;
    }
    const double scale = 0.37, w = 0.8;
    Values want, grad, kl;
    for (int64_t n = 0; n < N; ++n) {
      double top = -1e9, ytop = -1e9, sum = 0, ysum = 0;
      const int32_t target = targets.as<int32_t>()[n];
      for (int64_t v = 0; v < V; ++v)
        top = std::max(top, at(z, n * V + v)), ytop = std::max(ytop, at(y, n * V + v));
      for (int64_t v = 0; v < V; ++v)
        sum += std::exp(at(z, n * V + v) - top), ysum += std::exp(at(y, n * V + v) - ytop);
      want.push_back(target < 0 ? 0 : std::log(sum) + top - at(z, n * V + target));
      for (int64_t v = 0; v < V; ++v) {
        const double p = std::exp(at(z, n * V + v) - top) / sum;
        grad.push_back(target < 0 ? 0 : scale * (p - (v == target)));
        kl.push_back(target < 0 ? 0 : w * (p - std::exp(at(y, n * V + v) - ytop) / ysum));
      }
    }
    run({loss, d},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, d, z, targets, scale, z.cols()); });
    // A loss of about 12 is the difference of numbers as large; a probability has exp of such one.
    expect_close(loss, want, tol(V, 3), "loss");
    expect_close(d, grad, tol(V, 0.5), "dlogits");
    run({alone},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, alone, {}, z, targets, scale, z.cols()); });
    expect_same_bits(alone, loss, "dlogits absent");
    const Tensor add = normal({N, V});
    for (size_t i = 0; i < kl.size(); ++i) kl[i] += at(add, static_cast<int64_t>(i));
    run({add}, [&](const Ops& o, Ctx& c) { o.distill_add(c, add, z, y, targets, w); });
    expect_close(add, kl, tol(V, 1), "distill_add");
    run({loss, z},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, z, z, targets, scale, z.cols()); });
    expect_close(z, grad, tol(V, 0.5), "dlogits in place of logits");
  }
}

TEST_P(ExpertsTest, LargeLogitsStayFinite) {
  const Tensor z = s.of(dtype, {1, 3}, {1000, 999, -1000}), loss = blank({1}), d = blank({1, 3});
  run({loss, d},
      [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, d, z, s.ints({1}), 1, z.cols()); });
  const double p = 1 / (1 + std::exp(-1.0));
  expect_close(loss, Values{std::log1p(std::exp(1.0))}, tol(1, 1000), "loss");
  expect_close(d, Values{p, -p, 0}, tol(3, 1), "dlogits");
}

// One logit that is not a number spoils its row, and no other.
TEST_P(ExpertsTest, ALogitThatIsNoNumberGivesALossThatIsNone) {
  for (const Size& size : kSizes) {
    const int64_t N = size.rows, V = size.cols;
    for (int64_t v : {int64_t{0}, V / 2, V - 1}) {
      const Tensor z = normal({N, V}), y = normal({N, V}), loss = blank({N}), d = blank({N, V});
      const Tensor targets = s.ints(N, V, rng), add = normal({N, V});
      put(z, v, NAN);
      if (N > 2) put(y, 2 * V + v, NAN);
      const auto expect = [&](const Tensor& t, int64_t row, int64_t cols, bool number) {
        for (int64_t i = row * cols; i < (row + 1) * cols; ++i)
          EXPECT_EQ(!std::isnan(at(t, i)), number) << N << " x " << V << ", NaN at " << v;
      };
      run({loss, d},
          [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, d, z, targets, 0.5, z.cols()); });
      run({add}, [&](const Ops& o, Ctx& c) { o.distill_add(c, add, z, y, targets, 0.5); });
      for (int64_t n = 0; n < N; ++n) {
        expect(loss, n, 1, n != 0), expect(d, n, V, n != 0), expect(add, n, V, n != 0 && n != 2);
      }
    }
  }
}

TEST_P(ExpertsTest, AdamW) {
  for (const auto [N, M] : kSizes) {
    for (int64_t step : {1, 2, 100}) {
      const AdamW a{.lr = 0.01,
                    .beta1 = 0.9,
                    .beta2 = 0.95,
                    .eps = 1e-8,
                    .decay = 0.1,
                    .grad_scale = 0.5,
                    .step = step};
      const Tensor p = normal({N, M}), g = normal({N, M}), m = normal({N, M}), v = normal({N, M});
      for (int64_t i = 0; i < N * M; ++i) put(v, i, std::abs(at(v, i)));
      if (N * M > 8) put(g, 3, 0), put(m, 3, 0), put(v, 3, 0);
      Values wp, wm, wv;
      for (int64_t i = 0; i < N * M; ++i) {
        const double grad = 0.5 * at(g, i), m1 = 0.9 * at(m, i) + 0.1 * grad;
        const double v1 = 0.95 * at(v, i) + 0.05 * grad * grad, t = static_cast<double>(step);
        const double mh = m1 / (1 - std::pow(0.9, t)), vh = v1 / (1 - std::pow(0.95, t));
        wm.push_back(m1), wv.push_back(v1);
        wp.push_back(at(p, i) - 0.01 * (mh / (std::sqrt(vh) + 1e-8) + 0.1 * at(p, i)));
      }
      run({p, m, v}, [&](const Ops& o, Ctx& c) { o.adamw(c, p, g, m, v, a); });
      expect_close(p, wp, tol(1, 2), "p");
      expect_close(m, wm, tol(1, 1), "m");
      expect_close(v, wv, tol(1, 1), "v");
    }
  }
}

// One entry for what five do: scores within rounding, and gates and lists that are those of its scores.
TEST_P(ExpertsTest, RouteLinearIsFiveOperations) {
  if (!backends[0].ops.route_linear) GTEST_SKIP() << spec << " has no such kernel";
  for (int64_t N : {1, 3, 4, 5, 9, 16, 17}) {
    for (const auto [E, D] : {Size{1, 1}, Size{7, 9}, Size{40, 64}, Size{35, 96}, Size{19, 4096}}) {
      for (bool half : {false, true}) {
        if (half && dtype == DType::f64) continue;
        SCOPED_TRACE(fmt::format("{} tokens, {} experts, {} wide, bf16 {}", N, E, D, half));
        Tensor w = normal({E, D});
        if (half) w = s.half(w);
        const Tensor x = normal({N, D}), b = E == 7 ? Tensor{} : normal({E});
        for (int64_t d = 0; d < D; ++d) put(x, d, 0);  // without a bias at the cut itself
        const Tensor scores = blank({N, E}), gates = blank({N, E}), z = blank({N, E}),
                     open = blank({N, E});
        const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
        const Tensor index5 = s.blank(DType::i32, {E, N}), count5 = s.blank(DType::i32, {E});
        const std::string before = bits(scores) + bits(gates) + bits(index) + bits(count);
        bool taken = false;
        run({scores, gates, index, count}, [&](const Ops& o, Ctx& c) {
          taken = o.route_linear(c, scores, {gates, index, count}, x, w, b, 0.5);
        });
        EXPECT_EQ(taken, N <= 16);
        if (!taken) {
          EXPECT_TRUE(bits(scores) + bits(gates) + bits(index) + bits(count) == before);
          continue;
        }
        Backend& be = backends[0];
        be.ops.gemm(*be.ctx, z, x, false, w, true);
        if (b) be.ops.bias_add(*be.ctx, z, b);
        be.ops.sigmoid(*be.ctx, z);
        be.ops.gate(*be.ctx, open, scores, Rule::threshold, 0.5);
        be.ops.route(*be.ctx, index5, count5, open);
        be.finish();
        // Products of many rows, or of shapes that tensor cores do not take as they are, round x to bf16.
        const double rounded = half && N > 8 && (E < 16 || D % 32 != 0) ? 0.02 : 0;
        expect_close(scores, z, tol(D, 3) + rounded, "scores");
        expect_same_bits(gates, open, "gates");
        expect_same_bits(index, index5, "lists");
        expect_same_bits(count, count5, "counts");
        if (E == 40) {
          double opened = 0;
          for (double g : values(gates)) opened += g;
          EXPECT_TRUE(opened > 0 && opened < static_cast<double>(N * E)) << opened;
        }
      }
    }
  }
}

LTE_EVERY_BACKEND(ExpertsTest);

}  // namespace
}  // namespace lte::testing
