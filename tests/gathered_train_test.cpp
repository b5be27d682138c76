// Gathered training against the masked one, tensor by tensor, and what only it promises: experts without
// tokens are not read, and the same bits for any number of threads.
#include <fmt/format.h>

#include "core/profile.h"
#include "model/train.h"
#include "testing.h"

namespace lte::testing {
namespace {

// The backends and variants with own kernels, as tests of whole models name them.
#ifdef LTE_TEST_BACKEND
const std::vector<const char*> kDoubles = kTestBackends, kFloats = kTestBackends,
                               kThreaded = kTestBackends;
#else
const std::vector<const char*> kDoubles = {"cpu", "cpu+fused"},
                               kFloats = {"cpu", "cpu+onednn+fused"}, kThreaded = {"cpu+fused"};
#endif

constexpr Run kMasked{Gate::hard, Exec::masked}, kTrained{Gate::hard, Exec::trained};

struct Case {
  const char* name;
  const char* model;
  int group;
  double bias;  // of the routers: how many are open
  enum Kind { linear, scaled, two_layer, top_k } kind = linear;
  int64_t B = 3, T = 19;
};

constexpr const char* kWide = "gpt2-nano:dim=40,heads=2,ffn=192,layers=2,max_seq=256";
constexpr const char* kErf = "gpt2-nano:dim=16,heads=2,ffn=32,layers=2,max_seq=32,act=gelu-erf";
constexpr const char* kRelu = "gpt2-nano:dim=16,heads=2,ffn=32,layers=2,max_seq=32,act=relu";
const Case kCases[] = {{"gpt", kGpt, 4, 0},
                       {"gpt_single_neurons", kGpt, 1, 0},
                       {"gpt_few", kGpt, 8, -1},
                       {"gpt_all", kGpt, 8, 100},
                       {"gpt_none", kGpt, 8, -100},
                       {"gpt_erf", kErf, 8, 0},
                       {"gpt_relu", kRelu, 16, 0},
                       {"gpt_one_expert", kGpt, 32, 0},
                       {"gpt_scaled", kGpt, 8, 0, Case::scaled},
                       {"gpt_two_layer", kGpt, 8, 0, Case::two_layer},
                       {"gpt_top_k", kGpt, 4, 0, Case::top_k},
                       {"gpt_wide", kWide, 48, 0, Case::linear, 3, 211},
                       {"gpt_wide_few", kWide, 32, -1, Case::linear, 5, 173},
                       {"gpt_one_token", kGpt, 4, 0, Case::linear, 1, 1},
                       {"llama", kLlama, 8, 0},
                       {"llama_scaled", kLlama, 12, -0.5, Case::scaled},
                       {"llama_all", kLlama, 16, 100}};

// A batch of random tokens under random routers.
struct Batch {
  Case one;
  ModelConfig c = tiny(one.model, 16);
  Plan plan = make_plan();
  Params p;
  Store s;
  Tensor tokens, targets;

  Batch(const Case& k, DType dtype) : one(k), p(test_params(c, plan, dtype)) {
    randomise(p, 4);
    set_routers(p, one.bias == 100 || one.bias == -100 ? 0 : 0.5, one.bias);
    Rng rng(8);
    tokens = s.ints(one.B * one.T, 16, rng), targets = s.ints(one.B * one.T, 16, rng);
  }
  Plan make_plan() const {
    Plan made = routed(c, one.group);
    for (FfnPlan& f : made.layer) {
      f.scaled = one.kind == Case::scaled;
      if (one.kind == Case::two_layer)
        f.router = RouterKind::two_layer, f.width = 5, f.inner = Inner::tanh;
      if (one.kind == Case::top_k) f.rule = Rule::top_k, f.cut = 3, f.squash = Squash::none;
    }
    return made;
  }

  struct Result {
    State state;
    Gradients grads;
  };
  Result run(Backend be, Run how, const Plan& under) {
    const int64_t B = one.B, T = one.T;
    State state = make_state(p, under, B, T, T, Keep::all_layers);
    Gradients g = make_gradients(p, under, state);
    forward(be, p, under, tokens, {B, T, 0}, how, state);
    backward(be, p, under, tokens, targets, {B, T, 0}, how, {}, 1.0 / static_cast<double>(B * T),
             {}, state, g);
    be.finish();
    return {std::move(state), std::move(g)};
  }
  Result run(Backend be, Run how) { return run(std::move(be), how, plan); }
  double open(const Result& r) const {
    double sum = 0, all = 0;
    for (const LayerState& l : r.state.layer) {
      for (double g : values(l.gates)) sum += g != 0, ++all;
    }
    return sum / all;
  }
};

// Every tensor of `got` against that of the same name, within `share` of its largest element, or of `floor`.
void expect_near(Params& got, Params& want, double share, double floor) {
  std::vector<Tensor> wanted;
  visit_params(want, [&](Tensor& t, const ParamInfo&) { wanted.push_back(t); });
  size_t i = 0;
  visit_params(got, [&](Tensor& t, const ParamInfo& info) {
    const Tensor& w = wanted[i++];
    expect_close(t, w, share * std::max(floor, largest(values(w))), info.name);
  });
}

class GatheredTraining : public ::testing::TestWithParam<Case> {};

TEST_P(GatheredTraining, GradientsOfTheMaskedInDouble) {
  for (const char* spec : kDoubles) {
    Batch b(GetParam(), DType::f64);
    Batch::Result want = b.run(test_backend(), kMasked),
                  got = b.run(open_backend(spec, 2), kTrained);
    expect_close(got.state.logits, want.state.logits, 1e-12, "logits");
    expect_close(got.state.losses, want.state.losses, 1e-12, "losses");
    expect_near(got.grads.d, want.grads.d, 1e-12, 1e-3);
    for (size_t i = 0; i < b.p.layer.size(); ++i)
      EXPECT_EQ(gate_sums(got.grads, i).above, gate_sums(want.grads, i).above);
    const double open = b.open(want);
    EXPECT_EQ(open == 1, GetParam().bias == 100) << open;
    EXPECT_EQ(open == 0, GetParam().bias == -100) << open;
  }
}

TEST_P(GatheredTraining, GradientsOfTheMaskedInFloats) {
  for (const char* spec : kFloats) {
    if (!in_this_build(spec)) continue;
    Batch b(GetParam(), DType::f32);
    Batch::Result want = b.run(open_backend(spec, 1), kMasked),
                  got = b.run(open_backend(spec, 1), kTrained);
    const int64_t length = b.one.B * b.one.T + b.c.dim + b.c.ffn;  // of the longest chain of sums
    expect_near(got.grads.d, want.grads.d, tolerance_of(DType::f32, length, 1), 1e-2);
    expect_close(got.state.losses, want.state.losses, tolerance_of(DType::f32, length, 10),
                 "losses");
  }
}

TEST_P(GatheredTraining, SameBitsForAnyNumberOfThreads) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    Batch b(GetParam(), dtype);
    const Batch::Result one = b.run(open_backend(kThreaded[0], 1), kTrained);
    for (int threads : {2, 7}) {
      const Batch::Result many = b.run(open_backend(kThreaded[0], threads), kTrained);
      expect_same_bits(many.grads.d.flat(), one.grads.d.flat(), "gradients");
      expect_same_bits(many.state.logits, one.state.logits, "logits");
    }
  }
}

TEST_P(GatheredTraining, ExpertsWithoutTokensAreNotRead) {
  Case one = GetParam();
  one.T = std::min<int64_t>(one.T, 9);
  Batch b(one, DType::f32);
  for (size_t i = 0; i < b.p.layer.size(); ++i) {  // every other expert of each layer is never open
    LayerParams& l = b.p.layer[i];
    if (one.kind != Case::linear || !l.router_b) continue;
    for (int64_t e = 0; e < l.router_b.size(); e += 2) put(l.router_b, e, -1e4);
  }
  const Batch::Result clean = b.run(test_backend(), kTrained);
  const int64_t G = one.group;
  int64_t closed = 0;
  for (size_t i = 0; i < b.p.layer.size(); ++i) {
    LayerParams &l = b.p.layer[i], d = clean.grads.d.layer[i];
    for (int64_t j = 0; j < l.up_w.rows(); ++j) {
      if (clean.state.layer[i].count.as<int32_t>()[j / G] > 0) continue;
      ++closed;
      for (const auto& [w, g] : {std::pair{l.up_w, d.up_w},
                                 {l.gate_w, d.gate_w},
                                 {l.down_w, d.down_w},
                                 {l.up_b, d.up_b}}) {
        for (int64_t k = 0; w && k < w.cols(); ++k) {
          const int64_t at_k = w.rank == 1 ? j : j * w.cols() + k;
          EXPECT_EQ(at(g, at_k), 0);
          put(w, at_k, NAN);
          if (w.rank == 1) break;
        }
      }
    }
  }
  EXPECT_TRUE(closed > 0 || one.kind != Case::linear);
  const Batch::Result poisoned = b.run(test_backend(), kTrained);
  expect_same_bits(poisoned.grads.d.flat(), clean.grads.d.flat(), "poisoned");
  expect_same_bits(poisoned.state.logits, clean.state.logits, "poisoned");
}

INSTANTIATE_TEST_SUITE_P(Models, GatheredTraining, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(GatheredTrainingOf, AllExpertsOpenIsDense) {
  for (const char* model : {kGpt, kLlama}) {
    Batch b({"all", model, 8, 100}, DType::f64);
    Plan dense = dense_plan(b.c);
    Batch::Result got = b.run(test_backend(), kTrained);
    Params plain = test_params(b.c, dense, DType::f64);
    copy_matching(plain, b.p);
    std::swap(plain, b.p);
    Batch::Result want = b.run(test_backend(), kMasked, dense);
    for (size_t i = 0; i < b.p.layer.size(); ++i) {
      const LayerParams &g = got.grads.d.layer[i], &w = want.grads.d.layer[i];
      expect_close(g.up_w, w.up_w, 1e-12, "up");
      expect_close(g.down_w, w.down_w, 1e-12, "down");
      expect_close(g.qkv_w, w.qkv_w, 1e-12, "qkv");
    }
    EXPECT_GT(largest(values(want.grads.d.layer[0].up_w)), 1e-3);
  }
}

TEST(GatheredTrainingOf, WhatCannotBeIsRefused) {
  const auto able = [](const FfnPlan& f, LossTerms terms, Gate gate = Gate::hard,
                       const char* spec = kTestBackend) {
    return can_train_gathered(open_backend(spec, 1), {.knobs = {}, .layer = {f}}, gate, terms);
  };
  const FfnPlan linear{.group = 4, .order = {}, .router = RouterKind::linear};
  FfnPlan kept = linear, oracle = linear;
  kept.squash = Squash::kept_softmax, oracle.router = RouterKind::activation;
  EXPECT_TRUE(able(linear, {}));
  EXPECT_FALSE(able(linear, {.train_routers = true}));
  EXPECT_FALSE(able(linear, {.straight_through = true}));
  EXPECT_FALSE(able(linear, {.hoyer = 0.1}));
  EXPECT_FALSE(able(linear, {}, Gate::soft));
  EXPECT_FALSE(able(kept, {}));
  EXPECT_FALSE(able(oracle, {}));
  EXPECT_FALSE(able({.order = {}}, {})) << "dense";
  EXPECT_TRUE(!in_this_build("cpu+bf16") || !able(linear, {}, Gate::hard, "cpu+bf16"));
  Backend none = test_backend();
  none.ops.ffn_train = nullptr, none.ops.ffn_train_backward_add = nullptr;
  Batch b(kCases[0], DType::f32);
  EXPECT_THROW(b.run(none, kTrained), Error);
  EXPECT_FALSE(can_train_gathered(profiled(none).backend, b.plan, Gate::hard, {}));
}

// Twenty-four steps: what ran is in the log, and the losses agree to rounding that Adam makes larger.
TEST(GatheredTrainingOf, StepsRunAsWanted) {
  const ModelConfig c = tiny(kGpt, 16);
  const Plan plan = routed(c, 4);
  const TokenSet set = patterned_tokens(2000, 16, 1);
  const auto run = [&](TrainExec exec, LossTerms terms, bool kernels = true) {
    Params p = test_params(c, plan);
    init_params(p, 11), set_routers(p, 0.5, 0);
    TrainSpec t{.steps = 24, .batch = 4, .seq = 24, .lr = 3e-3, .exec = exec, .terms = terms};
    Backend be = test_backend();
    if (!kernels) be.ops.ffn_train = nullptr, be.ops.ffn_train_backward_add = nullptr;
    std::vector<StepLog> logs;
    TrainHooks hooks;
    hooks.log = [&](const StepLog& log) { logs.push_back(log); };
    train(be, p, plan, set, {}, t, hooks);
    return std::pair(logs, bits(p.flat()));
  };
  const auto gathered_steps = [](const std::vector<StepLog>& logs) {
    return std::count_if(logs.begin(), logs.end(),
                         [](const StepLog& l) { return l.exec == Exec::trained; });
  };
  const auto [masked, masked_bits] = run(TrainExec::masked, {});
  const auto [gathered, gathered_bits] = run(TrainExec::gathered, {});
  EXPECT_EQ(gathered_steps(masked), 0);
  EXPECT_EQ(gathered_steps(gathered), 24);
  EXPECT_NE(masked_bits, gathered_bits) << "another order of sums, yet the same bits";
  for (size_t i = 0; i < 24; ++i) {
    EXPECT_NEAR(gathered[i].loss, masked[i].loss, 2e-5 * masked[i].loss) << i;
    EXPECT_EQ(gathered[i].active, masked[i].active) << i;
  }
  const auto measured = run(TrainExec::measured, {}).first;
  const size_t both = 2 * (kMeasuredSteps + 1);
  for (size_t i = 0; i < 24; ++i) {
    const bool open = i + 1 < both;
    EXPECT_EQ(measured[i].gathered_gain == 0, open) << i;
    const bool want = i < both ? i % 2 == 1 : measured[i].gathered_gain > 1;
    EXPECT_EQ(measured[i].exec == Exec::trained, want) << i;
  }
  // Steps that cannot be gathered are masked, to the bit.
  EXPECT_EQ(run(TrainExec::gathered, {}, false).second, masked_bits);
  const LossTerms through{.train_routers = true, .straight_through = true};
  EXPECT_EQ(run(TrainExec::measured, through).second, run(TrainExec::masked, through).second);
}

}  // namespace
}  // namespace lte::testing
