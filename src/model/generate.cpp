#include "model/generate.h"

#include <algorithm>

#include "core/rng.h"
#include "model/decode.h"

namespace lte {
namespace {

// What a text is drawn with, in the backend's memory: the tokens, and by layer the sums over all that is
// computed of open experts and of the share of inputs that are not 0.
struct Text {
  Draws draws;
  Tensor sums;  // [2 L]
  Arena memory;
};

Text make_text(const Backend& be, size_t layers, int64_t steps, const Sampling& how) {
  Text t{.draws = {.token = shape(DType::i32, {1}),
                   .step = shape(DType::i32, {1}),
                   .tokens = shape(DType::i32, {steps}),
                   .uniform = shape(DType::f64, {steps})},
         .sums = shape(DType::f64, {2 * static_cast<int64_t>(layers)}),
         .memory = {.where = be.memory}};
  Tensor* const all[] = {&t.draws.token, &t.draws.step, &t.draws.tokens, &t.draws.uniform, &t.sums};
  size_t bytes = 0;
  for (const Tensor* one : all) bytes += Arena::padded(one->bytes());
  t.memory.reserve(bytes);
  for (Tensor* one : all) t.memory.carve(*one);
  Rng rng(how.seed);
  for (int64_t i = 0; i < steps; ++i) t.draws.uniform.as<double>()[i] = rng.uniform();
  return t;
}

void sum_open(Backend& be, const State& state, int64_t tokens, Tensor sums) {
  std::vector<Tensor> parts;
  for (const LayerState& s : state.layer) {
    parts.push_back(s.count);
    parts.push_back(s.kept);
    parts.back().dim[0] = tokens;
  }
  be.ops.sums_add(*be.ctx, sums, std::move(parts));
}

// Neurons computed for `tokens` tokens, over the dense model's.
double active_of(const Params& p, const Plan& plan, const State& s, Tensor sums, int64_t tokens) {
  double sum = 0;
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const double kept = static_cast<double>(kept_neurons(p.cfg, plan.layer[i])) / p.cfg.ffn;
    const double open = sums.as<double>()[2 * i], inputs = sums.as<double>()[2 * i + 1];
    double neurons = kept * static_cast<double>(tokens);
    if (plan.layer[i].router != RouterKind::none)
      neurons = kept * open / static_cast<double>(experts(p.cfg, plan.layer[i]));
    const double n = p.cfg.gated ? 2 : 1;
    sum += s.layer[i].kept ? (n * inputs + neurons) / (n + 1) : neurons;
  }
  return sum / static_cast<double>(plan.layer.size() * static_cast<size_t>(tokens));
}

}  // namespace

Generated generate(Backend& be, const Params& p, const Plan& plan, std::span<const int32_t> prompt,
                   int most, int32_t stop, const Sampling& how,
                   const std::function<void(int32_t)>& each) {
  LTE_CHECK(!prompt.empty(), "generate: the prompt is empty");
  LTE_CHECK(p.cfg.max_seq >= 2, "generate: wants a model with max_seq of 2 or more");
  // Of a prompt that is too long the end is kept: room for what is to come, but half of the context.
  const int64_t S = p.cfg.max_seq, given = static_cast<int64_t>(prompt.size()),
                keep = given < S ? given : std::clamp<int64_t>(S + 1 - most, S / 2, S - 1);
  const int64_t steps = std::min<int64_t>(most, S + 1 - keep);
  Generated out{.tokens = {}, .active = 0, .prompt = keep};
  if (steps <= 0) return out;
  std::vector<int32_t> start(prompt.end() - keep, prompt.end());
  Tensor in = shape(DType::i32, {keep});
  in.data = start.data();
  State state = make_state(p, plan, 1, keep, S, Keep::one_layer);
  Text text = make_text(be, plan.layer.size(), steps, how);
  const auto next = [&](Tensor tokens, Chunk chunk) {
    forward(be, p, plan, tokens, chunk, {Gate::hard, Exec::gathered}, state);
    sum_open(be, state, chunk.T, text.sums);
    be.ops.sample(*be.ctx, text.draws, some_rows(state.logits, chunk.T - 1, 1), how);
  };
  const Chunk one{1, 1, keep - 1, text.draws.step.as<int32_t>()};
  Repeat again;
  int64_t drawn = 0;  // or on their way
  bool stopped = false;
  while (drawn < steps && !stopped) {
    if (drawn++ == 0) {
      next(in, {1, keep, 0});
    } else {
      repeat(be, again, [&] { next(text.draws.token, one); });
    }
    if (!each && stop < 0) continue;
    int32_t token = 0;
    Tensor seen = shape(DType::i32, {1});
    seen.data = &token;
    be.ops.copy_list(*be.ctx, seen, text.draws.token);
    stopped = token == stop;
    if (each && !stopped) each(token);
  }
  be.finish();
  const int32_t* tokens = text.draws.tokens.as<int32_t>();
  out.tokens.assign(tokens, tokens + drawn - (stopped ? 1 : 0));
  out.active = active_of(p, plan, state, text.sums, keep + drawn - 1);
  out.full = !stopped && most > steps;
  return out;
}

}  // namespace lte
