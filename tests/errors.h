// What tests of bad input share.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/check.h"

namespace lte {

// The message of the Error that f throws, which must be one line, or "no error"; anything else that is
// thrown ends the test.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  return "no error";
}

}  // namespace lte
