// Opens the backend: stream, cuBLAS, memory that device and host share, the table.
#include <cuda_runtime_api.h>

#include "context.h"
#include "core/gpu.h"

namespace lte {
namespace {

#ifdef LTE_SIMT
constexpr std::string_view kName = "cuda-simt";
#else
constexpr std::string_view kName = "cuda";
#endif

// Managed memory, so that the host code of trainer, scorer and methods reads the same tensors. It is
// brought to the device at once, and comes back there page by page after the host has touched it.
void* make_managed(size_t bytes) {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  LTE_CHECK(bytes <= free,
            std::to_string(bytes) + " bytes were asked for, and of the GPU's " +
                std::to_string(total) + " " + std::to_string(free) +
                " are free: beyond that, every use would move pages to and from the host");
  void* block = nullptr;
  const cudaError_t made = cudaMallocManaged(&block, bytes);
  cudaGetLastError();
  if (made == cudaErrorMemoryAllocation) return nullptr;
  check_cuda(made, "cudaMallocManaged");
#ifndef LTE_SIMT
#if CUDART_VERSION >= 13000
  cudaMemLocation device{};
  device.type = cudaMemLocationTypeDevice, device.id = 0;
  cudaMemAdvise(block, bytes, cudaMemAdviseSetPreferredLocation, device);
  cudaMemPrefetchAsync(block, bytes, device, 0, nullptr);
#else
  cudaMemAdvise(block, bytes, cudaMemAdviseSetPreferredLocation, 0);
  cudaMemPrefetchAsync(block, bytes, 0, nullptr);
#endif
  cudaGetLastError();  // advice that is not taken is no error
#endif
  check_cuda(cudaMemset(block, 0, bytes), "cudaMemset");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return block;
}

void release_managed(void* block) { cudaFree(block); }

void finish(Ctx& ctx) {
  check_cuda(cudaStreamSynchronize(cuda(ctx).stream), "an operation on the GPU failed");
}

}  // namespace

CudaCtx::CudaCtx() {
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
             "cudaDeviceGetAttribute");
  check_blas(cublasCreate(&blas), "cublasCreate");
  check_blas(cublasSetStream(blas, stream), "cublasSetStream");
  grow(blas_space, size_t{32} << 20);  // one of its own, so that graphs can be captured
  check_blas(cublasSetWorkspace(blas, blas_space.data.get(), blas_space.capacity),
             "cublasSetWorkspace");
  grow(scratch, size_t{32} << 20);
  grow(lists, size_t{1} << 20);
}

CudaCtx::~CudaCtx() {
  if (stream) cudaStreamSynchronize(stream);
  if (blas) cublasDestroy(blas);
  for (Buffer* b : {&scratch, &lists, &blas_space, &sweep}) b->data.reset();
  if (stream) cudaStreamDestroy(stream);
}

void CudaCtx::grow(Buffer& b, size_t bytes) {
  if (bytes <= b.capacity) return;
  LTE_CHECK(!recording(*this),
            "a graph is recorded, and an operation wants more scratch than it had before");
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  b = {};
  bytes += bytes / 4;
  void* data = nullptr;
  check_cuda(cudaMalloc(&data, bytes), "cudaMalloc of scratch");
  b = {{static_cast<char*>(data), [](char* p) { cudaFree(p); }}, bytes};
}

bool recording(CudaCtx& c) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(c.stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

bool on_device(const Tensor& t) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, t.data), "cudaPointerGetAttributes");
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

void check_blas(cublasStatus_t status, const char* what) {
  LTE_CHECK(status == CUBLAS_STATUS_SUCCESS,
            std::string(what) + ": cuBLAS status " + std::to_string(static_cast<int>(status)));
}

const int32_t* device_list(CudaCtx& c, const Tensor& list) {
  if (on_device(list)) return ptr<const int32_t>(list);
  LTE_CHECK(!recording(c), "a graph is recorded, and a list lies in the host's memory");
  // Work that reads the last list was enqueued before this copy; pageable memory is read at once.
  c.grow(c.lists, list.bytes());
  check_cuda(cudaMemcpyAsync(c.lists.data.get(), list.data, list.bytes(), cudaMemcpyHostToDevice,
                             c.stream),
             "copying a list to the GPU");
  return reinterpret_cast<const int32_t*>(c.lists.data.get());
}

std::string gpu_missing(std::string_view base) {
  if (base != kName) return std::string(base) + " is not in this program; it has " + kName.data();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(error);
  return count == 0 ? "no GPU" : "";
}

Backend open_cuda(std::string_view base) {
  const std::string missing = gpu_missing(base);
  LTE_CHECK(missing.empty(), "backend " + std::string(base) + ": " + missing);
  Backend b{.name = std::string(base), .ops = {}, .ctx = std::make_shared<CudaCtx>(), .memory = {}};
  b.memory = {make_managed, release_managed};
  b.device = cuda_device();
  b.ops.finish = finish;
  fill_cuda_linear(b.ops);
  fill_cuda_embed(b.ops);
  fill_cuda_norm(b.ops);
  fill_cuda_attention(b.ops);
  fill_cuda_ffn(b.ops);
  fill_cuda_experts(b.ops);
  fill_cuda_gates(b.ops);
  fill_cuda_gathered(b.ops);
  fill_cuda_graph(b.ops);
  fill_cuda_router(b.ops);
  fill_cuda_sample(b.ops);
  fill_cuda_loss(b.ops);
  fill_cuda_grouped(b.ops);
  return b;
}

std::string gpu_name() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("none (") + cudaGetErrorString(error) + ")";
  if (count == 0) return "none (no device)";
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return "none (no device answers)";
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  return std::string(device.name) + ", CUDA " + std::to_string(runtime / 1000) + "." +
         std::to_string(runtime % 1000 / 10);
}

}  // namespace lte
