#include "model/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "core/rng.h"

namespace lte {
namespace {

// Gives every tensor its shape; absent ones keep rank 0.
void shape_params(Params& p, const Plan& plan) {
  const ModelConfig& c = p.cfg;
  // Matrices are of the model's type; what is added or multiplied element by element never has 16 bits.
  const auto make = [&](std::initializer_list<int64_t> dims) {
    return shape(dims.size() < 2 ? activation_type(p.dtype) : p.dtype, dims);
  };
  const int64_t D = c.dim, HC = static_cast<int64_t>(c.heads) * c.head_dim();
  p.wte = make({c.vocab, D});
  if (!c.rope) p.wpe = make({c.max_seq, D});
  p.layer.resize(static_cast<size_t>(c.layers));
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LayerParams& l = p.layer[i];
    const FfnPlan& f = plan.layer[i];
    const int64_t F = kept_neurons(c, f), E = experts(c, f);
    l.norm1_w = l.norm2_w = make({D});
    if (!c.rms_norm) l.norm1_b = l.norm2_b = make({D});
    l.qkv_w = make({c.qkv_width(), D});
    l.proj_w = make({D, HC});
    l.up_w = l.down_w = make({F, D});
    if (c.gated) l.gate_w = make({F, D});
    if (c.bias) {
      l.qkv_b = make({c.qkv_width()}), l.proj_b = make({D}), l.down_b = make({D});
      if (!c.gated) l.up_b = make({F});
    }
    if (f.down_bias) l.down_b = make({D});
    if (f.in_cut >= 0) l.up_t = make({D, F});
    if (f.in_cut >= 0 && c.gated) l.gate_t = make({D, F});
    const bool two = f.router == RouterKind::two_layer;
    if (two) l.router_in = make({f.width, D});
    if (two || f.router == RouterKind::linear) {
      l.router_w = make({E, two ? f.width : D});
      if (f.router_bias) l.router_b = make({E});
    }
  }
  p.norm_w = make({D});
  if (!c.rms_norm) p.norm_b = make({D});
  if (!c.tied) p.head_w = make({c.vocab, D});
}

}  // namespace

void visit_params(Params& p, const std::function<void(Tensor&, const ParamInfo&)>& f) {
  const double std = 0.02, out_std = std / std::sqrt(2.0 * p.cfg.layers);
  const auto weight = [&](Tensor& t, std::string name, double s, bool router = false) {
    if (t.rank) f(t, {.name = std::move(name), .init_std = s, .decay = true, .router = router});
  };
  const auto bias = [&](Tensor& t, std::string name, bool router = false) {
    if (t.rank) f(t, {.name = std::move(name), .router = router});
  };
  const auto scale = [&](Tensor& t, std::string name) {
    f(t, {.name = std::move(name), .init_one = true});
  };
  weight(p.wte, "embed.tokens", std);
  weight(p.wpe, "embed.positions", std);
  for (size_t i = 0; i < p.layer.size(); ++i) {
    LayerParams& l = p.layer[i];
    const std::string at = fmt::format("layers.{}.", i);
    scale(l.norm1_w, at + "norm1.weight");
    bias(l.norm1_b, at + "norm1.bias");
    weight(l.qkv_w, at + "attention.qkv.weight", std);
    bias(l.qkv_b, at + "attention.qkv.bias");
    weight(l.proj_w, at + "attention.proj.weight", out_std);
    bias(l.proj_b, at + "attention.proj.bias");
    scale(l.norm2_w, at + "norm2.weight");
    bias(l.norm2_b, at + "norm2.bias");
    weight(l.router_in, at + "router.in.weight", 0, true);
    weight(l.router_w, at + "router.weight", 0, true);
    bias(l.router_b, at + "router.bias", true);
    weight(l.gate_w, at + "ffn.gate.weight", std);
    weight(l.up_w, at + "ffn.up.weight", std);
    bias(l.up_b, at + "ffn.up.bias");
    weight(l.down_w, at + "ffn.down.weight", out_std);
    bias(l.down_b, at + "ffn.down.bias");
    bias(l.up_t, at + "ffn.up.transposed", true);
    bias(l.gate_t, at + "ffn.gate.transposed", true);
  }
  scale(p.norm_w, "norm.weight");
  bias(p.norm_b, "norm.bias");
  weight(p.head_w, "head.weight", std);
}

Params make_params(const ModelConfig& cfg, const Plan& plan, DType dtype, Memory where) {
  LTE_CHECK(cfg.vocab > 0, "make_params: the vocabulary is empty");
  check_plan(cfg, plan);
  Params p{.cfg = cfg,
           .dtype = dtype,
           .wte = {},
           .wpe = {},
           .layer = {},
           .norm_w = {},
           .norm_b = {},
           .head_w = {},
           .memory = {.where = where}};
  shape_params(p, plan);
  size_t bytes = 0;
  visit_params(p, [&](Tensor& t, const ParamInfo&) { bytes += Arena::padded(t.bytes()); });
  p.memory.reserve(bytes);
  visit_params(p, [&](Tensor& t, const ParamInfo&) { p.memory.carve(t); });
  return p;
}

Params clone(const Params& from) { return clone(from, from.memory.where); }

Params clone(const Params& from, Memory where) {
  Params p{.cfg = from.cfg,
           .dtype = from.dtype,
           .wte = from.wte,
           .wpe = from.wpe,
           .layer = from.layer,
           .norm_w = from.norm_w,
           .norm_b = from.norm_b,
           .head_w = from.head_w,
           .memory = {.where = where}};
  p.memory.reserve(from.memory.used);
  visit_params(p, [&](Tensor& t, const ParamInfo&) { p.memory.carve(t); });
  std::memcpy(p.memory.base(), from.memory.base(), from.memory.used);
  return p;
}

void init_params(Params& p, uint64_t seed) {
  uint64_t place = 0;
  visit_params(p, [&](Tensor& t, const ParamInfo& info) {
    Rng rng(hash64(seed, 0x1217, ++place));
    const auto value = [&] { return info.init_one ? 1.0 : info.init_std * rng.normal(); };
    for (int64_t i = 0; i < t.size(); ++i) {
      if (t.dtype == DType::f64) {
        t.as<double>()[i] = value();
      } else if (t.dtype == DType::bf16) {
        t.as<Bf16>()[i] = to_bf16(static_cast<float>(value()));
      } else {
        t.as<float>()[i] = static_cast<float>(value());
      }
    }
  });
}

Params to_bf16(const Params& from) {
  LTE_CHECK(from.dtype == DType::f32, "to_bf16: wants a model of floats");
  Params to{.cfg = from.cfg,
            .dtype = DType::bf16,
            .wte = from.wte,
            .wpe = from.wpe,
            .layer = from.layer,
            .norm_w = from.norm_w,
            .norm_b = from.norm_b,
            .head_w = from.head_w,
            .memory = {.where = from.memory.where}};
  size_t bytes = 0;
  visit_params(to, [&](Tensor& t, const ParamInfo&) {
    if (t.rank > 1) t.dtype = DType::bf16;
    bytes += Arena::padded(t.bytes());
  });
  to.memory.reserve(bytes);
  visit_params(to, [&](Tensor& t, const ParamInfo&) {
    const auto* source = static_cast<const float*>(t.data);
    to.memory.carve(t);
    if (t.rank < 2) {
      std::memcpy(t.data, source, t.bytes());
      return;
    }
    for (int64_t i = 0; i < t.size(); ++i) t.as<Bf16>()[i] = to_bf16(source[i]);
  });
  return to;
}

void copy_matching(Params& to, const Params& from) {
  std::map<std::string, Tensor> source;
  visit_params(const_cast<Params&>(from),
               [&](Tensor& t, const ParamInfo& info) { source[info.name] = t; });
  visit_params(to, [&](Tensor& t, const ParamInfo& info) {
    const auto found = source.find(info.name);
    if (found == source.end() || found->second.rank != t.rank ||
        !std::equal(t.dim, t.dim + 4, found->second.dim) || found->second.dtype != t.dtype)
      return;
    std::memcpy(t.data, found->second.data, t.bytes());
  });
}

int64_t count_params(const Params& p) {
  int64_t n = 0;
  visit_params(const_cast<Params&>(p), [&](Tensor& t, const ParamInfo&) { n += t.size(); });
  return n;
}

Params apply_order(const Params& from, const Plan& plan) {
  Params to = make_params(from.cfg, plan, from.dtype, from.memory.where);
  copy_matching(to, from);
  for (size_t i = 0; i < to.layer.size(); ++i) {
    const std::vector<int>& order = plan.layer[i].order;
    const auto gather = [&](const Tensor& a, const Tensor& b) {
      if (!a) return;
      LTE_CHECK(b.dim[0] == from.cfg.ffn, "apply_order: the model is already in another order");
      const size_t row = b.bytes() / static_cast<size_t>(b.dim[0]);
      for (size_t j = 0; j < order.size(); ++j) {
        std::memcpy(static_cast<char*>(a.data) + j * row,
                    static_cast<const char*>(b.data) + static_cast<size_t>(order[j]) * row, row);
      }
    };
    const LayerParams &t = to.layer[i], &f = from.layer[i];
    gather(t.up_w, f.up_w), gather(t.up_b, f.up_b), gather(t.gate_w, f.gate_w),
        gather(t.down_w, f.down_w);
  }
  refresh_transposed(to);
  return to;
}

void refresh_transposed(Params& p) {
  for (LayerParams& l : p.layer) {
    const std::pair<Tensor, Tensor> pairs[] = {{l.up_t, l.up_w}, {l.gate_t, l.gate_w}};
    for (const auto& [to, from] : pairs) {
      if (!to) continue;
      const size_t size = size_of(p.dtype);
      for (int64_t j = 0; j < from.rows(); ++j) {
        for (int64_t d = 0; d < from.cols(); ++d) {
          std::memcpy(
              static_cast<char*>(to.data) + static_cast<size_t>(d * from.rows() + j) * size,
              static_cast<const char*>(from.data) + static_cast<size_t>(j * from.cols() + d) * size,
              size);
        }
      }
    }
  }
}

void check_plan(const ModelConfig& c, const Plan& plan) {
  LTE_CHECK(plan.layer.size() == static_cast<size_t>(c.layers),
            fmt::format("plan: {} layers for a model of {}", plan.layer.size(), c.layers));
  for (size_t i = 0; i < plan.layer.size(); ++i) {
    const FfnPlan& p = plan.layer[i];
    std::vector<bool> seen(static_cast<size_t>(c.ffn));
    for (int j : p.order) {
      LTE_CHECK(j >= 0 && j < c.ffn && !seen[static_cast<size_t>(j)],
                fmt::format("plan: layer {}: neuron {} is out of range or named twice", i, j));
      seen[static_cast<size_t>(j)] = true;
    }
    const int64_t kept = kept_neurons(c, p);
    LTE_CHECK(p.group >= 0 && (p.group == 0 || kept % p.group == 0),
              fmt::format("plan: layer {}: {} neurons do not divide into experts of {}", i, kept,
                          p.group));
    LTE_CHECK(p.router == RouterKind::none || p.group > 0,
              fmt::format("plan: layer {}: a router wants a group size", i));
    LTE_CHECK(p.router != RouterKind::two_layer || p.width > 0,
              fmt::format("plan: layer {}: a two-layer router wants a width", i));
    const auto E = static_cast<double>(experts(c, p));
    LTE_CHECK(
        p.rule != Rule::top_k || (p.cut >= 1 && p.cut <= E && p.cut == std::floor(p.cut)),
        fmt::format("plan: layer {}: top_k wants a whole number of experts from 1 to {}, not {}", i,
                    E, p.cut));
    LTE_CHECK(p.in_cut < 0 || p.router == RouterKind::activation,
              fmt::format("plan: layer {}: sparse inputs go with the activation router", i));
    LTE_CHECK(p.router != RouterKind::gate || c.gated,
              fmt::format("plan: layer {}: a gate router wants a gated FFN", i));
  }
}

}  // namespace lte
