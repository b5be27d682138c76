// Graphs: what an operation or a whole model enqueues, recorded once and launched as one; and lists
// in and out of the GPU's memory.
#include "context.h"

namespace lte {
namespace {

struct Graph {
  cudaGraphExec_t exec = nullptr;
  std::shared_ptr<char> scratch;  // which its kernels have the address of

  Graph() = default;
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

std::shared_ptr<void> record(Ctx& ctx, const std::function<void()>& work) {
  CudaCtx& c = cuda(ctx);
  check_cuda(cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  cudaGraph_t captured = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(c.stream, &captured);
    if (captured) cudaGraphDestroy(captured);
    cudaGetLastError();  // the exception says it
    throw;
  }
  const cudaError_t error = cudaStreamEndCapture(c.stream, &captured);
  if (error != cudaSuccess) cudaGetLastError();
  check_cuda(error, "recording a graph");
  auto graph = std::make_shared<Graph>();
  graph->scratch = c.scratch.data;
  const cudaError_t made = cudaGraphInstantiate(&graph->exec, captured, 0);
  cudaGraphDestroy(captured);
  check_cuda(made, "cudaGraphInstantiate");
  return graph;
}

void replay(Ctx& ctx, void* graph) {
  check_cuda(cudaGraphLaunch(static_cast<Graph*>(graph)->exec, cuda(ctx).stream),
             "cudaGraphLaunch");
}

void copy_list(Ctx& ctx, Tensor to, Tensor from) {
  LTE_CHECK(to.bytes() == from.bytes(), "copy_list: two lengths");
  const cudaStream_t stream = cuda(ctx).stream;
  check_cuda(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyDefault, stream),
             "copying a list");
  if (on_device(to) && on_device(from)) return;
  check_cuda(cudaStreamSynchronize(stream), "an operation on the GPU failed");
}

}  // namespace

void fill_cuda_graph(Ops& ops) {
  ops.record = record;
  ops.replay = replay;
  ops.copy_list = copy_list;
}

}  // namespace lte
