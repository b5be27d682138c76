// The FFN of one layer without its router: ops.ffn_gathered on synthetic gates, a fixed number of
// random experts a token, beside the dense products over the same weights. Several copies of the
// weights are walked over, so that those of a large shape come from memory and not from a cache.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/digest.h"
#include "core/rng.h"
#include "reference.h"

namespace lte {
namespace {

constexpr double kWeightBytes = 512e6;  // of all copies together, at most
constexpr int kMostCopies = 8;

struct Shape3 {
  const char* model;
  int group;
  DType weights;

  std::string name() const {
    return fmt::format("{}/{}", model, weights == DType::bf16 ? "bf16" : "f32");
  }
};
constexpr Shape3 kShapes[] = {{"gpt2-medium", 32, DType::f32},
                              {"llama2-7b", 32, DType::f32},
                              {"llama2-7b", 32, DType::bf16},
                              {"gpt2-nano", 8, DType::f32}};

// Copies of one layer as the layers of one model.
Synthetic make_copies(Session& s, const Shape3& shape) {
  ModelConfig c = suite_model(shape.model, s.options.smoke);
  c.vocab = 16, c.max_seq = 16;
  const double bytes =
      static_cast<double>(size_of(shape.weights)) * (c.gated ? 3.0 : 2.0) * c.dim * c.ffn;
  c.layers = std::clamp(static_cast<int>(kWeightBytes / bytes), 1, kMostCopies);
  return make_synthetic(s, c, shape.group, shape.weights);
}

// Inputs, their gates and lists, and where results go.
struct Kernel {
  std::shared_ptr<Synthetic> layers;
  std::vector<Block> input;         // x[N,D] gates[N,E] index[E,N] count[E]
  Block out;                        // out[N,D] up[N,F] gate[N,F]
  const LayerParams *mine, *other;  // weights of the gathered and of the dense call
  const Block* at;

  const ModelConfig& cfg() const { return layers->params.cfg; }
  DType weights() const { return layers->params.dtype; }
};

Block make_input(Session& s, const ModelConfig& c, int group, double density, int64_t N,
                 uint64_t seed) {
  const int64_t E = c.ffn / group;
  Block b = make_block({shape(DType::f32, {N, c.dim}), shape(DType::f32, {N, E}),
                        shape(DType::i32, {E, N}), shape(DType::i32, {E})},
                       s.backend.memory);
  fill_uniform(b.tensor[0], 1, seed);
  const auto on = std::max<int64_t>(1, std::llround(density * static_cast<double>(E)));
  Rng rng(seed);
  std::vector<int64_t> order(static_cast<size_t>(E));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t n = 0; n < N; ++n) {
    shuffle(order, rng);
    for (int64_t k = 0; k < on; ++k) {
      b.tensor[1].as<float>()[n * E + order[static_cast<size_t>(k)]] = 1;
    }
  }
  s.backend.ops.route(*s.backend.ctx, b.tensor[2], b.tensor[3], b.tensor[1]);
  s.backend.finish();
  return b;
}

void gathered(Backend& be, const Kernel& k) {
  const std::vector<Tensor>& in = k.at->tensor;
  be.ops.ffn_gathered(*be.ctx, k.out.tensor[0], in[0], in[1], in[2], in[3], {}, k.mine->up_w,
                      k.mine->up_b, k.mine->gate_w, k.mine->down_w, k.cfg().act);
}

// All neurons, and with gates those of closed experts as zeros.
void dense(Backend& be, const ModelConfig& c, const LayerParams& w, const Block& b, const Tensor& x,
           const Tensor& gates) {
  const Tensor &out = b.tensor[0], &up = b.tensor[1], &act = c.gated ? b.tensor[2] : up;
  be.ops.gemm(*be.ctx, up, x, false, w.up_w, true);
  if (w.up_b) be.ops.bias_add(*be.ctx, up, w.up_b);
  if (c.gated) be.ops.gemm(*be.ctx, act, x, false, w.gate_w, true);
  be.ops.activate(*be.ctx, act, act, c.gated ? up : Tensor{}, c.act);
  if (gates) be.ops.scale_experts(*be.ctx, act, act, gates);
  be.ops.gemm(*be.ctx, out, act, false, w.down_w, false);
}

Block make_out(const ModelConfig& c, int64_t N, Memory where = {}) {
  return make_block(
      {shape(DType::f32, {N, c.dim}), shape(DType::f32, {N, c.ffn}), shape(DType::f32, {N, c.ffn})},
      where);
}

// Rows [first, first + n) through the reference; copy `at` of the weights.
Checked check_part(const Session& s, const Kernel& k, size_t at, bool gates, int64_t first,
                   int64_t n) {
  const ModelConfig& c = k.cfg();
  const Block want = make_out(c, n);
  Backend reference = reference_backend(s, k.weights());
  dense(reference, c, k.layers->reference().layer[at], want, some_rows(k.at->tensor[0], first, n),
        gates ? some_rows(k.at->tensor[1], first, n) : Tensor{});
  return {.comparison = compare_rows(s, some_rows(k.out.tensor[0], first, n), want.tensor[0],
                                     k.weights(), c.dim + c.ffn, 1),
          .rows = n};
}

// As many rows as plain loops can afford, the first and the last ones.
Checked check(const Session& s, const Kernel& k, const LayerParams* weights, bool gates) {
  const ModelConfig& c = k.cfg();
  const auto at = static_cast<size_t>(weights - k.layers->params.layer.data());
  const int64_t N = k.at->tensor[0].rows();
  const int64_t n = reference_rows((c.gated ? 6.0 : 4.0) * c.dim * c.ffn, N), last = (n + 1) / 2;
  const Checked end = check_part(s, k, at, gates, N - last, last);
  return last == n ? end : both(check_part(s, k, at, gates, 0, n - last), end);
}

Seen look(const Kernel& k, int group) {
  const ModelConfig& c = k.cfg();
  const Tensor &gates = k.at->tensor[1], &count = k.at->tensor[3];
  const auto on = std::accumulate(gates.as<float>(), gates.as<float>() + gates.size(), 0.0);
  const auto wanted = std::count_if(count.as<int32_t>(), count.as<int32_t>() + count.size(),
                                    [](int32_t n) { return n > 0; });
  Seen seen{.active = on / static_cast<double>(gates.size()),
            .loaded = static_cast<double>(wanted) / static_cast<double>(count.size()),
            .traffic = {}};
  const FfnPlan given{.group = group, .order = {}};  // gates are given: no router to read
  seen.traffic = ffn_traffic(c, given, seen.active, seen.loaded, gates.rows(), k.weights());
  return seen;
}

Work make_row(Session& s, std::shared_ptr<Synthetic> layers, int group, double density, int64_t N,
              bool dense_only) {
  auto k = std::make_shared<Kernel>(
      Kernel{.layers = layers, .input = {}, .out = {}, .mine = {}, .other = {}, .at = {}});
  const ModelConfig& c = layers->params.cfg;
  const int64_t inputs = N == 1 ? 32 : 4;
  for (int64_t i = 0; i < inputs; ++i) {
    k->input.push_back(
        make_input(s, c, group, density, N, hash64(0x9a7e, static_cast<uint64_t>(i))));
  }
  k->out = make_out(c, N, s.backend.memory);
  Work w;
  w.inputs = inputs, w.tokens = N;
  w.memory = {&layers->params.memory, &k->out.memory};
  for (const Block& b : k->input) w.memory.push_back(&b.memory);
  w.load = [k](int64_t i) {
    const auto at = static_cast<size_t>(i);
    const std::vector<LayerParams>& copies = k->layers->params.layer;
    k->at = &k->input[at];
    k->mine = &copies[at % copies.size()];
    k->other = &copies[(at + copies.size() / 2) % copies.size()];
  };
  w.call = [&s, k] { gathered(s.backend, *k); };
  w.beside = [&s, k] { dense(s.backend, k->cfg(), *k->other, k->out, k->at->tensor[0], {}); };
  w.look = [k, group] { return look(*k, group); };
  w.check = [&s, k] { return check(s, *k, k->mine, true); };
  w.output = [k] { return digest(k->out.tensor[0].data, k->out.tensor[0].bytes()); };
  w.dense = ffn_traffic(c, {.group = 0, .order = {}}, 1, 1, N, k->weights());
  if (dense_only) {
    w.call = w.beside, w.beside = {};
    w.check = [&s, k] { return check(s, *k, k->other, false); };
    w.look = [dense = w.dense] { return Seen{.active = 1, .loaded = 1, .traffic = dense}; };
  }
  return w;
}

}  // namespace

const bool kInference = true;

std::vector<Case> cases(const Options& o) {
  std::vector<Case> all;
  auto made = std::make_shared<Latest<Synthetic>>();
  for (const Shape3& shape : kShapes) {
    const auto add = [&](const std::string& kind, double density, int64_t N, bool dense_only) {
      const std::string name = fmt::format("ffn_kernel/synthetic/{}{}/{}/tokens:{}",
                                           o.smoke ? "tiny-" : "", shape.name(), kind, N);
      all.push_back({name,
                     [=](Session& s) {
                       auto layers = made->get(shape.name(), [&] { return make_copies(s, shape); });
                       return make_row(s, layers, shape.group, density, N, dense_only);
                     },
                     true});
    };
    for (int64_t N : {1, 4, 16, 64, 256}) {
      add("dense", 1, N, true);
      for (double d : kDensities) {
        add(fmt::format("gathered/density_permille:{}", permille(d)), d, N, false);
      }
    }
  }
  return all;
}

}  // namespace lte
