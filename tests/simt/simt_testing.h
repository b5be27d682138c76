// What the tests of the simulated device share: arrays on the device, and kernels run on them.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace lte {

// An array on the device, exactly as long as asked for.
template <class T>
struct Array {
  T* data = nullptr;
  size_t size = 0;

  explicit Array(size_t n) : size(n) { check_cuda(cudaMalloc(&data, n * sizeof(T)), "cudaMalloc"); }
  explicit Array(const std::vector<T>& from) : Array(from.size()) {
    check_cuda(cudaMemcpy(data, from.data(), size * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(data); }

  std::vector<T> host() const {  // waits
    std::vector<T> to(size);
    check_cuda(cudaMemcpy(to.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return to;
  }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> to(size * sizeof(T));
    check_cuda(cudaMemcpy(to.data(), data, to.size(), cudaMemcpyDeviceToHost), "copy");
    return to;
  }
};

// The message of the error that `work`, or waiting for it, throws; "" if none.
template <class F>
std::string error_of(F work) {
  try {
    work();
    cudaDeviceSynchronize();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// Runs `body` under each of several orders of threads.
template <class F>
void under_all_schedules(F body) {
  const simt::Schedule before = simt::schedule();
  for (const simt::Schedule s : simt::schedules()) {
    SCOPED_TRACE(simt::to_string(s));
    simt::set_schedule(s);
    body();
  }
  simt::set_schedule(before);
}

#define EXPECT_HAS(text, part)                                  \
  do {                                                          \
    const std::string whole_ = (text), part_ = (part);          \
    EXPECT_NE(whole_.find(part_), std::string::npos)            \
        << "'" << whole_ << "' does not say '" << part_ << "'"; \
  } while (0)

}  // namespace lte
