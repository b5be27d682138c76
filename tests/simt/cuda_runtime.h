// The parts of the CUDA programming model that the kernels use, as plain C++: vector types,
// barriers, warp functions, atomics and mathematical functions. See simt.h.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdio>
#include <cstring>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

constexpr int warpSize = 32;

// == Vector types
#define LTE_SIMT_VECTOR(T, name)                                     \
  struct alignas(2 * sizeof(T)) name##2 {                            \
    T x, y;                                                          \
  };                                                                 \
  struct name##3 {                                                   \
    T x, y, z;                                                       \
  };                                                                 \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 {       \
    T x, y, z, w;                                                    \
  };                                                                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
LTE_SIMT_VECTOR(float, float)
LTE_SIMT_VECTOR(double, double)
LTE_SIMT_VECTOR(int, int)
LTE_SIMT_VECTOR(short, short)
LTE_SIMT_VECTOR(unsigned short, ushort)
LTE_SIMT_VECTOR(signed char, char)
LTE_SIMT_VECTOR(unsigned char, uchar)
LTE_SIMT_VECTOR(long long, longlong)
LTE_SIMT_VECTOR(unsigned long long, ulonglong)
#undef LTE_SIMT_VECTOR
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#include "simt_math.h"
#include "simt_warp.h"

// == Barriers and fences
inline void __syncthreads(lte::simt::Site site = lte::simt::Site::here()) {
  lte::simt::barrier("__syncthreads", site, false);
}
inline int __syncthreads_count(int predicate, lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::barrier("__syncthreads_count", site, predicate != 0);
}
inline int __syncthreads_or(int predicate, lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::barrier("__syncthreads_or", site, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate, lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::barrier("__syncthreads_and", site, predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { lte::simt::yield(); }
[[noreturn]] inline void __trap() { lte::simt::fault("__trap"); }

// == Atomics: plain, for one thread runs at a time. Each gives the old value.
template <class T>
T atomicExch(T* p, T value) {
  return std::exchange(*p, value);
}
template <class T>
T atomicCAS(T* p, T compare, T value) {
  const T old = *p;
  if (old == compare) *p = value;
  if (old != compare) lte::simt::yield();  // a loop that waits for another thread must let it run
  return old;
}
#define LTE_SIMT_ATOMIC(T) \
  inline T atomicAdd(T* p, T x) { return std::exchange(*p, static_cast<T>(*p + x)); }
LTE_SIMT_ATOMIC(int)
LTE_SIMT_ATOMIC(unsigned)
LTE_SIMT_ATOMIC(unsigned long long)
LTE_SIMT_ATOMIC(float)
LTE_SIMT_ATOMIC(double)
#undef LTE_SIMT_ATOMIC
#define LTE_SIMT_ATOMIC(T)                                                            \
  inline T atomicMax(T* p, T x) { return std::exchange(*p, *p < x ? x : *p); }        \
  inline T atomicMin(T* p, T x) { return std::exchange(*p, x < *p ? x : *p); }        \
  inline T atomicAnd(T* p, T x) { return std::exchange(*p, static_cast<T>(*p & x)); } \
  inline T atomicOr(T* p, T x) { return std::exchange(*p, static_cast<T>(*p | x)); }  \
  inline T atomicXor(T* p, T x) { return std::exchange(*p, static_cast<T>(*p ^ x)); }
LTE_SIMT_ATOMIC(int)
LTE_SIMT_ATOMIC(unsigned)
LTE_SIMT_ATOMIC(long long)
LTE_SIMT_ATOMIC(unsigned long long)
#undef LTE_SIMT_ATOMIC
inline int atomicSub(int* p, int x) { return atomicAdd(p, -x); }
inline unsigned atomicSub(unsigned* p, unsigned x) { return atomicAdd(p, 0u - x); }
inline unsigned atomicInc(unsigned* p, unsigned top) {
  return std::exchange(*p, *p >= top ? 0 : *p + 1);
}

// == Loads and stores that name a cache: plain here
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stwt(T* p, T value) {
  *p = value;
}
