// What kernels use beyond plain CUDA. Everything here also works where the sources are compiled for
// a machine without a GPU (tests/simt), which is why shared memory is asked for by name here.
//
// Rules for kernels: threads do not return before a barrier or a warp function that the others
// meet; blocks are whole warps (a multiple of 32 threads) where a warp function is used.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace lte {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// == Shared memory

// LTE_SHARED(float, tile[32][33]);  declares static shared memory inside a kernel, 16-byte aligned.
#ifdef LTE_SIMT
#define LTE_SHARED(type, declarator) LTE_SIMT_SHARED(type, declarator)
#else
#define LTE_SHARED(type, declarator) __shared__ __align__(16) type declarator
#endif

// The block's dynamic shared memory, as long as the launch said, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef LTE_SIMT
  return static_cast<T*>(simt::dynamic_memory());
#else
  extern __shared__ __align__(16) unsigned char lte_dynamic_shared[];
  return reinterpret_cast<T*>(lte_dynamic_shared);
#endif
}

// == Threads

// The thread's number inside its block, its warp's number and its place in the warp.
__device__ __forceinline__ int thread_rank() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}
__device__ __forceinline__ int warp_of_thread() { return thread_rank() / kWarp; }
__device__ __forceinline__ int lane_of_thread() { return thread_rank() % kWarp; }
__device__ __forceinline__ int threads_of_block() {
  return static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
}

// == Kernels that begin before the last one has ended (sm_90: programmatic dependent launch)

// Until what the stream held before is done and its writes are seen. A kernel that launch_early starts calls it
// first, in every thread, before it reads what others write, writes, or returns.
__device__ __forceinline__ void await_inputs() {
#ifdef LTE_SIMT
  simt::await_inputs();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel of the stream begin once all blocks have come here; it then awaits this one.
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Asks for the 128 bytes around p, which nobody may need: into the L2 cache.
__device__ __forceinline__ void prefetch_l2([[maybe_unused]] const void* p) {
#ifndef LTE_SIMT
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// == Numbers

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ double to_float(double x) { return x; }

// x rounded to T (bf16: to nearest, ties to even).
template <class T>
__device__ __forceinline__ T from_float(float x) {
  return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// A number in the type that sums are taken in, or another, as one of type S.
template <class S, class X>
__device__ __forceinline__ S rounded(X x) {
  if constexpr (std::is_same_v<S, X>) {
    return x;
  } else {
    return from_float<S>(to_float(x));
  }
}

constexpr float kLog2E = 1.4426950408889634f;  // exp(x) = 2^(x kLog2E)
// 2^x by one instruction, within 2^-22 of itself; what is below 2^-126 is 0.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef LTE_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// == 16 bytes in one instruction

// As many T as 16 bytes hold: 4 float, 8 bf16, 2 double.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

// p must be aligned to 16 bytes.
template <class T>
__device__ __forceinline__ Pack<T> load16(const T* p) {
  static_assert(sizeof(Pack<T>) == sizeof(uint4));
#ifdef LTE_SIMT
  simt::check_aligned(p, 16);
#endif
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(p);
  return pack;
}
template <class T>
__device__ __forceinline__ void store16(T* p, const Pack<T>& pack) {
#ifdef LTE_SIMT
  simt::check_aligned(p, 16);
#endif
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&pack);
}
// For memory that nobody writes while the kernel runs and that is read once (weights): through the
// read-only path, not kept in L1. Several of them are on their way together only where no branch lies between
// them and their uses, and where the kernel's __launch_bounds__ leave registers for it: else the compiler moves
// each to its use, and the kernel waits for every one. Look at the machine code (cuobjdump -sass). What is kept over a
// branch or a barrier stays whole, for the compiler keeps each bf16 of a Pack in a register of its own.
// Before await_inputs only weights of bf16 may be loaded: no kernel of ours writes such.
__device__ __forceinline__ uint4 raw16_once(const void* p) {
  uint4 u;
#ifdef LTE_SIMT
  simt::check_aligned(p, 16);
  u = *static_cast<const uint4*>(p);
#else
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w)
               : "l"(p));
#endif
  return u;
}
template <class T>
__device__ __forceinline__ Pack<T> pack_of(const uint4& u) {
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = u;
  return pack;
}
template <class T>
__device__ __forceinline__ Pack<T> load16_once(const T* p) {
  return pack_of<T>(raw16_once(p));
}

// == Sums and maxima; every thread gets the result, the order of additions is fixed

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Met by all threads of a block of whole warps; ends and begins with a barrier, so that a call may
// follow a call.
template <class T>
__device__ __forceinline__ T block_sum(T x) {
  LTE_SHARED(T, partial[kWarp]);
  const int warps = threads_of_block() / kWarp;
  x = warp_sum(x);
  __syncthreads();
  if (lane_of_thread() == 0) partial[warp_of_thread()] = x;
  __syncthreads();
  T sum = partial[0];
  for (int w = 1; w < warps; ++w) sum += partial[w];
  return sum;
}
template <class T>
__device__ __forceinline__ T block_max(T x) {
  LTE_SHARED(T, partial[kWarp]);
  const int warps = threads_of_block() / kWarp;
  x = warp_max(x);
  __syncthreads();
  if (lane_of_thread() == 0) partial[warp_of_thread()] = x;
  __syncthreads();
  T top = partial[0];
  for (int w = 1; w < warps; ++w) top = partial[w] > top ? partial[w] : top;
  return top;
}

}  // namespace lte
