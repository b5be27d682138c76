// The one way in which kernels are launched, and the check of what the CUDA runtime answers. Where
// the sources are compiled for a machine without a GPU (tests/simt), the same call runs the kernel
// there.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <tuple>
#include <utility>

#include "core/check.h"

namespace lte {

// Throws if the runtime did not answer "success".
inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(error));
}

#ifndef LTE_SIMT
// `kernel` with the name that the compiler gave it: how a failed launch says who it was.
inline std::string kernel_name(const void* kernel) {
  const char* name = nullptr;
  return cudaFuncGetName(&name, kernel) == cudaSuccess && name ? name : "?";
}
// Whether kernels may begin early: the device can, and they were compiled for it, like this one. What was compiled
// for an older one waits for nothing.
inline bool takes_early_launches(const void* kernel) {
  static const bool able = [&] {
    int major = 0;
    cudaFuncAttributes of{};
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
           cudaFuncGetAttributes(&of, kernel) == cudaSuccess && major >= 9 && of.ptxVersion >= 90;
  }();
  return able;
}
#endif

// From here on a kernel is said to want more shared memory than 48 KiB, which static memory counts to.
constexpr size_t kAskForShared = 32 * 1024;

// Starts kernel(args...) on `grid` blocks of `block` threads with `shared_bytes` of dynamic shared
// memory each (more than 48 KiB, static memory counted in, are asked for where that may be needed). Every argument is converted to
// the parameter's type and copied. Throws if the launch is refused; what goes wrong inside a kernel
// is seen by the next call that waits.
template <bool kEarly, class... P, class... A>
void launch_as(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
               cudaStream_t stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "launch: one argument for each parameter");
  std::tuple<P...> values(std::forward<A>(args)...);
#ifdef LTE_SIMT
  simt::launch(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
      [kernel, values] { simt::run_thread<kEarly>([&] { std::apply(kernel, values); }); },
      shared_bytes > kAskForShared, kEarly);
#else
  const void* entry = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kAskForShared) {
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.stream = stream, config.attrs = &early;
  config.numAttrs = kEarly && takes_early_launches(entry) ? 1 : 0;
  if (error == cudaSuccess) {
    error = std::apply(
        [&](auto&... value) {
          void* pointers[sizeof...(P) + 1] = {
              const_cast<void*>(static_cast<const void*>(&value))...};
          return cudaLaunchKernelExC(&config, entry, pointers);
        },
        values);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // a refused launch must not be reported a second time
    fail("launch of " + kernel_name(entry) + ": " + cudaGetErrorString(error));
  }
#endif
}
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            A&&... args) {
  launch_as<false>(kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}
// The kernel may begin while the last one still runs, where the device can do that: it calls await_inputs
// (device.h).
template <class... P, class... A>
void launch_early(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, A&&... args) {
  launch_as<true>(kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}

}  // namespace lte
