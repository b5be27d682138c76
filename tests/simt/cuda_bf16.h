// bf16 (8 exponent bits, 7 of fraction) as CUDA's header has it: converts to and from float,
// rounding to nearest, ties to even; arithmetic rounds after every operation.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
  unsigned short __x;  // the name that CUDA's header uses

  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
  __nv_bfloat16(float x) {
    const unsigned u = __float_as_uint(x);
    __x = static_cast<unsigned short>(
        (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
  // To bf16 at once: from double by way of float would round twice.
  __nv_bfloat16(double x) : __nv_bfloat16(to_odd(x)) {}
  __nv_bfloat16(int x) : __nv_bfloat16(static_cast<double>(x)) {}
  operator float() const { return __uint_as_float(static_cast<unsigned>(__x) << 16); }

 private:
  static float to_odd(double x) {
    const float f = static_cast<float>(x);
    if (static_cast<double>(f) == x || f != f) return f;
    const float toward_zero = fabs(static_cast<double>(f)) > fabs(x) ? nextafterf(f, 0.0f) : f;
    return __uint_as_float(__float_as_uint(toward_zero) | 1u);
  }
};
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }

#define LTE_SIMT_BF16(op, name)                                                      \
  inline __nv_bfloat16 operator op(const __nv_bfloat16& a, const __nv_bfloat16& b) { \
    return static_cast<float>(a) op static_cast<float>(b);                           \
  }                                                                                  \
  inline __nv_bfloat16& operator op##=(__nv_bfloat16& a, const __nv_bfloat16& b) {   \
    return a = a op b;                                                               \
  }                                                                                  \
  inline __nv_bfloat16 name(__nv_bfloat16 a, __nv_bfloat16 b) { return a op b; }     \
  inline __nv_bfloat162 name##2(__nv_bfloat162 a, __nv_bfloat162 b) {                \
    return {a.x op b.x, a.y op b.y};                                                 \
  }
LTE_SIMT_BF16(+, __hadd)
LTE_SIMT_BF16(-, __hsub)
LTE_SIMT_BF16(*, __hmul)
LTE_SIMT_BF16(/, __hdiv)
#undef LTE_SIMT_BF16
inline __nv_bfloat16 operator-(const __nv_bfloat16& a) { return -static_cast<float>(a); }
// One rounding: the product of two bf16 is exact in double, and so is the sum, but for tiny terms.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __nv_bfloat16 __hmax(__nv_bfloat16 a, __nv_bfloat16 b) { return fmaxf(a, b); }
inline __nv_bfloat16 __hmin(__nv_bfloat16 a, __nv_bfloat16 b) { return fminf(a, b); }
inline bool __hisnan(__nv_bfloat16 x) { return (x.__x & 0x7fffu) > 0x7f80u; }
inline __nv_bfloat16 atomicAdd(__nv_bfloat16* p, __nv_bfloat16 x) {
  return std::exchange(*p, *p + x);
}
