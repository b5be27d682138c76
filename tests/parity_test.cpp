// The backend under test against the plain loops of the CPU, tensor by tensor and by name: activations of every
// layer, logits, losses, every gradient, every parameter after a step of AdamW; and a whole small training.
#include <fmt/format.h>

#include "model/train.h"
#include "testing.h"

namespace lte::testing {
namespace {

constexpr int kVocab = 16;
constexpr int64_t kB = 2, kT = 9;

struct Case {
  const char* name;
  const char* model;
  enum Plans { dense, threshold, top_k } plans;
  Exec exec;  // of the forward pass; the backward pass follows masked and trained ones
};
const Case kCases[] = {
    {"gpt_dense", kGpt, Case::dense, Exec::masked},
    {"gpt_masked", kGpt, Case::threshold, Exec::masked},
    {"gpt_gathered", kGpt, Case::threshold, Exec::gathered},
    {"gpt_top_k_gathered", kGpt, Case::top_k, Exec::gathered},
    {"gpt_trained", kGpt, Case::threshold, Exec::trained},
    {"llama_dense", kLlama, Case::dense, Exec::masked},
    {"llama_masked", kLlama, Case::threshold, Exec::masked},
    {"llama_gathered", kLlama, Case::threshold, Exec::gathered},
    {"llama_trained", kLlama, Case::threshold, Exec::trained},
};

Plan plan_of(const ModelConfig& c, Case::Plans which) {
  if (which == Case::dense) return dense_plan(c);
  Plan plan = routed(c, 4);
  for (FfnPlan& f : plan.layer) {
    if (which == Case::top_k) f.rule = Rule::top_k, f.cut = 3, f.squash = Squash::none;
  }
  return plan;
}

// A model in one backend's memory, and what a pass over one batch leaves there.
struct Side {
  Backend be;
  Params p;
  State state;
  Gradients grads;

  Side(const std::string& spec, const ModelConfig& c, const Plan& plan, DType dtype)
      : be(open_backend(spec, 1)), p(make_params(c, plan, dtype, be.memory)), state(), grads() {
    randomise(p, 4);
    set_routers(p, 0.5, 0);
    state = make_state(p, plan, kB, kT, kT, Keep::all_layers);
    grads = make_gradients(p, plan, state);
  }
};

// Rounding along the longest path to a tensor: in every layer two norms, the products of queries and keys, of
// probabilities and values, of projection, router, up and down; the same again backward; the head, and in gradients
// of parameters the sum over tokens.
double allowed(const ModelConfig& c, const Tensor& want) {
  const int64_t layer = 6 * c.dim + c.head_dim() + kT + c.ffn;
  return tolerance_of(want.dtype, 2 * c.layers * layer + c.vocab + kB * kT, largest(values(want)));
}

void expect_parity(const ModelConfig& c, const std::string& name, const Tensor& got,
                   const Tensor& want) {
  ASSERT_EQ(got.data == nullptr, want.data == nullptr) << name;
  if (!want) return;
  if (want.dtype == DType::i32) return expect_same_bits(got, want, name);
  expect_close(got, want, allowed(c, want), name);
}

// f(name, tensor) for the activations of a layer that execution `exec` writes.
template <class F>
void visit_activations(LayerState& s, const Case& k, bool gated, F&& f) {
  f("x", s.x), f("norm1", s.norm1), f("stats1", s.stats1), f("qkv", s.qkv), f("probs", s.probs);
  f("attended", s.attended), f("mid", s.mid), f("norm2", s.norm2), f("stats2", s.stats2);
  f("delta", s.delta), f("k", s.k), f("v", s.v);
  if (k.plans != Case::dense) f("scores", s.scores), f("gates", s.gates);
  if (k.exec == Exec::masked) {
    f("up", s.up), f("act", s.act);
    if (gated) f("gate", s.gate);
    if (k.plans != Case::dense) f("hidden", s.hidden);
  } else {
    f("count", s.count);
  }
}

class Parity : public ::testing::TestWithParam<std::tuple<Case, DType>> {};

TEST_P(Parity, EveryNamedTensor) {
  const auto& [k, dtype] = GetParam();
  const ModelConfig c = tiny(k.model, kVocab);
  const Plan plan = plan_of(c, k.plans);
  Side got(kTestBackend, c, plan, dtype), want("cpu+naive", c, plan, dtype);
  if (k.exec == Exec::trained && !got.be.ops.ffn_train)
    GTEST_SKIP() << kTestBackend << " has no kernels for gathered training";
  std::vector<int32_t> text = patterned_tokens(kB * kT + 1, kVocab, 3).tokens;
  Tensor tokens = shape(DType::i32, {kB * kT}), targets = tokens;
  tokens.data = text.data(), targets.data = text.data() + 1;

  const lte::Run run{Gate::hard, k.exec};
  LossTerms terms;  // sep_eps as large as that: where the term is steep, rounding of a score is too
  if (k.exec == Exec::masked && k.plans == Case::threshold)
    terms = {.eta = 0.3,
             .lambda = 0.05,
             .sep_eps = 0.1,
             .train_routers = true,
             .straight_through = true};
  for (Side* side : {&got, &want}) {
    forward(side->be, side->p, plan, tokens, {kB, kT, 0}, run, side->state);
    if (k.exec != Exec::gathered)
      backward(side->be, side->p, plan, tokens, targets, {kB, kT, 0}, run, terms, 1.0 / (kB * kT),
               {}, side->state, side->grads);
    side->be.finish();
  }
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    std::vector<Tensor> wanted;
    visit_activations(want.state.layer[i], k, c.gated,
                      [&](const char*, const Tensor& t) { wanted.push_back(t); });
    size_t at = 0;
    visit_activations(got.state.layer[i], k, c.gated, [&](const char* name, const Tensor& t) {
      expect_parity(c, fmt::format("layers.{}.{}", i, name), t, wanted[at++]);
    });
  }
  expect_parity(c, "logits", got.state.logits, want.state.logits);
  if (k.exec == Exec::gathered) return;
  expect_parity(c, "losses", got.state.losses, want.state.losses);
  std::vector<Tensor> wanted;
  visit_params(want.grads.d, [&](Tensor& t, const ParamInfo&) { wanted.push_back(t); });
  size_t at = 0;
  double sum = 0;
  visit_params(got.grads.d, [&](Tensor& t, const ParamInfo& info) {
    expect_parity(c, "gradient of " + info.name, t, wanted[at++]);
    sum += largest(values(t));
  });
  EXPECT_GT(sum, 0);

  // One step from the same gradients: the first one is lr times their sign, whatever they are near zero.
  std::memcpy(got.grads.d.memory.base(), want.grads.d.memory.base(), want.grads.d.memory.used);
  const TrainSpec spec{.steps = 10, .lr = 3e-3, .decay = 0.1, .terms = {}};
  for (Side* side : {&got, &want}) {
    Params m = make_params(c, plan, dtype, side->be.memory), v = clone(m);
    adamw_step(side->be, side->p, side->grads, m, v, spec, 3, terms.train_routers);
    side->be.finish();
  }
  wanted.clear(), at = 0;
  visit_params(want.p, [&](Tensor& t, const ParamInfo&) { wanted.push_back(t); });
  visit_params(got.p, [&, type = dtype](Tensor& t, const ParamInfo& info) {
    const Tensor& w = wanted[at++];
    expect_close(t, w, tolerance_of(type, 1, largest(values(w))), info.name + " after a step");
  });
}
INSTANTIATE_TEST_SUITE_P(Every, Parity,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::Values(DType::f32, DType::f64)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "_" +
                                  name_of(std::get<1>(info.param));
                         });

// Rounding grows from step to step; a gradient that is wrong by a term leaves the curve within a few.
TEST(Parity, TheSameTraining) {
  for (const bool sparse : {false, true}) {
    const ModelConfig c = tiny("gpt2-nano:dim=16,heads=2,ffn=32,layers=1,max_seq=32", kVocab);
    const Plan plan = sparse ? routed(c, 8) : dense_plan(c);
    TrainSpec spec{.steps = 30, .batch = 4, .seq = 12, .lr = 1e-2, .terms = {}};
    if (sparse) spec.terms = {.train_routers = true, .straight_through = true};
    if (sparse) spec.steer_to = 0.5, spec.steer_rate = 0.2;
    const TokenSet text = patterned_tokens(2000, kVocab, 1);
    std::vector<double> losses[2], active[2];
    int at = 0;
    for (const char* name : {kTestBackend, "cpu+naive"}) {
      Backend be = open_backend(name, 1);
      Params p = make_params(c, plan, DType::f32, be.memory);
      init_params(p, 11);
      set_routers(p, 0.5, 0);
      TrainHooks hooks;
      hooks.log = [&](const StepLog& l) {
        losses[at].push_back(l.loss), active[at].push_back(l.active);
      };
      train(be, p, plan, text, {}, spec, hooks);
      ++at;
    }
    ASSERT_EQ(losses[0].size(), 30u);
    for (size_t i = 0; i < 30; ++i) {
      const std::string what = fmt::format("{}, step {}", sparse ? "routed" : "dense", i + 1);
      EXPECT_NEAR(losses[0][i], losses[1][i], 2e-4 * losses[1][i]) << what;
      EXPECT_NEAR(active[0][i], active[1][i], 2.5 / 192) << what << ": more than two gates of 192";
    }
    EXPECT_LT(losses[0].back(), 0.8 * losses[0].front()) << "nothing was learnt";
  }
}

}  // namespace
}  // namespace lte::testing
