// Stands in where the build found no CUDA toolkit.
#include "core/gpu.h"

namespace lte {

std::string gpu_name() { return "none (built without CUDA)"; }

}  // namespace lte
