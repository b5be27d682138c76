#include "bench/import.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/files.h"
#include "io/safetensors.h"

namespace lte {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Json read_json(const std::string& path) {
  try {
    return Json::parse(read_file(path));
  } catch (const Json::exception& e) {
    fail(fmt::format("{}: {}", path, e.what()));
  }
}

// Values that must be what this decoder computes; an absent or null key has that value.
void want(const Json& j, const std::string& path, const char* key, const Json& value) {
  LTE_CHECK(!j.contains(key) || j.at(key).is_null() || j.at(key) == value,
            fmt::format("{}: {} = {} is not supported; {} is", path, key, j.at(key).dump(),
                        value.dump()));
}
int whole(const Json& j, const char* key, int otherwise = 0) {
  return j.contains(key) && !j.at(key).is_null() ? j.at(key).get<int>() : otherwise;
}

Act act_of(const Json& j, const std::string& path, const char* key) {
  static const std::map<std::string, Act> kActs = {{"gelu_new", Act::gelu_tanh},
                                                   {"gelu_pytorch_tanh", Act::gelu_tanh},
                                                   {"gelu", Act::gelu_erf},
                                                   {"relu", Act::relu},
                                                   {"silu", Act::silu}};
  const auto found = kActs.find(j.at(key).get<std::string>());
  LTE_CHECK(found != kActs.end(),
            fmt::format("{}: {} = {} is not supported", path, key, j.at(key).dump()));
  return found->second;
}

ModelConfig gpt2_config(const Json& j, const std::string& path) {
  want(j, path, "scale_attn_weights", true);
  want(j, path, "scale_attn_by_inverse_layer_idx", false);
  want(j, path, "tie_word_embeddings", true);
  ModelConfig c{.name = "gpt2", .vocab = j.at("vocab_size"), .layers = j.at("n_layer")};
  c.dim = j.at("n_embd"), c.heads = c.kv_heads = j.at("n_head");
  c.ffn = whole(j, "n_inner", 4 * c.dim), c.max_seq = j.at("n_positions");
  c.act = act_of(j, path, "activation_function"), c.norm_eps = j.at("layer_norm_epsilon");
  return c;
}

ModelConfig llama_config(const Json& j, const std::string& path) {
  want(j, path, "rope_scaling", nullptr), want(j, path, "attention_bias", false);
  want(j, path, "mlp_bias", false);
  ModelConfig c{
      .name = "llama2-7b", .vocab = j.at("vocab_size"), .layers = j.at("num_hidden_layers")};
  c.dim = j.at("hidden_size"), c.heads = j.at("num_attention_heads");
  c.kv_heads = whole(j, "num_key_value_heads", c.heads);
  c.ffn = j.at("intermediate_size"), c.max_seq = j.at("max_position_embeddings");
  c.rms_norm = c.rope = c.gated = true, c.bias = false;
  c.tied = j.value("tie_word_embeddings", false);
  c.act = act_of(j, path, "hidden_act"), c.norm_eps = j.at("rms_norm_eps");
  c.rope_theta = j.value("rope_theta", 10000.0);
  want(j, path, "head_dim", c.dim / c.heads);
  return c;
}

// Tensors by name, without the prefix "transformer." that some files have.
struct Source {
  std::string path;
  std::vector<TensorFile> files;
  std::map<std::string, Tensor> tensors;
  std::set<std::string> used;

  void add(const std::string& file) {
    files.push_back(load_safetensors(file));
    for (const NamedTensor& t : files.back().tensors) {
      const std::string prefix = "transformer.";
      const bool has = t.name.starts_with(prefix);
      tensors[has ? t.name.substr(prefix.size()) : t.name] = t.tensor;
    }
  }

  // Copies into rows from `row` on of `to`; `transposed` where the file holds [in, out].
  void copy(const Tensor& to, int64_t row, int64_t rows, const std::string& name, bool transposed) {
    if (!to) return;
    const auto found = tensors.find(name);
    LTE_CHECK(found != tensors.end(), fmt::format("{}: has no tensor {}", path, name));
    used.insert(name);
    const Tensor& from = found->second;
    const int64_t cols = to.rank == 1 ? 1 : to.dim[1];
    const int64_t a = transposed ? cols : rows, b = transposed ? rows : cols;
    LTE_CHECK(from.dtype == DType::f32 && from.rank == to.rank && from.dim[0] == a &&
                  (to.rank == 1 || from.dim[1] == b),
              fmt::format("{}: {} has another shape or type than config.json says", path, name));
    const float* source = from.as<float>();
    float* target = to.as<float>() + row * cols;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        target[r * cols + k] = transposed ? source[k * rows + r] : source[r * cols + k];
      }
    }
  }
  void all(const Tensor& to, const std::string& name, bool transposed = false) {
    copy(to, 0, to ? to.dim[0] : 0, name, transposed);
  }
};

// Linear layers of GPT-2 are stored [in, out]; queries, keys and values are one matrix as here.
void read_gpt2(Params& p, Source& s) {
  s.all(p.wte, "wte.weight"), s.all(p.wpe, "wpe.weight");
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LayerParams& l = p.layer[i];
    const std::string at = fmt::format("h.{}.", i);
    s.all(l.norm1_w, at + "ln_1.weight"), s.all(l.norm1_b, at + "ln_1.bias");
    s.all(l.qkv_w, at + "attn.c_attn.weight", true), s.all(l.qkv_b, at + "attn.c_attn.bias");
    s.all(l.proj_w, at + "attn.c_proj.weight", true), s.all(l.proj_b, at + "attn.c_proj.bias");
    s.all(l.norm2_w, at + "ln_2.weight"), s.all(l.norm2_b, at + "ln_2.bias");
    s.all(l.up_w, at + "mlp.c_fc.weight", true), s.all(l.up_b, at + "mlp.c_fc.bias");
    // [in, out] of the second product is [F, D]: row j is what neuron j adds, as here.
    s.all(l.down_w, at + "mlp.c_proj.weight"), s.all(l.down_b, at + "mlp.c_proj.bias");
  }
  s.all(p.norm_w, "ln_f.weight"), s.all(p.norm_b, "ln_f.bias");
}

void read_llama(Params& p, Source& s) {
  const int64_t C = p.cfg.head_dim(), H = p.cfg.heads * C, K = p.cfg.kv_heads * C;
  s.all(p.wte, "model.embed_tokens.weight");
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LayerParams& l = p.layer[i];
    const std::string at = fmt::format("model.layers.{}.", i);
    s.all(l.norm1_w, at + "input_layernorm.weight");
    s.copy(l.qkv_w, 0, H, at + "self_attn.q_proj.weight", false);
    s.copy(l.qkv_w, H, K, at + "self_attn.k_proj.weight", false);
    s.copy(l.qkv_w, H + K, K, at + "self_attn.v_proj.weight", false);
    s.all(l.proj_w, at + "self_attn.o_proj.weight");
    s.all(l.norm2_w, at + "post_attention_layernorm.weight");
    s.all(l.gate_w, at + "mlp.gate_proj.weight"), s.all(l.up_w, at + "mlp.up_proj.weight");
    s.all(l.down_w, at + "mlp.down_proj.weight", true);
  }
  s.all(p.norm_w, "model.norm.weight"), s.all(p.head_w, "lm_head.weight");
}

// Buffers of masks and rotations, and a head that is the embedding: nothing that is trained.
bool may_be_left(const std::string& name, const ModelConfig& c) {
  return name.ends_with(".attn.bias") || name.ends_with(".masked_bias") ||
         name.ends_with(".inv_freq") || (c.tied && name == "lm_head.weight");
}

}  // namespace

ModelConfig huggingface_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const Json j = read_json(path);
  try {
    const auto type = j.at("model_type").get<std::string>();
    LTE_CHECK(type == "gpt2" || type == "llama",
              fmt::format("{}: model_type {} is not supported; gpt2 and llama are", path, type));
    ModelConfig c = type == "gpt2" ? gpt2_config(j, path) : llama_config(j, path);
    LTE_CHECK(c.vocab > 0 && c.layers > 0 && c.dim > 0 && c.heads > 0 && c.kv_heads > 0 &&
                  c.ffn > 0 && c.max_seq > 0,
              path + ": a size is not positive");
    check_config(c);
    return c;
  } catch (const Json::exception& e) {
    fail(fmt::format("{}: {}", path, e.what()));
  }
}

Params import_huggingface(const std::string& folder, const std::string& file) {
  const ModelConfig c = huggingface_config(folder);
  Source s{.path = folder + "/" + file, .files = {}, .tensors = {}, .used = {}};
  const std::string index = folder + "/" + file + ".index.json";
  if (!fs::exists(s.path) && fs::exists(index)) {
    const Json j = read_json(index);
    LTE_CHECK(j.contains("weight_map") && j.at("weight_map").is_object(),
              index + ": has no weight_map");
    std::set<std::string> shards;
    for (const auto& [name, shard] : j.at("weight_map").items()) {
      LTE_CHECK(shard.is_string(), fmt::format("{}: {} names no file", index, name));
      shards.insert(shard.get<std::string>());
    }
    for (const std::string& shard : shards) s.add(folder + "/" + shard);
  } else {
    s.add(s.path);
  }
  Params p = make_params(c, dense_plan(c));
  c.rope ? read_llama(p, s) : read_gpt2(p, s);
  for (const auto& [name, tensor] : s.tensors) {
    LTE_CHECK(s.used.contains(name) || may_be_left(name, c),
              fmt::format("{}: the tensor {} is not known", s.path, name));
  }
  return p;
}

}  // namespace lte
