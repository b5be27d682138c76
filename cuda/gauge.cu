// What programs that time ask of the device: its clock, where its memory lies, and what it reaches at most.
#include <fstream>

#include "context.h"
#include "core/device.h"

namespace lte {
namespace {

constexpr int kPasses = 3;

struct Event {
  cudaEvent_t event = nullptr;
  Event() { check_cuda(cudaEventCreate(&event), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(event, stream), "cudaEventRecord");
  }
};

// A block of the device's own memory.
struct DeviceBlock {
  void* data = nullptr;
  size_t bytes;
  explicit DeviceBlock(size_t n) : bytes(n) {
    check_cuda(cudaMalloc(&data, n), "cudaMalloc of what is measured on");
  }
  ~DeviceBlock() { cudaFree(data); }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
};

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
  return value;
}

// About a microsecond a turn.
__global__ void hold_kernel(int turns) {
  for (int i = 0; i < turns; ++i) __nanosleep(1000);
}
constexpr int kHoldTurns = 100;  // longer than the host takes to enqueue the launches of a layer

double seconds(Ctx& ctx, const std::function<void()>& call, bool cold) {
  CudaCtx& c = cuda(ctx);
  Event begin, end;
  if (cold) {
    const size_t bytes = 2 * static_cast<size_t>(attribute(cudaDevAttrL2CacheSize));
    c.grow(c.sweep, bytes);
    check_cuda(cudaMemsetAsync(c.sweep.data.get(), 0, bytes, c.stream), "cudaMemsetAsync");
  }
  launch(hold_kernel, 1, kWarp, 0, c.stream, kHoldTurns);
  begin.record(c.stream);
  call();
  end.record(c.stream);
  check_cuda(cudaEventSynchronize(end.event), "an operation on the GPU failed");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, begin.event, end.event), "cudaEventElapsedTime");
  return 1e-3 * static_cast<double>(ms);
}

void fetch(Ctx& ctx, const void* data, size_t bytes) {
  cudaPointerAttributes where{};
  check_cuda(cudaPointerGetAttributes(&where, data), "cudaPointerGetAttributes");
  LTE_CHECK(where.type == cudaMemoryTypeManaged || where.type == cudaMemoryTypeDevice,
            "tensors that the device is to be timed on lie in host memory");
  cudaStream_t stream = cuda(ctx).stream;
#ifndef LTE_SIMT
  if (where.type == cudaMemoryTypeManaged) {
#if CUDART_VERSION >= 13000
    cudaMemLocation device{};
    device.type = cudaMemLocationTypeDevice, device.id = 0;
    cudaMemPrefetchAsync(data, bytes, device, 0, stream);
#else
    cudaMemPrefetchAsync(data, bytes, 0, stream);
#endif
    cudaGetLastError();  // where it is not taken, the first use moves the pages
  }
#else
  (void)bytes;
#endif
  check_cuda(cudaStreamSynchronize(stream), "bringing memory to the GPU");
}

void copy(Ctx& ctx, void* to, const void* from, size_t bytes) {
  cudaStream_t stream = cuda(ctx).stream;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(stream), "a copy failed");
}

double free_bytes(Ctx&) {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(free);
}

template <class F>
double best_seconds(Ctx& ctx, F&& call) {
  call();  // the first one also loads code
  double best = 1e30;
  for (int i = 0; i < kPasses; ++i) best = std::min(best, seconds(ctx, call, false));
  return best;
}

// Four pieces of 16 bytes a thread in flight. The sum is written only where it is a number that zeros do not
// give, so that the loads are kept.
__global__ void read_kernel(unsigned* out, const uint4* data, int64_t n) {
  const int64_t stride = threads_of_grid();
  unsigned sum = 0;
  int64_t i = thread_in_grid();
  for (; i + 3 * stride < n; i += 4 * stride) {
    const uint4 a = data[i], b = data[i + stride], c = data[i + 2 * stride],
                d = data[i + 3 * stride];
    sum += (a.x ^ a.y ^ a.z ^ a.w) + (b.x ^ b.y ^ b.z ^ b.w) + (c.x ^ c.y ^ c.z ^ c.w) +
           (d.x ^ d.y ^ d.z ^ d.w);
  }
  for (; i < n; i += stride) {
    const uint4 a = data[i];
    sum += a.x ^ a.y ^ a.z ^ a.w;
  }
  if (sum != 0) atomicAdd(out, sum);
}

// Uniform in [-1, 1): the power that a product draws, and so its clock, depends on its numbers.
template <class T>
struct FillRandom {
  T* out;
  unsigned seed;
  __device__ void operator()(int64_t i) const {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    out[i] = from_float<T>(static_cast<float>(static_cast<int>(x)) * 0x1.0p-31f);
  }
};

template <class T>
double product_rate(Ctx& ctx, int side, cudaDataType type, cublasComputeType_t compute) {
  const int64_t n = int64_t{side} * side;
  const DeviceBlock a(n * sizeof(T)), b(n * sizeof(T)), out(n * sizeof(T));
  each(ctx, n, FillRandom<T>{static_cast<T*>(a.data), 1});
  each(ctx, n, FillRandom<T>{static_cast<T*>(b.data), 2});
  const float one = 1, zero = 0;
  const double t = best_seconds(ctx, [&] {
    check_blas(cublasGemmEx(cuda(ctx).blas, CUBLAS_OP_T, CUBLAS_OP_N, side, side, side, &one,
                            a.data, type, side, b.data, type, side, &zero, out.data, type, side,
                            compute, CUBLAS_GEMM_DEFAULT),
               "cublasGemmEx of a ceiling");
  });
  return 2.0 * static_cast<double>(n) * side / t;
}

#ifndef LTE_SIMT
__global__ void spin_kernel(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
double clock_rate(Ctx& ctx) {
  constexpr long long kCycles = 2'000'000;  // about a millisecond
  const unsigned all = static_cast<unsigned>(attribute(cudaDevAttrMultiProcessorCount));
  return static_cast<double>(kCycles) /
         best_seconds(ctx, [&] { launch(spin_kernel, all, kWarp, 0, cuda(ctx).stream, kCycles); });
}
#else
double clock_rate(Ctx&) { return 0; }
#endif

DeviceRates rates(Ctx& ctx, size_t bytes, int side) {
  DeviceRates r;
  {
    const DeviceBlock from(bytes), to(bytes), sum(sizeof(unsigned));
    cudaStream_t stream = cuda(ctx).stream;
    check_cuda(cudaMemsetAsync(from.data, 0, bytes, stream), "cudaMemsetAsync");
    check_cuda(cudaMemsetAsync(sum.data, 0, sum.bytes, stream), "cudaMemsetAsync");
    const auto n = static_cast<int64_t>(bytes / sizeof(uint4));
    const auto blocks = static_cast<unsigned>(8 * attribute(cudaDevAttrMultiProcessorCount));
    const double all = static_cast<double>(bytes);
    r.read = static_cast<double>(n) * sizeof(uint4) / best_seconds(ctx, [&] {
               launch(read_kernel, blocks, 256, 0, stream, static_cast<unsigned*>(sum.data),
                      static_cast<const uint4*>(from.data), n);
             });
    r.copy =
        2 * all / best_seconds(ctx, [&] {
          check_cuda(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream),
                     "cudaMemcpyAsync");
        });
  }
  r.f32 = product_rate<float>(ctx, side, CUDA_R_32F, CUBLAS_COMPUTE_32F);
  r.tf32 = product_rate<float>(ctx, side, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32);
  r.bf16 = product_rate<bf16>(ctx, side, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
  r.clock = clock_rate(ctx);
  return r;
}

std::map<std::string, std::string> describe() {
  int version = 0;
  check_cuda(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  std::string driver =
      "of CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  std::ifstream file("/proc/driver/nvidia/version");
  if (std::string line; std::getline(file, line)) driver = line;
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {{"gpu_driver", driver},
          {"gpu_multiprocessors", std::to_string(attribute(cudaDevAttrMultiProcessorCount))},
          {"gpu_memory_MiB", std::to_string(total >> 20)},
          {"gpu_l2_KiB", std::to_string(attribute(cudaDevAttrL2CacheSize) >> 10)}};
}

const Device kDevice = {.seconds = seconds,
                        .fetch = fetch,
                        .copy = copy,
                        .free_bytes = free_bytes,
                        .rates = rates,
                        .describe = describe};

}  // namespace

const Device* cuda_device() { return &kDevice; }

}  // namespace lte
