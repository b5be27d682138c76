#include "bench/experiment.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace lte {
namespace {

constexpr std::string_view kMarks = "%/,=:";

// Writes the marks among `which` as %XX.
std::string escape(std::string_view part, std::string_view which = "%/") {
  std::string out;
  for (char c : part) {
    if (which.find(c) == which.npos) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::string unescape(std::string_view part) {
  std::string out;
  for (size_t i = 0; i < part.size(); ++i) {
    unsigned value = 0;
    const char* digits = part.data() + i + 1;
    if (part[i] == '%' && i + 2 < part.size() &&
        std::from_chars(digits, digits + 2, value, 16).ptr == digits + 2) {
      out += static_cast<char>(value), i += 2;
    } else {
      out += part[i];
    }
  }
  return out;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <class T>
T number(std::string_view text, std::string_view what) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LTE_CHECK(error == std::errc() && end == text.data() + text.size(),
            fmt::format("experiment name: {} '{}' is not a number", what, text));
  return value;
}

// "head:key=value,key=value"
Knobs parse_pairs(std::string_view text) {
  Knobs knobs;
  if (text.empty()) return knobs;
  for (std::string_view item : split(text, ',')) {
    const size_t equal = item.find('=');
    LTE_CHECK(equal != item.npos, fmt::format("experiment name: '{}' is not key=value", item));
    knobs[unescape(item.substr(0, equal))] = unescape(item.substr(equal + 1));
  }
  return knobs;
}

BaseSpec parse_base(const Knobs& pairs) {
  BaseSpec b;
  for (const auto& [key, value] : pairs) {
    if (key == "steps") {
      b.steps = number<int64_t>(value, key);
    } else if (key == "batch") {
      b.batch = number<int>(value, key);
    } else if (key == "lr") {
      b.lr = number<double>(value, key);
    } else if (key == "seed") {
      b.seed = number<uint64_t>(value, key);
    } else {
      fail(fmt::format("experiment name: unknown key '{}' of the base", key));
    }
  }
  return b;
}

}  // namespace

std::string name_of(const Experiment& e) {
  std::string method = escape(e.method);
  char mark = ':';
  for (const auto& [key, value] : e.knobs) {
    method += fmt::format("{}{}={}", mark, escape(key, kMarks), escape(value, kMarks));
    mark = ',';
  }
  return fmt::format("{}/{}/{}/base:steps={},batch={},lr={},seed={}/{}/{}/{}/seed{}",
                     escape(e.suite), escape(e.base.model), escape(e.base.dataset), e.base.steps,
                     e.base.batch, e.base.lr, e.base.seed, method, escape(e.backend),
                     name_of(e.shape), e.seed);
}

Experiment parse_name(std::string_view name) {
  const std::vector<std::string_view> parts = split(name, '/');
  LTE_CHECK(parts.size() == 8 && parts[3].starts_with("base:") && parts[7].starts_with("seed"),
            fmt::format("experiment name '{}' is not "
                        "suite/model/dataset/base:../method:knob=value,../backend/shape/seedN",
                        name));
  Experiment e;
  e.suite = unescape(parts[0]);
  e.base = parse_base(parse_pairs(parts[3].substr(5)));
  e.base.model = unescape(parts[1]), e.base.dataset = unescape(parts[2]);
  const size_t colon = std::min(parts[4].find(':'), parts[4].size());
  e.method = unescape(parts[4].substr(0, colon));
  if (colon < parts[4].size()) e.knobs = parse_pairs(parts[4].substr(colon + 1));
  e.backend = unescape(parts[5]);
  e.shape = parse_shape(parts[6]);
  e.seed = number<uint64_t>(parts[7].substr(4), "seed");
  LTE_CHECK(name_of(e) == name,
            fmt::format("experiment name '{}' is not complete and in order; it would be '{}'", name,
                        name_of(e)));
  return e;
}

}  // namespace lte
