// As ops_test.cpp, for what routers and oracles choose by.
#include <fmt/format.h>

#include <numeric>

#include "testing.h"

namespace lte::testing {
namespace {

class RoutingTest : public OpsTest {
 protected:
  // Scores of a few values, so that there are ties, rows of zeros among them.
  Tensor tied(int64_t N, int64_t E, double low = 0) {
    const Tensor t = blank({N, E});
    for (int64_t i = 0; i < N * E; ++i) {
      const bool zero = i / E % 4 == 3;
      put(t, i, zero ? 0 : low + static_cast<double>(rng.below(7)) / 8);
    }
    return t;
  }
  Tensor some_gates(int64_t N, int64_t E, double share) {
    const Tensor t = blank({N, E});
    for (int64_t i = 0; i < N * E; ++i) put(t, i, rng.uniform() < share ? 1 : 0);
    return t;
  }
  Values gates_of(const Tensor& scores, Rule rule, double cut) {
    const Tensor g = blank({scores.rows(), scores.cols()});
    run({g}, [&](const Ops& o, Ctx& c) { o.gate(c, g, scores, rule, cut); });
    return values(g);
  }
};

// Experts of one row by falling score, ties by number, NaN last.
std::vector<int64_t> ranking(const Tensor& s, int64_t n) {
  const int64_t E = s.cols();
  std::vector<int64_t> order(static_cast<size_t>(E));
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](int64_t e) {
    const double v = at(s, n * E + e);
    return std::isnan(v) ? -INFINITY : v;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return value(a) > value(b); });
  return order;
}

TEST_P(RoutingTest, Softmax) {
  for (const auto [N, E] : kSizes) {
    for (double shift : {0.0, 500.0, -500.0}) {
      const Tensor x = normal({N, E}, 3);
      for (int64_t i = 0; i < N * E; ++i) put(x, i, at(x, i) + shift);
      Values want;
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0;
        for (int64_t e = 0; e < E; ++e) sum += std::exp(at(x, n * E + e) - shift);
        for (int64_t e = 0; e < E; ++e) want.push_back(std::exp(at(x, n * E + e) - shift) / sum);
      }
      run({x}, [&](const Ops& o, Ctx& c) { o.softmax(c, x); });
      // The exponential of a difference of up to 20, and a sum of E.
      expect_close(x, want, tol(E, 0.5), fmt::format("softmax of {} x {}", N, E));
      double sum = 0;
      for (int64_t e = 0; e < E; ++e) sum += at(x, e);
      EXPECT_NEAR(sum, 1, tol(E, 1));
    }
  }
}

TEST_P(RoutingTest, Absolute) {
  for (const auto [N, E] : kSizes) {
    const Tensor x = normal({N, E});
    if (N * E > 4) put(x, 2, -0.0), put(x, 3, -INFINITY);
    Values want = values(x);
    for (double& v : want) v = std::abs(v);
    run({x}, [&](const Ops& o, Ctx& c) { o.absolute(c, x); });
    EXPECT_TRUE(values(x) == want);
    EXPECT_FALSE(std::signbit(at(x, N * E > 4 ? 2 : 0)));
  }
}

TEST_P(RoutingTest, UnitRows) {
  for (const auto [N, D] : kSizes) {
    const Tensor x = normal({N, D}, 5), out = blank({N, D});
    for (int64_t n = 2; n < N; n += 3) {
      for (int64_t d = 0; d < D; ++d) put(x, n * D + d, 0);
    }
    Values want;
    for (int64_t n = 0; n < N; ++n) {
      double square = 0;
      for (int64_t d = 0; d < D; ++d) square += std::pow(at(x, n * D + d), 2);
      for (int64_t d = 0; d < D; ++d)
        want.push_back(square > 0 ? at(x, n * D + d) / std::sqrt(square) : 0);
    }
    run({out}, [&](const Ops& o, Ctx& c) { o.unit_rows(c, out, x); });
    expect_close(out, want, tol(D, 0.5), "unit_rows");
  }
}

TEST_P(RoutingTest, NoiseIsNormalAndDrawnFromSeedAndPlace) {
  const int64_t N = 200, E = 101;
  const Tensor x = blank({N, E}), y = blank({N, E}), head = blank({3, E});
  const auto draw = [&](const Tensor& t, double start, double std, uint64_t seed) {
    for (int64_t i = 0; i < t.size(); ++i) put(t, i, start);
    run({t}, [&](const Ops& o, Ctx& c) { o.noise_add(c, t, std, seed); });
  };
  draw(x, 2, 0.5, 7), draw(y, 2, 0.5, 7), draw(head, 2, 0.5, 7);
  expect_same_bits(x, y, "one seed");
  expect_same_bits(first_rows(x, 3), head, "the place alone counts, not the size");
  const auto count = static_cast<double>(N * E);
  double mean = 0, square = 0, fourth = 0, follow = 0;
  for (int64_t i = 0; i < N * E; ++i) {
    const double z = (at(x, i) - 2) / 0.5;
    mean += z / count, square += z * z / count, fourth += z * z * z * z / count;
    if (i > 0) follow += z * (at(x, i - 1) - 2) / 0.5 / count;
  }
  // Five standard errors of 20,200 draws: of z, of z^2 (variance 2), of z^4 (variance 96).
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(count));
  EXPECT_NEAR(square, 1, 5 * std::sqrt(2 / count));
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96 / count));
  EXPECT_NEAR(follow, 0, 5 / std::sqrt(count)) << "neighbours are independent";
  draw(y, 2, 0.5, 8);
  int64_t equal = 0;
  for (int64_t i = 0; i < N * E; ++i) equal += at(x, i) == at(y, i);
  EXPECT_LT(equal, 5) << "another seed";
  draw(y, 2, 0, 7);
  EXPECT_TRUE(values(y) == Values(static_cast<size_t>(N * E), 2)) << "no noise";
}

TEST_P(RoutingTest, Measure) {
  for (const auto [N, E] : kSizes) {
    for (int64_t G : {1, 3, 8}) {
      for (int64_t D : {0, 5}) {
        const int64_t F = E * G;
        const Tensor a = normal({N, F}), scores = blank({N, E});
        const Tensor down = D ? normal({F, D}) : Tensor{};
        for (int64_t j = 0; j < F; ++j) {
          if (N > 2) put(a, F + j, 0);  // a token without activations
          if (D && j % 5 == 2)
            for (int64_t d = 0; d < D; ++d) put(down, j * D + d, 0);
        }
        for (Measure how : {Measure::magnitude, Measure::norm, Measure::positive}) {
          Values want(static_cast<size_t>(N * E));
          for (int64_t n = 0; n < N; ++n) {
            for (int64_t j = 0; j < F; ++j) {
              double w = D ? 0 : 1;
              for (int64_t d = 0; d < D; ++d) w += std::pow(at(down, j * D + d), 2);
              const double v = at(a, n * F + j) * std::sqrt(w);
              want[static_cast<size_t>(n * E + j / G)] += how == Measure::magnitude ? std::abs(v)
                                                          : how == Measure::norm    ? v * v
                                                          : v > 0                   ? v
                                                                                    : 0;
            }
          }
          if (how == Measure::norm)
            for (double& v : want) v = std::sqrt(v);
          run({scores}, [&](const Ops& o, Ctx& c) { o.measure(c, scores, a, down, how); });
          expect_close(scores, want, tol(G + D, 0.25 * std::max(0.1, largest(want))),
                       fmt::format("measure {} G {} D {}", static_cast<int>(how), G, D));
        }
      }
    }
  }
}

TEST_P(RoutingTest, TopKWithTiesAndWithoutNumbers) {
  for (const auto [N, E] : kSizes) {
    const Tensor s = tied(N, E, -0.5);
    for (int64_t i = 0; i < N * E; ++i) {
      if (i % 3 == 1 && i / E % 2 == 0) put(s, i, i % 2 ? NAN : -NAN);
      if (i % 11 == 5) put(s, i, -INFINITY);
    }
    for (int64_t e = 0; e < E && N > 4; ++e) put(s, 4 * E + e, NAN);  // nothing but NaN
    for (int64_t k : {int64_t{1}, int64_t{2}, E / 2, E}) {
      Values want(static_cast<size_t>(N * E));
      for (int64_t n = 0; n < N; ++n) {
        const auto order = ranking(s, n);
        for (int64_t i = 0; i < std::min(k, E); ++i)
          want[static_cast<size_t>(n * E + order[static_cast<size_t>(i)])] = 1;
      }
      EXPECT_TRUE(gates_of(s, Rule::top_k, static_cast<double>(k)) == want)
          << N << " x " << E << ", k " << k;
    }
  }
}

TEST_P(RoutingTest, CumulativeTakesTheShortestList) {
  for (const auto [N, E] : kSizes) {
    const Tensor s = tied(N, E);  // eighths: every sum is exact
    for (double cut : {0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0}) {
      Values want(static_cast<size_t>(N * E));
      for (int64_t n = 0; n < N; ++n) {
        double all = 0, sum = 0;
        for (int64_t e = 0; e < E; ++e) all += at(s, n * E + e);
        const auto order = ranking(s, n);
        for (size_t i = 0; i < order.size() && (i == 0 || sum < cut * all); ++i) {
          want[static_cast<size_t>(n * E + order[i])] = 1, sum += at(s, n * E + order[i]);
        }
      }
      const Values got = gates_of(s, Rule::cumulative, cut);
      EXPECT_TRUE(got == want) << N << " x " << E << ", cut " << cut;
      for (int64_t n = 0; n < N; ++n) {
        const auto row = got.begin() + n * E;
        EXPECT_GE(std::accumulate(row, row + E, 0.0), 1) << "at least one";
      }
    }
  }
  // By hand: 0.4 + 0.3 reach 0.7 of 1 exactly, and of the equal two the lower number is taken.
  const Tensor s = this->s.of(dtype, {2, 4}, {1, 3, 4, 0, 2, 2, 2, 2});
  EXPECT_EQ(gates_of(s, Rule::cumulative, 0.875), (Values{0, 1, 1, 0, 1, 1, 1, 1}));
  EXPECT_EQ(gates_of(s, Rule::cumulative, 0.5), (Values{0, 0, 1, 0, 1, 1, 0, 0}));
  EXPECT_EQ(gates_of(s, Rule::cumulative, 0), (Values{0, 0, 1, 0, 1, 0, 0, 0}));
  // Softmax scores at a share of 1: all of them, though rounding may reach the sum early.
  const Tensor p = normal({17, 40}, 2);
  backends[0].ops.softmax(*backends[0].ctx, p);
  backends[0].finish();
  EXPECT_EQ(gates_of(p, Rule::cumulative, 1), Values(17 * 40, 1));
}

TEST_P(RoutingTest, RelativeMax) {
  for (const auto [N, E] : kSizes) {
    const Tensor s = tied(N, E);
    for (double cut : {0.0, 0.25, 0.5, 1.0}) {  // exact products of eighths
      Values want;
      for (int64_t i = 0; i < N * E; ++i) {
        double most = -INFINITY;
        for (int64_t e = 0; e < E; ++e) most = std::max(most, at(s, i / E * E + e));
        want.push_back(at(s, i) >= cut * most);
      }
      EXPECT_TRUE(gates_of(s, Rule::relative_max, cut) == want) << N << " x " << E << ' ' << cut;
    }
  }
}

TEST_P(RoutingTest, RulesSurviveWhatIsNotANumber) {
  const Tensor s =
      this->s.of(dtype, {4, 3}, {NAN, 1, 2, 1, NAN, 0.5, NAN, NAN, NAN, INFINITY, 1, -INFINITY});
  for (Rule rule :
       {Rule::all, Rule::threshold, Rule::top_k, Rule::cumulative, Rule::relative_max}) {
    for (double g : gates_of(s, rule, rule == Rule::top_k ? 2 : 0.5)) EXPECT_TRUE(g == 0 || g == 1);
  }
  EXPECT_EQ(gates_of(s, Rule::threshold, 0.5), (Values{0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0}));
  EXPECT_EQ(gates_of(s, Rule::top_k, 2), (Values{0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0}));
}

TEST_P(RoutingTest, GateSoftmaxAndItsGradient) {
  for (const Size size : kSizes) {
    const int64_t N = size.rows, E = size.cols;  // lambdas cannot capture bindings in clang 14
    for (double share : {0.0, 0.1, 0.5, 1.0}) {
      const Tensor scores = normal({N, E}, 3), gates = some_gates(N, E, share);
      for (int64_t i = 0; i < N * E; ++i) {
        put(scores, i, at(scores, i) + (i / E % 2 ? 300 : -300));
        // What is not selected has no say, whatever it is.
        if (at(gates, i) == 0 && i % 3 == 0) put(scores, i, i % 2 ? INFINITY : NAN);
      }
      const Values open = values(gates);
      Values want, grad;
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0;
        const auto weight = [&](int64_t e) {
          const double s = at(scores, n * E + e) + (n % 2 ? -300 : 300);
          return open[static_cast<size_t>(n * E + e)] != 0 ? std::exp(s) : 0;
        };
        for (int64_t e = 0; e < E; ++e) sum += weight(e);
        for (int64_t e = 0; e < E; ++e) want.push_back(sum > 0 ? weight(e) / sum : 0);
      }
      run({gates}, [&](const Ops& o, Ctx& c) { o.gate_softmax(c, gates, scores); });
      expect_close(gates, want, tol(E, 0.5), fmt::format("{} x {} share {}", N, E, share));
      for (int64_t i = 0; i < N * E; ++i)
        EXPECT_EQ(at(gates, i) == 0, open[static_cast<size_t>(i)] == 0) << i;

      const Tensor d = normal({N, E}), dz = blank({N, E});
      for (int64_t n = 0; n < N; ++n) {
        double mean = 0;
        for (int64_t e = 0; e < E; ++e) mean += at(gates, n * E + e) * at(d, n * E + e);
        for (int64_t e = 0; e < E; ++e)
          grad.push_back(at(gates, n * E + e) * (at(d, n * E + e) - mean));
      }
      run({dz}, [&](const Ops& o, Ctx& c) { o.gate_softmax_backward(c, dz, d, gates); });
      expect_close(dz, grad, tol(E, 0.5), "gate_softmax_backward");
      run({d}, [&](const Ops& o, Ctx& c) { o.gate_softmax_backward(c, d, d, gates); });
      expect_same_bits(d, dz, "dz may alias dgates");
    }
  }
}

// A selected score that is not a number must not close its row; what is closed stays 0.
TEST_P(RoutingTest, GateSoftmaxOfWhatIsNoNumber) {
  for (const Size size : kSizes) {
    const int64_t N = size.rows, E = size.cols;
    const Tensor scores = normal({N, E}), gates = some_gates(N, E, 0.7);
    for (int64_t e = 0; e < E && N > 1; ++e) put(gates, E + e, 0);  // a row that selects nothing
    const int64_t spoilt = E / 2;
    put(gates, spoilt, 1), put(scores, spoilt, NAN);
    const Values open = values(gates);
    run({gates}, [&](const Ops& o, Ctx& c) { o.gate_softmax(c, gates, scores); });
    for (int64_t i = 0; i < N * E; ++i) {
      const bool selected = open[static_cast<size_t>(i)] != 0;
      EXPECT_EQ(std::isnan(at(gates, i)), selected && i < E) << N << " x " << E << ' ' << i;
      EXPECT_EQ(at(gates, i) == 0, !selected) << N << " x " << E << ' ' << i;
    }
  }
}

// known with up: act(x Wg) is known, up and down are read (CATS); without up: h is known (oracles).
TEST_P(RoutingTest, GatheredWithWhatIsKnown) {
  struct {
    int64_t D, E, G;
  } const shapes[] = {{1, 1, 1}, {5, 3, 1}, {9, 4, 7}, {33, 40, 16}};
  for (int64_t N : {1, 3, 16, 17, 130}) {
    for (const auto& [D, E, G] : shapes) {
      if (too_large(N * D * E * G)) continue;
      for (double share : {0.0, 0.2, 0.6, 1.0}) {
        for (int kind = 0; kind < 3; ++kind) {  // without up; with up; with up and its bias
          SCOPED_TRACE(fmt::format("N {} D {} E {} G {} {} kind {}", N, D, E, G, share, kind));
          const int64_t F = E * G;
          const Tensor x = normal({N, D}), down = normal({F, D}, 0.5), known = normal({N, F});
          const Tensor up = kind > 0 ? normal({F, D}, 1 / std::sqrt(D)) : Tensor{};
          const Tensor bias = kind > 1 ? normal({F}) : Tensor{};
          const Tensor gates = some_gates(N, E, share), out = blank({N, D});
          const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
          for (int64_t i = 0; i < N * E; ++i) put(gates, i, at(gates, i) * (0.5 + rng.uniform()));
          backends[0].ops.route(*backends[0].ctx, index, count, gates);
          backends[0].finish();
          Values want(static_cast<size_t>(N * D));
          for (int64_t n = 0; n < N; ++n) {
            for (int64_t j = 0; j < F; ++j) {
              const double g = at(gates, n * E + j / G);
              if (g == 0) continue;
              double u = kind > 1 ? at(bias, j) : 0;
              for (int64_t d = 0; d < D && up; ++d) u += at(x, n * D + d) * at(up, j * D + d);
              const double h = g * at(known, n * F + j) * (up ? u : 1);
              for (int64_t d = 0; d < D; ++d)
                want[static_cast<size_t>(n * D + d)] += h * at(down, j * D + d);
            }
          }
          const auto gathered = [&](const Ops& o, Ctx& c) {
            o.ffn_gathered(c, out, x, gates, index, count, known, up, bias, {}, down, Act::silu);
          };
          run({out}, gathered);
          expect_close(out, want, tol(D + F, std::max(0.5, largest(want) / 2)), "gathered");
          const std::string clean = bits(out);
          for (int64_t j = 0; j < F; ++j) {
            for (int64_t n = 0; n < N; ++n) {
              if (at(gates, n * E + j / G) == 0) put(known, n * F + j, NAN);
            }
            if (count.as<int32_t>()[j / G] > 0) continue;
            for (int64_t d = 0; d < D; ++d) {
              put(down, j * D + d, NAN);
              if (up) put(up, j * D + d, NAN);
            }
          }
          run({out}, gathered);
          EXPECT_TRUE(bits(out) == clean) << "what nobody selects was read";
          s.blocks.clear();
        }
      }
    }
  }
}

TEST_P(RoutingTest, SparseInputs) {
  for (const auto [N, D] : kSizes) {
    const Tensor x = normal({N, D}), large = blank({N, D}), kept = blank({N});
    put(x, 0, 0.5);  // as large as the cut is small
    Values want, share;
    for (int64_t n = 0; n < N; ++n) {
      double count = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double v = at(x, n * D + d);
        want.push_back(std::abs(v) > 0.5 ? v : 0), count += std::abs(v) > 0.5;
      }
      share.push_back(count / static_cast<double>(D));
    }
    run({large, kept}, [&](const Ops& o, Ctx& c) { o.keep_large(c, large, kept, x, 0.5); });
    expect_close(large, want, 0, "large");
    expect_close(kept, share, tol(1, 1), "kept");
    for (int64_t F : {1, 7, 600}) {
      const Tensor wt = normal({D, F}), out = blank({N, F});
      for (int64_t d = 0; d < D; ++d) {  // inputs that are 0 for all tokens: poison
        bool used = false;
        for (int64_t n = 0; n < N; ++n) used |= want[static_cast<size_t>(n * D + d)] != 0;
        for (int64_t f = 0; !used && f < F; ++f) put(wt, d * F + f, NAN);
      }
      Values product;
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t f = 0; f < F; ++f) {
          double sum = 0;
          for (int64_t d = 0; d < D; ++d) {
            const double v = want[static_cast<size_t>(n * D + d)];
            if (v != 0) sum += v * at(wt, d * F + f);
          }
          product.push_back(sum);
        }
      }
      run({out}, [&](const Ops& o, Ctx& c) { o.gemm_sparse(c, out, large, wt); });
      expect_close(out, product, tol(D, std::max(1.0, largest(product))), "product");
    }
  }
}

TEST_P(RoutingTest, Hoyer) {
  for (const auto [N, F] : kSizes) {
    const Tensor a = normal({N, F}), da = normal({N, F}), sum = s.blank(DType::f64, {1});
    for (int64_t j = 0; j < F; ++j) {
      if (N > 2) put(a, 2 * F + j, 0);           // no activation at all
      if (j > 0 && N > 4) put(a, 4 * F + j, 0);  // only one: the smallest value, 1
    }
    const double weight = 0.7;
    Values want = values(da);
    double mean = 0;
    for (int64_t n = 0; n < N; ++n) {
      double S = 0, Q = 0;
      for (int64_t j = 0; j < F; ++j)
        S += std::abs(at(a, n * F + j)), Q += std::pow(at(a, n * F + j), 2);
      mean += (Q > 0 ? S * S / Q : 1) / static_cast<double>(N);
      for (int64_t j = 0; j < F && Q > 0; ++j) {
        const double x = at(a, n * F + j), sign = x > 0 ? 1 : x < 0 ? -1 : 0;
        want[static_cast<size_t>(n * F + j)] +=
            weight / static_cast<double>(N) * (2 * S * sign / Q - 2 * S * S * x / (Q * Q));
      }
    }
    run({da, sum}, [&](const Ops& o, Ctx& c) { o.hoyer_add(c, da, sum, a, weight); });
    expect_close(da, want, tol(F, std::max(0.5, largest(want) / 4)), "gradient");
    // Rows are summed in the tensors' type.
    EXPECT_NEAR(at(sum, 0), mean, tol(F, mean)) << N << " x " << F;
    EXPECT_GE(at(sum, 0), 1 - tol(F, 1));
    EXPECT_LE(at(sum, 0), static_cast<double>(F) * (1 + tol(F, 1)));
  }
}

TEST_P(RoutingTest, TanhActivation) {
  for (const auto [N, F] : kSizes) {
    for (bool gated : {false, true}) {
      const Tensor x = normal({N, F}, 2), up = gated ? normal({N, F}) : Tensor{};
      const Tensor out = blank({N, F}), d = normal({N, F}), dx = blank({N, F});
      const Tensor dup = gated ? blank({N, F}) : Tensor{};
      Values want, wdx, wdup;
      for (int64_t i = 0; i < N * F; ++i) {
        const double t = std::tanh(at(x, i)), u = gated ? at(up, i) : 1;
        want.push_back(t * u), wdx.push_back(at(d, i) * (1 - t * t) * u);
        wdup.push_back(at(d, i) * t);
      }
      run({out}, [&](const Ops& o, Ctx& c) { o.activate(c, out, x, up, Act::tanh); });
      expect_close(out, want, tol(1, 1), "tanh");
      const auto back = [&](const Ops& o, Ctx& c) {
        o.activate_backward(c, dx, dup, d, x, up, Act::tanh);
      };
      if (gated) {
        run({dx, dup}, back);
        expect_close(dup, wdup, tol(1, largest(values(d))), "dup");
      } else {
        run({dx}, back);
      }
      // 1 - tanh^2 cancels: its error is that of the 1, then multiplied by dout and up.
      const double factor = largest(values(d)) * (gated ? largest(values(up)) : 1);
      expect_close(dx, wdx, tol(1, std::max(0.1, factor)), "dx");
    }
  }
}

LTE_EVERY_BACKEND(RoutingTest);

}  // namespace
}  // namespace lte::testing
