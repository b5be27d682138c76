// What the numerical tests share: tensors between guard bytes, random values, tiny models.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "core/compare.h"
#include "core/digest.h"
#include "core/gpu.h"
#include "core/ops.h"
#include "core/rng.h"
#include "core/tokens.h"
#include "model/forward.h"

namespace lte::testing {

using Values = std::vector<double>;

// The backend that the tests of whole models run on, and all there are for those of operations. The
// same tests are compiled again for "cuda" and "cuda-simt".
#ifdef LTE_TEST_BACKEND
inline const char* const kTestBackend = LTE_TEST_BACKEND;
inline const std::vector<const char*> kTestBackends = {LTE_TEST_BACKEND};
#else
inline const char* const kTestBackend = "cpu";
inline const std::vector<const char*> kTestBackends = {"cpu",
                                                       "cpu+naive",
                                                       "cpu+onednn",
                                                       "cpu+fused",
                                                       "cpu+onednn+fused",
                                                       "cpu+simd",
                                                       "cpu+onednn+simd",
                                                       "cpu+onednn+simd+fused",
                                                       "cuda"};
#endif
// Whether this build has every variant of a backend, "cpu+onednn+fused".
inline bool in_this_build(const std::string& spec) {
  return std::none_of(variants().begin(), variants().end(), [&](const Variant& v) {
    return !v.patch && spec.starts_with(v.backend) &&
           (spec + "+").find(std::string("+") + v.name + "+") != spec.npos;
  });
}
// Why a backend is not to be had here; empty if it is.
inline std::string missing(const std::string& spec) {
  if (!in_this_build(spec)) return spec + " is not in this build";
  return spec.rfind("cuda", 0) == 0 ? gpu_missing(spec.substr(0, spec.find('+'))) : "";
}
inline Backend test_backend(int threads = 1) { return open_backend(kTestBackend, threads); }
inline Memory test_memory() {
  static const Memory memory = test_backend().memory;
  return memory;
}
inline Params test_params(const ModelConfig& c, const Plan& plan, DType dtype = DType::f32) {
  return make_params(c, plan, dtype, test_memory());
}
#ifdef LTE_TEST_BACKEND
// Without the backend all tests of the program are skipped, with the reason.
struct NeedsBackend : ::testing::Environment {
  void SetUp() override {
    if (const std::string why = missing(kTestBackend); !why.empty()) GTEST_SKIP() << why;
  }
};
inline ::testing::Environment* const kNeedsBackend =
    ::testing::AddGlobalTestEnvironment(new NeedsBackend);
#endif

inline double at(const Tensor& t, int64_t i) {
  if (t.dtype == DType::bf16) return static_cast<double>(to_float(t.as<Bf16>()[i]));
  return t.dtype == DType::f64 ? t.as<double>()[i] : static_cast<double>(t.as<float>()[i]);
}
inline void put(const Tensor& t, int64_t i, double value) {
  if (t.dtype == DType::f64) {
    t.as<double>()[i] = value;
  } else if (t.dtype == DType::bf16) {
    t.as<Bf16>()[i] = to_bf16(static_cast<float>(value));
  } else {
    t.as<float>()[i] = static_cast<float>(value);
  }
}
inline Values values(const Tensor& t) {
  Values v(static_cast<size_t>(t.size()));
  for (int64_t i = 0; i < t.size(); ++i) v[static_cast<size_t>(i)] = at(t, i);
  return v;
}
inline std::string bits(const Tensor& t) { return {static_cast<const char*>(t.data), t.bytes()}; }
inline double largest(const Values& v) {
  double top = 0;
  for (double x : v) top = std::max(top, std::abs(x));
  return top;
}

// Tensors that each lie between guard bytes, as ggml's tests have them.
struct Store {
  static constexpr size_t kGuard = 64;
  static constexpr std::byte kMark{0xa5};
  Memory where = test_memory();
  std::deque<Arena> blocks = {};

  // Filled with NaN, or with a number no list holds: what an operation does not write shows.
  Tensor blank(DType dtype, std::initializer_list<int64_t> dims) {
    Tensor t = shape(dtype, dims);
    Arena& block = blocks.emplace_back(Arena{.where = where});
    block.reserve(t.bytes() + 2 * kGuard);
    block.used = block.capacity;
    std::fill_n(block.base(), block.used, kMark);
    t.data = block.base() + kGuard;
    for (int64_t i = 0; i < t.size(); ++i) {
      if (dtype == DType::i32) {
        t.as<int32_t>()[i] = -77777;
      } else {
        put(t, i, std::numeric_limits<double>::quiet_NaN());
      }
    }
    return t;
  }
  Tensor normal(DType dtype, std::initializer_list<int64_t> dims, Rng& rng, double std = 1) {
    Tensor t = blank(dtype, dims);
    for (int64_t i = 0; i < t.size(); ++i) put(t, i, std * rng.normal());
    return t;
  }
  Tensor of(DType dtype, std::initializer_list<int64_t> dims, const Values& v) {
    Tensor t = blank(dtype, dims);
    for (int64_t i = 0; i < t.size(); ++i) put(t, i, v[static_cast<size_t>(i)]);
    return t;
  }
  // A copy as bf16; `t` becomes the rounded values.
  Tensor half(const Tensor& t) {
    Tensor h = t;
    h.dtype = DType::bf16;
    Arena& block = blocks.emplace_back(Arena{.where = where});
    block.reserve(h.bytes() + 2 * kGuard);
    block.used = h.bytes() + 2 * kGuard;
    std::fill_n(block.base(), block.used, kMark);
    h.data = block.base() + kGuard;
    for (int64_t i = 0; i < t.size(); ++i) {
      h.as<Bf16>()[i] = to_bf16(t.as<float>()[i]);
      t.as<float>()[i] = to_float(h.as<Bf16>()[i]);
    }
    return h;
  }
  Tensor ints(const std::vector<int32_t>& v) {
    Tensor t = blank(DType::i32, {static_cast<int64_t>(v.size())});
    std::memcpy(t.data, v.data(), t.bytes());
    return t;
  }
  // Whole numbers in [0, below).
  Tensor ints(int64_t n, int64_t below, Rng& rng) {
    std::vector<int32_t> v(static_cast<size_t>(n));
    for (int32_t& x : v) x = static_cast<int32_t>(rng.below(static_cast<uint64_t>(below)));
    return ints(v);
  }
  bool intact() const {
    for (const Arena& b : blocks) {
      for (size_t i = 0; i < kGuard; ++i) {
        if (b.base()[i] != kMark || b.base()[b.used - 1 - i] != kMark) return false;
      }
    }
    return true;
  }
};

inline void expect_close(const Tensor& got, const Tensor& want, double tolerance,
                         const std::string& what) {
  const Comparison c = compare(got, want, tolerance);
  EXPECT_TRUE(c.ok) << what << ": " << c.message;
}
inline void expect_same_bits(const Tensor& a, const Tensor& b, const std::string& what) {
  EXPECT_TRUE(bits(a) == bits(b)) << what << ": other bits";
}
// Against a reference in double, rounded once to the type of `got`.
inline void expect_close(const Tensor& got, const Values& want, double tolerance,
                         const std::string& what) {
  ASSERT_EQ(static_cast<size_t>(got.size()), want.size()) << what;
  std::vector<std::byte> memory(got.bytes());
  Tensor w = got;
  w.data = memory.data();
  for (int64_t i = 0; i < w.size(); ++i) put(w, i, want[static_cast<size_t>(i)]);
  expect_close(got, w, tolerance, what);
}

// Whether a backend takes weights of bf16 (the products of cpu+naive alone do not count).
inline bool takes_bf16(std::string_view spec) {
  return spec.starts_with("cuda") || spec.find("+simd") != spec.npos;
}

// ---- one operation over backends, types, shapes and threads

struct Size {
  int64_t rows, cols;
};
// The last one is cut into several pieces of work. Where the kernels of a GPU run on the CPU, a
// thousand times slower, it is smaller, and so are the largest products.
inline const bool kSlow = std::string_view(kTestBackend) == "cuda-simt";
inline const Size kSizes[] = {{1, 1},  {1, 5},  {3, 7},
                              {17, 8}, {5, 33}, kSlow ? Size{67, 70} : Size{130, 513}};
inline bool too_large(int64_t multiplications) { return kSlow && multiplications > 400'000; }

class OpsTest : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  const char* spec = std::get<0>(GetParam());
  const DType dtype = std::get<1>(GetParam());
  const std::string why_not = missing(spec);
  std::vector<Backend> backends = open();
  Store s{.where = backends[0].memory};
  Rng rng{42};

  void SetUp() override {
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }
  // With 1, 2 and 7 threads; a GPU, which has its own, twice.
  std::vector<Backend> open() const {
    if (!why_not.empty()) return {open_backend("cpu", 1)};
    Backend one = open_backend(spec, 1);
    if (std::string_view(spec).starts_with("cuda")) return {one, one};
    return {one, open_backend(spec, 2), open_backend(spec, 7)};
  }

  // Runs the operation on each of them from the same start; all must agree bit by bit.
  void run(std::initializer_list<Tensor> outs, const std::function<void(const Ops&, Ctx&)>& f) {
    std::vector<std::string> before, first;
    for (const Tensor& t : outs) before.push_back(bits(t));
    for (Backend& be : backends) {
      size_t i = 0;
      for (const Tensor& t : outs) std::memcpy(t.data, before[i++].data(), t.bytes());
      f(be.ops, *be.ctx);
      be.finish();
      std::vector<std::string> now;
      for (const Tensor& t : outs) now.push_back(bits(t));
      if (first.empty()) first = now;
      EXPECT_TRUE(now == first) << "other bits with another number of threads";
    }
    EXPECT_TRUE(s.intact()) << "wrote beyond a tensor";
  }
  // Rounding of sums of `length` terms of magnitude up to `magnitude`, and of the value itself.
  double tol(int64_t length, double magnitude) const {
    return tolerance_of(dtype, length, magnitude);
  }
  Tensor blank(std::initializer_list<int64_t> d) { return s.blank(dtype, d); }
  Tensor normal(std::initializer_list<int64_t> d, double std = 1) {
    return s.normal(dtype, d, rng, std);
  }
};

// The name of a case of (backend, type).
template <class Spec>
std::string spec_and_type(const std::tuple<Spec, DType>& param) {
  std::string name = std::get<0>(param);
  for (char& c : name) c = c == '+' || c == '-' ? '_' : c;
  return name + "_" + name_of(std::get<1>(param));
}
#define LTE_EVERY_BACKEND(Suite)                                                          \
  INSTANTIATE_TEST_SUITE_P(Every, Suite,                                                  \
                           ::testing::Combine(::testing::ValuesIn(kTestBackends),         \
                                              ::testing::Values(DType::f32, DType::f64)), \
                           [](const auto& info) { return spec_and_type(info.param); })

// ---- tiny models

inline ModelConfig tiny(const std::string& spec, int vocab) {
  ModelConfig c = parse_model(spec);
  c.vocab = vocab;
  return c;
}
inline const char* const kGpt = "gpt2-nano:dim=16,heads=2,ffn=32,layers=2,max_seq=32";
inline const char* const kLlama = "llama-nano:dim=16,heads=4,kv_heads=2,ffn=48,layers=2,max_seq=32";

// Every parameter random, biases and scales too, so that no term hides behind a zero or a one.
inline void randomise(Params& p, uint64_t seed, double std = 0.3) {
  Rng rng(seed);
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    for (int64_t i = 0; i < t.size(); ++i) put(t, i, (info.init_one ? 1 : 0) + std * rng.normal());
  });
}

// Experts of `group` neurons with linear routers, in a random order of the neurons.
inline Plan routed(const ModelConfig& c, int group, bool bias = true, double cut = 0.5,
                   uint64_t seed = 3) {
  Plan plan = dense_plan(c);
  Rng rng(seed);
  for (FfnPlan& f : plan.layer) {
    f = {.group = group,
         .order = {},
         .router = RouterKind::linear,
         .router_bias = bias,
         .rule = Rule::threshold,
         .cut = cut};
    for (int j = 0; j < c.ffn; ++j) f.order.push_back(j);
    shuffle(f.order, rng);
  }
  return plan;
}

// Normal weights and one bias for every router.
inline void set_routers(Params& p, double std, double bias, uint64_t seed = 5) {
  Rng rng(seed);
  for (LayerParams& l : p.layer) {
    for (int64_t i = 0; l.router_w && i < l.router_w.size(); ++i)
      put(l.router_w, i, std * rng.normal());
    for (int64_t i = 0; l.router_b && i < l.router_b.size(); ++i) put(l.router_b, i, bias);
  }
}

inline TokenSet random_tokens(int64_t n, int vocab, uint64_t seed) {
  TokenSet s;
  Rng rng(seed);
  for (int64_t i = 0; i < n; ++i) {
    s.tokens.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  }
  return s;
}
// Text with something to learn: the next symbol is mostly a function of the last one.
inline TokenSet patterned_tokens(int64_t n, int vocab, uint64_t seed) {
  TokenSet s = random_tokens(n, vocab, seed);
  for (size_t i = 1; i < s.tokens.size(); ++i) {
    if (s.tokens[i] % 4 != 0) s.tokens[i] = (s.tokens[i - 1] * 3 + 1) % vocab;
  }
  return s;
}

// One forward over a whole prompt; logits stay in the state.
inline State run_forward(Backend& be, const Params& p, const Plan& plan, const Tensor& tokens,
                         int64_t B, Run run, Keep keep = Keep::all_layers) {
  const int64_t T = tokens.size() / B;
  State s = make_state(p, plan, B, T, T, keep);
  forward(be, p, plan, tokens, {B, T, 0}, run, s);
  be.finish();
  return s;
}

inline bool reads_activations(const FfnPlan& f) {
  return f.router == RouterKind::activation || f.router == RouterKind::gate;
}

// NaN in what a plan does not read of experts that no token of `clean` selects: down rows are read only to weigh a choice; up
// rows only by those who choose by the activations; gate rows only by those who choose by gate or activations. Returns
// of how many neurons.
inline int64_t poison_unselected(const Params& p, const Plan& plan, const State& clean) {
  int64_t poisoned = 0;
  for (size_t i = 0; i < p.layer.size(); ++i) {
    const FfnPlan& f = plan.layer[i];
    const bool down = !f.weighted, up = f.router != RouterKind::activation;
    const bool gate = !reads_activations(f);
    if (f.router == RouterKind::none || (!down && !up)) continue;
    const LayerParams& l = p.layer[i];
    const int64_t D = p.cfg.dim;
    for (int64_t j = 0; j < l.up_w.dim[0]; ++j) {
      if (clean.layer[i].count.as<int32_t>()[j / f.group] > 0) continue;
      ++poisoned;
      if (l.up_b && up) put(l.up_b, j, NAN);
      for (int64_t d = 0; d < D; ++d) {
        if (down) put(l.down_w, j * D + d, NAN);
        if (up) put(l.up_w, j * D + d, NAN);
        if (l.gate_w && gate) put(l.gate_w, j * D + d, NAN);
      }
    }
  }
  return poisoned;
}

}  // namespace lte::testing
