// The host interface of cuda_runtime_api.h.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "core/check.h"
#include "cuda_runtime_api.h"
#include "fibers.h"

using Queue = std::vector<lte::simt::Work>;

struct SimtGraph {
  Queue work;
};
struct SimtGraphExec {
  Queue work;
};
struct SimtStream {
  std::unique_ptr<SimtGraph> capture;
  bool spoiled = false;  // a refused call inside the capture: the graph is not given out
};
struct SimtEvent {
  std::chrono::steady_clock::time_point at{};
  bool recorded = false;
};

namespace {

struct Allocation {
  size_t bytes;
  cudaMemoryType type;
};

// The state of the one device.
struct Device {
  std::vector<SimtStream*> captured;
  std::map<uintptr_t, Allocation> memory;
  Queue queue;  // put off until the host waits: see simt::submit
  cudaError_t last_error = cudaSuccess;
};
Device& device() {
  static Device* d = new Device;
  return *d;
}

cudaError_t report(cudaError_t e) {
  if (e != cudaSuccess) device().last_error = e;
  return e;
}

// What would wait or allocate is refused while a stream is captured, and spoils the capture.
bool refused() {
  for (SimtStream* s : device().captured) s->spoiled = true;
  return !device().captured.empty();
}

cudaError_t wait() {
  if (refused()) return report(cudaErrorStreamCaptureUnsupported);
  lte::simt::finish();
  return cudaSuccess;
}

cudaError_t allocate(void** p, size_t bytes, cudaMemoryType type) {
  *p = nullptr;
  if (refused()) return report(cudaErrorStreamCaptureUnsupported);
  if (bytes == 0) return cudaSuccess;
  // Each by itself and exactly as long as asked for: AddressSanitizer sees the first byte beyond.
  if (posix_memalign(p, 256, bytes) != 0) return report(cudaErrorMemoryAllocation);
  device().memory[reinterpret_cast<uintptr_t>(*p)] = {bytes, type};
  lte::simt::unset(*p, bytes);
  return cudaSuccess;
}

cudaError_t release(void* p) {
  const cudaError_t error = wait();
  if (error != cudaSuccess || !p) return error;
  if (!device().memory.erase(reinterpret_cast<uintptr_t>(p))) return report(cudaErrorInvalidValue);
  std::free(p);
  return cudaSuccess;
}

// The allocation that holds p; null where there is none (any other host memory).
const std::pair<const uintptr_t, Allocation>* holder(const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  auto next = device().memory.upper_bound(at);
  if (next == device().memory.begin()) return nullptr;
  --next;
  return at < next->first + next->second.bytes ? &*next : nullptr;
}

// False where the range leaves the allocation in which it begins.
bool inside(const void* p, size_t bytes) {
  const auto* h = holder(p);
  return !h || reinterpret_cast<uintptr_t>(p) + bytes <= h->first + h->second.bytes;
}

void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t height) {
  for (size_t i = 0; i < height; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_pitch,
                static_cast<const char*>(from) + i * from_pitch, width);
  }
}

}  // namespace

void lte::simt::submit(cudaStream_t stream, lte::simt::Work work) {
  if (stream && stream->capture) {
    stream->capture->work.push_back(std::move(work));
    return;
  }
  // Work for the legacy stream would wait for the captured one.
  LTE_CHECK(stream || !refused(), "simt: work for the default stream while a stream is captured");
  if (schedule().order == Order::random) {
    device().queue.push_back(std::move(work));
  } else {
    work.run();
  }
}

void lte::simt::finish() {
  const Queue queue = std::exchange(device().queue, {});
  for (size_t i = 0; i < queue.size(); ++i) {
    // Nothing begins before a copy is done; and not two of one kernel, whose static memory is the same.
    const bool early = i + 1 < queue.size() && queue[i + 1].early && queue[i].kernel &&
                       queue[i + 1].kernel != queue[i].kernel && by_chance();
    if (early) begin_before(queue[i].run), ++i;
    queue[i].run();
  }
}

const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
  }
  return "unknown error";
}
const char* cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
cudaError_t cudaGetLastError() { return std::exchange(device().last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return device().last_error; }

// == Device
cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : report(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return report(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "simt");
  p->totalGlobalMem = size_t{1} << 32, p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = 227 * 1024, p->sharedMemPerMultiprocessor = 228 * 1024;
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->multiProcessorCount = 4, p->major = 9, p->minor = 0, p->l2CacheSize = 1 << 20;
  p->regsPerBlock = 65536, p->memoryBusWidth = 64;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr a, int device) {
  cudaDeviceProp p;
  const cudaError_t error = cudaGetDeviceProperties(&p, device);
  if (error != cudaSuccess) return error;
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return wait(); }
cudaError_t cudaDeviceReset() { return wait(); }
cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 13000, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* v) { return *v = 13000, cudaSuccess; }

// == Memory
cudaError_t cudaMalloc(void** p, size_t bytes) { return allocate(p, bytes, cudaMemoryTypeDevice); }
cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned) {
  return allocate(p, bytes, cudaMemoryTypeManaged);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  return allocate(p, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
cudaError_t cudaFree(void* p) { return release(p); }
cudaError_t cudaFreeHost(void* p) { return release(p); }
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = size_t{1} << 32, cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  const auto* h = holder(p);
  *a = {};
  a->type = h ? h->second.type : cudaMemoryTypeUnregistered;
  if (h) a->devicePointer = const_cast<void*>(p);
  if (!h || h->second.type != cudaMemoryTypeDevice) a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  const cudaError_t error = wait();
  if (error != cudaSuccess) return error;
  if (!inside(to, bytes) || !inside(from, bytes)) return report(cudaErrorInvalidValue);
  if (bytes) std::memmove(to, from, bytes);
  return cudaSuccess;
}
// As CUDA does it with host memory that it did not allocate: what is read from it is read at the
// call, and what is written to it is there when the call returns (but for a captured stream).
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (!inside(to, bytes) || !inside(from, bytes)) return report(cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  const bool captured = stream && stream->capture;
  if (!captured && !holder(from)) {
    const auto* begin = static_cast<const unsigned char*>(from);
    lte::simt::submit(stream, [to, copy = std::vector<unsigned char>(begin, begin + bytes)] {
      std::memcpy(to, copy.data(), copy.size());
    });
    return cudaSuccess;
  }
  lte::simt::submit(stream, [=] { std::memmove(to, from, bytes); });
  if (!captured && !holder(to)) lte::simt::finish();
  return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind) {
  const cudaError_t error = wait();
  if (error != cudaSuccess) return error;
  if (width > to_pitch || width > from_pitch) return report(cudaErrorInvalidValue);
  copy_rows(to, to_pitch, from, from_pitch, width, height);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return report(cudaErrorInvalidValue);
  lte::simt::submit(stream, [=] { copy_rows(to, to_pitch, from, from_pitch, width, height); });
  if (!(stream && stream->capture) && !(holder(to) && holder(from))) lte::simt::finish();
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return cudaMemsetAsync(p, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (!inside(p, bytes)) return report(cudaErrorInvalidValue);
  lte::simt::submit(stream, [=] {
    if (bytes) std::memset(p, value, bytes);
  });
  return cudaSuccess;
}

// == Streams and events
cudaError_t cudaStreamCreate(cudaStream_t* s) { return *s = new SimtStream, cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  std::erase(device().captured, s);
  delete s;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (!s || s->capture) return wait();
  lte::simt::finish();  // allowed while another stream is captured
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
  lte::simt::submit(stream, [=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = new SimtEvent, cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
  lte::simt::submit(stream, [e] { e->at = std::chrono::steady_clock::now(), e->recorded = true; });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return wait(); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->recorded || !end->recorded) return report(cudaErrorInvalidValue);
  *ms = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
  return cudaSuccess;
}

// == Graphs
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (!s || s->capture) return report(cudaErrorIllegalState);
  s->capture = std::make_unique<SimtGraph>();
  s->spoiled = false;
  device().captured.push_back(s);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!s || !s->capture) return report(cudaErrorIllegalState);
  std::erase(device().captured, s);
  const std::unique_ptr<SimtGraph> made = std::move(s->capture);
  if (s->spoiled) return report(cudaErrorStreamCaptureUnsupported);
  *graph = new SimtGraph{made->work};
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  *status = !s || !s->capture ? cudaStreamCaptureStatusNone
            : s->spoiled      ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!graph) return report(cudaErrorInvalidValue);
  return *exec = new SimtGraphExec{graph->work}, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (!exec) return report(cudaErrorInvalidValue);
  const Queue& all = exec->work;
  for (const auto& work : all) lte::simt::submit(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete g, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return delete e, cudaSuccess; }

// == Kernels
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute a, int value) {
  const bool ok = a != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= 227 * 1024;
  return ok ? cudaSuccess : report(cudaErrorInvalidValue);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t shared_bytes) {
  if (threads < 1 || threads > 1024) return report(cudaErrorInvalidValue);
  const size_t by_memory = (size_t{228} * 1024) / (shared_bytes + 1024);
  *blocks = static_cast<int>(std::min<size_t>(static_cast<size_t>(2048 / threads), by_memory));
  return cudaSuccess;
}
