#include "data/text_data.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "core/files.h"
#include "core/hash.h"
#include "data/manifest.h"

namespace lte {
namespace {

constexpr size_t kMinTokens = 64, kMinSplit = 2;
constexpr size_t kMaxChars = 256;

size_t cut_near(const std::string& text, size_t at) {
  const size_t newline = text.find('\n', at);
  if (newline != std::string::npos && newline < at + text.size() / 100) return newline + 1;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
  return at;
}

// Adds to an error what the user can do about it.
template <class F>
void advised(const char* advice, F&& f) {
  try {
    f();
  } catch (const Error& e) {
    fail(fmt::format("{}; {}", e.what(), advice));
  }
}

}  // namespace

TextSplits split_text(const std::string& text) {
  const size_t a = cut_near(text, text.size() / 100 * 90 + text.size() % 100 * 90 / 100);
  const size_t b =
      std::max(a, cut_near(text, text.size() / 100 * 95 + text.size() % 100 * 95 / 100));
  return {text.substr(0, a), text.substr(a, b - a), text.substr(b)};
}

Dataset make_text_dataset(const std::string& name, const std::string& tokenizer,
                          const TextSplits& splits) {
  const std::string all = splits.train + splits.valid + splits.test;
  Dataset d;
  d.name = name;
  d.sha256 = sha256_hex(all);
  d.tokenizer = train_tokenizer(tokenizer, tokenizer == "chars" ? all : splits.train);
  d.train.tokens = encode(d.tokenizer, splits.train);
  d.valid.tokens = encode(d.tokenizer, splits.valid);
  d.test.tokens = encode(d.tokenizer, splits.test);
  const size_t sizes[] = {d.train.tokens.size(), d.valid.tokens.size(), d.test.tokens.size()};
  const size_t total = sizes[0] + sizes[1] + sizes[2], least = *std::min_element(sizes, sizes + 3);
  LTE_CHECK(
      total >= kMinTokens,
      fmt::format("{}: has only {} tokens; at least {} are needed: give a longer text, or a finer "
                  "--tokenizer (bytes)",
                  name, total, kMinTokens));
  LTE_CHECK(
      least >= kMinSplit,
      fmt::format("{}: is too short: {}, {} and {} tokens for training, validation and test; at "
                  "least {} each are needed: give a longer text, or a finer --tokenizer (bytes)",
                  name, sizes[0], sizes[1], sizes[2], kMinSplit));
  d.default_seq = static_cast<int>(std::min<size_t>(128, least - 1));
  return d;
}

Dataset load_text_file(const std::string& name, const std::string& tokenizer, const DataPaths&) {
  const std::string path = name.substr(name.find(':') + 1);
  LTE_CHECK(!path.empty(), name + ": names no file; write text:PATH");
  check_utf8(path, "the file name after text:");
  std::string text;
  advised("write text:PATH of a text file", [&] { text = read_file(path); });
  LTE_CHECK(!text.empty(), name + ": the file is empty; give a file with some kilobytes of text");
  advised("convert it, for example with iconv -f latin1 -t utf-8", [&] { check_utf8(text, name); });
  std::string spec = tokenizer;
  if (spec.empty()) {
    const bool few = train_tokenizer("chars", text).vocab.size() <= kMaxChars;
    spec = few ? "chars" : "bpe:1024";
  }
  return make_text_dataset(name, spec, split_text(text));
}

Dataset load_tinyshakespeare(const std::string& name, const std::string& tokenizer,
                             const DataPaths& paths) {
  const auto rows = read_manifest(paths.manifest);
  return make_text_dataset(name, tokenizer, split_text(load_split(rows, name, "all", paths)));
}

Dataset load_wikitext2(const std::string& name, const std::string& tokenizer,
                       const DataPaths& paths) {
  const auto rows = read_manifest(paths.manifest);
  return make_text_dataset(name, tokenizer,
                           {.train = load_split(rows, name, "train", paths),
                            .valid = load_split(rows, name, "valid", paths),
                            .test = load_split(rows, name, "test", paths)});
}

}  // namespace lte
