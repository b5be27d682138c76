// As ops_test.cpp, for entries that one token alone takes.
#include <fmt/format.h>

#include <functional>

#include "testing.h"

namespace lte::testing {
namespace {

class TokenTest : public OpsTest {};

// One entry for what three do, at a position that is a number or lies in memory; of the cache only rows at earlier
// positions are read.
TEST_P(TokenTest, AttendTokenIsThreeOperations) {
  if (!backends[0].ops.attend_token) GTEST_SKIP() << spec << " has no such kernel";
  struct {
    int64_t B, S, pos;
    HeadShape h;
  } const cases[] = {{1, 1, 0, {1, 1, 2}},     {1, 9, 0, {4, 4, 8}},      {2, 9, 8, {4, 2, 6}},
                     {3, 40, 17, {6, 2, 40}},  {1, 70, 69, {2, 2, 72}},   {2, 600, 255, {2, 1, 4}},
                     {1, 600, 256, {3, 3, 4}}, {1, 600, 599, {2, 2, 130}}};
  for (const auto& one : cases) {
    for (const bool turned : {true, false}) {
      const int64_t B = one.B, S = one.S, pos = one.pos;
      const HeadShape h = one.h;
      SCOPED_TRACE(fmt::format("B {} S {} pos {} H {} K {} C {}", B, S, pos, h.H, h.K, h.C));
      const int64_t width = (h.H + 2 * h.K) * h.C;
      const Tensor qkv = normal({B, width}), q3 = s.blank(dtype, {B, width});
      const Tensor k = normal({B, h.K, S, h.C}), v = normal({B, h.K, S, h.C});
      const Tensor k3 = s.blank(dtype, {B, h.K, S, h.C}), v3 = s.blank(dtype, {B, h.K, S, h.C});
      const Tensor out = blank({B, h.H * h.C}), want = blank({B, h.H * h.C});
      for (int64_t row = 0; row < B * h.K; ++row) {
        for (int64_t i = pos * h.C; i < S * h.C; ++i) {
          put(k, row * S * h.C + i, NAN), put(v, row * S * h.C + i, NAN);
        }
      }
      std::memcpy(q3.data, qkv.data, qkv.bytes());
      std::memcpy(k3.data, k.data, k.bytes()), std::memcpy(v3.data, v.data, v.bytes());
      Backend& be = backends[0];
      const Chunk c{B, 1, pos};
      if (turned) be.ops.rope(*be.ctx, q3, c, h.H + h.K, h.C, 1e4, false);
      be.ops.store_kv(*be.ctx, k3, v3, q3, c, h);
      be.ops.attention(*be.ctx, want, {}, q3, k3, v3, c, h);
      be.finish();
      const Tensor at_place = s.ints({static_cast<int32_t>(pos)});
      const std::string before = bits(qkv);
      for (const Chunk& chunk : {c, Chunk{B, 1, 0, at_place.as<int32_t>()}}) {
        run({out, k, v}, [&](const Ops& o, Ctx& ctx) {
          o.attend_token(ctx, out, qkv, k, v, chunk, h, turned ? 1e4 : 0);
        });
        expect_close(out, values(want), tol(h.C + S, 2), "attention");
        const auto same = [&](const Tensor& a, const Tensor& b, const char* name) {
          for (int64_t i = 0; i < a.size(); ++i) {
            if (i / h.C % S > pos) {
              EXPECT_TRUE(std::isnan(at(a, i))) << name << " behind the position";
            } else {
              EXPECT_NEAR(at(a, i), at(b, i), tol(2, 3)) << name << " " << i;
            }
          }
        };
        same(k, k3, "keys"), same(v, v3, "values");
        EXPECT_TRUE(bits(qkv) == before) << "qkv was changed";
      }
      s.blocks.clear();
    }
  }
  Backend& be = backends[0];
  EXPECT_THROW(be.ops.attend_token(*be.ctx, blank({1, 2}), normal({1, 6}), blank({1, 1, 4, 2}),
                                   blank({1, 1, 4, 2}), {1, 1, 4}, {1, 1, 2}, 0),
               Error)
      << "the cache is full";
}

// One token and long rows: some, all and no open experts, experts of one neuron and of many, columns that end inside a
// block's turn. What is closed is not read.
TEST_P(TokenTest, GatheredByLongRowsOfBf16) {
  if (dtype != DType::f32 || !takes_bf16(spec)) GTEST_SKIP() << "no weights of bf16 here";
  struct {
    int64_t D, E, G;
  } const shapes[] = {{1024, 70, 1},  {1032, 9, 5}, {2048, 3, 7},
                      {2184, 300, 1}, {4096, 5, 8}, {8192, 2, 3}};
  for (const auto& [D, E, G] : shapes) {
    for (int kind = 0; kind < 3; ++kind) {  // gated; with a bias; without
      for (const double open : {0.5, 1.0, 0.0}) {
        SCOPED_TRACE(fmt::format("D {} E {} G {} kind {}", D, E, G, kind));
        const int64_t F = E * G;
        const double std = 1 / std::sqrt(static_cast<double>(D));
        const Tensor x = normal({1, D}), up = normal({F, D}, std), down = normal({F, D}, 0.5);
        const Tensor gate_w = kind == 0 ? normal({F, D}, std) : Tensor{};
        const Tensor bias = kind == 1 ? normal({F}, 3) : Tensor{};
        const Tensor hup = s.half(up), hdown = s.half(down);
        const Tensor hgate = gate_w ? s.half(gate_w) : Tensor{};
        const Tensor gates = blank({1, E});
        for (int64_t e = 0; e < E; ++e)
          put(gates, e, rng.uniform() < open ? 0.5 + rng.uniform() : 0);
        const Tensor out = blank({1, D}), want = blank({1, D});
        const Tensor index = s.blank(DType::i32, {E, 1}), count = s.blank(DType::i32, {E});
        Backend& be = backends[0];
        const Act act = kind == 0 ? Act::silu : Act::gelu_tanh;
        be.ops.route(*be.ctx, index, count, gates);
        be.ops.ffn_gathered(*be.ctx, want, x, gates, index, count, {}, up, bias, gate_w, down, act);
        be.finish();
        for (int64_t i = 0; i < F * D; ++i) {
          if (at(gates, i / D / G) != 0) continue;
          for (const Tensor& w : {hup, hgate, hdown})
            if (w) w.as<Bf16>()[i] = to_bf16(NAN);
        }
        const auto gathered = [&](const Ops& o, Ctx& c) {
          o.ffn_gathered(c, out, x, gates, index, count, {}, hup, bias, hgate, hdown, act);
        };
        run({out}, gathered);
        expect_close(out, values(want), tol(D + F, std::max(0.5, largest(values(want)) / 2)),
                     "bf16 against f32");
        s.blocks.clear();
      }
    }
  }
}

// One entry for a dense layer of one token by weights of bf16.
TEST_P(TokenTest, FfnTokenIsItsOperations) {
  if (!backends[0].ops.ffn_token) GTEST_SKIP() << spec << " has no such kernel";
  const Size shapes[] = {Size{7, 2048}, Size{1, 2056}, Size{300, 2184},
                         Size{9, 4112}, Size{5, 2052}, Size{3, 16}};
  for (const Size& shape : shapes) {
    const int64_t F = shape.rows, D = shape.cols;
    for (const bool half : {true, false}) {
      for (int kind = 0; kind < 3; ++kind) {  // gated; with a bias; without
        for (int64_t N : {1, 2}) {
          SCOPED_TRACE(fmt::format("F {} D {} bf16 {} kind {} N {}", F, D, half, kind, N));
          if (half && dtype == DType::f64) continue;
          const double std = 1 / std::sqrt(static_cast<double>(D));
          const auto weights = [&](bool there, double size) {
            const Tensor w = there ? normal({F, D}, size) : Tensor{};
            return w && half ? s.half(w) : w;
          };
          const FfnWeights w{.up = weights(true, std),
                             .up_bias = kind == 1 ? normal({F}) : Tensor{},
                             .gate_w = weights(kind == 0, std),
                             .down = weights(true, 0.5)};
          const Act act = kind == 0 ? Act::silu : Act::gelu_tanh;
          const Tensor x = normal({N, D}), out = blank({N, D}), want = blank({N, D});
          const std::string before = bits(out);
          bool taken = false;
          const auto token = [&](const Ops& o, Ctx& c) { taken = o.ffn_token(c, out, x, w, act); };
          run({out}, token);
          EXPECT_EQ(taken, half && N == 1 && D % 8 == 0 && D >= 2048);
          if (!taken) {
            EXPECT_TRUE(bits(out) == before);
            continue;
          }
          const Tensor up = blank({N, F}), gate = kind == 0 ? blank({N, F}) : Tensor{};
          Backend& be = backends[0];
          be.ops.gemm(*be.ctx, up, x, false, w.up, true);
          if (w.up_bias) be.ops.bias_add(*be.ctx, up, w.up_bias);
          if (gate) be.ops.gemm(*be.ctx, gate, x, false, w.gate_w, true);
          be.ops.activate(*be.ctx, up, gate ? gate : up, gate ? up : Tensor{}, act);
          be.ops.gemm(*be.ctx, want, up, false, w.down, false);
          be.finish();
          expect_close(out, values(want), tol(D + F, std::max(0.5, largest(values(want)) / 2)),
                       "dense layer");
          put(x, D / 2, NAN);
          run({out}, token);
          for (int64_t d = 0; d < D; ++d) EXPECT_TRUE(std::isnan(at(out, d))) << d;
          s.blocks.clear();
        }
      }
    }
  }
}

// One entry for add_norm, and a router or a dense layer of what comes out, which it leaves behind as add_norm does.
TEST_P(TokenTest, NormedProductsAreTheirOperations) {
  Backend& be = backends[0];
  const Ops& op = be.ops;
  if (!op.norm_ffn_token) GTEST_SKIP() << spec << " has no such kernels";
  for (const auto& [M, D] :
       {Size{7, 2048}, Size{1, 2056}, Size{300, 2184}, Size{9, 4112}, Size{5, 2052}, Size{3, 16}}) {
    for (const bool half : {true, false}) {
      for (const int64_t N : {1, 2}) {
        if (half && dtype == DType::f64) continue;
        SCOPED_TRACE(fmt::format("M {} D {} bf16 {} N {}", M, D, half, N));
        const auto weights = [&, M = M, D = D] {
          const Tensor w = normal({M, D}, 1 / std::sqrt(static_cast<double>(D)));
          return half ? s.half(w) : w;
        };
        const AddNorm in{.out = blank({N, D}),
                         .stats = blank({N, 2}),
                         .sum = blank({N, D}),
                         .a = normal({N, D}),
                         .b = normal({N, D}, 0.5),
                         .w = normal({D}),
                         .bias = {},
                         .eps = 1e-5};
        AddNorm two = in;
        two.out = blank({N, D}), two.stats = blank({N, 2}), two.sum = blank({N, D});
        op.add_norm(*be.ctx, two.out, two.stats, two.sum, two.a, two.b, two.w, {}, two.eps);
        be.finish();
        const double most = std::max(1.0, largest(values(two.out)));
        const Tensor w = weights(), b = normal({M});
        const bool gated = M != 9;
        const Act act = gated ? Act::silu : Act::gelu_tanh;
        const FfnWeights ffn{.up = w,
                             .up_bias = gated ? Tensor{} : normal({M}),
                             .gate_w = gated ? weights() : Tensor{},
                             .down = weights()};
        const Tensor out = blank({N, M}), want = blank({N, M});
        const Tensor y = blank({N, D}), y2 = blank({N, D}), gates = blank({N, M}),
                     open = blank({N, M});
        const Tensor index = s.blank(DType::i32, {M, N}), count = s.blank(DType::i32, {M});
        const Tensor index2 = s.blank(DType::i32, {M, N}), count2 = s.blank(DType::i32, {M});
        const auto all_bits = [&] {
          std::string all;
          for (const Tensor& t : {out, in.out, in.stats, in.sum, y, gates, index, count})
            all += bits(t);
          return all;
        };
        const std::function<bool(const Ops&, Ctx&)> fused[] = {
            [&](const Ops& o, Ctx& c) {
              return !o.norm_route_linear ||
                     o.norm_route_linear(c, out, {gates, index, count}, in, w, b, 0.5);
            },
            [&](const Ops& o, Ctx& c) { return o.norm_ffn_token(c, y, in, ffn, act); }};
        for (int kind = 0; kind < 2; ++kind) {
          SCOPED_TRACE(fmt::format("entry {}", kind));
          if (kind == 0 && !op.norm_route_linear) continue;  // a variant without it
          bool taken = false;
          for (const Tensor& t : {in.out, in.stats, in.sum}) std::memset(t.data, 0xff, t.bytes());
          const std::string unmade = all_bits();
          run({out, in.out, in.stats, in.sum, y, gates, index, count},
              [&](const Ops& o, Ctx& c) { taken = fused[kind](o, c); });
          EXPECT_EQ(taken, half && N == 1 && D % 8 == 0 && D >= 2048);
          if (!taken) {
            EXPECT_TRUE(all_bits() == unmade);
            continue;
          }
          expect_same_bits(in.sum, two.sum, "sum");
          expect_close(in.stats, values(two.stats), tol(D, 1), "stats");
          expect_close(in.out, values(two.out), tol(D, most), "norm");
          if (kind == 1) {
            op.ffn_token(*be.ctx, y2, two.out, ffn, act);
            be.finish();
            expect_close(y, values(y2), tol(D + M, most), "dense layer");
            continue;
          }
          op.gemm(*be.ctx, want, two.out, false, w, true);
          op.bias_add(*be.ctx, want, b), op.sigmoid(*be.ctx, want);
          op.gate(*be.ctx, open, out, Rule::threshold, 0.5);
          be.finish();
          expect_close(out, values(want), tol(D, most), "scores");
          op.route(*be.ctx, index2, count2, open);
          be.finish();
          expect_same_bits(gates, open, "gates");
          expect_same_bits(index, index2, "lists");
          expect_same_bits(count, count2, "counts");
        }
        if (half && N == 1 && D % 8 == 0 && D >= 2048) {
          put(in.b, D / 2, NAN);
          run({y}, [&](const Ops& o, Ctx& c) { fused[1](o, c); });
          for (int64_t d = 0; d < D; ++d) EXPECT_TRUE(std::isnan(at(y, d))) << d;
        }
        s.blocks.clear();
      }
    }
  }
}

LTE_EVERY_BACKEND(TokenTest);

}  // namespace
}  // namespace lte::testing
