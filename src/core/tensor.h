// A tensor is a view: non-owning, row-major, passed by value. Free of third-party headers.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>

#include "core/check.h"

namespace lte {

// The upper half of a float: 8 bits of exponent, 7 of fraction. Storage only; arithmetic is float.
struct Bf16 {
  uint16_t bits;
};
// Rounds to nearest, ties to even; NaN stays NaN.
inline Bf16 to_bf16(float value) {
  const auto u = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(u >> 16 | 64)};
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
inline float to_float(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

enum class DType : uint8_t { f32, f64, i32, bf16 };

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, Bf16>) return DType::bf16;
}
constexpr size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::bf16 ? 2 : 4; }
constexpr const char* name_of(DType t) {
  return t == DType::f32 ? "F32" : t == DType::f64 ? "F64" : t == DType::i32 ? "I32" : "BF16";
}

struct Tensor {
  void* data = nullptr;  // null: the tensor is absent (an optional bias, say)
  DType dtype = DType::f32;
  int rank = 0;
  int64_t dim[4] = {1, 1, 1, 1};

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  // All dimensions but the last taken together, and the last one.
  int64_t cols() const { return rank == 0 ? 1 : dim[rank - 1]; }
  int64_t rows() const { return cols() == 0 ? 0 : size() / cols(); }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(dtype); }

  template <class T>
  T* as() const {
    LTE_CHECK(dtype == dtype_of<T>(), std::string("a tensor of ") + name_of(dtype) +
                                          " was read as " + name_of(dtype_of<T>()));
    return static_cast<T*>(data);
  }
};

inline Tensor shape(DType t, std::initializer_list<int64_t> dims) {
  Tensor out;
  out.dtype = t;
  for (int64_t d : dims) out.dim[out.rank++] = d;
  return out;
}

// The i-th slice along the first dimension.
inline Tensor slice(const Tensor& t, int64_t i) {
  Tensor out = t;
  for (int k = 0; k + 1 < t.rank; ++k) out.dim[k] = t.dim[k + 1];
  out.dim[t.rank - 1] = 1;
  out.rank = t.rank - 1;
  if (t.data) out.data = static_cast<char*>(t.data) + static_cast<size_t>(i) * out.bytes();
  return out;
}

// The first n rows of a tensor, the last dimension being the columns.
inline Tensor first_rows(const Tensor& t, int64_t n) {
  Tensor out = shape(t.dtype, {n, t.cols()});
  out.data = t.data;
  return out;
}
// And n rows from `first` on.
inline Tensor some_rows(const Tensor& t, int64_t first, int64_t n) {
  Tensor out = first_rows(t, n);
  out.data = static_cast<std::byte*>(t.data) + first * t.cols() * size_of(t.dtype);
  return out;
}

// Zero-filled, in large pages where it can be; null where there is none (memory.cpp).
void* make_host_memory(size_t bytes);
// Bytes that the system says can still be had without swapping; very many where it does not say.
double free_memory();

// Where tensors lie: host memory, or memory that a GPU shares with the host, which the host may then
// touch whenever Ops::finish has returned and nothing was enqueued since.
struct Memory {
  void* (*make)(size_t bytes) = make_host_memory;  // zero-filled
  void (*release)(void*) = std::free;

  struct Release {
    void (*call)(void*) = nullptr;
    void operator()(void* block) const { call(block); }
  };
};

// A block of memory that tensors are carved from, each on a cache line of its own.
struct Arena {
  Memory where = {};
  std::unique_ptr<void, Memory::Release> block = {};
  size_t capacity = 0, used = 0;

  static constexpr size_t kAlign = 64;
  static size_t padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
  void reserve(size_t bytes) {
    block = {where.make(bytes + kAlign), Memory::Release{where.release}};
    LTE_CHECK(block, "out of memory: " + std::to_string(bytes) + " bytes were asked for");
    capacity = bytes, used = 0;
  }
  std::byte* base() const {
    auto address = reinterpret_cast<uintptr_t>(block.get());
    return static_cast<std::byte*>(block.get()) + (kAlign - address % kAlign) % kAlign;
  }
  void carve(Tensor& t) {
    LTE_CHECK(used + padded(t.bytes()) <= capacity, "arena: reserved too little memory");
    t.data = base() + used;
    used += padded(t.bytes());
  }
};

}  // namespace lte
