// Activations of the feed-forward layer.
#include "activation.h"

namespace lte {
namespace {

template <class T>
struct Activate {
  T* out;
  const T *pre, *up;
  Act kind;
  __device__ void operator()(int64_t i) const {
    const T y = act_value(kind, pre[i]);
    out[i] = up ? y * up[i] : y;
  }
};
void activate(Ctx& ctx, Tensor out, Tensor pre, Tensor up, Act kind) {
  with_type(out, [&]<class T>() {
    each(ctx, out.size(), Activate<T>{ptr<T>(out), ptr<T>(pre), ptr<T>(up), kind});
  });
}

template <class T>
struct ActivateBackward {
  T *dpre, *dup;
  const T *dout, *pre, *up;
  Act kind;
  __device__ void operator()(int64_t i) const {
    const T x = pre[i];
    T g = dout[i];
    if (up) dup[i] = g * act_value(kind, x), g *= up[i];
    dpre[i] = g * act_slope(kind, x);
  }
};
void activate_backward(Ctx& ctx, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up,
                       Act kind) {
  with_type(dout, [&]<class T>() {
    each(ctx, dout.size(),
         ActivateBackward<T>{ptr<T>(dpre), ptr<T>(dup), ptr<T>(dout), ptr<T>(pre), ptr<T>(up),
                             kind});
  });
}

}  // namespace

void fill_cuda_ffn(Ops& ops) {
  ops.activate = activate;
  ops.activate_backward = activate_backward;
}

}  // namespace lte
