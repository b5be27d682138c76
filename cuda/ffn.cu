// Activations of the feed-forward layer.
#include "activation.h"

namespace lte {
namespace {

template <class T>
struct Activate {
  T* out;
  const T *pre, *up;
  Act kind;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    Few<kFew, T> y = load_few<kFew>(pre + i);
    for (T& x : y.at) x = act_value(kind, x);
    if (up) {
      const Few<kFew, T> by = load_few<kFew>(up + i);
      for (int j = 0; j < kFew; ++j) y.at[j] *= by.at[j];
    }
    store_few(out + i, y);
  }
};
void activate(Ctx& ctx, Tensor out, Tensor pre, Tensor up, Act kind) {
  with_type(out, [&]<class T>() {
    each_few<T>(ctx, out.size(), aligned16(out.data, pre.data, up.data),
                Activate<T>{ptr<T>(out), ptr<T>(pre), ptr<T>(up), kind});
  });
}

template <class T>
struct ActivateBackward {
  T *dpre, *dup;
  const T *dout, *pre, *up;
  Act kind;
  template <int kFew>
  __device__ void operator()(int64_t i) const {
    const Few<kFew, T> x = load_few<kFew>(pre + i);
    Few<kFew, T> g = load_few<kFew>(dout + i);
    if (up) {
      const Few<kFew, T> by = load_few<kFew>(up + i);
      Few<kFew, T> d;
      for (int j = 0; j < kFew; ++j) {
        d.at[j] = g.at[j] * act_value(kind, x.at[j]), g.at[j] *= by.at[j];
      }
      store_few(dup + i, d);
    }
    for (int j = 0; j < kFew; ++j) g.at[j] *= act_slope(kind, x.at[j]);
    store_few(dpre + i, g);
  }
};
void activate_backward(Ctx& ctx, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up,
                       Act kind) {
  with_type(dout, [&]<class T>() {
    each_few<T>(ctx, dout.size(), aligned16(dpre.data, dup.data, dout.data, pre.data, up.data),
                ActivateBackward<T>{ptr<T>(dpre), ptr<T>(dup), ptr<T>(dout), ptr<T>(pre),
                                    ptr<T>(up), kind});
  });
}

}  // namespace

void fill_cuda_ffn(Ops& ops) {
  ops.activate = activate;
  ops.activate_backward = activate_backward;
}

}  // namespace lte
