// The operations table: everything the model computes, one entry an operation. A backend fills the
// table; the model is written once on top of it.
//
// Letters: N tokens of a chunk over all sequences (N = B T), B sequences, T tokens of one sequence,
// S length of the key-value cache, D model width, H query heads, K key-value heads, C width of a
// head, F neurons of an FFN, E experts, G neurons of an expert (F = E G), V vocabulary, M any
// width.
//
// Rules: outputs come first; an entry overwrites its outputs unless it is named *_add; outputs may
// not alias inputs unless the entry says so. Tensors of one call share one dtype (f32, or f64 for
// the finite-difference tests), but weights may be bf16 where everything else is f32, if the
// backend has such kernels; tokens, targets and lists are i32. An absent tensor (data ==
// nullptr) means that the term is left out. Every result is the same for any number of threads.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace lte {

// A backend's threads, streams and workspace: each backend derives its own and knows it again.
struct Ctx {};

enum class Act : uint8_t { gelu_tanh, gelu_erf, relu, silu, tanh };
enum class Rule : uint8_t { all, threshold, top_k, cumulative, relative_max };
// What an expert's own activations a[j] are worth, with w[j] = ||down[j,:]||, or 1 without down:
// magnitude: sum |a| w;  norm: sqrt(sum (a w)^2);  positive: sum max(a, 0) (MoEfication).
enum class Measure : uint8_t { magnitude, norm, positive };

// Where a chunk lies: T tokens of each of B sequences, the first at position `pos` of S, or where `at`
// is given at pos + *at, a number in the backend's memory that is read when the work is done: the same
// call then serves every position. Backward passes and stored probabilities want `at` absent.
struct Chunk {
  int64_t B = 1, T = 1, pos = 0;
  const int32_t* at = nullptr;
};
struct HeadShape {
  int64_t H, K, C;
};
struct AdamW {
  double lr, beta1, beta2, eps, decay, grad_scale;
  int64_t step;  // 1 for the first update
};
// Coefficients and shape of the two LTE regularisers (paper, section 4): see gate_loss_add.
struct GateLoss {
  double efficiency = 0,
         separability = 0;              // what a sum over all (token, expert) is multiplied with
  double tau = 0.5, eps = 0, clip = 0;  // clip 0: the separability term of a score is not clipped
};

// How a token is drawn: see Ops::sample.
struct Sampling {
  double temperature = 0;  // 0: greedy
  int top_k = 0;           // 0: all
  double top_p = 1;        // smallest set of tokens that holds this much probability
  uint64_t seed = 0;       // of the uniform numbers
};
// A text that is being drawn: `step` tokens are there, and `token` is the last.
struct Draws {
  Tensor token, step, tokens;  // [1] [1] [n] (i32)
  Tensor uniform;              // [n] (f64), in [0, 1); may be absent where the sampling is greedy
};

// A feed-forward layer's parameters, or their gradients.  up,gate_w,down[F,D] up_bias[F]
struct FfnWeights {
  Tensor up, up_bias, gate_w, down;  // up_bias and gate_w may be absent
};
// Who computes what: gates, and what `route` makes of them.
struct ExpertLists {
  Tensor gates, index, count;  // [N,E] [E,N] [E]
};
// Rows of the open (token, expert) pairs alone: those of an expert's tokens in the order of its list, G wide,
// expert after expert, row i of expert e being row count[0] + .. + count[e-1] + i. Each has room for all, [N,F].
struct PackedRows {
  Tensor up, gate,
      act;  // x . up + up_bias;  x . gate_w, where there is one;  act(up), or act(gate) * up
};

constexpr int64_t kMostKeptColumns = 128;  // see Ops::kept_type

// The arguments of Ops::add_norm, of a norm that is yet to be made.
struct AddNorm {
  Tensor out, stats, sum, a, b, w, bias;
  double eps = 0;
};

struct Ops {
  // Returns when all that was enqueued is done: the host may then read and write tensors. Every
  // other entry may return before its work is done, but takes tokens, targets and numbers at once.
  void (*finish)(Ctx&);
  // Copies a list; one of the two, or both, lie in the backend's memory. `from` is taken at once, and a
  // `to` of the host is there when this returns, as is all that was enqueued before.
  void (*copy_list)(Ctx&, Tensor to, Tensor from);
  // Work that is done again and again; both entries are null where a backend has no graphs. `record`
  // calls `work`, whose operations are not done but become a graph; `replay` enqueues them, with the
  // tensors and numbers that they were given. They must have been done once before, may neither wait
  // nor copy lists, and take tokens from the backend's memory alone.
  std::shared_ptr<void> (*record)(Ctx&, const std::function<void()>& work);
  void (*replay)(Ctx&, void* graph);

  // == Embedding

  // out[n,:] = wte[token[n],:] + wpe[pos + t,:]       out[N,D] tokens[N] wte[V,D] wpe[P,D] or absent
  void (*embed)(Ctx&, Tensor out, Tensor tokens, Tensor wte, Tensor wpe, Chunk);
  // dwte[token[n],:] += dout[n,:];  dwpe[pos + t,:] += dout[n,:]
  void (*embed_backward_add)(Ctx&, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Chunk);

  // == Normalisation

  // LayerNorm (b given): out = (x - mean) rstd w + b;  RMSNorm (b absent): out = x rstd w.
  // stats[N,2] = (mean or 0, rstd), rstd = 1/sqrt(variance or mean square + eps)
  void (*norm)(Ctx&, Tensor out, Tensor stats, Tensor x, Tensor w, Tensor b, double eps);
  // sum = a + b, and out and stats as `norm` of that: add and norm by one entry. Null where a backend has none.
  void (*add_norm)(Ctx&, Tensor out, Tensor stats, Tensor sum, Tensor a, Tensor b, Tensor w,
                   Tensor bias, double eps);
  // dx += ..., dw += ..., db += ...
  void (*norm_backward_add)(Ctx&, Tensor dx, Tensor dw, Tensor db, Tensor dout, Tensor stats,
                            Tensor x, Tensor w);

  // == Linear algebra

  // out = op(a) op(b), op transposing where its flag is set; matrices are rows x last dimension
  void (*gemm)(Ctx&, Tensor out, Tensor a, bool ta, Tensor b, bool tb);
  void (*gemm_add)(Ctx&, Tensor out, Tensor a, bool ta, Tensor b, bool tb);
  // The backward pass of out = x w' (tw) or x w by one entry, as gemm, or gemm_add where add_dx, and gemm_add
  // would do it: dx = or += dout op(w)';  dw += dout' x, or x' dout. Null where that gains nothing.
  void (*linear_backward)(Ctx&, Tensor dx, bool add_dx, Tensor dw, Tensor dout, Tensor x, Tensor w,
                          bool tw);
  // out = x w' + b (tw), or x w + b: gemm and bias_add by one entry. Null where a backend has none.
  // out[N,M] x[N,K] w[M,K], or [K,M] b[M]
  void (*linear)(Ctx&, Tensor out, Tensor x, Tensor w, bool tw, Tensor b);
  // pre = x w' + b and out = act(pre), and the way back of a product of such an out = act(pre): dpre = (dout w')
  // act'(pre) and dw += out' dout. False where the shapes, types or the activation are none for it: nothing
  // is done. Null where a backend has no such kernels.     out,pre[N,F] x[N,K] w[F,K] b[F];  dout[N,D] w[F,D]
  bool (*linear_activate)(Ctx&, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor b, Act);
  bool (*linear_activate_backward)(Ctx&, Tensor dpre, Tensor dw, Tensor dout, Tensor out,
                                   Tensor pre, Tensor w, Act);
  // x[n,:] += b                                                                        x[N,M] b[M]
  void (*bias_add)(Ctx&, Tensor x, Tensor b);
  // db += sum over n of dout[n,:]
  void (*bias_backward_add)(Ctx&, Tensor db, Tensor dout);
  // out = a + b, element by element; out may alias a or b
  void (*add)(Ctx&, Tensor out, Tensor a, Tensor b);
  void (*fill)(Ctx&, Tensor out, double value);
  // sum[1] (f64) = sum of squares of x, taken in pieces of a fixed size
  void (*sum_squares)(Ctx&, Tensor sum, Tensor x);
  // sums[i] += the sum of all of x[i] in double: numbers (f32), a list, or absent        sums (f64)
  void (*sums_add)(Ctx&, Tensor sums, std::vector<Tensor> x);

  // == Attention

  // Rotates the first `heads` heads of every row by its position (Su et al., 2021; half-split form),
  // in place; inverse turns back, which is also the backward pass.               x[N, >= heads C]
  void (*rope)(Ctx&, Tensor x, Chunk, int64_t heads, int64_t C, double theta, bool inverse);
  // Copies the keys and values of qkv into the cache at pos.  qkv[N,(H+2K)C]  k,v[B,K,S,C]
  void (*store_kv)(Ctx&, Tensor k, Tensor v, Tensor qkv, Chunk, HeadShape);
  // Causal attention, query head h reading key-value head h K / H, over positions 0 .. pos+t.
  // out[N,HC];  probs[B,H,T,pos+T] keeps softmax(q k / sqrt(C)) for the backward pass, or is absent
  void (*attention)(Ctx&, Tensor out, Tensor probs, Tensor qkv, Tensor k, Tensor v, Chunk,
                    HeadShape);
  // Of chunks of one token: rope (theta > 0) of all of q and k, store_kv and attention by one entry. qkv is left as it
  // is. Null where a backend has none.
  void (*attend_token)(Ctx&, Tensor out, Tensor qkv, Tensor k, Tensor v, Chunk, HeadShape,
                       double theta);
  // dqkv[N,(H+2K)C] = gradient by q, k and v of a chunk at pos 0 that fills probs[B,H,T,T]; out: what
  // `attention` made
  void (*attention_backward)(Ctx&, Tensor dqkv, Tensor dout, Tensor out, Tensor qkv, Tensor k,
                             Tensor v, Tensor probs, Chunk, HeadShape);
  // Whether both also take probs[B,H,T] of rank 3, log(sum of exp(q k / sqrt(C))) of each row, and find
  // the probabilities again from it: the whole matrix is never written.
  bool (*keeps_row_sums)(Ctx&);
  // In which type training keeps what products, attention and activations alone read: f32, or bf16. These then take
  // bf16 in place of f32: `norm` and `add_norm` for out, `norm_backward_add` for dout; gemm, gemm_add (not out), `linear`
  // and `linear_backward` for out, x, dx and dout; `bias_backward_add` for dout; `rope`, `store_kv`, `attention` with
  // row sums or none, its backward pass, `bias_add` for x, `activate` and its backward pass for all but the sums; `cross_entropy` and
  // `distill_add` for logits and their gradient. Rows of gemm's out and of linear_backward's dout may be longer
  // than their product's, up to a multiple of 8: by zeros. Heads of bf16 have kMostKeptColumns at most.
  DType (*kept_type)(Ctx&);

  // == Feed-forward

  // out = act(pre), and with a second factor (gated FFN) out = act(pre) * up; out may alias pre
  //                                                                                    all [N,F]
  void (*activate)(Ctx&, Tensor out, Tensor pre, Tensor up, Act);
  // dpre = dout * act'(pre) [* up];  dup = dout * act(pre) where up is given; dpre may alias dout
  void (*activate_backward)(Ctx&, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up, Act);

  // == Experts

  // x = 1 / (1 + exp(-x)), in place
  void (*sigmoid)(Ctx&, Tensor x);
  // dz = dscore * score * (1 - score); dz may alias dscore
  void (*sigmoid_backward)(Ctx&, Tensor dz, Tensor dscore, Tensor score);
  // x[n,:] = softmax(x[n,:]), in place
  void (*softmax)(Ctx&, Tensor x);
  // x = |x|, in place
  void (*absolute)(Ctx&, Tensor x);
  // out[n,:] = x[n,:] / ||x[n,:]||, and 0 for a row of zeros                           out,x[N,D]
  void (*unit_rows)(Ctx&, Tensor out, Tensor x);
  // x += std * normal(0, 1), drawn from (seed, place)
  void (*noise_add)(Ctx&, Tensor x, double std, uint64_t seed);
  // scores[n,e] = what expert e's activations are worth   scores[N,E] a[N,F] down[F,D] or absent
  void (*measure)(Ctx&, Tensor scores, Tensor a, Tensor down, Measure);
  // Hard gates: gates[n,e] = 1 where the rule selects expert e for token n, else 0.   scores[N,E]
  // all: every expert; threshold: score > cut (strict); top_k: the cut highest, ties to the lower e;
  // cumulative: the shortest list of highest scores, ties to the lower e, whose sum is at least cut
  // of all scores' sum (scores >= 0); relative_max: score >= cut times the token's highest
  void (*gate)(Ctx&, Tensor gates, Tensor scores, Rule, double cut);
  // gates[n,e] = exp(s[n,e]) / sum of exp(s) over the selected, where gates[n,e] != 0; in place
  // (softmax over the kept logits: Shazeer et al., 2017)                         gates,scores[N,E]
  void (*gate_softmax)(Ctx&, Tensor gates, Tensor scores);
  // dz[n,e] = g[n,e] (dg[n,e] - sum over e' of g[n,e'] dg[n,e']); dz may alias dgates
  void (*gate_softmax_backward)(Ctx&, Tensor dz, Tensor dgates, Tensor gates);
  // Masked execution: out[n,j] = gates[n, j/G] * a[n,j], and exactly 0 where the gate is 0; out may
  // alias a                                                                    a[N,F] gates[N,E]
  void (*scale_experts)(Ctx&, Tensor out, Tensor a, Tensor gates);
  // da = gates * dout (may alias dout);  dgates[n,e] = sum over j in e of dout[n,j] a[n,j]
  void (*scale_experts_backward)(Ctx&, Tensor da, Tensor dgates, Tensor dout, Tensor a,
                                 Tensor gates);
  // Adds to dscores[N,E] the gradient, and writes to sums[3] (f64), over all (token, expert):
  //   sums[0] = sum of G^2;  sums[1] = sum of min(1 / ((G - tau)^2 + eps), clip);
  //   sums[2] = number of G > tau
  // dscores may be absent. The gradient of a clipped term is 0.
  void (*gate_loss_add)(Ctx&, Tensor dscores, Tensor sums, Tensor scores, GateLoss);
  // Compaction: count[e] = number of tokens with gate != 0; index[e, 0..count) = those tokens,
  // ascending                                        index[E,N] count[E] (i32) gates[N,E]
  void (*route)(Ctx&, Tensor index, Tensor count, Tensor gates);
  // A linear router by one entry: scores = 1 / (1 + exp(-(x w' + b))), gates = scores > cut, and the
  // compaction of `route`, as gemm, bias_add, sigmoid, gate and route would do it. False where the
  // shapes are none for it: nothing is done. Null where a backend has no such kernel.
  // x[N,D] w[E,D] b[E] or absent
  bool (*route_linear)(Ctx&, Tensor scores, ExpertLists out, Tensor x, Tensor w, Tensor b,
                       double cut);
  // Gathered execution: out[n,:] = sum over selected e of gates[n,e] * sum over j in e of
  // h[n,j] * down[j,:], with h = act(x . up[j] + up_bias[j]), or act(x . gate_w[j]) * (x . up[j]) with
  // gate_w. Where `known` is given, it is act(x . gate_w[j]), or with up absent h itself.
  // Rows of experts that no token selects are never read.
  // out,x[N,D] up,gate_w,down[F,D] up_bias[F] known[N,F]
  void (*ffn_gathered)(Ctx&, Tensor out, Tensor x, Tensor gates, Tensor index, Tensor count,
                       Tensor known, Tensor up, Tensor up_bias, Tensor gate_w, Tensor down, Act);
  // The same of one token with all experts selected and no gates, as products and `activate` would do it. False where
  // the shapes or types are none for it: nothing is done. Null where a backend has no such kernel.
  bool (*ffn_token)(Ctx&, Tensor out, Tensor x, FfnWeights, Act);
  // add_norm, and `route_linear` or `ffn_token` of what comes out, by one entry. False where shapes or types are none
  // for it: nothing is done. Null where a backend has no such kernels.
  bool (*norm_route_linear)(Ctx&, Tensor scores, ExpertLists out, AddNorm, Tensor w, Tensor b,
                            double cut);
  bool (*norm_ffn_token)(Ctx&, Tensor out, AddNorm, FfnWeights, Act);
  // Gathered training. Both entries are null where a backend has no such kernels, else neither.
  // Forward: out as of ffn_gathered without `known`; writes what its backward pass reads to kept.
  // Sums over experts run in the order of experts.                                      out,x[N,D]
  void (*ffn_train)(Ctx&, Tensor out, PackedRows kept, Tensor x, ExpertLists, FfnWeights, Act);
  // Backward, gates being constants: dx += ..., and d += ... of every matrix that is there, an expert's
  // summed over its own tokens, ascending. Gradients and rows of an expert without tokens are not touched.
  // Overwrites rows of dkept with the gradients by kept.up and kept.gate.              dx,dout[N,D]
  void (*ffn_train_backward_add)(Ctx&, Tensor dx, FfnWeights d, PackedRows dkept, Tensor dout,
                                 PackedRows kept, Tensor x, ExpertLists, FfnWeights, Act);

  // Adds weight * mean over n of (sum |a|)^2 / sum a^2 (Hoyer's sparsity, squared) to the gradient:
  // da += ...; sum[1] (f64) = the mean. Rows of zeros count as 1.                      da,a[N,F]
  void (*hoyer_add)(Ctx&, Tensor da, Tensor sum, Tensor a, double weight);

  // == Sparse inputs (TEAL)

  // out[n,j] = x[n,j] where |x[n,j]| > cut, else 0;  kept[n] = share of the row that is not 0
  //                                                                        out,x[N,D] kept[N]
  void (*keep_large)(Ctx&, Tensor out, Tensor kept, Tensor x, double cut);
  // out[n,:] = sum over j with x[n,j] != 0 of x[n,j] wt[j,:]: rows of wt whose inputs are all 0 are
  // never read                                                       out[N,F] x[N,D] wt[D,F]
  void (*gemm_sparse)(Ctx&, Tensor out, Tensor x, Tensor wt);

  // == Sampling

  // Draws a token of the row logits[V] (f32): with i = step[0], token[0] = tokens[i] = the token, and
  // step[0] = i + 1. Tokens stand in order of falling logit, ties in order of their numbers; NaN
  // counts as -infinity. Temperature 0 takes the first; else the weight of a token is the whole number
  // below 2^43 exp((logit - the highest) / temperature), so that no sum depends on its order. top_k
  // keeps the first k; of these, top_p the fewest whose weight is at least the share top_p (one at
  // least); and the token is the first at which the sum of weights exceeds uniform[i] of the kept sum.
  void (*sample)(Ctx&, Draws, Tensor logits, Sampling);

  // == Loss and update

  // loss[n] = -log softmax(logits[n])[target[n]];  dlogits = scale * (softmax - one hot); both 0 where
  // target < 0; dlogits may be absent or alias logits. Of bf16 (see kept_type) both are rows of whole 16
  // bytes, logits beyond V count nothing and have no gradient    logits,dlogits[N,>=V] loss[N] targets[N]
  void (*cross_entropy)(Ctx&, Tensor loss, Tensor dlogits, Tensor logits, Tensor targets,
                        double scale, int64_t V);
  // Adds w * KL(softmax(teacher) || softmax(logits)) to the gradient: dlogits += w *
  // (softmax(logits) - softmax(teacher)) where target >= 0; dlogits may not alias logits
  void (*distill_add)(Ctx&, Tensor dlogits, Tensor logits, Tensor teacher, Tensor targets,
                      double w);
  // Loshchilov and Hutter, 2019: g = grad_scale grad; m, v moments with bias correction;
  // p -= lr (m / (sqrt(v) + eps) + decay p)
  void (*adamw)(Ctx&, Tensor p, Tensor grad, Tensor m, Tensor v, AdamW);
};

struct Device;  // core/device.h

struct Backend {
  std::string name;
  Ops ops;
  std::shared_ptr<Ctx> ctx;
  Memory memory = {};  // where all tensors that it is given must lie, but tokens and targets
  const Device* device = nullptr;  // what a GPU has beside the operations; null on a CPU
  int threads = 1;                 // of the host, for what is no operation

  void finish() const { ops.finish(*ctx); }
};

// Whether the backend was opened with this variant: has_variant(open_backend("cpu+naive"), "naive").
bool has_variant(const Backend&, std::string_view name);

// Another kernel for one or more entries of a backend: "cpu+naive".
struct Variant {
  const char* backend;
  const char* name;
  const char* about;
  void (*patch)(Ops&);  // null: not in this build
};
std::span<const Variant> variants();
// What "auto" stands for: the backend of this build that trains fastest.
std::string fastest_backend();
// And the one that decodes large models fastest, with weights of floats or of bf16 where it can.
std::string fastest_inference();

// `spec` is a backend with variants, "cpu" or "cpu+naive". threads <= 0: one for each core.
// Throws Error that lists what is known.
Backend open_backend(std::string_view spec, int threads = 0);
// For work that lies better beside a GPU than on it: a CPU's backend itself; of a GPU, "auto" on its host.
Backend on_host(const Backend&, int threads);

}  // namespace lte
