// Sampling: the order of the logits is never written. What a sum over them reaches in that order is
// found two bits of the rank at a time, by sums of whole numbers.
#include "core/sampling.h"
#include "place.h"

namespace lte {
namespace {

// Where the drawn token goes.
struct Drawn {
  int32_t *token, *step, *tokens;
  __device__ void put(int step_now, int64_t id) const {
    token[0] = tokens[step_now] = static_cast<int32_t>(id), step[0] = step_now + 1;
  }
};

// One block. The first token in order: put where `drawn` is wanted, else its logit to top[0].
__global__ void first_kernel(Drawn drawn, float* top, const float* logits, int64_t V) {
  uint64_t first = 0;  // its rank and number, all bits turned: the highest is the first
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    const uint64_t own = ~(uint64_t{falling_rank(logits[v])} << 32 | static_cast<uint64_t>(v));
    first = own > first ? own : first;
  }
  const auto id = static_cast<int64_t>(~block_max(first) & 0xffffffff);
  if (threadIdx.x != 0) return;
  if (top) {
    top[0] = sampled_logit(logits[id]);
  } else {
    drawn.put(drawn.step[0], id);
  }
}

struct Weigh {
  uint64_t* weights;
  const float *logits, *top;
  double temperature;
  __device__ void operator()(int64_t v) const {
    const float z = sampled_logit(logits[v]);
    const double share =
        z == top[0] ? 1.0
                    : exp((static_cast<double>(z) - static_cast<double>(top[0])) / temperature);
    weights[v] = whole_weight(share);
  }
};

// The row of logits in its order; weights null: every token weighs 1.
struct Order {
  const float* logits;
  const uint64_t* weights;
  int64_t V;
};
// The rank at which the sum of weights first exceeds `sum`, the sum before it, and what each token of
// that rank weighs. Met by all threads of the block.
struct Found {
  uint32_t rank;
  uint64_t before, weight;
};
__device__ Found find(Order o, uint64_t sum) {
  Found f{0, 0, 0};
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint64_t sums[3] = {};
    for (int64_t v = threadIdx.x; v < o.V; v += blockDim.x) {
      const uint32_t digit = (falling_rank(o.logits[v]) >> shift) - (f.rank << 2);
      if (digit > 2) continue;  // 3, or another prefix
      const uint64_t w = o.weights ? o.weights[v] : 1;
#pragma unroll
      for (unsigned i = 0; i < 3; ++i) sums[i] += digit == i ? w : 0;
    }
    uint32_t digit = 0;
    bool below = true;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint64_t all = block_sum(sums[i]);
      below = below && f.before + all <= sum;
      if (below) f.before += all, ++digit;
    }
    f.rank = f.rank << 2 | digit;
  }
  for (int64_t v = threadIdx.x; v < o.V; v += blockDim.x) {
    if (falling_rank(o.logits[v]) == f.rank) f.weight = o.weights ? o.weights[v] : 1;
  }
  f.weight = block_max(f.weight);
  return f;
}

// The sum of the weights of the first k tokens in order.
__device__ uint64_t sum_of_first(Order o, int64_t k) {
  Found last{~0u, 0, 0};
  if (k < o.V) last = find({o.logits, nullptr, o.V}, static_cast<uint64_t>(k - 1));
  uint64_t sum = 0, own = 0;
  for (int64_t v = threadIdx.x; v < o.V; v += blockDim.x) {
    const uint32_t rank = falling_rank(o.logits[v]);
    if (k == o.V || rank < last.rank) sum += o.weights[v];
    if (rank == last.rank) own = o.weights[v];
  }
  sum = block_sum(sum);
  if (k == o.V) return sum;
  return sum + block_max(own) * (static_cast<uint64_t>(k) - last.before);
}

// One block.
__global__ void draw_kernel(Drawn drawn, Order o, const double* uniform, int64_t k, double top_p) {
  const int step = drawn.step[0];
  uint64_t kept = sum_of_first(o, k);
  if (top_p < 1) {
    const uint64_t least = least_sum(top_p, kept);
    const Found last = find(o, least - 1);
    kept = last.before + ((least - 1 - last.before) / last.weight + 1) * last.weight;
  }
  const uint64_t sum = drawn_sum(uniform[step], kept);
  const Found found = find(o, sum);
  const auto wanted = static_cast<int64_t>((sum - found.before) / found.weight);
  int64_t passed = 0;  // tokens of that rank
  for (int64_t from = 0; from < o.V && passed <= wanted; from += blockDim.x) {
    const int64_t v = from + threadIdx.x;
    const bool same = v < o.V && falling_rank(o.logits[v]) == found.rank;
    const Place place = block_place(same);
    if (same && passed + place.before == wanted) drawn.put(step, v);
    passed += place.all;
  }
}

void sample(Ctx& ctx, Draws d, Tensor logits, Sampling how) {
  CudaCtx& c = cuda(ctx);
  const int64_t V = logits.size();
  LTE_CHECK(logits.dtype == DType::f32, "sample: wants logits of f32");
  LTE_CHECK(V > 0 && V <= kMostVocab, "sample: too many logits, or none");
  const bool greedy = how.temperature <= 0;
  LTE_CHECK(d.uniform || greedy, "sample: wants uniform numbers");
  const Drawn drawn{ptr<int32_t>(d.token), ptr<int32_t>(d.step), ptr<int32_t>(d.tokens)};
  const auto threads = static_cast<unsigned>(std::min<int64_t>(pieces(V, kWarp) * kWarp, 1024));
  uint64_t* weights = greedy ? nullptr : c.workspace<uint64_t>(V + 1);
  float* top = greedy ? nullptr : reinterpret_cast<float*>(weights + V);
  launch(first_kernel, 1, threads, 0, c.stream, drawn, top, ptr<float>(logits), V);
  if (greedy) return;
  each(ctx, V, Weigh{weights, ptr<float>(logits), top, how.temperature});
  const int64_t k = how.top_k > 0 ? std::min<int64_t>(how.top_k, V) : V;
  launch(draw_kernel, 1, threads, 0, c.stream, drawn, Order{ptr<float>(logits), weights, V},
         ptr<double>(d.uniform), k, how.top_p);
}

// == Sums

constexpr int kSumsAtOnce = 64;
struct SumList {
  const void* data[kSumsAtOnce];
  int size[kSumsAtOnce];
  uint64_t lists;  // bit i: data[i] holds i32, else f32
};
// A block a tensor.
__global__ void sums_kernel(double* sums, SumList x) {
  const int i = static_cast<int>(blockIdx.x);
  const bool list = x.lists >> i & 1;
  double sum = 0;
  for (int k = static_cast<int>(threadIdx.x); k < x.size[i]; k += static_cast<int>(blockDim.x)) {
    sum += list ? static_cast<const int32_t*>(x.data[i])[k]
                : static_cast<double>(static_cast<const float*>(x.data[i])[k]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[i] += sum;
}
void sums_add(Ctx& ctx, Tensor sums, std::vector<Tensor> x) {
  for (size_t from = 0; from < x.size(); from += kSumsAtOnce) {
    SumList list{};
    const size_t count = std::min<size_t>(kSumsAtOnce, x.size() - from);
    for (size_t i = 0; i < count; ++i) {
      const Tensor& t = x[from + i];
      LTE_CHECK(t.dtype == DType::f32 || t.dtype == DType::i32, "sums_add: wants f32 or a list");
      list.data[i] = t.data, list.size[i] = t ? static_cast<int>(t.size()) : 0;
      if (t.dtype == DType::i32) list.lists |= uint64_t{1} << i;
    }
    launch(sums_kernel, static_cast<unsigned>(count), 128, 0, cuda(ctx).stream,
           ptr<double>(sums) + from, list);
  }
}

}  // namespace

void fill_cuda_sample(Ops& ops) {
  ops.sample = sample;
  ops.sums_add = sums_add;
}

}  // namespace lte
