// Kernels over rows of weights, of floats or bf16, that are read front to back: what few tokens cost
// is the bytes of the weights. One source for AVX-512, AVX2 and 128 bits, chosen at run time
// (Google Highway). Free of Eigen: the kernels' file is compiled for the oldest processor.
//
// Planes. A bf16 row is read as words of two weights, whose halves become floats by a shift and a
// mask. So the vectors that meet it lie in two planes, the even elements, then the odd ones; those
// that meet floats lie in one. A plane is `plane` floats long, zeros beyond the last element, and
// aligned to 64 bytes; never whole pages, for planes that are read side by side at the same place of their
// pages slow each other down (measured: one token on rows of 8 KB in 0.74 of the stream's rate, else at it).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lte::simd {

// Rows of `width` weights, one after another.
struct Rows {
  const void* data;
  bool bf16;
  int64_t width;

  int64_t words() const { return bf16 ? (width + 1) / 2 : width; }  // of 32 bits, a row
  int64_t blocks() const { return (words() + 63) / 64; }  // of 64 words, the last one filled up
  int64_t plane() const { return 64 * blocks() + (blocks() % 16 == 0 ? 256 : 0); }
  int64_t stride() const { return bf16 ? 2 * plane() : plane(); }  // floats of a vector in planes
  int64_t bytes() const { return width * (bf16 ? 2 : 4); }         // of a row
  Rows from(int64_t row) const {
    return {static_cast<const char*>(data) + row * bytes(), bf16, width};
  }
};

// `next`, in both: rows of the same width that the caller reads after these, or null; they are asked for ahead.

// out[n * ld + r] = w[r] . x[n], x[n] in planes                              r < rows, n < tokens
void dots(float* out, int64_t ld, Rows w, int64_t rows, const float* const* x, int64_t tokens,
          const void* next = nullptr);

// y[n] += sum over r of h[n * ld + r] w[r], y[n] in planes, over the words [begin, end) of a row;
// begin and a plane's length are multiples of 64
void add_rows(float* const* y, int64_t tokens, const float* h, int64_t ld, Rows w, int64_t rows,
              int64_t begin, int64_t end, const void* next = nullptr);

// Names of what this build and this processor have, best first ("AVX3", "AVX2", "EMU128"), and a test's
// way to make the kernels use one of them; "" lets the processor choose again. Not while kernels run.
std::vector<std::string> targets();
void use_target(std::string_view name);

}  // namespace lte::simd
