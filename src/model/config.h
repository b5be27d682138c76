// The decoder's shape as data: the GPT-2 family and the LLaMA family are rows of one table.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/ops.h"

namespace lte {

struct ModelConfig {
  std::string name = "gpt2-nano";  // preset[:key=value,...]
  int vocab = 0;                   // 0: taken from the dataset's tokenizer
  int layers = 2, dim = 64, heads = 4, kv_heads = 4, ffn = 256, max_seq = 256;
  bool rms_norm = false;  // else LayerNorm with biases
  bool rope = false;      // else learned positions
  bool gated = false;     // FFN: act(x Wg) * (x Wu), else act(x W1 + b1)
  bool bias = true;       // of the linear layers
  bool tied = true;       // the head is the embedding table
  Act act = Act::gelu_tanh;
  double norm_eps = 1e-5, rope_theta = 10000;

  int head_dim() const { return dim / heads; }
  HeadShape head_shape() const { return {heads, kv_heads, head_dim()}; }
  int qkv_width() const { return (heads + 2 * kv_heads) * head_dim(); }
};

struct ModelPreset {
  ModelConfig config;
  const char* about;
};
std::span<const ModelPreset> model_presets();

// "gpt2-nano" or "gpt2-nano:act=relu,ffn=512". Throws Error that lists the known presets or keys.
ModelConfig parse_model(std::string_view spec);
void check_config(const ModelConfig&);  // throws Error where the numbers do not fit together

const char* name_of(Act);
Act parse_act(std::string_view);

}  // namespace lte
