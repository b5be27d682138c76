// Entries that take activations kept as bf16 (Ops::kept_type), against the same entries on floats that bf16 has: a result
// of bf16 is that of floats rounded once more.
#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

#ifdef LTE_TEST_BACKEND
const char* const kSpecs[] = {LTE_TEST_BACKEND "+bf16"};
#else
const char* const kSpecs[] = {"cuda+bf16"};
#endif

class Kept : public OpsTest {
 protected:
  // Numbers that bf16 has, as floats and as bf16.
  struct Both {
    Tensor full, half;
  };
  Both both(std::initializer_list<int64_t> dims, double std = 1) {
    const Tensor t = normal(dims, std);
    return {t, s.half(t)};
  }
  Both none(std::initializer_list<int64_t> dims) {
    const Tensor t = blank(dims);
    return {t, s.half(t)};
  }
  // half = full rounded `times` over, where sums differ by `rest` at most. Half of a last place: at most 2^-8 of the number.
  void expect_rounded(const Both& b, double rest, const char* what, int times = 1) {
    for (int64_t i = 0; i < b.full.size(); ++i) {
      const double want = at(b.full, i), got = static_cast<double>(to_float(b.half.as<Bf16>()[i]));
      ASSERT_TRUE(std::abs(got - want) <= times * std::abs(want) / 256 + rest)
          << what << "[" << i << "]: " << got << " against " << want << ", " << rest << " beside";
    }
  }
  void expect_equal(const Tensor& got, const Tensor& want, double tolerance, const char* what) {
    expect_close(got, values(want), tolerance, what);
  }
};

TEST_P(Kept, Says) {
  EXPECT_EQ(backends[0].ops.kept_type(*backends[0].ctx), DType::bf16);
  const Backend plain = test_backend();
  EXPECT_EQ(plain.ops.kept_type(*plain.ctx), DType::f32);
}

TEST_P(Kept, Norms) {
  for (const Size& z : {Size{1, 1}, Size{3, 7}, Size{17, 8}, Size{9, 300}, Size{4, 2100}}) {
    for (const bool layer : {false, true}) {
      SCOPED_TRACE(fmt::format("{} x {}, layer {}", z.rows, z.cols, layer));
      const int64_t N = z.rows, D = z.cols;
      const Tensor x = normal({N, D}), more = normal({N, D}), w = normal({D}),
                   b = layer ? normal({D}) : Tensor{};
      const Tensor stats = blank({N, 2}), other = blank({N, 2}), sum = blank({N, D}),
                   sum2 = blank({N, D});
      const Both out = none({N, D});
      run({out.full, stats},
          [&](const Ops& o, Ctx& c) { o.norm(c, out.full, stats, x, w, b, 1e-5); });
      run({out.half, other},
          [&](const Ops& o, Ctx& c) { o.norm(c, out.half, other, x, w, b, 1e-5); });
      expect_rounded(out, 0, "norm");
      expect_same_bits(other, stats, "stats");
      run({out.full, stats, sum},
          [&](const Ops& o, Ctx& c) { o.add_norm(c, out.full, stats, sum, x, more, w, b, 1e-5); });
      run({out.half, other, sum2},
          [&](const Ops& o, Ctx& c) { o.add_norm(c, out.half, other, sum2, x, more, w, b, 1e-5); });
      expect_rounded(out, 0, "add_norm");
      expect_same_bits(sum2, sum, "sum");
      const Both dout = both({N, D});
      const Tensor start = normal({N, D}), dx[] = {s.of(dtype, {N, D}, values(start)), start},
                   dw[] = {s.of(dtype, {D}, Values(static_cast<size_t>(D))),
                           s.of(dtype, {D}, Values(static_cast<size_t>(D)))},
                   db[] = {s.of(dtype, {D}, Values(static_cast<size_t>(D))),
                           s.of(dtype, {D}, Values(static_cast<size_t>(D)))};
      for (const int i : {0, 1}) {
        run({dx[i], dw[i], db[i]}, [&](const Ops& o, Ctx& c) {
          o.norm_backward_add(c, dx[i], dw[i], layer ? db[i] : Tensor{}, i ? dout.half : dout.full,
                              stats, sum, w);
        });
      }
      expect_same_bits(dx[1], dx[0], "dx");
      expect_same_bits(dw[1], dw[0], "dw");
      expect_same_bits(db[1], db[0], "db");
    }
  }
}

// Shapes with whole 16 bytes a row and without, with few rows and more than the epilogue wants.
struct Case {
  int64_t N, K, M;
};
const Case kCases[] = {{1, 8, 8}, {5, 7, 3}, {24, 16, 40}, {40, 24, 9}, {19, 8, 24}, {64, 40, 16}};

TEST_P(Kept, Products) {
  for (const Case& z : kCases) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", z.N, z.K, z.M));
    const double rest = tol(z.K, 4);
    const Both x = both({z.N, z.K}), out = none({z.N, z.M});
    const Tensor w = normal({z.M, z.K}), b = normal({z.M}), mixed = blank({z.N, z.M});
    const auto product = [&](const Tensor& to, const Tensor& from) {
      run({to}, [&](const Ops& o, Ctx& c) { o.gemm(c, to, from, false, w, true); });
    };
    product(out.full, x.full), product(out.half, x.half), product(mixed, x.half);
    expect_rounded(out, rest, "gemm");
    expect_equal(mixed, out.full, rest, "gemm of bf16");
    const auto with_bias = [&](const Tensor& to, const Tensor& from) {
      run({to}, [&](const Ops& o, Ctx& c) { o.linear(c, to, from, w, true, b); });
    };
    with_bias(out.full, x.full), with_bias(out.half, x.half), with_bias(mixed, x.half);
    // The bias is rounded too, or what it is added to.
    expect_rounded(out, rest + (largest(values(b)) + largest(values(out.full))) / 256, "linear");
    expect_equal(mixed, out.full, rest, "linear of bf16");
    const Both dout = both({z.N, z.M});
    const Tensor sums[] = {s.of(dtype, {z.M}, values(b)), s.of(dtype, {z.M}, values(b))};
    for (const int i : {0, 1}) {
      run({sums[i]}, [&](const Ops& o, Ctx& c) {
        o.bias_backward_add(c, sums[i], i ? dout.half : dout.full);
      });
    }
    expect_equal(sums[1], sums[0], tol(z.N, 4), "bias_backward_add");
  }
}

TEST_P(Kept, ProductsBackward) {
  for (const Case& z : kCases) {
    for (const int flags : {0, 1, 2, 3}) {
      const bool tw = flags & 1, add = flags & 2;
      SCOPED_TRACE(fmt::format("{} x {} x {} tw {} add {}", z.N, z.K, z.M, tw, add));
      const Both x = both({z.N, z.K}), dout = both({z.N, z.M}), dx = both({z.N, z.K});
      const Tensor w = tw ? normal({z.M, z.K}) : normal({z.K, z.M});
      const Tensor dw = normal({w.dim[0], w.dim[1]}),
                   dw2 = s.of(dtype, {w.dim[0], w.dim[1]}, values(dw));
      const Values start = values(dx.full);
      run({dx.full, dw}, [&](const Ops& o, Ctx& c) {
        o.linear_backward(c, dx.full, add, dw, dout.full, x.full, w, tw);
      });
      // cuBLAS may round the product before it adds.
      Values product = values(dx.full);
      for (size_t i = 0; add && i < start.size(); ++i) product[i] -= start[i];
      run({dx.half, dw2}, [&](const Ops& o, Ctx& c) {
        o.linear_backward(c, dx.half, add, dw2, dout.half, x.half, w, tw);
      });
      expect_rounded(dx, tol(z.M, 4) + (add ? largest(product) / 256 : 0), "dx");
      expect_equal(dw2, dw, tol(z.N, 4), "dw");
    }
  }
}

// Against the two entries that they stand for, on bf16: GELU of sums that are rounded before or after.
TEST_P(Kept, ProductsAndActivationsAtOnce) {
  for (const Case& z : {Case{24, 16, 40}, Case{64, 40, 16}, Case{24, 7, 8}, Case{8, 8, 8}}) {
    const bool fits = z.N > 16 && z.K % 8 == 0;
    const int64_t F = z.M, D = z.K;
    SCOPED_TRACE(fmt::format("{} x {} x {}", z.N, D, F));
    const Both x = both({z.N, D}), pre = none({z.N, F}), out = none({z.N, F}),
               dpre = none({z.N, F});
    const Tensor w = normal({F, D}), b = both({F}).full;
    Backend& be = backends[0];
    EXPECT_FALSE(be.ops.linear_activate(*be.ctx, out.half, pre.half, x.half, w, b, Act::silu));
    EXPECT_FALSE(be.ops.linear_activate(*be.ctx, out.full, pre.full, x.full, w, b, Act::gelu_tanh));
    run({pre.full, out.full}, [&](const Ops& o, Ctx& c) {
      o.linear(c, pre.full, x.full, w, true, b);
      o.activate(c, out.full, pre.full, {}, Act::gelu_tanh);
    });
    bool taken = false;
    run({pre.half, out.half}, [&](const Ops& o, Ctx& c) {
      taken = o.linear_activate(c, out.half, pre.half, x.half, w, b, Act::gelu_tanh);
    });
    EXPECT_EQ(taken, fits);
    if (!fits) continue;
    const double rest = tol(D, 4), slope = 1.2;  // GELU's largest
    expect_rounded(pre, rest, "pre");
    // Its tanh is the hardware's, off by 2^-11.
    expect_rounded(out, slope * rest + largest(values(pre.full)) / 4096, "out");
    const Tensor dout = normal({z.N, D}), down = normal({F, D}), dw = normal({F, D}),
                 dw2 = s.of(dtype, {F, D}, values(dw));
    for (int64_t i = 0; i < z.N * F; ++i) {
      put(pre.full, i, static_cast<double>(to_float(pre.half.as<Bf16>()[i])));
      put(out.full, i, static_cast<double>(to_float(out.half.as<Bf16>()[i])));
    }
    run({dpre.full, dw}, [&](const Ops& o, Ctx& c) {
      o.linear_backward(c, dpre.full, false, dw, dout, out.full, down, false);
      o.activate_backward(c, dpre.full, {}, dpre.full, pre.full, {}, Act::gelu_tanh);
    });
    run({dpre.half, dw2}, [&](const Ops& o, Ctx& c) {
      taken = o.linear_activate_backward(c, dpre.half, dw2, dout, out.half, pre.half, down,
                                         Act::gelu_tanh);
    });
    EXPECT_TRUE(taken);
    // And the way back rounds the product, or the slope, before the result.
    expect_rounded(dpre, 4 * rest + largest(values(dpre.full)) / 1024, "dpre", 2);
    expect_equal(dw2, dw, tol(z.N, 4), "dw");
  }
}

// Of 13 columns in 16: dw and dx as of 13.
TEST_P(Kept, ProductsOfRowsThatEndInZeros) {
  const int64_t N = 24, K = 16, M = 13, wide = 16;
  const Both x = both({N, K}), dout = both({N, M}), dx = none({N, K});
  const Tensor padded = s.half(s.of(dtype, {N, wide}, Values(static_cast<size_t>(N * wide))));
  for (int64_t i = 0; i < N * M; ++i)
    padded.as<Bf16>()[i / M * wide + i % M] = dout.half.as<Bf16>()[i];
  const Tensor w = normal({M, K}), dw = normal({M, K}), dw2 = s.of(dtype, {M, K}, values(dw));
  run({dx.full, dw}, [&](const Ops& o, Ctx& c) {
    o.linear_backward(c, dx.full, false, dw, dout.full, x.full, w, true);
  });
  run({dx.half, dw2}, [&](const Ops& o, Ctx& c) {
    o.linear_backward(c, dx.half, false, dw2, padded, x.half, w, true);
  });
  expect_rounded(dx, tol(M, 4), "dx");
  expect_equal(dw2, dw, tol(N, 4), "dw");
  Tensor narrow = padded;
  narrow.dim[1] = 8, narrow.dim[0] = N;
  Backend& be = backends[0];
  EXPECT_THROW(be.ops.linear_backward(*be.ctx, dx.half, false, dw2, narrow, x.half, w, true),
               Error);
}

TEST_P(Kept, Activations) {
  for (const Size& z : {Size{1, 1}, Size{3, 7}, Size{17, 8}, Size{9, 300}}) {
    for (const Act act : {Act::gelu_tanh, Act::gelu_erf, Act::relu, Act::silu}) {
      for (const bool gated : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{} x {}, act {}, gated {}", z.rows, z.cols, static_cast<int>(act), gated));
        const Both pre = both({z.rows, z.cols}), up = both({z.rows, z.cols}),
                   dout = both({z.rows, z.cols}), out = none({z.rows, z.cols}),
                   dpre = none({z.rows, z.cols}), dup = none({z.rows, z.cols});
        const auto part = [&](const Tensor& t) { return gated ? t : Tensor{}; };
        run({out.full},
            [&](const Ops& o, Ctx& c) { o.activate(c, out.full, pre.full, part(up.full), act); });
        run({out.half},
            [&](const Ops& o, Ctx& c) { o.activate(c, out.half, pre.half, part(up.half), act); });
        expect_rounded(out, 0, "activate");
        run({dpre.full, dup.full}, [&](const Ops& o, Ctx& c) {
          o.activate_backward(c, dpre.full, part(dup.full), dout.full, pre.full, part(up.full),
                              act);
        });
        run({dpre.half, dup.half}, [&](const Ops& o, Ctx& c) {
          o.activate_backward(c, dpre.half, part(dup.half), dout.half, pre.half, part(up.half),
                              act);
        });
        expect_rounded(dpre, 0, "dpre");
        if (gated) expect_rounded(dup, 0, "dup");
      }
    }
  }
}

TEST_P(Kept, LogitsAndTheirGradients) {
  for (const Size& z : {Size{1, 1}, Size{3, 7}, Size{17, 8}, Size{9, 301}, Size{3, 2500},
                        Size{2, 9001}, Size{2, 20003}}) {
    const int64_t N = z.rows, V = z.cols, ld = (V + 7) / 8 * 8;
    SCOPED_TRACE(fmt::format("{} x {}", N, V));
    const Tensor logits = normal({N, V}, 2), teacher = normal({N, V}, 2), loss = blank({N}),
                 other = blank({N}), full = blank({N, V});
    const Tensor wide = s.half(normal({N, ld}, 50)), half = s.half(blank({N, ld}));
    s.half(logits);  // rounds it
    for (int64_t i = 0; i < N * V; ++i)
      wide.as<Bf16>()[i / V * ld + i % V] = to_bf16(static_cast<float>(at(logits, i)));
    Tensor targets = s.ints(N, V, rng);
    if (N > 1) targets.as<int32_t>()[1] = -1;
    const auto expect_gradient = [&](const Tensor& got, double rest) {
      for (int64_t i = 0; i < N * ld; ++i) {
        const bool inside = i % ld < V;
        const double want = inside ? at(full, i / ld * V + i % ld) : 0,
                     g = static_cast<double>(to_float(got.as<Bf16>()[i]));
        ASSERT_TRUE(std::abs(g - want) <= std::abs(want) / 256 + (inside ? rest : 0))
            << i << ": " << g << " against " << want;
      }
    };
    const double sums = tol(V, 0.5);
    run({full, loss},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, full, logits, targets, 0.7, V); });
    run({half, other},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, other, half, wide, targets, 0.7, V); });
    expect_equal(other, loss, tol(V, 3), "loss");
    expect_gradient(half, sums);
    run({full},
        [&](const Ops& o, Ctx& c) { o.distill_add(c, full, logits, teacher, targets, 0.4); });
    run({half}, [&](const Ops& o, Ctx& c) { o.distill_add(c, half, wide, teacher, targets, 0.4); });
    expect_gradient(half, sums + 0.7 / 256);  // is added to what was rounded
    run({full, loss},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, loss, full, logits, targets, 0.7, V); });
    run({wide},
        [&](const Ops& o, Ctx& c) { o.cross_entropy(c, other, wide, wide, targets, 0.7, V); });
    expect_gradient(wide, sums);
  }
}

TEST_P(Kept, ProductsWhoseRowsEndInZeros) {
  const Both x = both({19, 24});
  const Tensor w = normal({13, 24}), want = blank({19, 13}), wide = s.half(blank({19, 16}));
  run({want}, [&](const Ops& o, Ctx& c) { o.gemm(c, want, x.full, false, w, true); });
  run({wide}, [&](const Ops& o, Ctx& c) { o.gemm(c, wide, x.half, false, w, true); });
  for (int64_t i = 0; i < wide.size(); ++i) {
    const double expected = i % 16 < 13 ? at(want, i / 16 * 13 + i % 16) : 0,
                 got = static_cast<double>(to_float(wide.as<Bf16>()[i]));
    ASSERT_TRUE(std::abs(got - expected) <=
                std::abs(expected) / 256 + (i % 16 < 13 ? tol(24, 4) : 0));
  }
}

INSTANTIATE_TEST_SUITE_P(Every, Kept,
                         ::testing::Combine(::testing::ValuesIn(kSpecs),
                                            ::testing::Values(DType::f32)),
                         [](const auto& info) { return spec_and_type(info.param); });

}  // namespace
}  // namespace lte::testing
