// Names the GPU. The operations table has no CUDA fill yet.
#include <cuda_runtime_api.h>

#include "core/gpu.h"

namespace lte {

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
