// The feed-forward layer over every expert's own tokens, of whole numbers so small that every sum, and every
// factor rounded to bf16, is exact: any row, column, gate or range taken wrongly shows, in every type.
#include <fmt/format.h>

#include "testing.h"

namespace lte::testing {
namespace {

struct Shape {
  int64_t N, D, E, G;
};
// Whole packs of 16 bytes and not, less and more than a tile of each kernel.
const Shape kShapes[] = {{1, 8, 2, 8},     {5, 3, 3, 1},     {17, 40, 7, 16}, {19, 9, 4, 7},
                         {40, 136, 2, 40}, {150, 72, 3, 24}, {131, 24, 2, 8}, {259, 16, 3, 8}};

// Backends, those that round factors among them.
std::vector<std::string> specs() {
  std::vector<std::string> all(kTestBackends.begin(), kTestBackends.end());
  if (std::string_view(kTestBackend) != "cpu") all.push_back(std::string(kTestBackend) + "+bf16");
  return all;
}

bool in_bf16(double x) {
  return static_cast<double>(to_float(to_bf16(static_cast<float>(x)))) == x;
}

// A layer, its input and what must come out of it, by loops.
struct Layer {
  Shape z;
  bool gated;
  Tensor x = {}, gates = {}, up = {}, bias = {}, gate_w = {}, down = {};
  Values u = {}, g = {}, a = {}, out = {};  // [N,F] each, [N,D]

  double open(int64_t n, int64_t j) const { return at(gates, n * z.E + j / z.G); }
  int64_t F() const { return z.E * z.G; }
  static double relu(double x) { return x > 0 ? x : 0; }

  double dot(const Tensor& a_, int64_t n, const Tensor& b, int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < z.D; ++d) sum += at(a_, n * z.D + d) * at(b, j * z.D + d);
    return sum;
  }
  void compute() {
    const auto size = static_cast<size_t>(z.N * F());
    u.assign(size, 0), g = a = u, out.assign(static_cast<size_t>(z.N * z.D), 0);
    for (int64_t n = 0; n < z.N; ++n) {
      for (int64_t j = 0; j < F(); ++j) {
        const auto i = static_cast<size_t>(n * F() + j);
        u[i] = dot(x, n, up, j) + (bias ? at(bias, j) : 0);
        if (gated) g[i] = dot(x, n, gate_w, j);
        a[i] = gated ? relu(g[i]) * u[i] : relu(u[i]);
        EXPECT_TRUE(in_bf16(a[i]));
        for (int64_t d = 0; d < z.D && open(n, j) != 0; ++d)
          out[static_cast<size_t>(n * z.D + d)] += open(n, j) * a[i] * at(down, j * z.D + d);
      }
    }
  }
};

void expect_equal(const Tensor& got, const Values& want, const std::string& what) {
  ASSERT_EQ(static_cast<size_t>(got.size()), want.size());
  int64_t wrong = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    if (at(got, i) == want[static_cast<size_t>(i)]) continue;
    if (wrong++ == 0) {
      ADD_FAILURE() << what << " [" << i / got.cols() << ", " << i % got.cols() << "] is "
                    << at(got, i) << ", not " << want[static_cast<size_t>(i)];
    }
  }
  EXPECT_EQ(wrong, 0) << what << ", of " << got.size();
}

class WholeNumbers : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  const std::string spec = std::get<0>(GetParam());
  const DType dtype = std::get<1>(GetParam());
  const std::string why_not = missing(spec);
  Backend be = open_backend(why_not.empty() ? spec : "cpu", 2);
  Store s{.where = be.memory};
  Rng rng{7};

  void SetUp() override {
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }
  // -1, 0 and 1, of which `share` are not 0.
  Tensor signs(std::initializer_list<int64_t> dims, double share) {
    Tensor t = s.blank(dtype, dims);
    for (int64_t i = 0; i < t.size(); ++i) {
      put(t, i, rng.uniform() >= share ? 0 : rng.uniform() < 0.5 ? -1 : 1);
    }
    return t;
  }
  // 0 for half of the pairs and for expert 1; else a power of two.
  Tensor some_gates(int64_t N, int64_t E) {
    Tensor t = s.blank(dtype, {N, E});
    for (int64_t i = 0; i < N * E; ++i) {
      const bool open = rng.uniform() < 0.5 && (E == 1 || i % E != 1);
      put(t, i, open ? std::exp2(static_cast<double>(rng.below(3)) - 1) : 0);
    }
    return t;
  }
  // A product over D has some four terms, whatever D is.
  double share(const Shape& z) const {
    return std::min(1.0, 2.0 / std::sqrt(static_cast<double>(z.D)));
  }
  Layer layer(const Shape& z, bool gated) {
    const int64_t F = z.E * z.G;
    Layer l{.z = z, .gated = gated};
    l.x = signs({z.N, z.D}, share(z)), l.gates = some_gates(z.N, z.E);
    l.up = signs({F, z.D}, share(z)), l.down = signs({F, z.D}, share(z));
    if (gated) l.gate_w = signs({F, z.D}, share(z));
    if (!gated) l.bias = signs({F}, 1);
    l.compute();
    return l;
  }
};

TEST_P(WholeNumbers, GatheredIsExact) {
  for (const Shape& z : kShapes) {
    for (bool gated : {false, true}) {
      SCOPED_TRACE(fmt::format("N {} D {} E {} G {} gated {}", z.N, z.D, z.E, z.G, gated));
      const Layer l = layer(z, gated);
      const Tensor index = s.blank(DType::i32, {z.E, z.N}), count = s.blank(DType::i32, {z.E});
      be.ops.route(*be.ctx, index, count, l.gates);
      be.finish();
      const auto check = [&](const Tensor& up, const Tensor& gate_w, const Tensor& down,
                             const char* what) {
        const Tensor out = s.blank(dtype, {z.N, z.D});
        be.ops.ffn_gathered(*be.ctx, out, l.x, l.gates, index, count, {}, up, l.bias, gate_w, down,
                            Act::relu);
        be.finish();
        expect_equal(out, l.out, what);
      };
      check(l.up, l.gate_w, l.down, "out");
      if (dtype == DType::f32 && takes_bf16(spec)) {
        check(s.half(l.up), gated ? s.half(l.gate_w) : Tensor{}, s.half(l.down), "out of bf16");
      }
      EXPECT_TRUE(s.intact());
      s.blocks.clear();
    }
  }
}

// Forward and backward; rows of experts without tokens are NaN, and their gradients stay.
TEST_P(WholeNumbers, TrainingIsExact) {
  if (!be.ops.ffn_train) GTEST_SKIP() << spec << " has no gathered training";
  for (const Shape& z : kShapes) {
    for (bool gated : {false, true}) {
      SCOPED_TRACE(fmt::format("N {} D {} E {} G {} gated {}", z.N, z.D, z.E, z.G, gated));
      const Layer l = layer(z, gated);
      const auto some = [&](int64_t r, int64_t c) { return signs({r, c}, share(z)); };
      const int64_t N = z.N, D = z.D, F = l.F();
      const Tensor index = s.blank(DType::i32, {z.E, N}), count = s.blank(DType::i32, {z.E});
      be.ops.route(*be.ctx, index, count, l.gates);
      be.finish();
      const auto rows = [&] {
        return PackedRows{s.blank(dtype, {N, F}), gated ? s.blank(dtype, {N, F}) : Tensor{},
                          s.blank(dtype, {N, F})};
      };
      const PackedRows kept = rows(), dkept = rows();
      const Tensor out = s.blank(dtype, {N, D}), dout = some(N, D), dx = some(N, D);
      FfnWeights w{l.up, l.bias, l.gate_w, l.down}, d{some(F, D), {}, {}, some(F, D)};
      if (gated) d.gate_w = some(F, D);
      if (!gated) d.up_bias = signs({F}, 1);
      Values want_dx = values(dx), dup = values(d.up), ddown = values(d.down);
      Values dgate = gated ? values(d.gate_w) : Values{},
             dbias = gated ? Values{} : values(d.up_bias);
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t j = 0; j < F; ++j) {
          const double gate = l.open(n, j);
          if (gate == 0) continue;
          const auto i = static_cast<size_t>(n * F + j);
          const double da = gate * l.dot(dout, n, l.down, j);
          const double du = gated ? da * Layer::relu(l.g[i]) : l.u[i] > 0 ? da : 0;
          const double dg = gated && l.g[i] > 0 ? da * l.u[i] : 0;
          EXPECT_TRUE(in_bf16(du) && in_bf16(dg) && in_bf16(gate * l.a[i]));
          if (!gated) dbias[static_cast<size_t>(j)] += du;
          for (int64_t c = 0; c < D; ++c) {
            const auto at_w = static_cast<size_t>(j * D + c), at_x = static_cast<size_t>(n * D + c);
            ddown[at_w] += gate * l.a[i] * at(dout, n * D + c);
            dup[at_w] += du * at(l.x, n * D + c);
            want_dx[at_x] += du * at(l.up, j * D + c);
            if (gated) dgate[at_w] += dg * at(l.x, n * D + c);
            if (gated) want_dx[at_x] += dg * at(l.gate_w, j * D + c);
          }
        }
      }
      for (int64_t j = 0; j < F; ++j) {
        if (count.as<int32_t>()[j / z.G] > 0) continue;
        for (int64_t c = 0; c < D; ++c) {
          for (const Tensor& t : {w.up, w.gate_w, w.down}) {
            if (t) put(t, j * D + c, NAN);
          }
        }
      }
      const ExpertLists lists{l.gates, index, count};
      be.ops.ffn_train(*be.ctx, out, kept, l.x, lists, w, Act::relu);
      be.ops.ffn_train_backward_add(*be.ctx, dx, d, dkept, dout, kept, l.x, lists, w, Act::relu);
      be.finish();
      expect_equal(out, l.out, "out");
      expect_equal(dx, want_dx, "dx");
      expect_equal(d.up, dup, "dup");
      expect_equal(d.down, ddown, "ddown");
      if (gated) expect_equal(d.gate_w, dgate, "dgate_w");
      if (!gated) expect_equal(d.up_bias, dbias, "dup_bias");
      EXPECT_TRUE(s.intact());
      s.blocks.clear();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, WholeNumbers,
                         ::testing::Combine(::testing::ValuesIn(specs()),
                                            ::testing::Values(DType::f32, DType::f64)),
                         [](const auto& info) { return spec_and_type(info.param); });

}  // namespace
}  // namespace lte::testing
