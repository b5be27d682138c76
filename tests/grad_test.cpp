// The backward pass against central differences in double, over every shape of model, gate and
// loss.
#include <fmt/format.h>

#include "errors.h"
#include "testing.h"

namespace lte::testing {
namespace {

struct Case {
  const char* name;
  const char* model;
  // kept: softmax over the two highest of three scores; scaled: all gates open, each weighs its expert
  // by the score; mask: soft gates of single neurons that are
  // the routers' z itself; compensated: pruned, with a down bias; oracle: the five largest
  // activations; cats: by the gate
  enum Kind {
    dense,
    soft,
    hard,
    pruned,
    kept,
    scaled,
    mask,
    compensated,
    oracle,
    cats
  } kind = dense;
  bool bias = true;                         // of the routers
  RouterInput input = RouterInput::normed;  // of the routers
  LossTerms terms = {};
  double noise = 0;  // on the routers' z
  Exec exec = Exec::masked;
};

constexpr const char* kGptGelu = "gpt2-nano:dim=8,heads=2,ffn=12,layers=2,max_seq=8";
constexpr const char* kGptErf = "gpt2-nano:dim=8,heads=2,ffn=12,layers=2,max_seq=8,act=gelu-erf";
constexpr const char* kGptRelu = "gpt2-nano:dim=8,heads=2,ffn=12,layers=2,max_seq=8,act=relu";
constexpr const char* kGptTanh = "gpt2-nano:dim=8,heads=2,ffn=12,layers=2,max_seq=8,act=tanh";
constexpr const char* kGqa = "llama-nano:dim=16,heads=4,kv_heads=2,ffn=12,layers=2,max_seq=8";
constexpr const char* kMqa = "llama-nano:dim=12,heads=3,kv_heads=1,ffn=8,layers=3,max_seq=8";
constexpr auto kResidual = RouterInput::residual;
constexpr auto kNormed = RouterInput::normed;
constexpr LossTerms kTask{.train_routers = true};
constexpr LossTerms kLte{.eta = 0.7, .lambda = 0.2, .sep_eps = 1e-2, .train_routers = true};
constexpr LossTerms kClip{
    .eta = 0.7, .lambda = 0.2, .sep_eps = 1e-3, .sep_clip = 30, .train_routers = true};
constexpr LossTerms kThrough{
    .eta = 0.7, .lambda = 0, .train_routers = true, .straight_through = true};
constexpr LossTerms kDistill{.distill = 0.3};
constexpr LossTerms kDistillLte{
    .eta = 0.7, .lambda = 0.2, .tau = 0.4, .sep_eps = 1e-2, .train_routers = true, .distill = 0.6};
constexpr LossTerms kHoyer{.hoyer = 0.3};
constexpr LossTerms kHoyerTask{.train_routers = true, .hoyer = 0.05};

const Case kCases[] = {
    {"gpt_gelu_dense", kGptGelu},
    {"gpt_erf_dense", kGptErf},
    {"gpt_relu_dense", kGptRelu},
    {"llama_gqa_dense", kGqa},
    {"llama_mqa_dense", kMqa},
    {"gpt_pruned", kGptGelu, Case::pruned},
    {"llama_pruned", kGqa, Case::pruned},
    {"gpt_soft_task", kGptGelu, Case::soft, true, kNormed, kTask},
    {"gpt_soft_lte", kGptGelu, Case::soft, true, kNormed, kLte},
    {"gpt_soft_lte_no_bias", kGptGelu, Case::soft, false, kNormed, kLte},
    {"gpt_soft_lte_clip", kGptErf, Case::soft, true, kNormed, kClip},
    {"gpt_soft_residual", kGptGelu, Case::soft, true, kResidual, kLte},
    {"llama_soft_lte", kGqa, Case::soft, false, kNormed, kLte},
    {"llama_soft_residual", kMqa, Case::soft, true, kResidual, kLte},
    {"gpt_hard", kGptGelu, Case::hard, true, kNormed, {}},
    {"gpt_relu_hard", kGptRelu, Case::hard, false, kNormed, {}},
    {"llama_hard_residual", kGqa, Case::hard, true, kResidual, {}},
    {"gpt_hard_gathered", kGptGelu, Case::hard, true, kNormed, {}, 0, Exec::trained},
    {"gpt_erf_gathered", kGptErf, Case::hard, true, kResidual, kDistill, 0, Exec::trained},
    {"gpt_tanh_gathered", kGptTanh, Case::hard, false, kNormed, {}, 0, Exec::trained},
    {"llama_hard_gathered", kGqa, Case::hard, true, kResidual, {}, 0, Exec::trained},
    {"gpt_distill", kGptGelu, Case::dense, true, kNormed, kDistill},
    {"llama_soft_distill", kGqa, Case::soft, true, kNormed, kDistillLte},
    {"gpt_tanh_dense", kGptTanh},
    {"gpt_kept_softmax", kGptGelu, Case::kept, false, kNormed, kTask},
    {"gpt_kept_softmax_noisy", kGptGelu, Case::kept, true, kResidual, kTask, 0.3},
    {"llama_kept_softmax", kGqa, Case::kept, true, kNormed, kTask},
    {"llama_kept_softmax_frozen", kGqa, Case::kept, true, kNormed, {}},
    {"gpt_hoyer", kGptGelu, Case::dense, true, kNormed, kHoyer},
    {"gpt_relu_hoyer", kGptRelu, Case::dense, true, kNormed, kHoyer},
    {"llama_hoyer", kGqa, Case::dense, true, kNormed, kHoyer},
    {"llama_hard_hoyer", kGqa, Case::hard, true, kNormed, kHoyer},
    {"gpt_kept_softmax_hoyer", kGptErf, Case::kept, true, kNormed, kHoyerTask},
    {"gpt_scaled", kGptGelu, Case::scaled, true, kNormed, kThrough},
    {"llama_scaled_residual", kGqa, Case::scaled, false, kResidual, kThrough},
    {"gpt_mask", kGptGelu, Case::mask, true, kNormed, kTask},
    {"llama_mask", kGqa, Case::mask, true, kNormed, kTask},
    {"llama_compensated", kGqa, Case::compensated},
    {"gpt_compensated", kGptGelu, Case::compensated},
    {"gpt_oracle", kGptGelu, Case::oracle},
    {"llama_oracle", kGqa, Case::oracle},
    {"llama_cats", kGqa, Case::cats},
};

// A model of random parameters, a batch with targets that do not count, and its loss by formula.
struct Problem {
  static constexpr int64_t kB = 2, kT = 5, kVocab = 11;
  static constexpr double kWeight = 0.125;
  Backend be = test_backend(1);
  Store s;
  Rng rng{9};
  LossTerms terms;
  Run run;
  Plan plan;
  Params p;
  Tensor tokens, targets, teacher;
  State state;
  Gradients grads;

  explicit Problem(const Case& c) : terms(c.terms) {
    const ModelConfig cfg = tiny(c.model, kVocab);
    const bool pruned = c.kind == Case::pruned || c.kind == Case::compensated;
    const bool soft = c.kind == Case::soft || c.kind == Case::mask;
    run = {soft ? Gate::soft : Gate::hard, c.exec, c.noise, 3};
    const int group = c.kind == Case::mask || c.kind >= Case::oracle ? 1 : 4;
    plan = pruned || c.kind == Case::dense ? dense_plan(cfg) : routed(cfg, group, c.bias);
    for (FfnPlan& f : plan.layer) {
      f.input = c.input, f.down_bias = c.kind == Case::compensated;
      if (c.kind == Case::kept) f.squash = Squash::kept_softmax, f.rule = Rule::top_k, f.cut = 2;
      if (c.kind == Case::scaled) f.scaled = true, f.cut = 0;  // all open: the gradient is exact
      if (c.kind == Case::mask) f.squash = Squash::none;
      if (c.kind >= Case::oracle) f.router_bias = false;
      if (c.kind == Case::oracle)
        f.router = RouterKind::activation, f.rule = Rule::top_k, f.cut = 5, f.weighted = true;
      if (c.kind == Case::cats) f.router = RouterKind::gate, f.cut = 0.1;
    }
    if (pruned) plan.layer[0].order = {3, 1, 7}, plan.layer[1].order = {0, 2, 5, 6, 9};
    p = test_params(cfg, plan, DType::f64);
    randomise(p, 77, 0.4);
    tokens = s.ints(kB * kT, kVocab, rng), targets = s.ints(kB * kT, kVocab, rng);
    targets.as<int32_t>()[2] = targets.as<int32_t>()[9] = -1;
    if (terms.distill > 0) teacher = s.normal(DType::f64, {kB * kT, kVocab}, rng);
    state = make_state(p, plan, kB, kT, kT, Keep::all_layers);
    grads = make_gradients(p, plan, state);
  }

  void ahead() {
    forward(be, p, plan, tokens, {kB, kT, 0}, run, state);
    be.finish();
  }
  void back() {
    ahead();
    be.ops.fill(*be.ctx, grads.d.flat(), 0);
    backward(be, p, plan, tokens, targets, {kB, kT, 0}, run, terms, kWeight, teacher, state, grads);
    be.finish();
  }

  static Values softmax(const Tensor& z, int64_t n) {
    Values q(kVocab);
    double sum = 0;
    for (int64_t v = 0; v < kVocab; ++v)
      sum += q[static_cast<size_t>(v)] = std::exp(at(z, n * kVocab + v));
    for (double& x : q) x /= sum;
    return q;
  }

  // methods.md, section 1.3: L_task + eta L_eff + lambda L_sep, means over tokens.
  double loss() {
    ahead();
    double task = 0;
    for (int64_t n = 0; n < kB * kT; ++n) {
      const int32_t target = targets.as<int32_t>()[n];
      if (target < 0) continue;
      const Values q = softmax(state.logits, n);
      double kl = 0;
      if (teacher) {
        const Values t = softmax(teacher, n);
        for (size_t v = 0; v < q.size(); ++v) kl += t[v] * std::log(t[v] / q[v]);
      }
      task += (1 - terms.distill) * -std::log(q[static_cast<size_t>(target)]) + terms.distill * kl;
    }
    return kWeight * task + (terms.hoyer > 0 ? terms.hoyer * hoyer() : 0) + regularisers();
  }

  // Mean over layers and tokens of (sum |a|)^2 / sum a^2, over all activations before the gates.
  double hoyer() const {
    double mean = 0;
    for (const LayerState& l : state.layer) {
      const int64_t N = l.act.rows(), F = l.act.cols();
      for (int64_t n = 0; n < N; ++n) {
        double S = 0, Q = 0;
        for (int64_t j = 0; j < F; ++j)
          S += std::abs(at(l.act, n * F + j)), Q += std::pow(at(l.act, n * F + j), 2);
        mean += S * S / Q / static_cast<double>(N) / static_cast<double>(state.layer.size());
      }
    }
    return mean;
  }

  double regularisers() const {
    if (!terms.train_routers) return 0;
    double eff = 0, sep = 0;
    for (const LayerState& l : state.layer) {
      const double share =
          1 / (static_cast<double>(state.layer.size()) * static_cast<double>(l.scores.size()));
      for (double G : values(l.scores)) {
        const double term = 1 / (std::pow(G - terms.tau, 2) + terms.sep_eps);
        eff += share * G * G;
        sep += share * (terms.sep_clip > 0 ? std::min(term, terms.sep_clip) : term);
      }
    }
    return terms.eta * eff + terms.lambda * sep;
  }

  double difference(const Tensor& t, int64_t i) {
    const double x = at(t, i), h = 1e-5;
    put(t, i, x + h);
    const double up = loss();
    put(t, i, x - h);
    const double down = loss();
    put(t, i, x);
    return (up - down) / (2 * h);
  }
};

// The places with the largest gradients, and some at random.
std::vector<int64_t> places(const Tensor& d, Rng& rng) {
  std::vector<int64_t> all(static_cast<size_t>(d.size()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  shuffle(all, rng);
  if (all.size() <= 8) return all;
  std::stable_sort(all.begin() + 4, all.end(),
                   [&](int64_t a, int64_t b) { return std::abs(at(d, a)) > std::abs(at(d, b)); });
  all.resize(8);
  return all;
}

class Differences : public ::testing::TestWithParam<Case> {};

TEST_P(Differences, EveryParameterTensor) {
  Problem q(GetParam());
  if (GetParam().terms.sep_clip > 0) {  // some terms are clipped, some are not
    q.back();
    int64_t clipped = 0, all = 0;
    for (const LayerState& l : q.state.layer) {
      for (double G : values(l.scores))
        clipped += 1 / (std::pow(G - 0.5, 2) + q.terms.sep_eps) > q.terms.sep_clip, ++all;
    }
    ASSERT_GT(clipped, 0);
    ASSERT_LT(clipped, all);
  }
  q.back();
  std::vector<Tensor> gradient;
  visit_params(q.grads.d, [&](Tensor& t, const ParamInfo&) { gradient.push_back(t); });
  size_t k = 0;
  int64_t checked = 0;
  visit_params(q.p, [&](Tensor& t, const ParamInfo& info) {
    const Tensor& d = gradient[k++];
    Values got, want;
    for (int64_t i : places(d, q.rng)) got.push_back(at(d, i)), want.push_back(q.difference(t, i));
    const auto n = static_cast<int64_t>(got.size());
    checked += n;
    if (info.router && !q.terms.train_routers) {
      EXPECT_EQ(largest(values(d)), 0) << info.name << ": a frozen router has no gradient";
      return;
    }
    // A difference of h = 1e-5 is off by h^2 f'''/6, and by rounding, 1e-16 |loss| / h: 1e-9 for
    // values near 1, and a separability term of 1 / 1e-2 has a third derivative of some 1e4.
    expect_close(q.s.of(DType::f64, {n}, got), want, 1e-8 + 1e-6 * largest(want), info.name);
    EXPECT_GT(largest(want), 1e-6) << info.name << ": nothing to compare";
  });
  EXPECT_GT(checked, 80);
  EXPECT_TRUE(q.s.intact());
}

INSTANTIATE_TEST_SUITE_P(Models, Differences, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Backward, HoyerSumsAreMeansOverTokens) {
  for (const Case& c : kCases) {
    if (c.terms.hoyer == 0) continue;
    Problem q(c);
    q.back();
    double mean = 0;
    for (size_t i = 0; i < q.p.layer.size(); ++i)
      mean += gate_sums(q.grads, i).hoyer / static_cast<double>(q.p.layer.size());
    EXPECT_NEAR(mean, q.hoyer(), 1e-12 * mean) << c.name;
    EXPECT_GT(mean, 1.5) << c.name;
    EXPECT_LE(mean, 12) << c.name << ": at most the number of neurons";
  }
}

// A gradient that would be wrong, or silently nothing, is an error.
TEST(Backward, RefusesRoutersWhoseGradientIsNotKnown) {
  const auto refused = [](Case::Kind kind, LossTerms terms, FfnPlan f) {
    Problem q({"refused", kGptGelu, kind, true, kNormed, terms});
    for (FfnPlan& l : q.plan.layer)
      l.router = f.router, l.squash = f.squash, l.input = f.input, l.rule = f.rule, l.width = 3;
    q.p = test_params(q.p.cfg, q.plan, DType::f64);
    randomise(q.p, 77, 0.4);
    q.state = make_state(q.p, q.plan, q.kB, q.kT, q.kT, Keep::all_layers);
    q.grads = make_gradients(q.p, q.plan, q.state);
    return error_of([&] { q.back(); }) != "no error";
  };
  constexpr LossTerms kThrough{.train_routers = true, .straight_through = true};
  constexpr LossTerms kSparse{.eta = 0.5, .train_routers = true};
  const auto linear = RouterKind::linear;
  const FfnPlan softmax{.order = {}, .router = linear, .squash = Squash::softmax};
  const FfnPlan kept{.order = {}, .router = linear, .squash = Squash::kept_softmax};
  const FfnPlan two{.order = {}, .router = RouterKind::two_layer};
  const FfnPlan unit{.order = {}, .router = linear, .input = RouterInput::unit};
  for (const FfnPlan& f : {softmax, two, unit}) EXPECT_TRUE(refused(Case::hard, kThrough, f));
  EXPECT_TRUE(refused(Case::soft, {}, softmax));
  EXPECT_TRUE(refused(Case::hard, kSparse, kept));
  EXPECT_FALSE(refused(Case::hard, kTask, kept));
  for (const FfnPlan& f : {softmax, two, unit})
    EXPECT_FALSE(refused(Case::hard, {}, f)) << "frozen";
}

// What training logs as active are the gates that were open, whatever tau is.
TEST(Backward, CountsTheOpenGates) {
  for (const Case& c : kCases) {
    if (c.kind != Case::hard && c.kind != Case::kept && c.kind < Case::oracle) continue;
    Problem q(c);
    for (FfnPlan& f : q.plan.layer) f.cut = f.rule == Rule::threshold ? 0.2 : f.cut;
    q.back();
    for (size_t i = 0; i < q.state.layer.size(); ++i) {
      double open = 0;
      for (double g : values(q.state.layer[i].gates)) open += g != 0;
      EXPECT_EQ(gate_sums(q.grads, i).above, open) << c.name;
      EXPECT_GT(open, 0) << c.name;
    }
  }
}

TEST(Backward, GradientsAddUp) {
  Problem q(kCases[8]);
  q.back();
  const Values once = values(q.grads.d.flat());
  backward(q.be, q.p, q.plan, q.tokens, q.targets, {q.kB, q.kT, 0}, q.run, q.terms, q.kWeight, {},
           q.state, q.grads);
  q.be.finish();
  Values twice = once;
  for (double& x : twice) x *= 2;
  // Sums of up to 12 terms (neurons), taken up from another start.
  expect_close(q.grads.d.flat(), twice, tolerance_of(DType::f64, 12, largest(twice)), "twice");
}

TEST(Backward, GradientIsOfTheSumOfCountedTokens) {
  Problem q(kCases[0]);
  q.back();
  const Tensor losses = q.state.losses;
  for (int64_t n = 0; n < losses.size(); ++n) {
    const int32_t target = q.targets.as<int32_t>()[n];
    const double want =
        target < 0 ? 0 : -std::log(q.softmax(q.state.logits, n)[static_cast<size_t>(target)]);
    EXPECT_NEAR(at(losses, n), want, 1e-12);
  }
}

// The regularisers alone, against the formulas of methods.md, section 1.3: with a task weight of 0
// the gradient of a last layer's router is that of its own scores.
TEST(LossTermsTest, FormulasOfThePaper) {
  for (const auto& [eta, lambda, clip] :
       {std::tuple{0.7, 0.0, 0.0}, {0.0, 0.5, 0.0}, {0.7, 0.5, 0.0}, {0.7, 0.5, 25.0}}) {
    Case c = kCases[8];
    c.terms = {
        .eta = eta, .lambda = lambda, .sep_eps = 1e-4, .sep_clip = clip, .train_routers = true};
    Problem q(c);
    q.ahead();
    backward(q.be, q.p, q.plan, q.tokens, q.targets, {q.kB, q.kT, 0}, q.run, q.terms, 0, {},
             q.state, q.grads);
    q.be.finish();
    const LayerState& l = q.state.layer.back();
    const int64_t N = q.kB * q.kT, E = l.scores.cols(), D = l.norm2.cols();
    const auto L = static_cast<double>(q.state.layer.size()), n = static_cast<double>(N);
    Values weight(static_cast<size_t>(E * D)), bias(static_cast<size_t>(E));
    double square = 0, separation = 0, above = 0;
    for (int64_t i = 0; i < N * E; ++i) {
      const double G = at(l.scores, i), off = G - 0.5, t = 1 / (off * off + 1e-4);
      const bool cut = clip > 0 && t > clip;
      square += G * G, separation += cut ? clip : t, above += off > 0;
      const double deff = eta / (L * static_cast<double>(E) * n) * 2 * G * G * (1 - G);
      const double dsep =
          cut ? 0 : -lambda / (L * static_cast<double>(E) * n) * 2 * G * (1 - G) * off * t * t;
      bias[static_cast<size_t>(i % E)] += deff + dsep;
      for (int64_t d = 0; d < D; ++d)
        weight[static_cast<size_t>(i % E * D + d)] += (deff + dsep) * at(l.norm2, i / E * D + d);
    }
    const LayerParams& d = q.grads.d.layer.back();
    expect_close(d.router_b, bias, tolerance_of(DType::f64, N, largest(bias)), "bias");
    expect_close(d.router_w, weight, tolerance_of(DType::f64, N, largest(weight)), "weight");
    const GateSums sums = gate_sums(q.grads, q.p.layer.size() - 1);
    EXPECT_NEAR(sums.square, square, 1e-12 * square);
    EXPECT_NEAR(sums.separation, separation, 1e-12 * separation);
    EXPECT_EQ(sums.above, above);
    EXPECT_EQ(largest(values(q.grads.d.norm_w)), 0) << "the task has no weight";
  }
}

// A gate operation that moves one gate by kNudge, so that dL/dgate can be taken by differences.
struct Nudge {
  static inline Ops base;
  static inline int64_t place = -1;
  static inline double by = 0;
  static void gate(Ctx& c, Tensor gates, Tensor scores, Rule rule, double cut) {
    base.gate(c, gates, scores, rule, cut);
    if (place >= 0) put(gates, place, at(gates, place) + by);
  }
};

// Straight-through: dL/dz = dL/dgate G (1 - G) with the hard gate's own dL/dgate, by differences.
TEST(StraightThrough, IsTheGatesGradientTimesTheSlopeOfTheScore) {
  for (const char* model : {"gpt2-nano:dim=8,heads=2,ffn=12,layers=1,max_seq=8",
                            "llama-nano:dim=8,heads=2,kv_heads=1,ffn=12,layers=1,max_seq=8"}) {
    for (RouterInput input : {kNormed, kResidual}) {
      Problem q({"st",
                 model,
                 Case::hard,
                 true,
                 input,
                 {.train_routers = true, .straight_through = true}});
      q.back();
      const LayerState& l = q.state.layer[0];
      const int64_t N = q.kB * q.kT, E = l.scores.cols(), D = l.norm2.cols();
      const Values scores = values(l.scores), in = values(input == kNormed ? l.norm2 : l.mid);
      const double open = largest(values(l.gates));
      ASSERT_EQ(open, 1) << "some gate is open";
      Nudge::base = q.be.ops;
      q.be.ops.gate = Nudge::gate;
      Values weight(static_cast<size_t>(E * D)), bias(static_cast<size_t>(E));
      for (int64_t i = 0; i < N * E; ++i) {
        const double h = 1e-5;
        Nudge::place = i, Nudge::by = h;
        double dgate = q.loss();
        Nudge::by = -h;
        dgate = (dgate - q.loss()) / (2 * h);
        const double G = scores[static_cast<size_t>(i)], dz = dgate * G * (1 - G);
        bias[static_cast<size_t>(i % E)] += dz;
        for (int64_t d = 0; d < D; ++d) {
          weight[static_cast<size_t>(i % E * D + d)] += dz * in[static_cast<size_t>(i / E * D + d)];
        }
      }
      Nudge::place = -1;
      // The error of a difference, as above, summed over N tokens.
      expect_close(q.grads.d.layer[0].router_b, bias, 1e-8 * static_cast<double>(N), "bias");
      expect_close(q.grads.d.layer[0].router_w, weight, 1e-8 * static_cast<double>(N), "weight");
    }
  }
}

// Without straight-through, hard gates leave the task out of the routers' gradient.
TEST(StraightThrough, OffMeansRegularisersOnly) {
  Problem q({"off", kGptGelu, Case::hard, true, kNormed, {.eta = 0.5, .train_routers = true}});
  q.back();
  const LayerState& l = q.state.layer.back();
  const auto share = 0.5 / static_cast<double>(l.scores.size() * 2);
  Values bias(static_cast<size_t>(l.scores.cols()));
  for (int64_t i = 0; i < l.scores.size(); ++i) {
    const double G = at(l.scores, i);
    bias[static_cast<size_t>(i % l.scores.cols())] += share * 2 * G * G * (1 - G);
  }
  expect_close(q.grads.d.layer.back().router_b, bias, tolerance_of(DType::f64, 10, largest(bias)),
               "router bias");
}

}  // namespace
}  // namespace lte::testing
