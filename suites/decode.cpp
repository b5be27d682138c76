// One token for each of B sequences, whole models, at consecutive positions after a prompt. Trained
// models read text; synthetic ones have random weights, random tokens and a filled cache, and
// thresholds that open a given fraction of experts. Router, norms, attention and head are inside.
#include <fmt/format.h>

#include <algorithm>

#include "core/rng.h"
#include "models.h"

namespace lte {
namespace {

constexpr int64_t kPrompt = 128, kSteps = 8;  // positions of the cache before, and walked over

struct Row {
  double density;  // 0: the dense model
  int64_t B;
};

// By the device where there is one: gigabytes need not come from the host.
void fill_cache_of(Backend& be, const Tensor& zeros, uint64_t seed) {
  if (be.device) {
    be.ops.noise_add(*be.ctx, zeros, 1, seed);
  } else {
    fill_uniform(zeros, 1, seed);
  }
}

// Tokens of step t: column t of [B, steps].
Work decode_work(Session& s, std::shared_ptr<const Params> params,
                 std::shared_ptr<const Params> reference, const Plan& plan, Row row,
                 std::vector<int32_t> text, bool fill_cache) {
  const int64_t steps = kSteps, prompt = kPrompt, B = row.B;
  const ModelConfig& c = params->cfg;
  const auto numbers = static_cast<double>(2 * B * (prompt + steps) * c.layers * c.kv_heads);
  want_memory(s, "the cache of keys and values", 4 * numbers * c.head_dim() + 1e9);
  auto w = std::make_shared<Whole>(
      Whole{.params = params,
            .reference = reference,
            .plan = plan,
            .dense = dense_plan(params->cfg),
            .state = make_state(*params, plan, B, 1, prompt + steps, Keep::one_layer),
            .chunk = {.B = B, .T = 1, .pos = prompt},
            .tokens = {}});
  auto load = [w, B, text = std::move(text)](int64_t pos) {
    w->chunk.pos = pos;
    w->tokens.clear();
    for (int64_t b = 0; b < B; ++b) {
      const auto at = static_cast<size_t>(b * (kPrompt + kSteps) + pos);
      w->tokens.push_back(text[at % text.size()]);
    }
  };
  load(prompt);
  Work work = whole_work(s, w, row.density == 0);
  if (fill_cache) {
    for (size_t i = 0; i < w->state.layer.size(); ++i) {
      fill_cache_of(s.backend, w->state.layer[i].k, hash64(0xcac4e, i));
      fill_cache_of(s.backend, w->state.layer[i].v, hash64(0xcac4f, i));
    }
  } else {
    for (int64_t pos = 0; pos < prompt; ++pos) load(pos), work.call();
  }
  work.inputs = steps;
  work.load = [load](int64_t i) { load(kPrompt + i); };
  return work;
}

void add_synthetic(std::vector<Case>& all, const Options& o, std::shared_ptr<Made> made,
                   const WholeShape& shape) {
  for (double density : whole_densities(o)) {
    for (int64_t B : {1, 4, 16, 64}) {
      all.push_back({fmt::format("decode/{}/batch:{}", synthetic_name(o, shape, density), B),
                     [=](Session& s) {
                       const auto params = made->params(s, shape);
                       const Plan& plan = made->thresholds(s, shape, density);
                       return decode_work(s, params, made->reference(), plan, {density, B},
                                          random_tokens(4096, params->cfg.vocab), true);
                     }});
    }
  }
}

void add_trained(std::vector<Case>& all, const Options& o, std::shared_ptr<Made> made) {
  for (double active : trained_fractions(o)) {
    const std::string model = trained_name(o, active);
    for (int64_t B : {1, 4, 16, 64}) {
      for (bool dense : {true, false}) {
        all.push_back({fmt::format("decode/{}/{}/batch:{}", model, dense ? "dense" : "gathered", B),
                       [=](Session& s) {
                         const auto m =
                             made->trained.get(model, [&] { return make_trained(s, active); });
                         LTE_CHECK(m->run.params.cfg.max_seq >= kPrompt + kSteps,
                                   "decode: the model's max_seq is too short");
                         std::shared_ptr<const Params> params(m, &m->run.params);
                         Work w = decode_work(s, params, params, m->run.plan,
                                              {dense ? 0.0 : 1.0, B}, m->text.tokens, false);
                         w.counters = [m] { return trained_counters(*m); };
                         return w;
                       }});
      }
    }
  }
}

}  // namespace

const bool kInference = true;

std::vector<Case> cases(const Options& o) {
  std::vector<Case> all;
  auto made = std::make_shared<Made>();
  add_trained(all, o, made);
  for (const WholeShape& shape : whole_shapes(o)) add_synthetic(all, o, made, shape);
  return all;
}

}  // namespace lte
