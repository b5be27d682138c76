// A 64-bit digest of bytes (FNV-1a over 8-byte words, finished by splitmix64): ties a timed run to
// a scored one. Not for security.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/rng.h"

namespace lte {

inline uint64_t digest(const void* data, size_t bytes, uint64_t seed = 0xcbf29ce484222325ull) {
  const auto* p = static_cast<const unsigned char*>(data);
  uint64_t h = seed;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, p + i, bytes - i < 8 ? bytes - i : 8);
    h = (h ^ word) * 0x100000001b3ull;
  }
  return splitmix64(h ^ bytes);
}

}  // namespace lte
