#include "model/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <vector>

namespace lte {
namespace {

constexpr struct {
  Act act;
  const char* name;
} kActs[] = {{Act::gelu_tanh, "gelu"},
             {Act::gelu_erf, "gelu-erf"},
             {Act::relu, "relu"},
             {Act::silu, "silu"},
             {Act::tanh, "tanh"}};

ModelConfig gpt2(const char* name, int layers, int dim, int heads, int ffn, int max_seq,
                 int vocab = 0) {
  return {.name = name,
          .vocab = vocab,
          .layers = layers,
          .dim = dim,
          .heads = heads,
          .kv_heads = heads,
          .ffn = ffn,
          .max_seq = max_seq};
}

ModelConfig llama(const char* name, int layers, int dim, int heads, int kv_heads, int ffn,
                  int max_seq, int vocab = 0) {
  return {.name = name,
          .vocab = vocab,
          .layers = layers,
          .dim = dim,
          .heads = heads,
          .kv_heads = kv_heads,
          .ffn = ffn,
          .max_seq = max_seq,
          .rms_norm = true,
          .rope = true,
          .gated = true,
          .bias = false,
          .tied = false,
          .act = Act::silu};
}

const ModelPreset kPresets[] = {
    {gpt2("gpt2-nano", 2, 64, 4, 256, 256), "GPT-2 family, 0.1 M parameters: trains in a minute"},
    {gpt2("gpt2-micro", 4, 128, 4, 512, 256), "GPT-2 family, 0.8 M parameters"},
    {gpt2("gpt2-mini", 6, 256, 8, 1024, 512), "GPT-2 family, 4.8 M parameters"},
    {gpt2("gpt2", 12, 768, 12, 3072, 1024, 50257), "GPT-2 124M shape: latency suites only"},
    {gpt2("gpt2-medium", 24, 1024, 16, 4096, 1024, 50257), "GPT-2 355M shape: latency suites only"},
    {llama("llama-nano", 2, 64, 4, 2, 192, 256),
     "LLaMA family, 0.1 M parameters: trains in a minute"},
    {llama("llama-micro", 4, 128, 4, 2, 384, 256), "LLaMA family, 0.8 M parameters"},
    {llama("llama-mini", 6, 256, 8, 4, 704, 512), "LLaMA family, 4.5 M parameters"},
    {llama("llama2-7b", 32, 4096, 32, 32, 11008, 4096, 32000),
     "LLaMA-2 7B shape: latency suites only"},
};

int parse_int(std::string_view key, std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LTE_CHECK(error == std::errc() && end == text.data() + text.size() && value > 0,
            fmt::format("model: {}={} is not a positive whole number", key, text));
  return value;
}

void set_key(ModelConfig& c, std::string_view key, std::string_view value) {
  struct IntKey {
    const char* name;
    int ModelConfig::*field;
  };
  static constexpr IntKey kInts[] = {
      {"layers", &ModelConfig::layers}, {"dim", &ModelConfig::dim},
      {"heads", &ModelConfig::heads},   {"kv_heads", &ModelConfig::kv_heads},
      {"ffn", &ModelConfig::ffn},       {"max_seq", &ModelConfig::max_seq}};
  if (key == "act") {
    c.act = parse_act(value);
    return;
  }
  std::string known = "act";
  for (const IntKey& k : kInts) {
    if (key == k.name) {
      c.*k.field = parse_int(key, value);
      if (key == "heads" && !c.gated) c.kv_heads = c.heads;
      return;
    }
    known += fmt::format(", {}", k.name);
  }
  fail(fmt::format("model: unknown key '{}'; known: {}", key, known));
}

}  // namespace

std::span<const ModelPreset> model_presets() { return kPresets; }

const char* name_of(Act act) {
  for (const auto& row : kActs) {
    if (row.act == act) return row.name;
  }
  return "?";
}

Act parse_act(std::string_view name) {
  std::string known;
  for (const auto& row : kActs) {
    if (name == row.name) return row.act;
    known += fmt::format(" {}", row.name);
  }
  fail(fmt::format("unknown activation '{}'; known:{}", name, known));
}

void check_config(const ModelConfig& c) {
  LTE_CHECK(c.dim % c.heads == 0,
            fmt::format("model {}: dim {} is not a multiple of heads {}", c.name, c.dim, c.heads));
  LTE_CHECK(c.heads % c.kv_heads == 0,
            fmt::format("model {}: heads {} is not a multiple of kv_heads {}", c.name, c.heads,
                        c.kv_heads));
  LTE_CHECK(!c.rope || c.head_dim() % 2 == 0,
            fmt::format("model {}: rotary positions want an even head width", c.name));
}

ModelConfig parse_model(std::string_view spec) {
  const size_t colon = std::min(spec.find(':'), spec.size());
  const std::string_view preset = spec.substr(0, colon);
  std::vector<std::string> known;
  for (const ModelPreset& p : kPresets) {
    known.push_back(p.config.name);
    if (preset != p.config.name) continue;
    ModelConfig c = p.config;
    c.name = spec;
    for (size_t at = colon + 1; at < spec.size();) {
      const size_t end = std::min(spec.find(',', at), spec.size());
      const std::string_view item = spec.substr(at, end - at);
      const size_t equal = item.find('=');
      LTE_CHECK(equal != item.npos, fmt::format("model: '{}' is not key=value", item));
      set_key(c, item.substr(0, equal), item.substr(equal + 1));
      at = end + 1;
    }
    check_config(c);
    return c;
  }
  fail(fmt::format("unknown model '{}'; known: {}", preset, fmt::join(known, ", ")));
}

}  // namespace lte
