// Floats in a memory of one's choice, on a cache line of their own. Where a tensor begins decides which of its elements are
// computed as packets, and so how they round: results that are to be the same bits in every run
// want tensors that begin alike.
#pragma once

#include <cstddef>
#include <vector>

#include "core/tensor.h"

namespace lte {

template <class T>
struct Aligned {
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_copy_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  Memory where;

  Aligned(Memory memory) : where(memory) {}
  // The block that was made stands just before the floats.
  T* allocate(size_t n) {
    void* block = where.make(n * sizeof(T) + 2 * Arena::kAlign);
    LTE_CHECK(block, "out of memory: " + std::to_string(n * sizeof(T)) + " bytes were asked for");
    const auto address = reinterpret_cast<uintptr_t>(block) + sizeof(void*);
    auto* at = reinterpret_cast<void**>(Arena::padded(address));
    at[-1] = block;
    return reinterpret_cast<T*>(at);
  }
  void deallocate(T* p, size_t) { where.release(reinterpret_cast<void**>(p)[-1]); }
  bool operator==(const Aligned& other) const { return where.release == other.where.release; }
};
struct Floats : std::vector<float, Aligned<float>> {
  explicit Floats(Memory where = {}, size_t n = 0) : vector(n, 0.f, Aligned<float>(where)) {}
};

// `memory` as a tensor of that shape, resized to hold it.
inline Tensor view(Floats& memory, std::initializer_list<int64_t> dims) {
  Tensor t = shape(DType::f32, dims);
  memory.resize(static_cast<size_t>(t.size()));
  t.data = memory.data();
  return t;
}

}  // namespace lte
