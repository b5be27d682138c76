// Stands in where the build found no CUDA toolkit.
#include "core/gpu.h"

namespace lte {

std::string gpu_name() { return "none (built without CUDA)"; }
std::string gpu_missing(std::string_view) { return "built without CUDA"; }
Backend open_cuda(std::string_view base) {
  fail("backend " + std::string(base) + ": built without CUDA");
}

void (*const kCudaTf32)(Ops&) = nullptr;
void (*const kCudaAtomic)(Ops&) = nullptr;
void (*const kCudaBf16)(Ops&) = nullptr;
void (*const kCudaFused)(Ops&) = nullptr;

}  // namespace lte
