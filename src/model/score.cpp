#include "model/score.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <limits>

#include "core/device.h"
#include "core/digest.h"
#include "model/batches.h"
#include "model/decode.h"

namespace lte {
namespace {

using Clock = std::chrono::steady_clock;

// Which experts were on, for the tokens of one batch of windows.
struct Trace {
  std::vector<std::vector<uint8_t>> on;  // [layer][(row * T + t) * E + e]
  std::vector<std::vector<float>> kept;  // [layer][row * T + t] share of inputs, of sparse inputs
};

struct Tally {
  const ModelConfig& c;
  const Plan& plan;
  std::vector<double> layer_sum, input_sum, token_active;
  std::array<double, 5> union_sum{};
  std::array<int64_t, 5> union_count{};
  double context = 0;

  // Adds the first `length` tokens of one row.
  void add_row(const Trace& trace, int64_t row, int64_t T, int64_t length) {
    std::vector<double> token(static_cast<size_t>(length));
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      const FfnPlan& p = plan.layer[i];
      const auto kept = static_cast<double>(kept_neurons(c, p)) / c.ffn;
      const bool routed = p.router != RouterKind::none;
      const int64_t E = experts(c, p);
      const uint8_t* on = routed ? trace.on[i].data() + row * T * E : nullptr;
      for (int64_t t = 0; t < length; ++t) {
        double share =
            routed ? kept * static_cast<double>(std::count(on + t * E, on + (t + 1) * E, 1)) /
                         static_cast<double>(E)
                   : kept;
        if (p.in_cut >= 0) {  // of the weights: inputs count in up and gate, neurons in down
          const double in = trace.kept[i][static_cast<size_t>(row * T + t)], n = c.gated ? 2 : 1;
          input_sum[i] += in, share = (n * in + share) / (n + 1);
        }
        layer_sum[i] += share;
        token[static_cast<size_t>(t)] += share / static_cast<double>(plan.layer.size());
      }
      for (size_t u = 0; u < kUnions.size(); ++u) add_unions(on, E, kept, length, u);
    }
    token_active.insert(token_active.end(), token.begin(), token.end());
    context += 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
  }

  void add_unions(const uint8_t* on, int64_t E, double kept, int64_t length, size_t u) {
    const int64_t w = kUnions[u];
    for (int64_t t = 0; t + w <= length; t += w) {
      int64_t used = 0;
      for (int64_t e = 0; on && e < E; ++e) {
        bool any = false;
        for (int64_t k = 0; k < w; ++k) any |= on[(t + k) * E + e] != 0;
        used += any;
      }
      union_sum[u] += on ? kept * static_cast<double>(used) / static_cast<double>(E) : kept;
      ++union_count[u];
    }
  }

  void finish(Outcome& out, DType weights) {
    const auto n = static_cast<double>(token_active.size());
    out.tokens = static_cast<int64_t>(token_active.size());
    if (token_active.empty()) return;
    out.active = 0;
    for (double s : layer_sum)
      out.active_layer.push_back(s / n),
          out.active += s / n / static_cast<double>(layer_sum.size());
    for (double& s : input_sum) s /= n;
    std::sort(token_active.begin(), token_active.end());
    out.active_p50 = token_active[token_active.size() / 2];
    out.active_p99 = token_active[token_active.size() * 99 / 100];
    for (size_t u = 0; u < kUnions.size(); ++u) {
      out.active_union[u] = union_count[u] ? union_sum[u] / static_cast<double>(union_count[u])
                                           : std::numeric_limits<double>::quiet_NaN();
    }
    out.context = context / n;
    out.cost = cost_of(c, plan, out.active_layer, out.context, input_sum, weights);
  }
};

// One batch of windows: inputs and targets as [B, T] tables.
struct Walk {
  Backend& be;
  const Params& p;
  const Plan& plan;
  State& state;
  Exec exec;
  int64_t B, T;
  std::vector<int32_t> tokens, targets, chunk_tokens, chunk_targets;
  std::vector<int64_t> lengths;
  Trace trace;
  double loss = 0;
  uint64_t digest_value = 0;
  DecodeStep step = {};  // of B rows

  // Computes positions [pos, pos + width) of all rows; returns the seconds of the forward alone.
  double run_chunk(int64_t pos, int64_t width) {
    chunk_tokens.resize(static_cast<size_t>(B * width)), chunk_targets.resize(chunk_tokens.size());
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(tokens.begin() + b * T + pos, width, chunk_tokens.begin() + b * width);
      std::copy_n(targets.begin() + b * T + pos, width, chunk_targets.begin() + b * width);
    }
    Tensor in = shape(DType::i32, {B * width}), want = in;
    in.data = chunk_tokens.data(), want.data = chunk_targets.data();
    // What `collect` has read of the last chunk goes back before the clock starts.
    if (be.device) be.device->fetch(*be.ctx, state.memory.base(), state.memory.used);
    const auto start = Clock::now();
    if (width == 1) {
      decode(be, p, plan, chunk_tokens, pos, {Gate::hard, exec}, state, step);
    } else {
      forward(be, p, plan, in, {B, width, pos}, {Gate::hard, exec}, state);
    }
    be.finish();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    be.ops.cross_entropy(*be.ctx, first_rows(state.losses, B * width), {},
                         first_rows(state.logits, B * width), want, 1, p.cfg.vocab);
    be.finish();
    collect(pos, width);
    return seconds;
  }

  void collect(int64_t pos, int64_t width) {
    const int64_t V = p.cfg.vocab;
    for (int64_t b = 0; b < B; ++b) {
      const int64_t valid = std::clamp<int64_t>(lengths[static_cast<size_t>(b)] - pos, 0, width);
      for (int64_t t = 0; t < valid; ++t) {
        const int64_t n = b * width + t;
        loss += state.losses.as<float>()[n];
        digest_value = digest(state.logits.as<float>() + n * V,
                              static_cast<size_t>(V) * sizeof(float), digest_value);
        for (size_t i = 0; i < plan.layer.size(); ++i) {
          if (plan.layer[i].router == RouterKind::none) continue;
          const int64_t E = experts(p.cfg, plan.layer[i]);
          const float* g = state.layer[i].gates.as<float>() + n * E;
          uint8_t* on = trace.on[i].data() + (b * T + pos + t) * E;
          for (int64_t e = 0; e < E; ++e) on[e] = g[e] != 0;
          if (state.layer[i].kept) {
            trace.kept[i][static_cast<size_t>(b * T + pos + t)] =
                state.layer[i].kept.as<float>()[n];
          }
          digest_value = digest(on, static_cast<size_t>(E), digest_value);
        }
      }
    }
  }
};

int parse_field(std::string_view text, char letter, std::string_view whole) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), value);
  LTE_CHECK(text.size() > 1 && text[0] == letter && error == std::errc() &&
                end == text.data() + text.size() && value >= 0,
            fmt::format("shape '{}' is not of the form b1.p128.d64", whole));
  return value;
}

}  // namespace

std::string name_of(const Shape& s) { return fmt::format("b{}.p{}.d{}", s.b, s.p, s.d); }

Shape parse_shape(std::string_view text) {
  const size_t one = text.find('.'), two = one == text.npos ? one : text.find('.', one + 1);
  LTE_CHECK(two != text.npos, fmt::format("shape '{}' is not of the form b1.p128.d64", text));
  const Shape s{.b = parse_field(text.substr(0, one), 'b', text),
                .p = parse_field(text.substr(one + 1, two - one - 1), 'p', text),
                .d = parse_field(text.substr(two + 1), 'd', text)};
  LTE_CHECK(s.b > 0 && s.p + s.d > 0, fmt::format("shape '{}' computes nothing", text));
  return s;
}

Outcome score(Backend& be, const Params& p, const Plan& plan, const TokenSet& set,
              std::span<const Window> windows, Shape shape, Exec exec, Stopwatch* watch) {
  const int64_t T = shape.p + shape.d, chunk = std::max(shape.p, 1);
  LTE_CHECK(
      T <= p.cfg.max_seq,
      fmt::format("score: windows of {} are longer than the model's max_seq {}", T, p.cfg.max_seq));
  State state = make_state(p, plan, shape.b, chunk, T, Keep::one_layer);
  Tally tally{.c = p.cfg,
              .plan = plan,
              .layer_sum = std::vector<double>(plan.layer.size()),
              .input_sum = std::vector<double>(plan.layer.size()),
              .token_active = {}};
  Walk walk{.be = be,
            .p = p,
            .plan = plan,
            .state = state,
            .exec = exec,
            .B = 0,
            .T = T,
            .tokens = {},
            .targets = {},
            .chunk_tokens = {},
            .chunk_targets = {},
            .lengths = {},
            .trace = {}};
  Outcome out;
  for (size_t at = 0; at < windows.size(); at += static_cast<size_t>(walk.B)) {
    const auto rows = std::min<int64_t>(shape.b, static_cast<int64_t>(windows.size() - at));
    if (rows != walk.B) walk.B = rows, walk.step = make_decode_step(be, rows);
    walk.tokens.resize(static_cast<size_t>(walk.B * T)), walk.targets.resize(walk.tokens.size());
    walk.lengths.clear();
    walk.trace.on.resize(plan.layer.size()), walk.trace.kept.resize(plan.layer.size());
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      if (plan.layer[i].in_cut >= 0)
        walk.trace.kept[i].assign(static_cast<size_t>(walk.B * T), 0.f);
      walk.trace.on[i].assign(static_cast<size_t>(walk.B * T * experts(p.cfg, plan.layer[i])), 0);
    }
    int64_t longest = 0;
    for (int64_t b = 0; b < walk.B; ++b) {
      Window w = windows[at + static_cast<size_t>(b)];
      w.length = static_cast<int32_t>(std::min<int64_t>(w.length, T));
      out.scored += fill_row(set, w, b, T, walk.tokens, walk.targets);
      walk.lengths.push_back(w.length);
      longest = std::max<int64_t>(longest, w.length);
    }
    const int64_t prompt = std::min<int64_t>(shape.p, longest);
    if (prompt > 0) {
      const double seconds = walk.run_chunk(0, prompt);
      if (watch) watch->prefill.push_back(seconds / static_cast<double>(walk.B * prompt));
    }
    double decode = 0;
    for (int64_t pos = prompt; pos < longest; ++pos) decode += walk.run_chunk(pos, 1);
    if (watch && longest > prompt)
      watch->decode.push_back(decode / static_cast<double>(walk.B * (longest - prompt)));
    for (int64_t b = 0; b < walk.B; ++b)
      tally.add_row(walk.trace, b, T, walk.lengths[static_cast<size_t>(b)]);
  }
  out.loss = out.scored ? walk.loss / static_cast<double>(out.scored) : 0;
  out.digest = walk.digest_value;
  tally.finish(out, p.dtype);
  return out;
}

void each_window(Backend& be, const Params& p, const Plan& plan, const TokenSet& set,
                 std::span<const Window> windows, Gate gate,
                 const std::function<void(const State&)>& see) {
  for (const Window& w : windows) {
    const int64_t T = w.length;
    State state = make_state(p, plan, 1, T, T, Keep::one_layer);
    std::vector<int32_t> tokens(static_cast<size_t>(T)), targets(tokens.size());
    fill_row(set, w, 0, T, tokens, targets);
    Tensor in = shape(DType::i32, {T});
    in.data = tokens.data();
    forward(be, p, plan, in, {1, T, 0}, {gate, Exec::masked}, state);
    be.finish();
    see(state);
  }
}

std::vector<std::vector<int64_t>> score_histogram(Backend& be, const Params& p, const Plan& plan,
                                                  const TokenSet& set,
                                                  std::span<const Window> windows, Gate gate,
                                                  int bins) {
  std::vector<std::vector<int64_t>> counts(plan.layer.size(),
                                           std::vector<int64_t>(static_cast<size_t>(bins)));
  each_window(be, p, plan, set, windows, gate, [&](const State& state) {
    for (size_t i = 0; i < plan.layer.size(); ++i) {
      const Tensor& s = state.layer[i].scores;
      for (int64_t k = 0; s && k < s.size(); ++k) {
        const auto bin = static_cast<int>(s.as<float>()[k] * static_cast<float>(bins));
        ++counts[i][static_cast<size_t>(std::clamp(bin, 0, bins - 1))];
      }
    }
  });
  return counts;
}

}  // namespace lte
