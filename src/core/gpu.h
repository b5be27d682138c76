// The GPU of this machine, as far as this build can see it.
#pragma once

#include <string>

namespace lte {

// "NVIDIA H200, CUDA 13.0", or "none (REASON)". Never throws.
std::string gpu_name();

}  // namespace lte
