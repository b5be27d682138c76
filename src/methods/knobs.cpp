#include "methods/knobs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <limits>
#include <vector>

namespace lte {

Knobs resolve_knobs(std::string_view method, std::span<const KnobRow> rows, const Knobs& set) {
  Knobs knobs;
  std::vector<std::string> known;
  for (const KnobRow& row : rows) knobs[row.name] = row.value, known.push_back(row.name);
  for (const auto& [name, value] : set) {
    LTE_CHECK(knobs.contains(name), fmt::format("method {}: unknown knob '{}'; known: {}", method,
                                                name, fmt::join(known, ", ")));
    knobs[name] = value;
  }
  return knobs;
}

namespace {

// Whether all of the text is a number, which is put into `value`.
bool parse_number(const std::string& text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

double get_number(const Knobs& knobs, const std::string& name, double low, double high) {
  const std::string& text = knobs.at(name);
  double value = 0;
  const bool parsed = parse_number(text, value);
  const std::string upper =
      high == std::numeric_limits<double>::max() ? "" : fmt::format(" to {}", high);
  LTE_CHECK(parsed && value >= low && value <= high,
            fmt::format("knob {}={}: wants a number from {}{}", name, text, low, upper));
  return value;
}

double get_active(const Knobs& k) {
  const std::string& text = k.at("active");
  double value = 0;
  LTE_CHECK(parse_number(text, value) && value > 0 && value <= 1,
            fmt::format("knob active={}: wants a number above 0, at most 1", text));
  return value;
}

int64_t get_whole(const Knobs& knobs, const std::string& name, int64_t low, int64_t high) {
  const std::string& text = knobs.at(name);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LTE_CHECK(
      error == std::errc() && end == text.data() + text.size() && value >= low && value <= high,
      fmt::format("knob {}={}: wants a whole number from {} to {}", name, text, low, high));
  return value;
}

std::string get_choice(const Knobs& knobs, const std::string& name,
                       std::span<const char* const> choices) {
  const std::string& text = knobs.at(name);
  for (const char* choice : choices) {
    if (text == choice) return text;
  }
  fail(fmt::format("knob {}={}: wants one of {}", name, text, fmt::join(choices, ", ")));
}

}  // namespace lte
