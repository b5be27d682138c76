#include "models.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/device.h"
#include "core/digest.h"
#include "core/rng.h"
#include "core/statistics.h"
#include "model/batches.h"
#include "model/rows.h"
#include "reference.h"

namespace lte {
namespace {

constexpr double kReferenceFlops = 1e9;

double params_bytes(const ModelConfig& c, DType weights) {
  const double D = c.dim, F = c.ffn;
  const double layer = D * (c.qkv_width() + D) + (c.gated ? 3 : 2) * D * F;
  return static_cast<double>(size_of(weights)) *
         (c.layers * layer + (c.tied ? 1.0 : 2.0) * c.vocab * D);
}

Tensor view(std::vector<int32_t>& v) {
  Tensor t = shape(DType::i32, {static_cast<int64_t>(v.size())});
  t.data = v.data();
  return t;
}

TrainSpec base_spec(bool smoke) {
  TrainSpec s;
  s.steps = smoke ? 4 : 300, s.batch = smoke ? 2 : 8, s.seq = smoke ? 32 : 128;
  s.lr = 3e-3, s.decay = 0.1;
  return s;
}

Trained load_trained(const std::string& folder, Memory where) {
  Trained t{.run = load_run(folder, where), .text = {}};
  for (const FfnPlan& p : t.run.plan.layer) {
    LTE_CHECK(
        p.router != RouterKind::none && kept_neurons(t.run.params.cfg, p) == t.run.params.cfg.ffn,
        fmt::format("--run={}: wants a fit of a method that routes all neurons, such as "
                    "lte-one-stage",
                    folder));
  }
  Dataset data = load_dataset(t.run.info.dataset, t.run.tokenizer.spec, {});
  LTE_CHECK(data.sha256 == t.run.info.data_sha256,
            fmt::format("--run={}: its dataset {} has another text now", folder, data.name));
  retokenize(data, t.run.tokenizer);
  t.text = std::move(data.test);
  return t;
}

// Copies the keys and values of the first B sequences, which lie in front.
void copy_cache(State& to, const State& from) {
  for (size_t i = 0; i < to.layer.size(); ++i) {
    std::memcpy(to.layer[i].k.data, from.layer[i].k.data, to.layer[i].k.bytes());
    std::memcpy(to.layer[i].v.data, from.layer[i].v.data, to.layer[i].v.bytes());
  }
}

}  // namespace

void want_memory(const Session& s, const std::string& what, double bytes) {
  const Device* device = s.backend.device;
  const double host = free_memory(),
               have = device ? std::min(host, device->free_bytes(*s.backend.ctx)) : host;
  if (bytes <= have) return;
  throw Skip{fmt::format("{} wants {:.1f} GB of memory, {:.1f} are free", what, 1e-9 * bytes,
                         1e-9 * have)};
}

ModelConfig suite_model(const std::string& spec, bool smoke) {
  ModelConfig c = parse_model(spec);
  if (!smoke) return c;
  c.layers = std::min(c.layers, 2), c.dim = 64, c.heads = 4;
  c.kv_heads = 4, c.ffn = 256, c.vocab = 64, c.max_seq = 1024;
  return c;
}

Synthetic make_synthetic(Session& session, const ModelConfig& c, int group, DType dtype) {
  Backend& be = session.backend;
  if (dtype == DType::bf16 && !has_bf16(be)) {
    throw Skip{
        fmt::format("backend {} has no products with weights of bf16, as cpu+simd has", be.name)};
  }
  want_memory(session, c.name, params_bytes(c, dtype) + 1e9);
  Synthetic s{.params = {}, .plan = dense_plan(c), .on_host = {}};
  for (FfnPlan& p : s.plan.layer) {
    p.group = group, p.router = RouterKind::linear, p.rule = Rule::threshold, p.cut = -1;
  }
  s.params = make_params(c, s.plan, dtype);
  fill_params(s.params, 0x5e7);
  if (!be.device) return s;
  s.on_host = std::move(s.params);
  s.params = make_params(c, s.plan, dtype, be.memory);
  be.device->copy(*be.ctx, s.params.memory.base(), s.on_host->memory.base(), s.params.memory.used);
  return s;
}

std::string synthetic_name(const Options& o, const WholeShape& shape, double density) {
  std::string type = name_of(shape.weights);
  for (char& letter : type) letter = static_cast<char>(std::tolower(letter));
  return fmt::format(
      "synthetic/{}{}/{}/{}", o.smoke ? "tiny-" : "", shape.model, type,
      density == 0 ? "dense" : fmt::format("gathered/active_permille:{}", permille(density)));
}

std::vector<WholeShape> whole_shapes(const Options& o) {
  std::vector<WholeShape> all(std::begin(kWholeShapes), std::end(kWholeShapes));
  if (o.device) all.push_back({"gpt2-medium", DType::bf16});
  return all;
}

std::vector<double> whole_densities(const Options& o) {
  std::vector<double> all(std::begin(kWholeDensities), std::end(kWholeDensities));
  if (o.device) all.push_back(0.05);
  return all;
}

std::shared_ptr<const Params> Made::params(Session& s, const WholeShape& shape) {
  const auto m = synthetic.get(fmt::format("{} {}", shape.model, name_of(shape.weights)), [&] {
    return make_synthetic(s, suite_model(shape.model, s.options.smoke), 32, shape.weights);
  });
  return {m, &m->params};
}

std::shared_ptr<const Params> Made::reference() const {
  return {synthetic.value, &synthetic.value->reference()};
}

const Plan& Made::thresholds(Session& s, const WholeShape& shape, double density) {
  return *plan.get(fmt::format("{} {} {}", shape.model, name_of(shape.weights), density), [&] {
    return with_density(s.backend, synthetic.value->params, synthetic.value->plan,
                        density > 0 ? density : 1);
  });
}

Trained make_trained(Session& s, double active) {
  if (!s.options.run.empty()) return load_trained(s.options.run, s.backend.memory);
  const auto start = std::chrono::steady_clock::now();
  Dataset data = load_dataset("dialects", "", {});
  ModelConfig c = parse_model("gpt2-nano");
  c.vocab = static_cast<int>(data.tokenizer.vocab.size());
  Trained t{.run = {.params = {}, .plan = {}, .tokenizer = data.tokenizer, .info = {}},
            .text = data.test};
  Params base = make_params(c, dense_plan(c), DType::f32, s.backend.memory);
  init_params(base, 0);
  const TrainSpec spec = base_spec(s.options.smoke);
  train(s.backend, base, dense_plan(c), data.train, {}, spec, {});
  const FitInput in{.backend = s.backend,
                    .dense = base,
                    .train = data.train,
                    .valid = data.valid,
                    .seq = spec.seq,
                    .seed = 0,
                    .hooks = {}};
  Knobs knobs = {{"active", fmt::format("{}", active)},
                 {"group", "4"},
                 {"batch", fmt::format("{}", spec.batch)},
                 {"steps", fmt::format("{}", spec.steps)}};
  if (s.options.smoke) knobs.insert({{"warm_tokens", "512"}, {"warm_steps", "4"}});
  Fitted f = fit(in, "lte-one-stage", knobs);
  t.run.params = std::move(f.params), t.run.plan = std::move(f.plan);
  t.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print(stderr, "trained gpt2-nano and fitted lte-one-stage at {} in {:.1f} s\n", active,
             t.seconds);
  return t;
}

std::vector<double> trained_fractions(const Options& o) {
  return o.run.empty() ? std::vector{0.5, 0.25} : std::vector{0.0};
}

std::map<std::string, double> trained_counters(const Trained& t) {
  return {{"trained_s", t.seconds}};
}

std::string trained_name(const Options& o, double active) {
  if (!o.run.empty()) return "trained/run";
  return fmt::format("trained/gpt2-nano/active_permille:{}", permille(active));
}

bool same_gates(const Plan& plan, const State& a, const State& b, int64_t first, int64_t rows) {
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    if (plan.layer[i].router == RouterKind::none) continue;
    const Tensor x = some_rows(a.layer[i].gates, first, rows), &y = b.layer[i].gates;
    for (int64_t k = 0; k < rows * x.cols(); ++k) {
      if ((x.as<float>()[k] != 0) != (y.as<float>()[k] != 0)) return false;
    }
  }
  return true;
}

int64_t reference_rows(double flops, int64_t rows) {
  return std::clamp<int64_t>(static_cast<int64_t>(kReferenceFlops / flops), 1, rows);
}

Comparison compare_rows(const Session& s, const Tensor& got, const Tensor& want, DType weights,
                        int64_t length, int64_t layers) {
  double largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < want.size(); ++i) {
    const double size = std::abs(static_cast<double>(want.as<float>()[i]));
    largest = std::max(largest, size), finite &= std::isfinite(size);
  }
  LTE_CHECK(finite, "the reference is not finite");
  return compare(got, want, allowed(s, weights, length, layers, largest));
}

Checked both(const Checked& a, const Checked& b) {
  if (!a.decided || !b.decided) return {.comparison = {}, .decided = false};
  const bool first =
      !a.comparison.ok || (b.comparison.ok && a.comparison.worst_used >= b.comparison.worst_used);
  return {.comparison = (first ? a : b).comparison, .rows = a.rows + b.rows};
}

namespace {

constexpr double kSlack = 0x1.0p-6;  // of the largest score, which roundings to bf16 may be off by

// A part of the chunk through the masked reference: from its row `first` on, on the cache that was filled.
Checked check_part(const Session& s, Whole& w, const Plan& plan, Chunk part, int64_t first) {
  const ModelConfig& c = w.params->cfg;
  State state = make_state(*w.reference, plan, part.B, part.T, w.state.S, Keep::one_layer);
  copy_cache(state, w.state);
  const int64_t rows = part.B * part.T;
  std::vector<int32_t> tokens(w.tokens.begin() + first, w.tokens.begin() + first + rows);
  const bool forced = s.backend.device && w.params->dtype == DType::bf16;
  Replay r{.backend = {}, .wrong = std::make_shared<std::string>()};
  if (forced) r = replay(s, w.params->dtype, w.state, first, kSlack);
  if (!forced) r.backend = reference_backend(s, w.params->dtype);
  forward(r.backend, *w.reference, plan, view(tokens), part, {Gate::hard, Exec::masked}, state);
  LTE_CHECK(r.wrong->empty(), *r.wrong);
  if (!same_gates(plan, w.state, state, first, rows)) return {.comparison = {}, .decided = false};
  return {.comparison = compare_rows(s, some_rows(w.state.logits, first, rows),
                                     first_rows(state.logits, rows), w.params->dtype,
                                     c.layers * (c.dim + c.ffn), c.layers),
          .rows = rows};
}

// As many sequences as plain loops can afford; of a prompt its first tokens and its last.
Checked check_whole(const Session& s, Whole& w, const Plan& plan) {
  const std::vector<double> all(plan.layer.size(), 1.0);
  const Chunk& c = w.chunk;
  const double flops = cost_of(w.params->cfg, plan, all, static_cast<double>(c.pos)).flops_full;
  if (c.T == 1) return check_part(s, w, plan, {reference_rows(flops, c.B), 1, c.pos}, 0);
  const int64_t n = reference_rows(flops, c.T), last = c.T - std::min(n, c.T - n);
  const Checked start = check_part(s, w, plan, {1, n, 0}, 0);
  return last == c.T ? start : both(start, check_part(s, w, plan, {1, c.T - last, last}, last));
}

}  // namespace

Work whole_work(Session& s, std::shared_ptr<Whole> w, bool dense_only) {
  const Plan& plan = dense_only ? w->dense : w->plan;
  const double context =
      static_cast<double>(w->chunk.pos) + 0.5 * static_cast<double>(w->chunk.T + 1);
  if (w->chunk.T == 1) {
    w->step = make_decode_step(s.backend, w->chunk.B);
    w->dense_step = make_decode_step(s.backend, w->chunk.B);
  }
  const auto run = [&s, w](const Plan& p) {
    if (w->chunk.T == 1) {
      decode(s.backend, *w->params, p, w->tokens, w->chunk.pos, {Gate::hard, Exec::gathered},
             w->state, &p == &w->dense ? w->dense_step : w->step);
      return;
    }
    forward(s.backend, *w->params, p, view(w->tokens), w->chunk, {Gate::hard, Exec::gathered},
            w->state);
  };
  const auto traffic = [w, context](const Plan& p, const Open& o) {
    return model_traffic(w->params->cfg, p, o.active, o.loaded, context, w->chunk.B, w->chunk.T,
                         w->params->dtype);
  };
  const int64_t rows = w->chunk.B * w->chunk.T;
  Work work;
  work.call = [run, &plan, w] { run(plan); };
  work.output = [w, rows] {
    const Tensor logits = first_rows(w->state.logits, rows);
    return digest(logits.data, logits.bytes());
  };
  work.check = [&s, w, &plan] { return check_whole(s, *w, plan); };
  work.memory = {&w->params->memory, &w->state.memory};
  work.look = [w, &plan, traffic, rows] {
    const Open o = open_gates(plan, w->state, rows);
    return Seen{
        .active = mean_of(o.active), .loaded = mean_of(o.loaded), .traffic = traffic(plan, o)};
  };
  work.tokens = rows;
  if (!dense_only) {
    work.beside = [run, w] { run(w->dense); };
    work.dense = traffic(w->dense, open_gates(w->dense, w->state, rows));
  }
  return work;
}

}  // namespace lte
