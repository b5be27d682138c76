// The GPU of this machine, as far as this build can see it. cuda/ fills it in, or gpu_none.cpp where
// no CUDA toolkit was found.
#pragma once

#include <string>
#include <string_view>

#include "core/ops.h"

namespace lte {

// "NVIDIA H200, CUDA 13.0", or "none (REASON)". Never throws.
std::string gpu_name();
// Why backend `base` cannot be opened here; empty if it can. "cuda" is the GPU; "cuda-simt", in test
// programs alone, the same kernels run on the CPU.
std::string gpu_missing(std::string_view base);
// Throws Error with that reason.
Backend open_cuda(std::string_view base);

// What the variants of "cuda" patch (see variants()); null: not in this build.
extern void (*const kCudaTf32)(Ops&);
extern void (*const kCudaAtomic)(Ops&);
extern void (*const kCudaBf16)(Ops&);
extern void (*const kCudaFused)(Ops&);

}  // namespace lte
