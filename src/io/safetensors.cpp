#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "core/files.h"

namespace lte {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the data is copied as it lies in memory");

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference loader's limit
constexpr size_t kMaxRank = 4;
constexpr std::string_view kMetadata = "__metadata__";
constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};
enum Field : size_t { kDtype, kShape, kOffsets };

// Text of a file as one readable piece of a message.
std::string in_quotes(std::string_view text) {
  constexpr size_t kMost = 80;
  const auto replace = nlohmann::json::error_handler_t::replace;
  const std::string shown(text.substr(0, kMost));
  return nlohmann::json(shown).dump(-1, ' ', false, replace) + (text.size() > kMost ? "..." : "");
}

struct Entry {  // a tensor as the header describes it
  std::string name, dtype;
  std::vector<uint64_t> shape, offsets;
  std::array<bool, kFields.size()> has{};
  uint64_t begin() const { return offsets[0]; }
  uint64_t end() const { return offsets[1]; }
};

// Takes the header's JSON event by event (the interface is nlohmann's), because a parsed document
// would no longer show that a key came twice.
struct HeaderReader {
  enum class Place { outside, top, metadata, entry, list };

  const std::string& path;
  std::map<std::string, std::string> metadata;
  std::vector<Entry> entries;
  std::unordered_set<std::string> names;
  std::string last_key;  // at the top, or within the metadata
  Place place = Place::outside;
  Field field = kDtype;

  explicit HeaderReader(const std::string& p) : path(p) {}

  std::string where() const {
    switch (place) {
      case Place::outside:
        return "the header";
      case Place::top:
        return last_key == kMetadata ? last_key : "tensor " + in_quotes(last_key);
      case Place::metadata:
        return fmt::format("{}, key {}", kMetadata, in_quotes(last_key));
      default:
        return fmt::format("tensor {}, {}", in_quotes(entries.back().name), kFields[field]);
    }
  }
  const char* expected() const {
    if (place == Place::outside || place == Place::top) return "an object";
    if (place == Place::list) return "a whole number of 64 bits";
    return place == Place::metadata || field == kDtype ? "a string" : "an array";
  }
  bool unexpected(const char* found) const {
    fail(fmt::format("{}: {}: expected {}, found {}", path, where(), expected(), found));
  }
  bool twice(std::string_view in, std::string_view key) const {
    fail(fmt::format("{}: {}: the key {} comes twice", path, in, in_quotes(key)));
  }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) {
    return unexpected("a number with a fraction, an exponent or too many digits");
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place != Place::list) return unexpected("a number");
    Entry& e = entries.back();
    std::vector<uint64_t>& list = field == kShape ? e.shape : e.offsets;
    LTE_CHECK(field != kShape || list.size() < kMaxRank,
              fmt::format("{}: tensor {} has more than {} dimensions", path, in_quotes(e.name),
                          kMaxRank));
    LTE_CHECK(field != kOffsets || list.size() < 2,
              fmt::format("{}: tensor {} has more than 2 data_offsets", path, in_quotes(e.name)));
    list.push_back(value);
    return true;
  }
  bool string(std::string& value) {
    if (place == Place::metadata) {
      metadata[last_key] = value;
    } else if (place == Place::entry && field == kDtype) {
      entries.back().dtype = value;
    } else {
      return unexpected("a string");
    }
    return true;
  }
  bool start_object(size_t) {
    if (place == Place::outside) {
      place = Place::top;
    } else if (place == Place::top && last_key == kMetadata) {
      place = Place::metadata;
    } else if (place == Place::top) {
      entries.emplace_back().name = last_key;
      place = Place::entry;
    } else {
      return unexpected("an object");
    }
    return true;
  }
  bool key(std::string& value) {
    if (place == Place::entry) return entry_key(value);
    if (place == Place::metadata && metadata.contains(value)) return twice(kMetadata, value);
    if (place == Place::top && !names.insert(value).second) return twice("the header", value);
    last_key = value;
    return true;
  }
  bool entry_key(const std::string& value) {
    Entry& e = entries.back();
    const auto at = std::find(kFields.begin(), kFields.end(), value);
    LTE_CHECK(at != kFields.end(), fmt::format("{}: tensor {}: unknown key {}", path,
                                               in_quotes(e.name), in_quotes(value)));
    field = static_cast<Field>(at - kFields.begin());
    if (e.has[field]) return twice("tensor " + in_quotes(e.name), value);
    return e.has[field] = true;
  }
  bool end_object() {
    if (place == Place::entry) {
      const Entry& e = entries.back();
      for (size_t f = 0; f < kFields.size(); ++f)
        LTE_CHECK(e.has[f],
                  fmt::format("{}: tensor {} has no {}", path, in_quotes(e.name), kFields[f]));
      LTE_CHECK(e.offsets.size() == 2, fmt::format("{}: tensor {} has {} data_offsets instead of 2",
                                                   path, in_quotes(e.name), e.offsets.size()));
    }
    place = place == Place::top ? Place::outside : Place::top;
    return true;
  }
  bool start_array(size_t) {
    if (place != Place::entry || field == kDtype) return unexpected("an array");
    place = Place::list;
    return true;
  }
  bool end_array() {
    place = Place::entry;
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& e) {
    const bool text = std::string_view(e.what()).find("ill-formed UTF-8") != std::string_view::npos;
    fail(fmt::format("{}: the header is not {}, at its byte {}", path, text ? "UTF-8" : "JSON",
                     byte));
  }
};

// The header's text, and the data behind it.
std::pair<std::string_view, std::string_view> split(std::string_view bytes,
                                                    const std::string& path) {
  uint64_t length = 0;
  LTE_CHECK(bytes.size() >= sizeof length,
            fmt::format("{}: truncated: the length of the header takes 8 bytes, the file has {}",
                        path, bytes.size()));
  std::memcpy(&length, bytes.data(), sizeof length);
  bytes.remove_prefix(sizeof length);
  LTE_CHECK(length <= kMaxHeader,
            fmt::format("{}: the header is too large: {} bytes, at most {} are allowed", path,
                        length, kMaxHeader));
  LTE_CHECK(length <= bytes.size(),
            fmt::format("{}: truncated: the header takes {} bytes, the file has {} for it", path,
                        length, bytes.size()));
  const std::string_view header = bytes.substr(0, length);
  LTE_CHECK(header.starts_with('{'), path + ": the header does not begin with {");
  // The JSON parser takes a zero byte for the end of its input.
  const size_t zero = header.find('\0');
  LTE_CHECK(zero == header.npos,
            fmt::format("{}: the header is not JSON, at its byte {}", path, zero + 1));
  return {header, bytes.substr(length)};
}

struct Source {
  DType dtype;   // in memory
  size_t bytes;  // of one element in the file
};

Source source_of(const Entry& e, const std::string& path) {
  for (DType t : {DType::f32, DType::f64, DType::i32})
    if (e.dtype == name_of(t)) return {t, size_of(t)};
  if (e.dtype == "F16" || e.dtype == "BF16") return {DType::f32, 2};
  fail(fmt::format("{}: tensor {} has the dtype {}, known are F32, F64, I32, F16 and BF16", path,
                   in_quotes(e.name), in_quotes(e.dtype)));
}

// The tensor without its data, once its shape is known to agree with its place in the file.
Tensor tensor_of(const Entry& e, const std::string& path) {
  const Source source = source_of(e, path);
  Tensor out = shape(source.dtype, {});
  // A dimension of zero counts as one here, so that no product of some dimensions overflows either.
  int64_t product = static_cast<int64_t>(size_of(source.dtype));
  for (uint64_t d : e.shape) {
    const bool fits = d <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    const auto dim = static_cast<int64_t>(d);
    LTE_CHECK(fits && !__builtin_mul_overflow(product, std::max<int64_t>(dim, 1), &product),
              fmt::format("{}: tensor {}: the shape [{}] is too large", path, in_quotes(e.name),
                          fmt::join(e.shape, ", ")));
    out.dim[out.rank++] = dim;
  }
  const uint64_t needs = static_cast<uint64_t>(out.size()) * source.bytes;
  LTE_CHECK(e.end() - e.begin() == needs,
            fmt::format("{}: tensor {}: {} of shape [{}] takes {} bytes, data_offsets give it {}",
                        path, in_quotes(e.name), e.dtype, fmt::join(e.shape, ", "), needs,
                        e.end() - e.begin()));
  return out;
}

// Puts the entries in the order of their data, which they must fill without a hole or an overlap.
void sort_and_check(std::vector<Entry>& entries, uint64_t data_bytes, const std::string& path) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  uint64_t end = 0;
  for (const Entry& e : entries) {
    LTE_CHECK(e.end() >= e.begin(),
              fmt::format("{}: tensor {} ends at byte {} of the data, before it begins at {}", path,
                          in_quotes(e.name), e.end(), e.begin()));
    LTE_CHECK(e.begin() == end,
              fmt::format("{}: {}: tensor {} begins at byte {} of the data, expected {}", path,
                          e.begin() > end ? "hole" : "overlap", in_quotes(e.name), e.begin(), end));
    end = e.end();
  }
  LTE_CHECK(end == data_bytes,
            fmt::format("{}: {}: the header says {} bytes of data, the file has {}", path,
                        end > data_bytes ? "truncated" : "too long", end, data_bytes));
}

uint32_t f32_bits_of_bf16(uint16_t b) { return static_cast<uint32_t>(b) << 16; }

uint32_t f32_bits_of_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, fraction = h & 0x3ff;
  const uint32_t exponent = (h >> 10) & 0x1f;
  if (exponent == 31) return sign | 0x7f800000 | fraction << 13;  // infinity, NaN
  if (exponent > 0) return sign | (exponent + 112) << 23 | fraction << 13;
  if (fraction == 0) return sign;
  const uint32_t top = std::bit_width(fraction) - 1u;  // subnormal: fraction * 2^-24
  return sign | (top + 103) << 23 | ((fraction << (23 - top)) & 0x7fffff);
}

// Works on bits alone: a register of the floating-point unit might quieten a NaN.
void widen(std::string_view from, uint32_t (*bits_of)(uint16_t), void* to) {
  for (size_t i = 0; i < from.size() / 2; ++i) {
    uint16_t half;
    std::memcpy(&half, from.data() + 2 * i, 2);
    const uint32_t bits = bits_of(half);
    std::memcpy(static_cast<char*>(to) + 4 * i, &bits, 4);
  }
}

// Text as JSON.
std::string json_text(const std::string& text, const std::string& path) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(fmt::format("{}: the text {} is not UTF-8", path, in_quotes(text)));
  }
}

// What the format asks for: tensors in the order of the reference writer, largest alignment first,
// then F32 before I32, then by name.
std::vector<const NamedTensor*> in_order(std::span<const NamedTensor> tensors,
                                         const std::string& path) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) {
    LTE_CHECK(t.name != kMetadata, fmt::format("{}: no tensor may be named {}", path, kMetadata));
    LTE_CHECK(t.tensor || t.tensor.size() == 0,
              fmt::format("{}: tensor {} has no data", path, in_quotes(t.name)));
    order.push_back(&t);
  }
  const auto rank = [](DType t) {
    return t == DType::f64 ? 0 : t == DType::f32 ? 1 : t == DType::i32 ? 2 : 3;
  };
  std::sort(order.begin(), order.end(), [&](const NamedTensor* a, const NamedTensor* b) {
    return std::tuple(rank(a->tensor.dtype), std::string_view(a->name)) <
           std::tuple(rank(b->tensor.dtype), std::string_view(b->name));
  });
  return order;
}

}  // namespace

std::string format_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                               const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> items;  // of the header's object
  std::vector<std::string> pairs;
  for (const auto& [key, value] : metadata)
    pairs.push_back(json_text(key, path) + ":" + json_text(value, path));
  if (!pairs.empty())
    items.push_back(fmt::format("\"{}\":{{{}}}", kMetadata, fmt::join(pairs, ",")));
  const std::vector<const NamedTensor*> order = in_order(tensors, path);
  std::unordered_set<std::string_view> names;
  size_t total = 0;
  for (const NamedTensor* t : order) {
    LTE_CHECK(names.insert(t->name).second,
              fmt::format("{}: two tensors are named {}", path, in_quotes(t->name)));
    const std::span<const int64_t> dims(t->tensor.dim, static_cast<size_t>(t->tensor.rank));
    items.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                                json_text(t->name, path), name_of(t->tensor.dtype),
                                fmt::join(dims, ","), total, total + t->tensor.bytes()));
    total += t->tensor.bytes();
  }
  std::string header = fmt::format("{{{}}}", fmt::join(items, ","));
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  const uint64_t length = header.size();
  LTE_CHECK(length <= kMaxHeader, fmt::format("{}: the header would take {} bytes", path, length));
  std::string out(reinterpret_cast<const char*>(&length), sizeof length);
  out.reserve(sizeof length + header.size() + total);
  out += header;
  for (const NamedTensor* t : order)
    if (t->tensor.data) out.append(static_cast<const char*>(t->tensor.data), t->tensor.bytes());
  return out;
}

TensorFile parse_safetensors(std::string_view bytes, const std::string& path) {
  const auto [header, data] = split(bytes, path);
  HeaderReader reader(path);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  sort_and_check(reader.entries, data.size(), path);
  TensorFile file;
  file.path = path;
  file.metadata = std::move(reader.metadata);
  size_t total = 0;
  for (const Entry& e : reader.entries) {
    file.tensors.push_back({e.name, tensor_of(e, path)});
    total += Arena::padded(file.tensors.back().tensor.bytes());
  }
  file.memory.reserve(total);
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    const Entry& e = reader.entries[i];
    const std::string_view from = data.substr(e.begin(), e.end() - e.begin());
    Tensor& to = file.tensors[i].tensor;
    file.memory.carve(to);
    if (e.dtype == "F16") {
      widen(from, f32_bits_of_f16, to.data);
    } else if (e.dtype == "BF16") {
      widen(from, f32_bits_of_bf16, to.data);
    } else {
      std::copy(from.begin(), from.end(), static_cast<char*>(to.data));
    }
  }
  return file;
}

void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata) {
  write_file(path, format_safetensors(path, tensors, metadata));
}

TensorFile load_safetensors(const std::string& path) {
  return parse_safetensors(read_file(path), path);
}

const Tensor& find_tensor(const TensorFile& file, std::string_view name) {
  for (const NamedTensor& t : file.tensors)
    if (t.name == name) return t.tensor;
  fail(fmt::format("{}: no tensor is named {}, among {}", file.path, in_quotes(name),
                   file.tensors.size()));
}

}  // namespace lte
