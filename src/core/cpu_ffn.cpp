// Activations of the feed-forward layer on the CPU.
#include "core/cpu.h"

namespace lte {
namespace {

constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCubic = 0.044715;
constexpr double kInvSqrt2 = 0.7071067811865476, kInvSqrt2Pi = 0.3989422804014327;

// The value and the derivative of an activation, over arrays of a fixed length that stay in
// registers and L1. erf has no packet form in Eigen's core.
template <class T, class X, class Out>
void act_value(Act kind, const X& x, Out&& out) {
  switch (kind) {
    case Act::gelu_tanh:
      out = T(0.5) * x * (T(1) + (T(kGeluScale) * (x + T(kGeluCubic) * x.cube())).tanh());
      return;
    case Act::gelu_erf:
      out = x.unaryExpr([](T v) { return T(0.5) * v * (T(1) + std::erf(v * T(kInvSqrt2))); });
      return;
    case Act::relu:
      out = x.max(T(0));
      return;
    case Act::silu:
      out = x / (T(1) + (-x).exp());
      return;
    case Act::tanh:
      out = x.tanh();
      return;
  }
}

template <class T, class X, class Out>
void act_slope(Act kind, const X& x, Out&& out) {
  switch (kind) {
    case Act::gelu_tanh: {
      out = (T(kGeluScale) * (x + T(kGeluCubic) * x.cube())).tanh();
      out = T(0.5) * (T(1) + out) + T(0.5) * x * (T(1) - out.square()) * T(kGeluScale) *
                                        (T(1) + T(3 * kGeluCubic) * x.square());
      return;
    }
    case Act::gelu_erf:
      out = x.unaryExpr([](T v) {
        return T(0.5) * (T(1) + std::erf(v * T(kInvSqrt2))) +
               v * T(kInvSqrt2Pi) * std::exp(T(-0.5) * v * v);
      });
      return;
    case Act::relu:
      out = (x > T(0)).template cast<T>();
      return;
    case Act::silu: {
      out = T(1) / (T(1) + (-x).exp());
      out = out * (T(1) + x * (T(1) - out));
      return;
    }
    case Act::tanh:
      out = T(1) - x.tanh().square();
      return;
  }
}

constexpr int64_t kBlock = 512;

template <class T>
using Block = Eigen::Array<T, Eigen::Dynamic, 1, Eigen::ColMajor, kBlock, 1>;

void activate(Ctx& ctx, Tensor out, Tensor pre, Tensor up, Act kind) {
  with_type(out, [&]<class T>() {
    for_ranges(ctx, out.size(), 32768, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t size = std::min(kBlock, end - i);
        VecMap<T> o(out.as<T>() + i, size);
        act_value<T>(kind, VecMap<T>(pre.as<T>() + i, size), o);
        if (up) o *= VecMap<T>(up.as<T>() + i, size);
      }
    });
  });
}

void activate_backward(Ctx& ctx, Tensor dpre, Tensor dup, Tensor dout, Tensor pre, Tensor up,
                       Act kind) {
  with_type(dout, [&]<class T>() {
    for_ranges(ctx, dout.size(), 32768, [&](int64_t begin, int64_t end, int) {
      Block<T> work, gradient;
      for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t size = std::min(kBlock, end - i);
        const VecMap<T> x(pre.as<T>() + i, size);
        gradient = VecMap<T>(dout.as<T>() + i, size);
        work.resize(size);
        if (up) {
          act_value<T>(kind, x, work);
          VecMap<T>(dup.as<T>() + i, size) = gradient * work;
          gradient *= VecMap<T>(up.as<T>() + i, size);
        }
        act_slope<T>(kind, x, work);
        VecMap<T>(dpre.as<T>() + i, size) = gradient * work;
      }
    });
  });
}

}  // namespace

// One expert of the gathered FFN applies the same activation to its block.
template <class T>
void activate_block(T* out, const T* pre, const T* up, int64_t size, Act kind) {
  VecMap<T> o(out, size);
  act_value<T>(kind, VecMap<T>(const_cast<T*>(pre), size), o);
  if (up) o *= VecMap<T>(const_cast<T*>(up), size);
}
template void activate_block(float*, const float*, const float*, int64_t, Act);
template void activate_block(double*, const double*, const double*, int64_t, Act);

// value = act(pre), slope = act'(pre).
template <class T>
void curve_block(T* value, T* slope, const T* pre, int64_t size, Act kind) {
  const VecMap<T> x(const_cast<T*>(pre), size);
  act_value<T>(kind, x, VecMap<T>(value, size));
  act_slope<T>(kind, x, VecMap<T>(slope, size));
}
template void curve_block(float*, float*, const float*, int64_t, Act);
template void curve_block(double*, double*, const double*, int64_t, Act);

void fill_ffn(Ops& ops) {
  ops.activate = activate;
  ops.activate_backward = activate_backward;
}

}  // namespace lte
