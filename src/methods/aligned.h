// Floats on a cache line of their own. Where a tensor begins decides which of its elements are
// computed as packets, and so how they round: results that are to be the same bits in every run
// want tensors that begin alike.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "core/tensor.h"

namespace lte {

template <class T>
struct Aligned {
  using value_type = T;
  static constexpr std::align_val_t kAlign{Arena::kAlign};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlign)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlign); }
  bool operator==(const Aligned&) const = default;
};
using Floats = std::vector<float, Aligned<float>>;

// `memory` as a tensor of that shape, resized to hold it.
inline Tensor view(Floats& memory, std::initializer_list<int64_t> dims) {
  Tensor t = shape(DType::f32, dims);
  memory.resize(static_cast<size_t>(t.size()));
  t.data = memory.data();
  return t;
}

}  // namespace lte
