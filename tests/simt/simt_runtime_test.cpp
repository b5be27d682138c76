// The host side of the simulated device: memory, streams, events, graphs.
#include <cstring>

#include "core/gpu.h"
#include "simt_testing.h"

namespace lte {
namespace {

__global__ void add_to(int* x, int by) { x[threadIdx.x] += by; }
__global__ void double_it(int* x) { x[threadIdx.x] *= 2; }

struct Stream {
  cudaStream_t get = nullptr;
  Stream() { check_cuda(cudaStreamCreateWithFlags(&get, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(get); }
};

TEST(SimtRuntime, NamesItself) {
  EXPECT_EQ(gpu_name(), "simt, CUDA 13.0");  // cuda/device.cu, as it stands
  cudaDeviceProp p;
  EXPECT_EQ(cudaGetDeviceProperties(&p, 0), cudaSuccess);
  EXPECT_STREQ(p.name, "simt");
  EXPECT_EQ(cudaGetDeviceProperties(&p, 1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

// More than the device has is refused at once, and says what it has.
TEST(SimtRuntime, MemoryBeyondTheDeviceIsAnError) {
  const Memory memory = open_cuda("cuda-simt").memory;
  void* block = memory.make(64);
  ASSERT_NE(block, nullptr);
  memory.release(block);
  const std::string error = error_of([&] { memory.make((size_t{1} << 32) + 1); });
  EXPECT_HAS(error, "4294967297 bytes were asked for");
  EXPECT_HAS(error, "4294967296");
}

TEST(SimtRuntime, CopiesAndFills) {
  Array<unsigned char> a(10);
  check_cuda(cudaMemset(a.data, 7, 10), "memset");
  check_cuda(cudaMemset(a.data + 2, 9, 3), "memset");
  EXPECT_EQ(a.host(), (std::vector<unsigned char>{7, 7, 9, 9, 9, 7, 7, 7, 7, 7}));
  EXPECT_EQ(cudaMemset(a.data + 2, 9, 9), cudaErrorInvalidValue);  // leaves its allocation
  unsigned char host[16] = {};
  EXPECT_EQ(cudaMemcpy(host, a.data, 11, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  check_cuda(cudaMemcpy2D(host, 4, a.data, 5, 2, 2, cudaMemcpyDefault), "2D");
  EXPECT_TRUE(host[0] == 7 && host[1] == 7 && host[4] == 7 && host[5] == 7 && host[2] == 0);
  int local = 0;
  EXPECT_EQ(cudaFree(&local), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

TEST(SimtRuntime, PointersTellWhereTheyPoint) {
  Array<int> a(4);
  int local = 0;
  cudaPointerAttributes at;
  EXPECT_EQ(cudaPointerGetAttributes(&at, a.data + 3), cudaSuccess);
  EXPECT_EQ(at.type, cudaMemoryTypeDevice);
  EXPECT_EQ(cudaPointerGetAttributes(&at, a.data + 4), cudaSuccess);
  EXPECT_EQ(at.type, cudaMemoryTypeUnregistered);
  EXPECT_EQ(cudaPointerGetAttributes(&at, &local), cudaSuccess);
  EXPECT_EQ(at.type, cudaMemoryTypeUnregistered);
}

TEST(SimtRuntime, AStreamsWorkIsDoneInOrderWhenTheHostHasWaited) {
  under_all_schedules([] {
    Stream s;
    Array<int> x(8);
    int* read = nullptr;
    check_cuda(cudaMallocHost(&read, 8 * sizeof(int)), "pinned");
    {
      const std::vector<int> gone(8, 5);  // read at the call: pageable
      cudaMemcpyAsync(x.data, gone.data(), 32, cudaMemcpyHostToDevice, s.get);
    }
    launch(double_it, 1, 8, 0, s.get, x.data);
    launch(add_to, 1, 8, 0, s.get, x.data, 1);
    cudaMemsetAsync(x.data, 0, 4, s.get);
    cudaMemcpyAsync(read, x.data, 32, cudaMemcpyDeviceToHost, s.get);
    cudaStreamSynchronize(s.get);
    EXPECT_EQ(read[0], 0);
    EXPECT_EQ(read[7], 11);
    int pageable = -1;  // there when the call returns
    launch(add_to, 1, 8, 0, s.get, x.data, 3);
    cudaMemcpyAsync(&pageable, x.data + 7, 4, cudaMemcpyDeviceToHost, s.get);
    EXPECT_EQ(pageable, 14);
    cudaFreeHost(read);
  });
}

TEST(SimtRuntime, EventsTellTimeBetweenPlacesOfAStream) {
  under_all_schedules([] {
    Stream s;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    float ms = -1;
    EXPECT_EQ(cudaEventElapsedTime(&ms, begin, end), cudaErrorInvalidValue);  // not recorded
    Array<int> x(std::vector<int>(1024, 0));
    cudaEventRecord(begin, s.get);
    for (int i = 0; i < 20; ++i) launch(add_to, 1, 1024, 0, s.get, x.data, 1);
    cudaEventRecord(end, s.get);
    cudaEventSynchronize(end);
    EXPECT_EQ(cudaEventElapsedTime(&ms, begin, end), cudaSuccess);
    EXPECT_GT(ms, 0);
    cudaEventDestroy(begin), cudaEventDestroy(end);
  });
}

TEST(SimtRuntime, AGraphReplaysWhatWasCaptured) {
  under_all_schedules([] {
    Stream s;
    Array<int> x(std::vector<int>(8, 1)), y(std::vector<int>(8, 0));
    int by = 3;
    check_cuda(cudaStreamBeginCapture(s.get, cudaStreamCaptureModeGlobal), "begin");
    launch(add_to, 1, 8, 0, s.get, x.data, by);
    launch(double_it, 1, 8, 0, s.get, x.data);
    cudaMemcpyAsync(y.data, x.data, 32, cudaMemcpyDeviceToDevice, s.get);
    cudaMemsetAsync(y.data, 0, 4, s.get);
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(s.get, &graph), "end");
    by = 1000;                                    // arguments were copied
    EXPECT_EQ(x.host(), std::vector<int>(8, 1));  // nothing has run
    cudaGraphExec_t exec = nullptr;
    check_cuda(cudaGraphInstantiate(&exec, graph), "instantiate");
    check_cuda(cudaGraphDestroy(graph), "destroy");
    for (int i = 0; i < 3; ++i) check_cuda(cudaGraphLaunch(exec, s.get), "launch");
    check_cuda(cudaStreamSynchronize(s.get), "wait");
    EXPECT_EQ(x.host(), std::vector<int>(8, ((1 + 3) * 2 + 3) * 4 + 6));
    EXPECT_EQ(y.host()[0], 0);
    EXPECT_EQ(y.host()[1], x.host()[1]);
    cudaGraphExecDestroy(exec);
  });
}

TEST(SimtRuntime, WhatWaitsOrAllocatesSpoilsACapture) {
  const auto spoils = [](auto call) {
    Stream s;
    Array<int> x(8);
    EXPECT_EQ(cudaStreamBeginCapture(s.get, cudaStreamCaptureModeGlobal), cudaSuccess);
    launch(add_to, 1, 8, 0, s.get, x.data, 1);
    const bool refused = call(s.get, x.data) == cudaErrorStreamCaptureUnsupported;
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(s.get, &status);
    cudaGraph_t graph = nullptr;
    const bool ended = cudaStreamEndCapture(s.get, &graph) == cudaSuccess;
    cudaGraphDestroy(graph);
    cudaGetLastError();
    EXPECT_EQ(refused, !ended);
    EXPECT_EQ(refused, status == cudaStreamCaptureStatusInvalidated);
    return refused;
  };
  void* p = nullptr;
  int host = 0;
  EXPECT_TRUE(spoils([&](cudaStream_t, int*) { return cudaMalloc(&p, 4); }));
  EXPECT_TRUE(spoils([&](cudaStream_t s, int*) { return cudaStreamSynchronize(s); }));
  EXPECT_TRUE(spoils([&](cudaStream_t, int*) { return cudaDeviceSynchronize(); }));
  EXPECT_TRUE(spoils(
      [&](cudaStream_t, int* x) { return cudaMemcpy(&host, x, 4, cudaMemcpyDeviceToHost); }));
  EXPECT_FALSE(spoils([&](cudaStream_t s, int* x) { return cudaMemsetAsync(x, 0, 4, s); }));
}

TEST(SimtRuntime, AnErrorInAKernelReachesTheHostThatWaits) {
  under_all_schedules([] {
    Stream s;
    EXPECT_HAS(error_of([&] {
                 launch(
                     +[] { __trap(); }, 1, 1, 0, s.get);
               }),
               "__trap");
    Array<int> x(std::vector<int>(8, 1));
    launch(double_it, 1, 8, 0, s.get, x.data);
    EXPECT_EQ(x.host()[0], 2);
  });
}

}  // namespace
}  // namespace lte
