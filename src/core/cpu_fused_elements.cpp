// Element-wise work of the fused variant in one pass over memory: activations by one exponential, experts of
// a few neurons as one short vector each, the regularisers' sums.
#include <array>
#include <limits>

#include "core/cpu_fused.h"

namespace lte::fused {
namespace {

constexpr int64_t kGrain = 16384;

// What the entry is without this variant, for cases that have no kernel here.
Ops plain() {
  Ops ops;
  fill_ffn(ops), fill_experts(ops);
  return ops;
}

void activate(Ctx& ctx, Tensor out, Tensor pre, Tensor up, Act kind) {
  if (kind != Act::gelu_tanh && kind != Act::silu) return plain().activate(ctx, out, pre, up, kind);
  with_type(out, [&]<class T>() {
    const T *x = pre.as<T>(), *u = up ? up.as<T>() : nullptr;
    T* o = out.as<T>();
    const bool gelu = kind == Act::gelu_tanh;
    for_pieces(ctx, out.size(), kGrain, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += kLanes<T>) {
        const int64_t n = end - i;
        Vec<T> y = curve<T>(load_some(x + i, n), gelu).value;
        if (u) y *= load_some(u + i, n);
        store_some<T>(o + i, y, n);
      }
    });
  });
}

void activate_backward(Ctx& ctx, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up,
                       Act kind) {
  if (kind != Act::gelu_tanh && kind != Act::silu)
    return plain().activate_backward(ctx, dpre, dup, dout, pre, up, kind);
  with_type(dout, [&]<class T>() {
    const T *x = pre.as<T>(), *u = up ? up.as<T>() : nullptr, *d = dout.as<T>();
    T *dx = dpre.as<T>(), *du = up ? dup.as<T>() : nullptr;
    const bool gelu = kind == Act::gelu_tanh;
    for_pieces(ctx, dout.size(), kGrain, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += kLanes<T>) {
        const int64_t n = end - i;
        const Curve<T> c = curve<T>(load_some(x + i, n), gelu);
        Vec<T> g = load_some(d + i, n);
        if (u) {
          store_some<T>(du + i, g * c.value, n);
          g *= load_some(u + i, n);
        }
        store_some<T>(dx + i, g * c.slope, n);
      }
    });
  });
}

// One expert of kGroup neurons.
template <class T, int kGroup>
struct Expert {
  typedef T type __attribute__((vector_size(kGroup * sizeof(T)), aligned(alignof(T)), may_alias));
};

// Calls f.operator()<T, G>() where experts of G neurons have a kernel; false where not.
template <class F>
bool with_group(const Tensor& t, int64_t G, F&& f) {
  bool known = true;
  with_type(t, [&]<class T>() {
    if (G == 2) return f.template operator()<T, 2>();
    if (G == 4) return f.template operator()<T, 4>();
    if (G == 8) return f.template operator()<T, 8>();
    if (G == 16) return f.template operator()<T, 16>();
    known = false;
  });
  return known;
}

void scale_experts(Ctx& ctx, Tensor out, Tensor a, Tensor gates) {
  const int64_t G = a.cols() / gates.cols();
  const bool done = with_group(out, G, [&]<class T, int kGroup>() {
    using V = typename Expert<T, kGroup>::type;
    const T* gate = gates.as<T>();
    const auto* x = reinterpret_cast<const V*>(a.as<T>());
    auto* o = reinterpret_cast<V*>(out.as<T>());
    for_pieces(ctx, gates.size(), kGrain / kGroup, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const V g = V{} + gate[i];
        o[i] = g == T(0) ? V{} : x[i] * g;  // 0 times infinity is not 0
      }
    });
  });
  if (!done) plain().scale_experts(ctx, out, a, gates);
}

void scale_experts_backward(Ctx& ctx, Tensor da, Tensor dgates, Tensor dout, Tensor a,
                            Tensor gates) {
  const int64_t G = a.cols() / gates.cols();
  const bool done = with_group(da, G, [&]<class T, int kGroup>() {
    using V = typename Expert<T, kGroup>::type;
    const T* gate = gates.as<T>();
    T* dg = dgates.as<T>();
    const auto *x = reinterpret_cast<const V*>(a.as<T>()),
               *d = reinterpret_cast<const V*>(dout.as<T>());
    auto* o = reinterpret_cast<V*>(da.as<T>());
    for_pieces(ctx, gates.size(), kGrain / kGroup, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const V product = d[i] * x[i];
        T sum = 0;
        for (int j = 0; j < kGroup; ++j) sum += product[j];
        o[i] = d[i] * gate[i];
        dg[i] = sum;
      }
    });
  });
  if (!done) plain().scale_experts_backward(ctx, da, dgates, dout, a, gates);
}

// Sums of gate_loss_add, and the gradient of its terms; V is a double, or a vector of them.
template <class V>
struct GateSum {
  V square{}, separation{}, above{};

  V add(V g, const GateLoss& loss) {
    const double clip = loss.clip > 0 ? loss.clip : std::numeric_limits<double>::infinity();
    const V off = g - loss.tau, term = 1.0 / (off * off + loss.eps);
    const V pull = 2 * loss.separability * off * term * term;
    square += g * g;
    separation += term > clip ? V{} + clip : term;
    above += off > 0.0 ? V{} + 1.0 : V{};
    if (loss.separability == 0) return 2 * loss.efficiency * g;
    return 2 * loss.efficiency * g - (term > clip ? V{} : pull);
  }
};

void gate_loss_add(Ctx& ctx, Tensor dscores, Tensor sums, Tensor scores, GateLoss loss) {
  if (scores.dtype ==
      DType::f64)  // the sums are f64 in any case: only floats are a matter of speed
    return plain().gate_loss_add(ctx, dscores, sums, scores, loss);
  with_type(scores, [&]<class T>() {
    constexpr int L = kLanes<double>;
    using Few = typename Expert<T, L>::type;
    const int64_t pieces = (scores.size() + kGrain - 1) / kGrain;
    std::vector<std::array<double, 3>> part(static_cast<size_t>(pieces));
    const T* score = scores.as<T>();
    T* gradient = dscores ? dscores.as<T>() : nullptr;
    for_pieces(ctx, scores.size(), kGrain, [&](int64_t begin, int64_t end, int) {
      GateSum<Vec<double>> many;
      GateSum<double> one;
      int64_t i = begin;
      for (; i + L <= end; i += L) {
        const Few s = *reinterpret_cast<const Few*>(score + i);
        const Vec<double> d = many.add(__builtin_convertvector(s, Vec<double>), loss);
        if (gradient) {
          *reinterpret_cast<Few*>(gradient + i) += __builtin_convertvector(d, Few);
        }
      }
      for (; i < end; ++i) {
        const double d = one.add(score[i], loss);
        if (gradient) gradient[i] += static_cast<T>(d);
      }
      part[static_cast<size_t>(begin / kGrain)] = {sum_of<double>(many.square) + one.square,
                                                   sum_of<double>(many.separation) + one.separation,
                                                   sum_of<double>(many.above) + one.above};
    });
    double* total = sums.as<double>();
    total[0] = total[1] = total[2] = 0;
    for (const auto& p : part) {
      for (size_t k = 0; k < 3; ++k) total[k] += p[k];
    }
  });
}

}  // namespace

void patch_elements(Ops& ops) {
  ops.activate = activate;
  ops.activate_backward = activate_backward;
  ops.scale_experts = scale_experts;
  ops.scale_experts_backward = scale_experts_backward;
  ops.gate_loss_add = gate_loss_add;
}

}  // namespace lte::fused
