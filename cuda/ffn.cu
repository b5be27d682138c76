// Activations of the feed-forward layer.
#include "activation.h"

namespace lte {
namespace {

// T: what is computed in; S: what is kept.
template <class T, class S>
struct Activate {
  S* out;
  const S *pre, *up;
  Act kind;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, S> y = load_few<kFew>(pre + i), by = {};
    if (up) by = load_few<kFew>(up + i);
    for (int j = 0; j < kFew; ++j) {
      const T value = act_value<T>(kind, to_float(y.at[j]));
      y.at[j] = rounded<S>(up ? value * to_float(by.at[j]) : value);
    }
    store_few(out + i, y);
  }
};
void activate(Ctx& ctx, Tensor out, Tensor pre, Tensor up, Act kind) {
  with_kept(out, [&]<class T, class S>() {
    each_few<S>(ctx, out.size(), aligned16(out.data, pre.data, up.data),
                Activate<T, S>{ptr<S>(out), ptr<S>(pre), ptr<S>(up), kind});
  });
}

template <class T, class S>
struct ActivateBackward {
  S *dpre, *dup;
  const S *dout, *pre, *up;
  Act kind;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    const Few<kFew, S> x = load_few<kFew>(pre + i);
    Few<kFew, S> g = load_few<kFew>(dout + i), by = {}, d;
    if (up) by = load_few<kFew>(up + i);
    for (int j = 0; j < kFew; ++j) {
      const T in = to_float(x.at[j]);
      T slope = to_float(g.at[j]);
      if (up) d.at[j] = rounded<S>(slope * act_value(kind, in)), slope *= to_float(by.at[j]);
      g.at[j] = rounded<S>(slope * act_slope(kind, in));
    }
    if (up) store_few(dup + i, d);
    store_few(dpre + i, g);
  }
};
void activate_backward(Ctx& ctx, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up,
                       Act kind) {
  with_kept(dout, [&]<class T, class S>() {
    each_few<S>(ctx, dout.size(), aligned16(dpre.data, dup.data, dout.data, pre.data, up.data),
                ActivateBackward<T, S>{ptr<S>(dpre), ptr<S>(dup), ptr<S>(dout), ptr<S>(pre),
                                       ptr<S>(up), kind});
  });
}

}  // namespace

void fill_cuda_ffn(Ops& ops) {
  ops.activate = activate;
  ops.activate_backward = activate_backward;
}

}  // namespace lte
