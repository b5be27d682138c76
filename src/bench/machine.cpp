#include <fmt/format.h>

#include <chrono>
#include <fstream>

#include "bench/measure.h"
#include "core/gpu.h"
#include "core/threads.h"
#include "lte_build.h"

namespace lte {
namespace {

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name"))
      return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

std::string today() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

}  // namespace

std::map<std::string, std::string> describe_machine(int threads) {
  return {{"cpu", cpu_model()},
          {"cores", fmt::format("{}", thread_count(0))},
          {"threads", fmt::format("{}", thread_count(threads))},
          {"compiler", LTE_BUILD_COMPILER},
          {"flags", LTE_BUILD_FLAGS},
          {"build_type", LTE_BUILD_TYPE},
          {"eigen", LTE_BUILD_EIGEN},
          {"revision", LTE_BUILD_REVISION},
          {"suite_version", LTE_BUILD_VERSION},
          {"gpu", gpu_name()},
          {"date", today()}};
}

}  // namespace lte
