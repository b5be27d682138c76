#include "data/dataset.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "core/check.h"
#include "core/files.h"
#include "core/hash.h"
#include "core/rng.h"
#include "data/manifest.h"
#include "data/text_data.h"
#include "datasets/restaurants.h"
#include "documents.h"

#ifndef LTE_SOURCE_DIR
#define LTE_SOURCE_DIR "."
#endif

namespace lte {
namespace {

namespace fs = std::filesystem;

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

struct DataFolder : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_dataset_test_" + std::to_string(getpid());
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }
  std::string text(const std::string& content) const {
    write_file(folder + "/t.txt", content);
    return "text:" + folder + "/t.txt";
  }
};

void expect_well_formed(const Dataset& d) {
  for (const TokenSet* set : {&d.train, &d.valid, &d.test}) {
    ASSERT_GE(set->tokens.size(), 2u);
    EXPECT_GT(set->tokens.size(), static_cast<size_t>(d.default_seq));
    EXPECT_TRUE(set->scored.empty() || set->scored.size() == set->tokens.size());
    for (int32_t id : set->tokens) ASSERT_LT(static_cast<size_t>(id), d.tokenizer.vocab.size());
    for (size_t i = 0; i < set->starts.size(); ++i) {
      ASSERT_LT(i == 0 ? -1 : set->starts[i - 1], set->starts[i]);
    }
  }
}

TEST(Dialects, IsAlwaysTheSame) {
  const Dataset d = load_dataset("dialects", "", {});
  expect_well_formed(d);
  EXPECT_EQ(d.sha256, "5e79a40b1965e63fea42445edaf73b0e36ea49dd6247cf2d2282f437cc854b93");
  EXPECT_EQ(d.tokenizer.vocab.size(), 128u);
  EXPECT_EQ(d.train.tokens.size(), 6000000u);
  EXPECT_EQ(d.valid.starts.size(), 500u);
  EXPECT_EQ(d.test.starts.size(), 1000u);
  EXPECT_EQ(d.default_seq, 119);
}

TEST(Dialects, EntropyAndFloor) {
  const Dataset d = load_dataset("dialects", "chars", {});
  EXPECT_NEAR(d.entropy, 1.2798542258, 1e-9);
  ASSERT_TRUE(d.test_floor.has_value());
  EXPECT_LT(std::abs(*d.test_floor - d.entropy), 0.01);
  for (size_t i = 0; i < d.test.tokens.size(); ++i) {
    ASSERT_EQ(d.test.tokens[i] >= 64, i % 120 == 0);
    ASSERT_EQ(d.test.scored[i], i % 120 >= 2);
  }
}

// Symbols that few others lead to are rare, so that a little of the language shows in no split.
TEST(Dialects, SplitsShareTheLanguageAndNoSequence) {
  const Dataset d = load_dataset("dialects", "", {});
  std::vector<uint64_t> successors(64 * 64, 0);  // of a dialect and a symbol, as bits
  std::set<std::vector<int32_t>> sequences;
  int64_t unseen = 0, steps = 0;
  const auto walk = [&](const TokenSet& set, bool add) {
    for (int64_t start : set.starts) {
      const int32_t* s = &set.tokens[start];
      const bool is_new = sequences.insert({s, s + 120}).second;
      EXPECT_TRUE(is_new || add);
      for (int i = 2; i < 120; ++i) {
        uint64_t& known = successors[(s[0] - 64) * 64 + s[i - 1]];
        const uint64_t bit = uint64_t{1} << s[i];
        if (add) known |= bit;
        unseen += (known & bit) == 0;
        ++steps;
      }
    }
  };
  walk(d.train, true);
  for (uint64_t known : successors) EXPECT_LE(std::popcount(known), 4);
  steps = 0;
  walk(d.test, false);
  walk(d.valid, false);
  EXPECT_LT(unseen, steps / 10000);
}

TEST(Dialects, TokenizerIsWhatTrainingWouldGive) {
  const Dataset d = load_dataset("dialects", "", {});
  const std::string text = decode(d.tokenizer, d.valid.tokens) + decode(d.tokenizer, d.test.tokens);
  EXPECT_EQ(train_tokenizer("chars", text).vocab, d.tokenizer.vocab);
  EXPECT_EQ(encode(d.tokenizer, decode(d.tokenizer, d.valid.tokens)), d.valid.tokens);
  EXPECT_EQ(
      message_of([] { load_dataset("dialects", "bytes", {}); }),
      "dialects: its only tokenizer is chars, since its floor is counted in symbols; \"bytes\" is "
      "not possible");
}

TEST(Restaurants, IsAlwaysTheSame) {
  const Dataset d = load_dataset("restaurants", "", {});
  expect_well_formed(d);
  EXPECT_EQ(d.sha256, "2163ae2f612417cc19e3020b423e09712342539d47206840fb6830b2a7ec9205");
  EXPECT_EQ(d.tokenizer.vocab.size(), 512u);
  EXPECT_EQ(d.train.starts.size(), 30000u);
  EXPECT_EQ(d.valid.starts.size(), 500u);
  EXPECT_EQ(d.test.starts.size(), 1000u);
  EXPECT_EQ(d.task, "slots");
}

TEST(Restaurants, MeaningsOfTheSplitsAreDisjoint) {
  const Dataset d = load_dataset("restaurants", "bytes", {});
  std::set<std::array<int, kSlots>> train;
  for (const auto& line : document_lines(d, d.train)) {
    ASSERT_EQ(line.find('\n'), line.size() - 1);
    const Meaning m = parse_meaning(line);
    const auto absent = std::count(m.value.begin(), m.value.end(), -1);
    ASSERT_GE(m.value[kName], 0);
    ASSERT_LE(absent, kSlots - 3);
    train.insert(m.value);
  }
  for (const TokenSet* set : {&d.valid, &d.test}) {
    for (const auto& line : document_lines(d, *set)) {
      EXPECT_FALSE(train.count(parse_meaning(line).value)) << line;
    }
  }
  EXPECT_GT(train.size(), 28000u);
}

// Prompt and sentence tokenised apart are the document, and just the sentence is scored.
TEST(Restaurants, PromptsEndWhereScoringBegins) {
  for (const char* spec : {"bytes", "chars", "bpe:512"}) {
    const Dataset d = load_dataset("restaurants", spec, {});
    ASSERT_EQ(d.examples.size(), 200u);
    for (size_t i = 0; i < d.examples.size(); ++i) {
      const Example& example = d.examples[i];
      EXPECT_EQ(example.references.size(), 5u);
      EXPECT_TRUE(example.prompt.ends_with(" =>"));
      const auto start = static_cast<size_t>(d.test.starts[i]);
      const auto end = static_cast<size_t>(d.test.starts[i + 1]);
      const auto prompt = encode(d.tokenizer, example.prompt);
      for (size_t k = start; k < end; ++k) {
        const bool in_prompt = k < start + prompt.size();
        ASSERT_TRUE(!in_prompt || d.test.tokens[k] == prompt[k - start]);
        ASSERT_EQ(d.test.scored[k], !in_prompt);
      }
    }
  }
}

TEST(Registry, UnknownNamesListTheKnownOnes) {
  EXPECT_EQ(message_of([] { load_dataset("dialect", "", {}); }),
            "dataset \"dialect\" is not known; known are dialects, restaurants, sums, e2e, "
            "tinyshakespeare, wikitext-2, text:PATH");
  for (const DatasetRow& row : datasets()) EXPECT_GT(std::string(row.about).size(), 10u);
  EXPECT_NE(message_of([] { load_dataset("restaurants", "bpe:x", {}); }).find("is not known: use"),
            std::string::npos);
}

TEST_F(DataFolder, TextOfYourOwn) {
  std::string content;
  for (int i = 0; i < 400; ++i) content += "line " + std::to_string(i) + "\n";
  const std::string name = text(content);
  const Dataset d = load_dataset(name, "", {});
  expect_well_formed(d);
  EXPECT_EQ(d.name, name);
  EXPECT_EQ(d.tokenizer.spec, "chars");
  EXPECT_EQ(d.sha256, sha256_hex(content));
  const std::string train = decode(d.tokenizer, d.train.tokens);
  EXPECT_EQ(train.back(), '\n');
  EXPECT_NEAR(static_cast<double>(train.size()), 0.9 * static_cast<double>(content.size()), 40);
  EXPECT_EQ(train + decode(d.tokenizer, d.valid.tokens) + decode(d.tokenizer, d.test.tokens),
            content);
  EXPECT_EQ(load_dataset(name, "bytes", {}).tokenizer.vocab.size(), 256u);
}

TEST_F(DataFolder, ManyCharactersTakeBpeAndCutsKeepCharactersWhole) {
  std::string content;
  for (int i = 0; i < 3000; ++i) {  // three bytes each, U+4E00 and up, without any newline
    const int code = 0x4e00 + i % 500;
    content += {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
                static_cast<char>(0x80 | (code & 63))};
  }
  EXPECT_EQ(load_dataset(text(content), "", {}).tokenizer.spec, "bpe:1024");
  const TextSplits splits = split_text(content);
  for (const auto& split : {splits.train, splits.valid, splits.test}) check_utf8(split, "split");
  expect_well_formed(load_dataset(text(content), "chars", {}));
}

TEST_F(DataFolder, BadTextsAreOneClearLine) {
  const auto load = [&](const std::string& content) {
    const std::string name = text(content);
    return message_of([&] { load_dataset(name, "", {}); }).substr(name.size());
  };
  EXPECT_EQ(load(""), ": the file is empty; give a file with some kilobytes of text");
  EXPECT_EQ(load("abc"),
            ": has only 3 tokens; at least 64 are needed: give a longer text, or a finer "
            "--tokenizer (bytes)");
  EXPECT_EQ(
      load(std::string(100, 'a') + "\xff"),
      ": is not UTF-8 at byte 100 (0xff); convert it, for example with iconv -f latin1 -t utf-8");
  EXPECT_EQ(
      message_of([&] { load_dataset("text:" + folder + "/none", "", {}); }),
      folder + "/none: cannot be read: No such file or directory; write text:PATH of a text file");
  EXPECT_EQ(message_of([&] { load_dataset("text:" + folder, "", {}); }),
            folder + ": cannot be read: Is a directory; write text:PATH of a text file");
  EXPECT_EQ(message_of([] { load_dataset("text:", "", {}); }),
            "text:: names no file; write text:PATH");
  // What compresses to a single token cannot be predicted.
  std::string flat;
  while (flat.size() < 500) flat += static_cast<char>('b' + hash64(flat.size()) % 23);
  flat += std::string(780, 'a');
  EXPECT_NE(message_of([&] { load_dataset(text(flat), "bpe:600", {}); }).find(": is too short: "),
            std::string::npos);
}

TEST_F(DataFolder, EveryShortTextLoadsOrSaysWhy) {
  for (int length = 60; length < 140; ++length) {
    std::string content;
    for (int i = 0; i < length; ++i) content += i % 7 == 6 ? '\n' : static_cast<char>('a' + i % 5);
    const std::string name = text(content);
    if (length < 64) {
      EXPECT_THROW(load_dataset(name, "", {}), Error);
    } else {
      expect_well_formed(load_dataset(name, "", {}));
    }
  }
}

TEST_F(DataFolder, ManifestNamesWhatIsWrong) {
  const std::string manifest = folder + "/m.toml";
  const std::string row =
      "[[file]]\ndataset = \"tinyshakespeare\"\nsplit = \"all\"\npath = \"f.txt\"\nlicence = "
      "\"x\"\n";
  const DataPaths paths = {.manifest = manifest, .mirror = folder + "/mirror", .cache = folder};
  const auto load = [&](const std::string& text) {
    write_file(manifest, text);
    return message_of([&] { load_dataset("tinyshakespeare", "", paths); });
  };
  const std::string content(100, 'x');
  const std::string full = row + "bytes = 100\nsha256 = \"" + sha256_hex(content) + "\"\n";
  EXPECT_EQ(load(full),
            "tinyshakespeare: f.txt is neither in the mirror \"" + paths.mirror + "\" nor in \"" +
                folder + "\": run `make data`, or set LTE_DATA_MIRROR to a folder that holds it");
  write_file(folder + "/f.txt", content);
  EXPECT_EQ(load(full), "no error");
  EXPECT_EQ(load(row + "bytes = 100\ngit_blob = \"" + git_blob_sha1(content) + "\"\n"), "no error");
  write_file(folder + "/f.txt", content.substr(1));
  EXPECT_EQ(load(full), folder +
                            "/f.txt: has 99 bytes, not 100: truncated?; remove it and run `make "
                            "data`");
  write_file(folder + "/f.txt", std::string(100, 'y'));
  EXPECT_NE(load(full).find("f.txt: has the checksum "), std::string::npos);
  EXPECT_EQ(load(row), manifest + ": file 1: needs the file's size as bytes");
  EXPECT_EQ(load(row + "bytes = 5\n"),
            manifest + ": file 1: needs sha256 (64 digits) or git_blob (40 digits)");
  EXPECT_EQ(load("x = 1\n"), manifest + ": holds no [[file]]");
  EXPECT_EQ(load("x = \n").find(manifest + ":1: "), 0u);
}

TEST_F(DataFolder, MirrorGoesBeforeCacheAndCandidatesBeforeBoth) {
  FileRow first;
  first.dataset = "d", first.split = "s", first.path = "a";
  first.bytes = 1, first.sha256 = sha256_hex("1");
  FileRow second = first;
  second.path = "b", second.sha256 = sha256_hex("2");
  const DataPaths paths = {.manifest = "m", .mirror = folder + "/mirror", .cache = folder};
  make_folder(paths.mirror);
  write_file(paths.mirror + "/b", "2");
  EXPECT_EQ(load_split({first, second}, "d", "s", paths), "2");
  write_file(folder + "/a", "1");
  EXPECT_EQ(load_split({first, second}, "d", "s", paths), "1");
  write_file(paths.mirror + "/a", "3");
  EXPECT_THROW(load_split({first, second}, "d", "s", paths), Error);
  EXPECT_EQ(message_of([&] { load_split({first}, "d", "other", paths); }),
            "m: the manifest has no file for the other split of d");
}

TEST(TextSize, CountsScoredTargets) {
  const Tokenizer t = train_tokenizer("bytes", "");
  TokenSet set;
  set.tokens = encode(t, "ab cd  ef\ng");
  const Window all = {0, 10}, half = {2, 4};
  const TextSize size = text_size(t, set, std::span(&all, 1));
  EXPECT_EQ(size.tokens, 10);
  EXPECT_EQ(size.bytes, 10);
  EXPECT_EQ(size.words, 3);  // the first word begins in no target
  EXPECT_EQ(text_size(t, set, std::span(&half, 1)).words, 1);
  set.scored.assign(11, 0);
  set.scored[7] = set.scored[8] = 1;
  EXPECT_EQ(text_size(t, set, std::span(&all, 1)).tokens, 2);
  EXPECT_EQ(text_size(t, set, std::span(&all, 1)).words, 1);
}

DataPaths real_paths() {
  const char* mirror = std::getenv("LTE_DATA_MIRROR");
  return {.manifest = LTE_SOURCE_DIR "/datasets/manifest.toml",
          .mirror = mirror ? mirror : "",
          .cache = LTE_SOURCE_DIR "/data"};
}

bool have(const DataPaths& paths, const std::string& file) {
  return (!paths.mirror.empty() && fs::exists(paths.mirror + "/" + file)) ||
         fs::exists(paths.cache + "/" + file);
}

TEST(RealFiles, ManifestIsReadable) {
  const auto rows = read_manifest(real_paths().manifest);
  EXPECT_EQ(rows.size(), 10u);
  for (const FileRow& row : rows) EXPECT_TRUE(!row.url.empty() || !row.note.empty()) << row.path;
}

TEST(RealFiles, TinyShakespeare) {
  const DataPaths paths = real_paths();
  if (!have(paths, "tinyshakespeare/input.txt")) {
    GTEST_SKIP() << "tinyshakespeare is not here: run `make data` or set LTE_DATA_MIRROR";
  }
  const Dataset d = load_dataset("tinyshakespeare", "", paths);
  expect_well_formed(d);
  EXPECT_EQ(d.tokenizer.vocab.size(), 65u);
  EXPECT_EQ(d.sha256, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed");
  EXPECT_EQ(d.train.tokens.size() + d.valid.tokens.size() + d.test.tokens.size(), 1115394u);
}

TEST(RealFiles, WikiText2) {
  const DataPaths paths = real_paths();
  if (!have(paths, "wikitext-2/valid.txt")) {
    GTEST_SKIP() << "wikitext-2 is not here: run `make data` or set LTE_DATA_MIRROR";
  }
  const Dataset d = load_dataset("wikitext-2", "", paths);
  expect_well_formed(d);
  EXPECT_EQ(d.tokenizer.vocab.size(), 1024u);
  const Window all = {0, static_cast<int32_t>(d.test.tokens.size()) - 1};
  const TextSize size = text_size(d.tokenizer, d.test, std::span(&all, 1));
  EXPECT_NEAR(static_cast<double>(size.words), 241211, 20);  // 245,569 with the ends of the lines
  EXPECT_GT(d.train.tokens.size(), 2000000u);
}

}  // namespace
}  // namespace lte
