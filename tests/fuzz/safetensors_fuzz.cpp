// Any bytes either load or throw Error; what loads can be written, and reads back the same.
#include <cstdlib>
#include <cstring>

#include "io/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

bool same(const lte::Tensor& a, const lte::Tensor& b) {
  return a.dtype == b.dtype && a.rank == b.rank && std::memcmp(a.dim, b.dim, sizeof a.dim) == 0 &&
         std::memcmp(a.data, b.data, a.bytes()) == 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lte::TensorFile file;
  try {
    file = lte::parse_safetensors({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const lte::Error& e) {
    require(std::strchr(e.what(), '\n') == nullptr);
    return 0;
  }
  const std::string bytes = lte::format_safetensors("output", file.tensors, file.metadata);
  const lte::TensorFile again = lte::parse_safetensors(bytes, "output");
  require(again.metadata == file.metadata && again.tensors.size() == file.tensors.size());
  for (const lte::NamedTensor& t : file.tensors)
    require(same(t.tensor, lte::find_tensor(again, t.name)));
  return 0;
}
