// One training step (forward, backward, AdamW) of presets over a vocabulary of bytes, beside the
// step's matrix products alone at the same shapes: their share of the step's time is of_products. And steps under
// the frozen gates of synthetic routers, gathered, beside the same step masked: x_masked.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "core/digest.h"
#include "model/train.h"
#include "reference.h"

namespace lte {
namespace {

constexpr int64_t kSteps = 4;  // after which the walk begins again from the first weights

struct Row {
  const char* model;
  int batch, seq;
  double density =
      1;  // below 1: experts of kGroup neurons, this share of them open for every token
};
constexpr Row kRows[] = {{"gpt2-nano", 32, 128},      {"gpt2-micro", 16, 256},
                         {"gpt2-mini", 8, 256},       {"llama-nano", 32, 128},
                         {"llama-mini", 8, 256},      {"gpt2-mini", 8, 256, 0.5},
                         {"gpt2-mini", 8, 256, 0.25}, {"gpt2-mini", 8, 256, 0.1}};
// And those that a device runs besides.
constexpr Row kDeviceRows[] = {
    {"gpt2", 8, 512}, {"gpt2", 8, 512, 0.5}, {"gpt2", 8, 512, 0.25}, {"gpt2", 8, 512, 0.1}};
constexpr int kGroup = 32;

// A model in training on random tokens.
struct Step {
  Plan plan;
  TrainSpec spec;
  Chunk chunk;
  Params first, params, m, v;
  State state;
  Gradients grads;
  std::vector<int32_t> tokens;  // one more than the chunk: targets are a step ahead
  Exec exec = Exec::masked;
  int64_t step = 0;

  Tensor inputs(int64_t ahead) {
    Tensor t = shape(DType::i32, {chunk.B * chunk.T});
    t.data = tokens.data() + ahead;
    return t;
  }
  void gradients(Backend& be) {
    const Run run{.gate = Gate::hard, .exec = exec};
    be.ops.fill(*be.ctx, grads.d.flat(), 0);
    forward(be, params, plan, inputs(0), chunk, run, state);
    backward(be, params, plan, inputs(0), inputs(1), chunk, run, {},
             1 / static_cast<double>(chunk.B * chunk.T), {}, state, grads);
  }
  void run(Backend& be) {
    gradients(be);
    adamw_step(be, params, grads, m, v, spec, step, false);
  }
  // By the backend: a device's memory is not moved.
  void load(Backend& be, int64_t i) {
    step = i;
    if (i > 0) return;
    for (Params* moments : {&m, &v}) be.ops.fill(*be.ctx, moments->flat(), 0);
    be.ops.add(*be.ctx, params.flat(), first.flat(), m.flat());
  }
  std::vector<const Arena*> memory() const {
    return {&first.memory, &params.memory, &m.memory,      &v.memory,
            &state.memory, &grads.memory,  &grads.d.memory};
  }
};

Plan plan_of(const ModelConfig& c, double density) {
  Plan plan = dense_plan(c);
  for (FfnPlan& f : plan.layer) {
    if (density == 1) break;
    f.group = kGroup, f.router = RouterKind::linear, f.rule = Rule::top_k;
    f.cut = std::round(density * c.ffn / kGroup);
  }
  return plan;
}

Step make_step(const ModelConfig& c, int batch, int seq, double density, const Backend& be) {
  const Plan plan = plan_of(c, density);
  const Memory where = be.memory;
  Params first = make_params(c, plan, DType::f32, where);
  init_params(first, 1);
  for (LayerParams& l : first.layer) {
    if (l.router_w) fill_uniform(l.router_w, 1, 3);
  }
  State state = make_state(first, plan, batch, seq, seq, Keep::all_layers, kept_by(be, c));
  Gradients grads = make_gradients(first, plan, state);
  TrainSpec spec;
  spec.steps = 1000, spec.batch = batch, spec.seq = seq;
  return {.plan = plan,
          .spec = spec,
          .chunk = {.B = batch, .T = seq, .pos = 0},
          .first = clone(first),
          .params = std::move(first),
          .m = make_params(c, plan, DType::f32, where),
          .v = make_params(c, plan, DType::f32, where),
          .state = std::move(state),
          .grads = std::move(grads),
          .tokens = random_tokens(static_cast<int64_t>(batch) * seq + 1, c.vocab),
          .exec = density < 1 ? Exec::trained : Exec::masked};
}

// The matrix products of a step, each once for all layers: out = x w' and both of its gradients.
struct Products {
  struct Linear {
    Tensor x, w, out, dx, dw;  // [N,in] [out,in] [N,out] and gradients like x and w
    int64_t times;
  };
  std::vector<Linear> linear;
  Arena memory;

  Products(const ModelConfig& c, int64_t N, Memory where) : memory{.where = where} {
    const auto add = [&](int64_t in, int64_t out, int64_t times) {
      const Tensor x = shape(DType::f32, {N, in}), w = shape(DType::f32, {out, in});
      linear.push_back({x, w, shape(DType::f32, {N, out}), x, w, times});
    };
    add(c.dim, c.qkv_width(), c.layers);
    add(static_cast<int64_t>(c.heads) * c.head_dim(), c.dim, c.layers);
    add(c.dim, c.ffn, (c.gated ? 2 : 1) * c.layers);
    add(c.ffn, c.dim, c.layers);
    add(c.dim, c.vocab, 1);
    size_t bytes = 0;
    each([&](Tensor& t) { bytes += Arena::padded(t.bytes()); });
    memory.reserve(bytes);
    each([&](Tensor& t) { memory.carve(t), fill_uniform(t, 1, 7); });
  }
  template <class F>
  void each(F&& f) {
    for (Linear& l : linear) f(l.x), f(l.w), f(l.out), f(l.dx), f(l.dw);
  }
  void run(Backend& be) {
    for (const Linear& l : linear) {
      for (int64_t i = 0; i < l.times; ++i) {
        be.ops.gemm(*be.ctx, l.out, l.x, false, l.w, true);
        be.ops.gemm(*be.ctx, l.dw, l.out, true, l.x, false);
        be.ops.gemm(*be.ctx, l.dx, l.out, false, l.w, false);
      }
    }
  }
};

constexpr int kChecked = 72;  // tokens: enough for the kernels of many rows

// Gradients of one short sequence against the reference, tensor by tensor; the worst of them.
Checked check(Session& s, const ModelConfig& c, double density) {
  Step got = make_step(c, 1, kChecked, density, s.backend);
  Backend reference = reference_backend(s, DType::f32);
  Step want = make_step(c, 1, kChecked, density, reference);
  want.exec = Exec::masked;
  got.gradients(s.backend), want.gradients(reference);
  s.backend.finish();
  std::vector<Tensor> wanted;
  visit_params(want.grads.d, [&](Tensor& t, const ParamInfo&) { wanted.push_back(t); });
  Checked all{.comparison = {.ok = true, .message = {}}, .rows = got.chunk.T};
  size_t i = 0;
  visit_params(got.grads.d, [&](Tensor& t, const ParamInfo& info) {
    Comparison one =
        compare_rows(s, t, wanted[i++], DType::f32, c.layers * (c.dim + c.ffn), c.layers);
    if (one.ok && one.worst_used <= all.comparison.worst_used) return;
    one.message = info.name + " " + one.message;
    if (all.comparison.ok) all.comparison = one;
  });
  return all;
}

Work make_row(Session& s, const Row& r) {
  ModelConfig c = suite_model(r.model, s.options.smoke);
  c.vocab = 256;
  const int batch = s.options.smoke ? 2 : r.batch, seq = s.options.smoke ? 16 : r.seq;
  const double density = r.density;
  auto step = std::make_shared<Step>(make_step(c, batch, seq, density, s.backend));
  if (density < 1 && !can_train_gathered(s.backend, step->plan, Gate::hard, {}))
    throw Skip{"the backend has no kernels for gathered training"};
  Work w;
  w.inputs = kSteps, w.tokens = static_cast<int64_t>(batch) * seq;
  w.memory = step->memory();
  w.load = [&s, step](int64_t i) { step->load(s.backend, i); };
  w.call = [&s, step] { step->run(s.backend); };
  if (density < 1) {
    auto masked = std::make_shared<Step>(make_step(c, batch, seq, density, s.backend));
    masked->exec = Exec::masked;
    for (const Arena* a : masked->memory()) w.memory.push_back(a);
    w.beside = [&s, masked] { masked->run(s.backend); };
    w.beside_counter = "x_masked";
  } else {
    auto products =
        std::make_shared<Products>(c, static_cast<int64_t>(batch) * seq, s.backend.memory);
    w.memory.push_back(&products->memory);
    w.beside = [&s, products] { products->run(s.backend); };
    w.beside_counter = "of_products";
  }
  w.output = [step] { return digest(step->params.flat().data, step->params.flat().bytes()); };
  w.check = [&s, c, density] { return check(s, c, density); };
  // Closed experts are not computed: two or three matrices, forward and both of their gradients.
  const double open = density < 1 ? step->plan.layer[0].cut * kGroup / c.ffn : 1;
  const double closed = 6.0 * (c.gated ? 3 : 2) * (1 - open) * c.layers * c.dim * c.ffn;
  const double flops =
      (train_flops(c, step->plan, seq, false) - closed) * static_cast<double>(w.tokens);
  w.look = [flops, open] {
    return Seen{.active = open, .loaded = open, .traffic = {.bytes = 0, .flops = flops}};
  };
  return w;
}

}  // namespace

const bool kInference = false;

std::vector<Case> cases(const Options& o) {
  std::vector<Case> all;
  std::vector<Row> rows(std::begin(kRows), std::end(kRows));
  if (o.device) rows.insert(rows.end(), std::begin(kDeviceRows), std::end(kDeviceRows));
  for (const Row& r : rows) {
    std::string name = fmt::format("train_step/{}{}/batch:{}/seq:{}", o.smoke ? "tiny-" : "",
                                   r.model, r.batch, r.seq);
    if (r.density < 1)
      name += fmt::format("/synthetic/group:{}/density_permille:{}", kGroup, permille(r.density));
    all.push_back({name, [r](Session& s) { return make_row(s, r); }});
  }
  return all;
}

}  // namespace lte
