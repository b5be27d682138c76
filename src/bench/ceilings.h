// What this machine can do at most, as measured now: what the rates of a run are held against.
#pragma once

#include <span>

#include "core/profile.h"
#include "core/threads.h"

namespace lte {

struct Ceilings {
  double stream_one = 0, stream_all = 0;  // bytes/s read from memory, by one thread and by all
  double gemm_f32 = 0;   // FLOP/s of products of floats: the backend's, or the best of this build
  double gemm_bf16 = 0;  // the same by weights of bf16, or rounding to it; 0: the backend has none
  // Of a device alone, where stream_all is what a kernel reads and products are the vendor's (gemm_f32 with
  // TF32 where the backend computes so); see DeviceRates.
  double copy = 0, gemm_tf32 = 0, clock = 0;
};

inline constexpr int64_t kStreamBytes = int64_t{512} << 20;  // beyond every cache
// Of the square product; rows of a power of two would meet in the same sets of a cache.
inline constexpr int64_t kGemmSide = 1000;

// Numbers to read, all 1, in memory like that of weights: with large pages where the system has them.
struct StreamBlock {
  Arena memory;
  std::span<const uint64_t> numbers;

  explicit StreamBlock(int64_t bytes = kStreamBytes);
};

// Bytes/s of one pass over the block: every thread reads one contiguous piece of it.
double stream_rate(ThreadPool&, const StreamBlock&);

// Seconds of one product on operands that are made once: out[m,n] = x[m,k] w[n,k]', or w[k,n] where it is
// not `transposed`, the form that libraries are fastest in.
struct GemmProbe {
  Tensor out, x, w;
  bool transposed;
  Arena memory;

  GemmProbe(const Backend&, int64_t m, int64_t n, int64_t k, DType weights, bool transposed);
  double seconds(Backend&, double (*now)() = wall_seconds);
};
// Whether the backend multiplies floats by weights of bf16, and rightly.
bool has_bf16(Backend&);

// The best of `passes`, so that a ceiling is one: other work on the machine only lowers a rate.
Ceilings measure_ceilings(Backend&, int threads, const StreamBlock&, int passes = 3);

inline constexpr size_t kDeviceBytes = size_t{1} << 30;  // beyond every L2 cache
inline constexpr int kDeviceSide = 8192;
// The same of a backend that has a device.
Ceilings measure_device(Backend&, size_t bytes = kDeviceBytes, int side = kDeviceSide);

}  // namespace lte
