// Errors: a failed check throws `Error` with one readable line; the program's main catches it,
// prints it and exits 1. Library code never prints and never exits. Free of fmt, so that .cu files
// may include it.
#pragma once

#include <stdexcept>
#include <string>

namespace lte {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const std::string& message) { throw Error(message); }

}  // namespace lte

// The message is an expression that gives a std::string; it is evaluated only on failure.
#define LTE_CHECK(condition, message)       \
  do {                                      \
    if (!(condition)) ::lte::fail(message); \
  } while (0)
