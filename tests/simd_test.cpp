// The kernels of cpu+simd with each instruction set of this processor: weights of floats and of bf16,
// against plain loops in double over the rounded weights.
#include <fmt/format.h>

#include "core/cpu_simd.h"
#include "testing.h"

namespace lte::testing {
namespace {

const char* const kWith = "cpu+simd";

bool built() {
  for (const Variant& v : variants()) {
    if (std::string(v.name) == "simd") return v.patch != nullptr;
  }
  return false;
}

class SimdTest : public ::testing::TestWithParam<const char*> {
 protected:
  Backend backends[3] = {open(1), open(2), open(7)};
  Backend plain = open_backend("cpu", 1);
  Store s;
  Rng rng{42};

  static Backend open(int threads) { return open_backend(built() ? kWith : "cpu", threads); }
  void SetUp() override {
    if (!built()) GTEST_SKIP() << kWith << " is not in this build";
    const std::vector<std::string> known = simd::targets();
    if (std::count(known.begin(), known.end(), GetParam()) == 0) {
      GTEST_SKIP() << "this processor or this build has no " << GetParam();
    }
    simd::use_target(GetParam());
  }
  void TearDown() override { simd::use_target(""); }

  Tensor normal(std::initializer_list<int64_t> d, double std = 1) {
    return s.normal(DType::f32, d, rng, std);
  }
  Tensor blank(std::initializer_list<int64_t> d) { return s.blank(DType::f32, d); }
  // With 1, 2 and 7 threads from the same start: the same bits.
  void run(const Tensor& out, const std::function<void(Backend&)>& f) {
    const std::string before = bits(out);
    std::string first;
    for (Backend& be : backends) {
      std::memcpy(out.data, before.data(), before.size());
      f(be);
      if (first.empty()) first = bits(out);
      EXPECT_TRUE(bits(out) == first) << "other bits with another number of threads";
    }
    EXPECT_TRUE(s.intact()) << "wrote beyond a tensor";
  }
};

TEST_P(SimdTest, ProductsOfFewAndManyTokens) {
  struct {
    int64_t m, d;
  } const weights[] = {{1, 1}, {3, 2}, {9, 17}, {33, 31}, {40, 128}, {130, 67}, {70, 1030}};
  for (int64_t N : {1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 40}) {
    for (const auto& [m, d] : weights) {
      for (int flags = 0; flags < 8; ++flags) {
        const bool tb = flags & 1, add = flags & 2, is_half = flags & 4;
        SCOPED_TRACE(fmt::format("N {} W {}x{} tb {} add {} bf16 {}", N, m, d, tb, add, is_half));
        const Tensor w = normal({m, d}), used = is_half ? s.half(w) : w;
        const int64_t inner = tb ? d : m, width = tb ? m : d;
        const Tensor x = normal({N, inner}), out = add ? normal({N, width}) : blank({N, width});
        Values want(static_cast<size_t>(N * width));
        for (int64_t n = 0; n < N; ++n) {
          for (int64_t j = 0; j < width; ++j) {
            double sum = add ? at(out, n * width + j) : 0;
            for (int64_t k = 0; k < inner; ++k)
              sum += at(x, n * inner + k) * at(w, tb ? j * d + k : k * d + j);
            want[static_cast<size_t>(n * width + j)] = sum;
          }
        }
        run(out, [&](Backend& be) {
          (add ? be.ops.gemm_add : be.ops.gemm)(*be.ctx, out, x, false, used, tb);
        });
        expect_close(out, want, tolerance_of(DType::f32, inner, std::max(0.5, largest(want) / 2)),
                     "product");
        s.blocks.clear();
      }
    }
  }
}

// Against the backend without the variant on the widened weights; then with NaN in every row that no
// token selects.
TEST_P(SimdTest, GatheredAgainstPlainAndPoisoned) {
  struct {
    int64_t D, E, G;
  } const shapes[] = {{1, 1, 1}, {5, 3, 1}, {9, 4, 7}, {65, 12, 16}, {130, 6, 32}};
  for (int64_t N : {1, 2, 5, 16, 17, 70, 300}) {
    for (const auto& [D, E, G] : shapes) {
      for (double share : {0.0, 0.2, 0.6, 1.0}) {
        for (int kind = 0; kind < 6; ++kind) {
          const bool gated = kind % 3 == 0, biased = kind % 3 == 1, is_half = kind >= 3;
          SCOPED_TRACE(fmt::format("N {} D {} E {} G {} {} kind {}", N, D, E, G, share, kind));
          const int64_t F = E * G;
          const double std = 1 / std::sqrt(static_cast<double>(D));
          Tensor up = normal({F, D}, std), down = normal({F, D}, 0.5);
          Tensor gate_w = gated ? normal({F, D}, std) : Tensor{};
          const Tensor up_b = biased ? normal({F}) : Tensor{}, x = normal({N, D});
          const Tensor gates = blank({N, E}), out = blank({N, D}), want = blank({N, D});
          for (int64_t i = 0; i < N * E; ++i) {
            put(gates, i, rng.uniform() < share ? 0.5 + rng.uniform() : 0);
          }
          const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
          plain.ops.route(*plain.ctx, index, count, gates);
          const Tensor hup = s.half(up), hdown = s.half(down),
                       hgate = gated ? s.half(gate_w) : Tensor{};
          const auto gathered = [&](Backend& be, const Tensor& o, bool as_half) {
            be.ops.ffn_gathered(*be.ctx, o, x, gates, index, count, {}, as_half ? hup : up, up_b,
                                as_half ? hgate : gate_w, as_half ? hdown : down,
                                gated ? Act::silu : Act::gelu_tanh);
          };
          gathered(plain, want, false);
          run(out, [&](Backend& be) { gathered(be, out, is_half); });
          const double top = std::max(0.5, largest(values(want)) / 2);
          expect_close(out, values(want), tolerance_of(DType::f32, D + F, top), "gathered");
          const std::string clean = bits(out);
          for (int64_t i = 0; i < F * D; ++i) {
            if (count.as<int32_t>()[i / D / G] > 0) continue;
            for (const Tensor& t : {up, down, gate_w}) {
              if (t) put(t, i, NAN);
            }
            for (const Tensor& t : {hup, hdown, hgate}) {
              if (t) t.as<Bf16>()[i] = to_bf16(NAN);
            }
          }
          run(out, [&](Backend& be) { gathered(be, out, is_half); });
          EXPECT_TRUE(bits(out) == clean) << "a row that nobody selects was read";
          s.blocks.clear();
        }
      }
    }
  }
}

// On oneDNN, many tokens on nearly all experts run all neurons: the same values, gates of a token that
// has closed an expert included.
TEST(Simd, ManyTokensOnMostExperts) {
  const auto has = [](const char* name) {
    return std::any_of(variants().begin(), variants().end(),
                       [&](const Variant& v) { return std::string(v.name) == name && v.patch; });
  };
  if (!has("simd") || !has("onednn")) GTEST_SKIP() << "cpu+onednn+simd is not in this build";
  const int64_t D = 40, E = 5, G = 8, F = E * G;
  for (int64_t N : {17, 130, 1100}) {
    for (int kind = 0; kind < 2; ++kind) {
      Store s;
      Rng rng{7};
      const auto normal = [&](std::initializer_list<int64_t> d, double std) {
        return s.normal(DType::f32, d, rng, std);
      };
      const Tensor up = normal({F, D}, 0.2), down = normal({F, D}, 0.5), x = normal({N, D}, 1);
      const Tensor gate_w = kind ? normal({F, D}, 0.2) : Tensor{},
                   bias = kind ? Tensor{} : normal({F}, 1);
      const Tensor gates = s.blank(DType::f32, {N, E}), out = s.blank(DType::f32, {N, D});
      for (int64_t i = 0; i < N * E; ++i) put(gates, i, i % 29 ? 0.5 + rng.uniform() : 0);
      const Tensor index = s.blank(DType::i32, {E, N}), count = s.blank(DType::i32, {E});
      const Tensor want = s.blank(DType::f32, {N, D});
      std::vector<std::string> seen;
      for (const char* spec : {"cpu", "cpu+simd", "cpu+onednn+simd"}) {
        for (int threads : {1, 7}) {
          Backend be = open_backend(spec, threads);
          const Tensor& o = std::string(spec) == "cpu" ? want : out;
          be.ops.route(*be.ctx, index, count, gates);
          be.ops.ffn_gathered(*be.ctx, o, x, gates, index, count, {}, up, bias, gate_w, down,
                              kind ? Act::silu : Act::gelu_tanh);
          seen.push_back(bits(o));
          expect_close(o, values(want),
                       tolerance_of(DType::f32, D + F, std::max(0.5, largest(values(want)) / 2)),
                       spec);
        }
        EXPECT_TRUE(seen.back() == seen[seen.size() - 2]) << spec << ": other bits by threads";
      }
      EXPECT_EQ(seen[2] != seen[4], N > 64) << "which products were taken";
      EXPECT_TRUE(s.intact());
    }
  }
}

// A whole model: matrices rounded to bf16 once, and the same numbers as floats.
TEST_P(SimdTest, ModelOfBf16IsTheRoundedModel) {
  for (const char* spec : {kGpt, kLlama}) {
    for (bool sparse : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", spec, sparse ? "routed" : "dense"));
      const ModelConfig c = tiny(spec, 19);
      const Plan plan = sparse ? routed(c, 4) : dense_plan(c);
      Params p = make_params(c, plan);
      randomise(p, 21);
      Params h = to_bf16(p);
      Params wide = clone(p);
      std::vector<Tensor> rounded;
      visit_params(h, [&](Tensor& t, const ParamInfo&) { rounded.push_back(t); });
      size_t i = 0;
      visit_params(wide, [&](Tensor& t, const ParamInfo& info) {
        const Tensor& r = rounded.at(i++);
        ASSERT_EQ(r.dtype, t.rank > 1 ? DType::bf16 : DType::f32) << info.name;
        for (int64_t k = 0; k < t.size(); ++k) {
          const float v = t.as<float>()[k];
          if (t.rank == 1) {
            ASSERT_EQ(r.as<float>()[k], v) << info.name;
          } else {
            t.as<float>()[k] = to_float(to_bf16(v));
            ASSERT_EQ(r.as<Bf16>()[k].bits, to_bf16(v).bits) << info.name;
          }
        }
      });
      const int64_t B = 3, T = 12;
      const Tensor tokens = s.ints(B * T, 19, rng);
      const lte::Run way{Gate::hard, sparse ? Exec::gathered : Exec::masked};
      const State want = run_forward(plain, wide, plan, tokens, B, way, Keep::one_layer);
      ASSERT_EQ(want.logits.dtype, DType::f32);
      const double tol = tolerance_of(DType::f32, 48 * 10, largest(values(want.logits)));
      const State got = run_forward(backends[1], h, plan, tokens, B, way, Keep::one_layer);
      expect_close(got.logits, values(want.logits), tol, "prompt");
      const Tensor one = first_rows(tokens, 1);  // decode of the first sequence, token by token
      State step = make_state(h, plan, 1, 1, T, Keep::one_layer);
      for (int64_t t = 0; t < T; ++t) {
        Tensor token = one;
        token.rank = 1, token.dim[0] = 1, token.dim[1] = 1;
        token.data = tokens.as<int32_t>() + t;
        forward(backends[1], h, plan, token, {1, 1, t}, way, step);
        const Tensor row = slice(want.logits, t);
        expect_close(step.logits, values(row), tol, fmt::format("decode {}", t));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Target, SimdTest,
                         ::testing::Values("AVX3", "AVX2", "NEON", "EMU128", "SCALAR"));

TEST(Simd, WhatHasNoKernelSaysSo) {
  const ModelConfig c = tiny(kGpt, 19);
  const Plan plan = dense_plan(c);
  Params p = make_params(c, plan);
  randomise(p, 3);
  const Params h = to_bf16(p);
  EXPECT_THROW(to_bf16(h), Error);
  Store s;
  Rng rng{1};
  const Tensor tokens = s.ints(4, 19, rng);
  Backend plain = open_backend("cpu", 1);
  State state = make_state(h, plan, 1, 4, 4, Keep::one_layer);
  EXPECT_THROW(forward(plain, h, plan, tokens, {1, 4, 0}, {}, state), Error);
  EXPECT_THROW(make_gradients(h, plan, state), Error);
  if (!built()) GTEST_SKIP() << kWith << " is not in this build";
  EXPECT_THROW(open_backend("cpu+naive+simd"), Error);
  EXPECT_FALSE(simd::targets().empty());
}

// With no target forced the processor's best runs, the first of the list; and forcing is not without
// effect: another width adds in another order.
TEST(Simd, BestTargetIsTheDefaultAndOthersDiffer) {
  if (!built()) GTEST_SKIP() << kWith << " is not in this build";
  Store s;
  Rng rng{2};
  Backend be = open_backend(kWith, 1);
  const Tensor w = s.normal(DType::f32, {33, 257}, rng), x = s.normal(DType::f32, {1, 257}, rng);
  const Tensor a = s.blank(DType::f32, {1, 33}), b = s.blank(DType::f32, {1, 33});
  be.ops.gemm(*be.ctx, a, x, false, w, true);
  simd::use_target(simd::targets().front());
  be.ops.gemm(*be.ctx, b, x, false, w, true);
  expect_same_bits(a, b, "the default");
  if (simd::targets().size() > 1) {
    simd::use_target(simd::targets().back());
    be.ops.gemm(*be.ctx, b, x, false, w, true);
    EXPECT_NE(bits(a), bits(b));
  }
  simd::use_target("");
}

}  // namespace
}  // namespace lte::testing
