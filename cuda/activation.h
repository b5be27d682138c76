// The activations and their slopes, shared by the dense and the gathered FFN.
#pragma once

#include "context.h"

namespace lte {

template <class T>
__device__ __forceinline__ T act_value(Act kind, T x) {
  constexpr T kScale = static_cast<T>(0.7978845608028654), kCubic = static_cast<T>(0.044715);
  switch (kind) {
    case Act::gelu_tanh:
      return T(0.5) * x * (T(1) + tanh_of(kScale * (x + kCubic * x * x * x)));
    case Act::gelu_erf:
      return T(0.5) * x * (T(1) + erf_of(x * static_cast<T>(0.7071067811865476)));
    case Act::relu:
      return x > T(0) ? x : T(0);
    case Act::silu:
      return x / (T(1) + exp_of(-x));
    case Act::tanh:
      return tanh_of(x);
  }
  return x;
}

template <class T>
__device__ __forceinline__ T act_slope(Act kind, T x) {
  constexpr T kScale = static_cast<T>(0.7978845608028654), kCubic = static_cast<T>(0.044715);
  switch (kind) {
    case Act::gelu_tanh: {
      const T t = tanh_of(kScale * (x + kCubic * x * x * x));
      return T(0.5) * (T(1) + t) +
             T(0.5) * x * (T(1) - t * t) * kScale * (T(1) + T(3) * kCubic * x * x);
    }
    case Act::gelu_erf:
      return T(0.5) * (T(1) + erf_of(x * static_cast<T>(0.7071067811865476))) +
             x * static_cast<T>(0.3989422804014327) * exp_of(T(-0.5) * x * x);
    case Act::relu:
      return x > T(0) ? T(1) : T(0);
    case Act::silu: {
      const T s = T(1) / (T(1) + exp_of(-x));
      return s * (T(1) + x * (T(1) - s));
    }
    case Act::tanh: {
      const T t = tanh_of(x);
      return T(1) - t * t;
    }
  }
  return x;
}

}  // namespace lte
