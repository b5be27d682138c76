#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>

#include "core/files.h"
#include "core/rng.h"

namespace lte {
namespace {

// A file from its two parts, whatever they hold.
std::string file_of(std::string_view header, std::string_view data = "") {
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), sizeof length);
  return out.append(header).append(data);
}

std::string zeros(size_t n) { return std::string(n, '\0'); }

// The message that the file is refused with, without its path; nothing if it loads.
std::optional<std::string> refusal(std::string_view bytes) {
  try {
    parse_safetensors(bytes, "m.safetensors");
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_TRUE(message.starts_with("m.safetensors: ")) << message;
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    return message.substr(std::string("m.safetensors: ").size());
  }
  return std::nullopt;
}

void expect_refused(std::string_view bytes, const std::string& message) {
  EXPECT_EQ(refusal(bytes).value_or("(loaded)"), message);
}

// The header of one F32 tensor "w".
std::string header_of(const std::string& shape, const std::string& offsets,
                      const std::string& dtype = "F32") {
  return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

Tensor view(DType t, std::initializer_list<int64_t> dims, void* data) {
  Tensor out = shape(t, dims);
  out.data = data;
  return out;
}

// Every dtype, a scalar, an empty tensor, and names that need care.
struct Sample {
  std::vector<float> f = {1.5f, -0.0f, std::numeric_limits<float>::infinity(), 1e-45f, 3, 4};
  std::vector<double> d = {0.1, -2};
  std::vector<int32_t> i = {std::numeric_limits<int32_t>::min(), -1, 7, 8};
  std::map<std::string, std::string> metadata = {
      {"step", "10"}, {"Füße", "\"\n\t\\ \x01"}, {"", ""}};
  std::vector<NamedTensor> tensors() {
    return {{"w", view(DType::f32, {2, 3}, f.data())},
            {"scalar", view(DType::f64, {}, &d[0])},
            {"line\nbreak \"quoted\"", view(DType::f64, {1, 1, 1, 1}, &d[1])},
            {"empty", shape(DType::f32, {0, 3})},
            {"重み.ß", view(DType::i32, {2, 1, 2}, i.data())},
            {"", view(DType::i32, {1}, i.data())}};
  }
};

void expect_same(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.dtype, b.dtype);
  ASSERT_EQ(a.rank, b.rank);
  for (int k = 0; k < 4; ++k) ASSERT_EQ(a.dim[k], b.dim[k]);
  EXPECT_TRUE(a.size() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0);
}

TEST(Safetensors, RoundTrip) {
  Sample sample;
  const std::string path = testing::TempDir() + "safetensors_round_trip.safetensors";
  save_safetensors(path, sample.tensors(), sample.metadata);
  const TensorFile file = load_safetensors(path);
  std::remove(path.c_str());
  EXPECT_EQ(file.path, path);
  EXPECT_EQ(file.metadata, sample.metadata);
  EXPECT_EQ(file.tensors.size(), sample.tensors().size());
  for (const NamedTensor& t : sample.tensors()) {
    SCOPED_TRACE(t.name);
    const Tensor& read = find_tensor(file, t.name);
    expect_same(read, t.tensor);
    EXPECT_TRUE(read) << "an empty tensor is not an absent one";
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data) % Arena::kAlign, 0u);
  }
}

TEST(Safetensors, EmptyFile) {
  const std::string bytes = format_safetensors("m", {});
  EXPECT_EQ(bytes, file_of("{}      "));
  EXPECT_TRUE(parse_safetensors(bytes, "m").tensors.empty());
}

TEST(Safetensors, WritingIsDeterministic) {
  Sample sample;
  std::vector<NamedTensor> tensors = sample.tensors();
  const std::string bytes = format_safetensors("m", tensors, sample.metadata);
  Rng rng(1);
  for (int k = 0; k < 10; ++k) {
    shuffle(tensors, rng);
    EXPECT_EQ(format_safetensors("m", tensors, sample.metadata), bytes);
  }
  const TensorFile file = parse_safetensors(bytes, "m");
  EXPECT_EQ(format_safetensors("m", file.tensors, file.metadata), bytes);
}

// The bytes are those of the Python package safetensors 0.5.3 for the same tensors.
TEST(Safetensors, GoldenBytes) {
  float b[] = {1, 2};
  int32_t a = 7;
  double z = -0.5;
  const std::vector<NamedTensor> tensors = {{"b", view(DType::f32, {2}, b)},
                                            {"a", view(DType::i32, {}, &a)},
                                            {"z", view(DType::f64, {1, 1}, &z)},
                                            {"é\n", shape(DType::f32, {0, 3})}};
  const std::string header =
      R"({"__metadata__":{"step":"10"},"z":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
      "\"\xc3\xa9\\n\""
      R"(:{"dtype":"F32","shape":[0,3],"data_offsets":[16,16]},)"
      R"("a":{"dtype":"I32","shape":[],"data_offsets":[16,20]}}   )";
  const char data[] = "\0\0\0\0\0\0\xe0\xbf\0\0\x80?\0\0\0@\x07\0\0";  // and the closing zero
  EXPECT_EQ(header.size(), 256u);
  EXPECT_EQ(format_safetensors("m", tensors, {{"step", "10"}}),
            file_of(header, std::string_view(data, sizeof data)));
}

TEST(Safetensors, WriterRefuses) {
  float x = 1;
  const Tensor one = view(DType::f32, {1}, &x);
  auto message = [](std::vector<NamedTensor> tensors,
                    const std::map<std::string, std::string>& metadata = {}) -> std::string {
    try {
      format_safetensors("m", tensors, metadata);
    } catch (const Error& e) {
      return e.what();
    }
    return "(written)";
  };
  EXPECT_EQ(message({{"w", one}, {"v", one}, {"w", one}}), "m: two tensors are named \"w\"");
  EXPECT_EQ(message({{"__metadata__", one}}), "m: no tensor may be named __metadata__");
  EXPECT_EQ(message({{"w", shape(DType::f32, {1})}}), "m: tensor \"w\" has no data");
  EXPECT_EQ(message({{"\xff", one}}), "m: the text \"\xef\xbf\xbd\" is not UTF-8");
  EXPECT_EQ(message({{"w", one}}, {{"k", "\xc0\x80"}}),
            "m: the text \"\xef\xbf\xbd\xef\xbf\xbd\" is not UTF-8");
}

TEST(Safetensors, FindTensorNamesWhatIsMissing) {
  const TensorFile file = parse_safetensors(file_of("{}"), "m.safetensors");
  try {
    find_tensor(file, "wte.weight");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "m.safetensors: no tensor is named \"wte.weight\", among 0");
  }
}

TEST(Safetensors, LegalOddities) {
  // Keys in any order, tensors in any order, white space, escapes, a dimension of zero anywhere.
  const TensorFile file =
      parse_safetensors(file_of(R"({ "b" : {"data_offsets":[4,8],"shape":[1],"dtype":"I32"},)"
                                R"("\u0061\u0000":{"shape":[],"dtype":"F32","data_offsets":[0,4]},)"
                                R"("e":{"shape":[5,0,2],"dtype":"F64","data_offsets":[4,4]},)"
                                R"("__metadata__":{}} )",
                                zeros(8)),
                        "m");
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, std::string("a\0", 2));
  EXPECT_EQ(file.tensors[1].name, "e");
  EXPECT_EQ(file.tensors[1].tensor.dim[0], 5);
  EXPECT_EQ(file.tensors[1].tensor.size(), 0);
  EXPECT_EQ(file.tensors[2].name, "b");
}

TEST(Safetensors, NanPayloadsAreKept) {
  const uint32_t quiet = 0x7fc12345, signalling = 0xff812345;
  uint32_t words[] = {quiet, signalling};
  const std::vector<NamedTensor> tensors = {{"n", view(DType::f32, {2}, words)}};
  const TensorFile file = parse_safetensors(format_safetensors("m", tensors), "m");
  EXPECT_EQ(std::memcmp(file.tensors[0].tensor.data, words, sizeof words), 0);
}

// The values of 16-bit words as F32, by their bits.
std::vector<uint32_t> widened(const std::string& dtype, const std::vector<uint16_t>& words) {
  const std::string n = std::to_string(words.size()), bytes = std::to_string(2 * words.size());
  const std::string_view data(reinterpret_cast<const char*>(words.data()), 2 * words.size());
  const TensorFile file =
      parse_safetensors(file_of(header_of("[" + n + "]", "[0," + bytes + "]", dtype), data), "m");
  std::vector<uint32_t> out(words.size());
  std::memcpy(out.data(), find_tensor(file, "w").as<float>(), 4 * out.size());
  return out;
}

TEST(Safetensors, Bf16IsTheUpperHalf) {
  EXPECT_EQ(widened("BF16", {0x3f80, 0xc049, 0x0001, 0x8000, 0x7f80, 0xff81}),
            (std::vector<uint32_t>{0x3f800000, 0xc0490000, 0x00010000, 0x80000000, 0x7f800000,
                                   0xff810000}));
}

TEST(Safetensors, F16Values) {
  EXPECT_EQ(widened("F16", {0x7c00, 0xfc00, 0x7e01, 0xfc01, 0x8000}),
            (std::vector<uint32_t>{0x7f800000, 0xff800000, 0x7fc02000, 0xff802000, 0x80000000}));
  std::vector<uint16_t> all(65536);
  for (size_t h = 0; h < all.size(); ++h) all[h] = static_cast<uint16_t>(h);
  const std::vector<uint32_t> bits = widened("F16", all);
  for (int h = 0; h < 65536; ++h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) continue;  // above
    const double size =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    ASSERT_EQ(std::bit_cast<float>(bits[h]), static_cast<float>(h & 0x8000 ? -size : size)) << h;
    ASSERT_EQ(bits[h] >> 31, static_cast<uint32_t>(h) >> 15) << h;
  }
}

TEST(SafetensorsRefusal, EveryTruncation) {
  Sample sample;
  const std::string bytes = format_safetensors("m", sample.tensors(), sample.metadata);
  ASSERT_FALSE(refusal(bytes));
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A copy of exactly n bytes, so that a sanitizer sees a read behind them.
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    const std::string message = refusal({cut.data(), n}).value_or("(loaded)");
    EXPECT_TRUE(message.starts_with("truncated: ")) << n << ": " << message;
  }
  expect_refused("1234567", "truncated: the length of the header takes 8 bytes, the file has 7");
  expect_refused(file_of("{}      ").substr(0, 10),
                 "truncated: the header takes 8 bytes, the file has 2 for it");
  expect_refused(file_of(header_of("[262]", "[0,1048]"), zeros(512)),
                 "truncated: the header says 1048 bytes of data, the file has 512");
}

TEST(SafetensorsRefusal, TooLong) {
  expect_refused(file_of(header_of("[1]", "[0,4]"), zeros(5)),
                 "too long: the header says 4 bytes of data, the file has 5");
  expect_refused(file_of("{}", "x"), "too long: the header says 0 bytes of data, the file has 1");
}

TEST(SafetensorsRefusal, HugeHeader) {
  const uint64_t lengths[] = {100'000'001, 1ull << 63, ~0ull};
  for (uint64_t n : lengths) {
    std::string bytes = file_of("{}");
    std::memcpy(bytes.data(), &n, sizeof n);
    expect_refused(bytes, "the header is too large: " + std::to_string(n) +
                              " bytes, at most 100000000 are allowed");
  }
}

TEST(SafetensorsRefusal, HeaderIsNotJson) {
  expect_refused(file_of(""), "the header does not begin with {");
  expect_refused(file_of(" {}"), "the header does not begin with {");
  expect_refused(file_of("\xef\xbb\xbf{}"), "the header does not begin with {");
  expect_refused(file_of("[]"), "the header does not begin with {");
  expect_refused(file_of("{"), "the header is not JSON, at its byte 2");
  expect_refused(file_of("{},"), "the header is not JSON, at its byte 3");
  expect_refused(file_of("{}{}"), "the header is not JSON, at its byte 3");
  expect_refused(file_of("{\"w\":}"), "the header is not JSON, at its byte 6");
  expect_refused(file_of(std::string_view("{}\0{}", 5)), "the header is not JSON, at its byte 3");
  expect_refused(file_of("{/**/}"), "the header is not JSON, at its byte 2");
  expect_refused(file_of(R"({"\ud800":{}})"), "the header is not JSON, at its byte 9");
}

TEST(SafetensorsRefusal, BadUtf8) {
  // A stray byte, an overlong form, a surrogate, a code point beyond the last, a cut sequence.
  for (std::string text : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"}) {
    const std::string message =
        refusal(file_of(R"({"__metadata__":{"k":")" + text + "\"}}")).value_or("(loaded)");
    EXPECT_TRUE(message.starts_with("the header is not UTF-8, at its byte 2")) << message;
  }
}

TEST(SafetensorsRefusal, DuplicateKeys) {
  const std::string entry = R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  expect_refused(file_of("{\"w\":" + entry + ",\"v\":" + entry + ",\"w\":" + entry + "}"),
                 "the header: the key \"w\" comes twice");
  expect_refused(file_of("{\"w\":" + entry + ",\"\\u0077\":" + entry + "}"),
                 "the header: the key \"w\" comes twice");
  expect_refused(file_of(R"({"__metadata__":{},"__metadata__":{}})"),
                 "the header: the key \"__metadata__\" comes twice");
  expect_refused(file_of(R"({"__metadata__":{"a":"1","a":"1"}})"),
                 "__metadata__: the key \"a\" comes twice");
  expect_refused(file_of(R"({"w":{"dtype":"F32","dtype":"F32"}})"),
                 "tensor \"w\": the key \"dtype\" comes twice");
}

TEST(SafetensorsRefusal, WrongTypes) {
  expect_refused(file_of(R"({"w":1})"), "tensor \"w\": expected an object, found a number");
  expect_refused(file_of(R"({"w":[]})"), "tensor \"w\": expected an object, found an array");
  expect_refused(file_of(R"({"__metadata__":null})"),
                 "__metadata__: expected an object, found null");
  expect_refused(file_of(R"({"__metadata__":{"k":true}})"),
                 "__metadata__, key \"k\": expected a string, found a boolean");
  expect_refused(file_of(R"({"__metadata__":{"k":{}}})"),
                 "__metadata__, key \"k\": expected a string, found an object");
  expect_refused(file_of(R"({"w":{"dtype":4}})"),
                 "tensor \"w\", dtype: expected a string, found a number");
  expect_refused(file_of(R"({"w":{"dtype":["F32"]}})"),
                 "tensor \"w\", dtype: expected a string, found an array");
  expect_refused(file_of(R"({"w":{"shape":"2"}})"),
                 "tensor \"w\", shape: expected an array, found a string");
  expect_refused(file_of(R"({"w":{"shape":[[2]]}})"),
                 "tensor \"w\", shape: expected a whole number of 64 bits, found an array");
  expect_refused(file_of(R"({"w":{"data_offsets":{}}})"),
                 "tensor \"w\", data_offsets: expected an array, found an object");
  const std::string deep(100'000, '[');
  expect_refused(file_of("{\"w\":" + deep), "tensor \"w\": expected an object, found an array");
}

TEST(SafetensorsRefusal, NumbersThatAreNotSizes) {
  const std::string expected = ": expected a whole number of 64 bits, found ";
  const std::string other = "a number with a fraction, an exponent or too many digits";
  expect_refused(file_of(header_of("[-1]", "[0,0]")),
                 "tensor \"w\", shape" + expected + "a negative number");
  expect_refused(file_of(header_of("[-0]", "[0,0]")),
                 "tensor \"w\", shape" + expected + "a negative number");
  expect_refused(file_of(header_of("[1]", "[-4,0]")),
                 "tensor \"w\", data_offsets" + expected + "a negative number");
  for (const char* number : {"1.0", "1e2", "18446744073709551616"})
    expect_refused(file_of(header_of(std::string("[") + number + "]", "[0,4]")),
                   "tensor \"w\", shape" + expected + other);
}

TEST(SafetensorsRefusal, Entries) {
  expect_refused(file_of(R"({"w":{}})"), "tensor \"w\" has no dtype");
  expect_refused(file_of(R"({"w":{"dtype":"F32"}})"), "tensor \"w\" has no shape");
  expect_refused(file_of(R"({"w":{"dtype":"F32","shape":[]}})"),
                 "tensor \"w\" has no data_offsets");
  expect_refused(file_of(R"({"w":{"strides":[]}})"), "tensor \"w\": unknown key \"strides\"");
  expect_refused(file_of(header_of("[]", "[0]")), "tensor \"w\" has 1 data_offsets instead of 2");
  expect_refused(file_of(header_of("[]", "[0,4,8]")), "tensor \"w\" has more than 2 data_offsets");
  expect_refused(file_of(header_of("[1,1,1,1,1]", "[0,4]"), zeros(4)),
                 "tensor \"w\" has more than 4 dimensions");
  for (std::string dtype : {"I64", "U8", "F8_E4M3", "F4", "f32", "", "F32 "})
    expect_refused(
        file_of(header_of("[0]", "[0,0]", dtype)),
        "tensor \"w\" has the dtype \"" + dtype + "\", known are F32, F64, I32, F16 and BF16");
}

TEST(SafetensorsRefusal, Offsets) {
  auto two = [](const std::string& first, const std::string& second) {
    const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":)";
    return file_of("{\"a\":" + entry + first + "},\"b\":" + entry + second + "}}", zeros(12));
  };
  expect_refused(two("[0,4]", "[8,12]"),
                 "hole: tensor \"b\" begins at byte 8 of the data, expected 4");
  expect_refused(two("[4,8]", "[8,12]"),
                 "hole: tensor \"a\" begins at byte 4 of the data, expected 0");
  expect_refused(two("[0,4]", "[0,4]"),
                 "overlap: tensor \"b\" begins at byte 0 of the data, expected 4");
  expect_refused(two("[0,8]", "[4,12]"),
                 "overlap: tensor \"b\" begins at byte 4 of the data, expected 8");
  expect_refused(two("[0,4]", "[4,0]"),
                 "tensor \"b\" ends at byte 0 of the data, before it begins at 4");
  expect_refused(two("[0,4]", "[4,8]"),
                 "too long: the header says 8 bytes of data, the file has 12");
  expect_refused(two("[0,4]", "[4,18446744073709551615]"),
                 "truncated: the header says 18446744073709551615 bytes of data, the file has 12");
}

TEST(SafetensorsRefusal, ShapeAgainstOffsets) {
  expect_refused(file_of(header_of("[3]", "[0,8]"), zeros(8)),
                 "tensor \"w\": F32 of shape [3] takes 12 bytes, data_offsets give it 8");
  expect_refused(file_of(header_of("[2,2]", "[0,16]", "BF16"), zeros(16)),
                 "tensor \"w\": BF16 of shape [2, 2] takes 8 bytes, data_offsets give it 16");
  expect_refused(file_of(header_of("[]", "[0,0]")),
                 "tensor \"w\": F32 of shape [] takes 4 bytes, data_offsets give it 0");
}

TEST(SafetensorsRefusal, ShapesThatOverflow) {
  for (std::string dims :
       {"4611686018427387904, 4", "18446744073709551615", "2305843009213693952",
        "4294967296, 4294967296", "4611686018427387904, 4, 0", "0, 4611686018427387904, 4"})
    expect_refused(file_of(header_of("[" + dims + "]", "[0,0]")),
                   "tensor \"w\": the shape [" + dims + "] is too large");
}

TEST(SafetensorsRefusal, LongNamesAreCutInMessages) {
  expect_refused(file_of("{\"" + std::string(1000, 'x') + "\":{}}"),
                 "tensor \"" + std::string(80, 'x') + "\"... has no dtype");
  expect_refused(file_of("{\"a\\nb\":{}}"), "tensor \"a\\nb\" has no dtype");
}

// Changes the bytes here and there: flips, overwrites with what the format is made of, cuts,
// repeats.
void mutate(std::string& bytes, Rng& rng) {
  constexpr std::string_view kPieces = "{}[]\":,0123456789-.eF\\u ";
  for (uint64_t left = 1 + rng.below(4); left > 0 && !bytes.empty(); --left) {
    const size_t at = rng.below(bytes.size()), n = rng.below(16);
    switch (rng.below(5)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
        break;
      case 1:
        bytes[at] = kPieces[rng.below(kPieces.size())];
        break;
      case 2:
        bytes.insert(at, 1, kPieces[rng.below(kPieces.size())]);
        break;
      case 3:
        bytes.erase(at, n);
        break;
      default:
        bytes.insert(at, bytes.substr(rng.below(bytes.size()), n));
    }
  }
}

TEST(Safetensors, RandomMutationsLoadOrThrow) {
  Sample sample;
  const std::string valid = format_safetensors("m", sample.tensors(), sample.metadata);
  Rng rng(20'000);
  int loaded = 0;
  for (int k = 0; k < 20'000; ++k) {
    std::string bytes = valid;
    mutate(bytes, rng);
    // In half of the cases the length agrees again, so that the header itself is put to the test.
    const size_t end = bytes.find_first_not_of(' ', bytes.rfind('}') + 1);
    const uint64_t length = std::min(end, bytes.size()) - 8;
    if (rng.below(2) && bytes.size() > 8 && length <= bytes.size())
      std::memcpy(bytes.data(), &length, sizeof length);
    loaded += !refusal(bytes);
  }
  EXPECT_GT(loaded, 100);
  EXPECT_LT(loaded, 19'000);
}

}  // namespace
}  // namespace lte
