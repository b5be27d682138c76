// A prompt in one chunk, whole models: trained ones on text, synthetic ones on random tokens with
// thresholds that open a given fraction of experts. The logits of every token are computed.
#include <fmt/format.h>

#include "models.h"

namespace lte {
namespace {

constexpr int64_t kPrompts = 2;  // different ones

Work prefill_work(Session& s, std::shared_ptr<const Params> params,
                  std::shared_ptr<const Params> reference, const Plan& plan, bool dense, int64_t T,
                  std::vector<int32_t> text) {
  LTE_CHECK(static_cast<int64_t>(text.size()) >= kPrompts * T, "prefill: too little text");
  if (T > params->cfg.max_seq) {
    throw Skip{fmt::format("the model's positions end at {}", params->cfg.max_seq)};
  }
  auto w =
      std::make_shared<Whole>(Whole{.params = params,
                                    .reference = reference,
                                    .plan = plan,
                                    .dense = dense_plan(params->cfg),
                                    .state = make_state(*params, plan, 1, T, T, Keep::one_layer),
                                    .chunk = {.B = 1, .T = T, .pos = 0},
                                    .tokens = {}});
  Work work = whole_work(s, w, dense);
  work.inputs = kPrompts;
  work.load = [w, T, text = std::move(text)](int64_t i) {
    w->tokens.assign(text.begin() + i * T, text.begin() + (i + 1) * T);
  };
  return work;
}

}  // namespace

const bool kInference = true;

std::vector<Case> cases(const Options& o) {
  std::vector<Case> all;
  auto made = std::make_shared<Made>();
  const int64_t unit = o.smoke ? 8 : 128;
  for (double active : trained_fractions(o)) {
    const std::string model = trained_name(o, active);
    for (bool dense : {true, false}) {
      for (int64_t T : {unit, 4 * unit}) {
        all.push_back(
            {fmt::format("prefill/{}/{}/tokens:{}", model, dense ? "dense" : "gathered", T),
             [=](Session& s) {
               const auto m = made->trained.get(model, [&] { return make_trained(s, active); });
               std::shared_ptr<const Params> params(m, &m->run.params);
               Work w = prefill_work(s, params, params, m->run.plan, dense, T, m->text.tokens);
               w.counters = [m] { return trained_counters(*m); };
               return w;
             }});
      }
    }
  }
  for (const WholeShape& shape : whole_shapes(o)) {
    for (double density : whole_densities(o)) {
      for (int64_t T : {unit, 4 * unit}) {
        all.push_back({fmt::format("prefill/{}/tokens:{}", synthetic_name(o, shape, density), T),
                       [=](Session& s) {
                         const auto params = made->params(s, shape);
                         const Plan& plan = made->thresholds(s, shape, density);
                         return prefill_work(s, params, made->reference(), plan, density == 0, T,
                                             random_tokens(kPrompts * T, params->cfg.vocab));
                       }});
      }
    }
  }
  return all;
}

}  // namespace lte
