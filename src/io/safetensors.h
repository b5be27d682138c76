// The safetensors format: 8 bytes of little-endian length N, N bytes of JSON that name every
// tensor's dtype, shape and place, then the tensors, row-major and little-endian.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace lte {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// The tensors, in the order of their data, point into `memory`; they live as long as it does.
struct TensorFile {
  std::string path;  // where it came from, for messages
  std::map<std::string, std::string> metadata;
  std::vector<NamedTensor> tensors;
  Arena memory;
};

// Writes the file in one step. The same tensors and metadata give the same bytes, in whatever order
// the tensors come. Throws Error for a name given twice, a reserved name (`__metadata__`), text
// that is not UTF-8, or a tensor without data.
void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata = {});

// Reads a file of F32, F64 and I32 tensors of rank 0 to 4 as they are, bit for bit, and F16 and
// BF16 as F32, which is exact. Throws Error, one line that begins with the path, for a file that
// the format does not allow: every byte of the data belongs to one tensor, and no key comes twice.
TensorFile load_safetensors(const std::string& path);

// The same two without a file system; `path` only opens the messages.
std::string format_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                               const std::map<std::string, std::string>& metadata = {});
TensorFile parse_safetensors(std::string_view bytes, const std::string& path);

// The tensor of that name; throws Error if the file has none.
const Tensor& find_tensor(const TensorFile& file, std::string_view name);

}  // namespace lte
