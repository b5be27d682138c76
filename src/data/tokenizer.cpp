#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "data/bpe.h"

namespace lte {
namespace {

constexpr int kMaxBpe = 65536;

// N of "bpe:N"; 0 for "bytes" and "chars".
int parse_spec(std::string_view spec) {
  if (spec == "bytes" || spec == "chars") return 0;
  int size = 0;
  if (spec.substr(0, 4) == "bpe:") {
    const auto digits = spec.substr(4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
    if (error != std::errc() || end != digits.data() + digits.size()) size = 0;
  }
  LTE_CHECK(size > 256 && size <= kMaxBpe,
            fmt::format("tokenizer \"{}\" is not known: use bytes, chars, or bpe:N with N from 257 "
                        "to {}",
                        spec, kMaxBpe));
  return size;
}

uint32_t code_point(std::string_view character) {
  if (character.size() == 1) return static_cast<unsigned char>(character[0]);
  uint32_t code = static_cast<unsigned char>(character[0]) & (0x7f >> character.size());
  for (char c : character.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 63);
  return code;
}

// Well-formed UTF-8 sorts by bytes as it does by code point.
std::vector<std::string> characters_of(std::string_view text) {
  std::vector<bool> seen(0x110000);
  std::vector<std::string> found;
  for (size_t at = 0; at < text.size();) {
    const auto character = text.substr(at, utf8_length(text, at));
    const uint32_t code = code_point(character);
    if (!seen[code]) found.emplace_back(character);
    seen[code] = true;
    at += character.size();
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<int32_t> encode_chars(const Tokenizer& t, std::string_view text) {
  int32_t ascii[128];
  for (int c = 0; c < 128; ++c) {
    const auto it = t.ids.find(std::string(1, static_cast<char>(c)));
    ascii[c] = it == t.ids.end() ? -1 : it->second;
  }
  std::vector<int32_t> out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const int length = utf8_length(text, at);
    if (length == 0) check_utf8(text, "the text");
    const std::string character(text.substr(at, length));
    int32_t id = -1;
    if (length == 1) {
      id = ascii[static_cast<int>(character[0])];
    } else if (const auto it = t.ids.find(character); it != t.ids.end()) {
      id = it->second;
    }
    LTE_CHECK(
        id >= 0,
        fmt::format("character '{}' (U+{:04X}) at byte {} is not in the vocabulary "
                    "of {} characters; a base with --tokenizer bytes reads all texts",
                    character < " " ? "?" : character, code_point(character), at, t.vocab.size()));
    out.push_back(id);
    at += length;
  }
  return out;
}

void index_vocab(Tokenizer& t) {
  for (size_t i = 0; i < t.vocab.size(); ++i) {
    LTE_CHECK(
        t.ids.try_emplace(t.vocab[i], static_cast<int32_t>(i)).second,
        fmt::format("tokenizer: ids {} and {} stand for the same bytes", t.ids[t.vocab[i]], i));
  }
}

std::string to_hex(std::string_view bytes) {
  std::string hex;
  for (char c : bytes) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return hex;
}

std::string from_hex(const std::string& hex) {
  LTE_CHECK(!hex.empty() && hex.size() % 2 == 0 &&
                hex.find_first_not_of("0123456789abcdef") == std::string::npos,
            fmt::format("tokenizer: \"{}\" is not a token in hexadecimal", hex));
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// The vocabulary must be what its spec says: encode and decode rely on it.
void check_tokenizer(const Tokenizer& t) {
  const int size = parse_spec(t.spec);
  const size_t n = t.vocab.size();
  if (t.spec == "chars") {
    for (const std::string& c : t.vocab) {
      LTE_CHECK(static_cast<size_t>(utf8_length(c, 0)) == c.size(),
                fmt::format("tokenizer: \"{}\" (hexadecimal) is not one character", to_hex(c)));
    }
    LTE_CHECK(n > 0 && t.merges.empty(), "tokenizer: chars needs characters, and no merges");
    return;
  }
  LTE_CHECK(
      n == 256 + t.merges.size() && n <= static_cast<size_t>(std::max(size, 256)),
      fmt::format("tokenizer: {} ids and {} merges do not fit \"{}\"", n, t.merges.size(), t.spec));
  for (size_t i = 0; i < 256; ++i) {
    LTE_CHECK(t.vocab[i] == std::string(1, static_cast<char>(i)),
              fmt::format("tokenizer: id {} must stand for byte {}", i, i));
  }
  for (size_t i = 0; i < t.merges.size(); ++i) {
    const auto [a, b] = t.merges[i];
    const auto limit = static_cast<int32_t>(256 + i);
    LTE_CHECK(a >= 0 && b >= 0 && a < limit && b < limit,
              fmt::format("tokenizer: merge {} joins ids {} and {}; below {} is possible", i, a, b,
                          limit));
    LTE_CHECK(t.vocab[limit] == t.vocab[a] + t.vocab[b],
              fmt::format("tokenizer: id {} is not what its merge makes", limit));
  }
}

}  // namespace

Tokenizer train_tokenizer(std::string_view spec, std::string_view text) {
  const int size = parse_spec(spec);
  Tokenizer t;
  t.spec = spec;
  if (spec == "chars") {
    check_utf8(text, "the training text");
    t.vocab = characters_of(text);
  } else {
    for (int i = 0; i < 256; ++i) t.vocab.emplace_back(1, static_cast<char>(i));
  }
  index_vocab(t);
  if (size > 0) train_bpe(t, text, size);
  return t;
}

std::vector<int32_t> encode(const Tokenizer& t, std::string_view text) {
  if (t.spec == "chars") return encode_chars(t, text);
  if (!t.merges.empty()) return encode_bpe(t, text);
  std::vector<int32_t> out;
  for (char c : text) out.push_back(static_cast<unsigned char>(c));
  return out;
}

std::string decode(const Tokenizer& t, std::span<const int32_t> tokens) {
  std::string text;
  for (int32_t id : tokens) {
    LTE_CHECK(id >= 0 && static_cast<size_t>(id) < t.vocab.size(),
              fmt::format("token id {} is not in the vocabulary of {}", id, t.vocab.size()));
    text += t.vocab[id];
  }
  return text;
}

std::string to_json(const Tokenizer& t) {
  nlohmann::ordered_json json;
  json["spec"] = t.spec;
  json["vocab"] = nlohmann::ordered_json::array();  // tokens are any bytes: in hexadecimal
  for (const std::string& token : t.vocab) json["vocab"].push_back(to_hex(token));
  json["merges"] = t.merges;
  return json.dump();
}

Tokenizer tokenizer_from_json(std::string_view text) {
  Tokenizer t;
  try {
    const auto json = nlohmann::json::parse(text);
    t.spec = json.at("spec").get<std::string>();
    for (const auto& token : json.at("vocab"))
      t.vocab.push_back(from_hex(token.get<std::string>()));
    for (const auto& merge : json.at("merges")) {
      LTE_CHECK(merge.is_array() && merge.size() == 2 && merge[0].is_number_integer() &&
                    merge[1].is_number_integer(),
                "tokenizer: a merge is not a pair of ids");
      t.merges.emplace_back(merge[0].get<int32_t>(), merge[1].get<int32_t>());
    }
  } catch (const nlohmann::json::exception& e) {
    fail(fmt::format("tokenizer: not the expected JSON: {}", e.what()));
  }
  check_tokenizer(t);
  index_vocab(t);
  return t;
}

int utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  if (at >= text.size()) return 0;
  const unsigned a = byte(at), b = byte(at + 1);
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  if (a < 0x80) return 1;
  if (a >= 0xc2 && a <= 0xdf) return continues(at + 1) ? 2 : 0;
  if (a >= 0xe0 && a <= 0xef) {  // no overlong forms, no surrogates
    const bool second = a == 0xe0   ? b >= 0xa0 && b <= 0xbf
                        : a == 0xed ? b >= 0x80 && b <= 0x9f
                                    : continues(at + 1);
    return second && continues(at + 2) ? 3 : 0;
  }
  if (a >= 0xf0 && a <= 0xf4) {  // up to U+10FFFF
    const bool second = a == 0xf0   ? b >= 0x90 && b <= 0xbf
                        : a == 0xf4 ? b >= 0x80 && b <= 0x8f
                                    : continues(at + 1);
    return second && continues(at + 2) && continues(at + 3) ? 4 : 0;
  }
  return 0;
}

void check_utf8(std::string_view text, std::string_view what) {
  for (size_t at = 0; at < text.size();) {
    const int length = utf8_length(text, at);
    LTE_CHECK(length > 0, fmt::format("{}: is not UTF-8 at byte {} (0x{:02x})", what, at,
                                      static_cast<unsigned char>(text[at])));
    at += length;
  }
}

}  // namespace lte
