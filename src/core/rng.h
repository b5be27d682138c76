// Random numbers that do not depend on the platform's library: splitmix64 as a hash of counters,
// and xoshiro256++ (Blackman and Vigna, 2019) as a stream.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace lte {

constexpr uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// A random 64-bit number that is a pure function of its arguments.
constexpr uint64_t hash64(uint64_t a, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0) {
  return splitmix64(splitmix64(splitmix64(splitmix64(a) ^ b) ^ c) ^ d);
}

struct Rng {
  uint64_t s[4];

  constexpr explicit Rng(uint64_t seed) : s{} {
    for (uint64_t& word : s) word = seed = splitmix64(seed);
  }
  constexpr uint64_t next() {
    auto rotl = [](uint64_t v, int k) { return (v << k) | (v >> (64 - k)); };
    const uint64_t result = rotl(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3], s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
  }
  constexpr double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // [0, 1)
  // Uniform in [0, n), without bias (Lemire, 2019).
  uint64_t below(uint64_t n) {
    for (;;) {
      const auto product = static_cast<unsigned __int128>(next()) * n;
      if (static_cast<uint64_t>(product) >= (0 - n) % n)
        return static_cast<uint64_t>(product >> 64);
    }
  }
  double normal() {  // Box and Muller; the second value is thrown away, so that a draw has no state
    const double u = 1.0 - uniform(), v = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }
};

template <class T>
void shuffle(std::vector<T>& v, Rng& rng) {
  for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[rng.below(i)]);
}

}  // namespace lte
