#include "data/e2e.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "core/files.h"
#include "core/hash.h"
#include "data/csv.h"
#include "data/manifest.h"
#include "documents.h"
#include "errors.h"

#ifndef LTE_SOURCE_DIR
#define LTE_SOURCE_DIR "."
#endif

namespace lte {
namespace {

namespace fs = std::filesystem;
using Rows = std::vector<std::vector<std::string>>;

Rows rows_of(const std::string& text) { return parse_csv(text, "f.csv").rows; }
std::string csv_error(const std::string& text) {
  return error_of([&] { parse_csv(text, "f.csv"); });
}

TEST(Csv, QuotesCommasAndNewlines) {
  EXPECT_EQ(rows_of("a,b\n1,2\n"), (Rows{{"1", "2"}}));
  EXPECT_EQ(rows_of("a,b\r\n1,2\r\n"), (Rows{{"1", "2"}}));
  EXPECT_EQ(rows_of("a,b\n1,2"), (Rows{{"1", "2"}}));
  EXPECT_EQ(rows_of("a,b\n\"x, y\",\"say \"\"hi\"\"\"\n"), (Rows{{"x, y", "say \"hi\""}}));
  EXPECT_EQ(rows_of("a,b\n\"one\ntwo\r\nthree\",\n"), (Rows{{"one\ntwo\r\nthree", ""}}));
  EXPECT_EQ(rows_of("a,b\n\"\",\"\"\"\"\n"), (Rows{{"", "\""}}));
  EXPECT_EQ(rows_of("a\n\n"), (Rows{{""}}));
  EXPECT_EQ(rows_of("a,b\n,\n x , y \n"), (Rows{{"", ""}, {" x ", " y "}}));
  EXPECT_EQ(rows_of("a,b\nx\ry,2\n"), (Rows{{"x\ry", "2"}}));
  EXPECT_EQ(rows_of("a,b\n\"1\",\"2\""), (Rows{{"1", "2"}}));
  EXPECT_EQ(rows_of("a,b"), Rows{});
  const Csv marked = parse_csv("\xef\xbb\xbf\"a\",b\n1,2\n", "f.csv");
  EXPECT_EQ(marked.header, (std::vector<std::string>{"a", "b"}));
}

TEST(Csv, LinesAreThoseOfTheFile) {
  const Csv csv = parse_csv("a,b\n\"x\ny\",1\r\n2,3\n", "f.csv");
  EXPECT_EQ(csv.lines, (std::vector<int>{2, 4}));
}

TEST(Csv, DamageIsOneClearLine) {
  EXPECT_EQ(csv_error(""), "f.csv: is empty; a header line is expected");
  EXPECT_EQ(csv_error("\xef\xbb\xbf"), "f.csv: is empty; a header line is expected");
  EXPECT_EQ(csv_error("a,b\n1,2\n\"x,y\n1,2\n"),
            "f.csv: line 3: the quote is not closed: truncated?");
  EXPECT_EQ(csv_error("a,b\n1,\"2\"\"\n"), "f.csv: line 2: the quote is not closed: truncated?");
  EXPECT_EQ(csv_error("a,b\n1,2\n1\n"), "f.csv: line 3: has 1 fields, not the 2 of the header");
  EXPECT_EQ(csv_error("a,b\n1,2,3\n"), "f.csv: line 2: has 3 fields, not the 2 of the header");
  EXPECT_EQ(csv_error("a,b\n1,2\n\n"), "f.csv: line 3: has 1 fields, not the 2 of the header");
  EXPECT_EQ(csv_error("a,b\n1,x\"y\"\n"),
            "f.csv: line 2: a quote inside of a field that does not begin with one");
  EXPECT_EQ(csv_error("a,b\n\"1\" ,2\n"),
            "f.csv: line 2: a closing quote wants a comma or the line's end");
  EXPECT_EQ(csv_error("a,b\n\"1\n2\"x,2\n"),
            "f.csv: line 3: a closing quote wants a comma or the line's end");
}

// Whatever the bytes are, they are read or refused by one line.
TEST(Csv, EveryPrefixAndEveryChangedByteIsReadOrRefused) {
  const std::string good = "mr,ref\n\"a[b], c\",\"say \"\"x\"\",\r\nthen\"\r\n\"d\",e\n";
  for (size_t i = 0; i <= good.size(); ++i) {
    csv_error(good.substr(0, i));
    for (const char c : {'"', ',', '\n', '\r', '\0', '\xff'}) {
      std::string bad = good;
      if (i < bad.size()) bad[i] = c;
      csv_error(bad);
    }
  }
}

std::string e2e_error(const std::string& text) {
  return error_of([&] { read_e2e(text, "e2e"); });
}

TEST(E2e, ReferencesAreGroupedByMeaning) {
  const auto meanings = read_e2e(
      "id,ref,mr\n1,First.,\"name[A], near[B]\"\n2,\"Other,\n two.\",name[C]\n"
      "3, Second  one. ,\"name[A],  near[B]\"\n",
      "e2e");
  ASSERT_EQ(meanings.size(), 2u);
  EXPECT_EQ(meanings[0].mr, "name[A], near[B]");
  EXPECT_EQ(meanings[0].references, (std::vector<std::string>{"First.", "Second one."}));
  EXPECT_EQ(meanings[1].references, (std::vector<std::string>{"Other, two."}));
}

TEST(E2e, BadFilesAreOneClearLine) {
  EXPECT_EQ(e2e_error("mr,text\nx,y\n"), "e2e: has no column \"ref\"; its columns are mr, text");
  EXPECT_EQ(e2e_error("\"m\nr\",ref\nx,y\n"),
            "e2e: has no column \"mr\"; its columns are m r, ref");
  EXPECT_EQ(e2e_error("mr,ref\n"), "e2e: holds no row below its header");
  EXPECT_EQ(e2e_error("mr,ref\nx,y\nx, \n"), "e2e: line 3: the ref is empty");
  EXPECT_EQ(e2e_error("mr,ref\n,y\n"), "e2e: line 2: the mr is empty");
  EXPECT_EQ(e2e_error("mr,ref\nx,\xff\n"), "e2e: is not UTF-8 at byte 9 (0xff)");
  EXPECT_EQ(e2e_error("mr,ref\nx,\"y\n"), "e2e: line 2: the quote is not closed: truncated?");
  EXPECT_LT(e2e_error(std::string(5000, 'x')).size(), 200u);
}

// A small data set with a manifest of its own.
struct E2eFolder : ::testing::Test {
  std::string folder = ::testing::TempDir() + "lte_e2e_test_" + std::to_string(getpid());
  DataPaths paths = {.manifest = folder + "/m.toml", .mirror = "", .cache = folder};
  void SetUp() override { fs::remove_all(folder), make_folder(folder); }
  void TearDown() override { fs::remove_all(folder); }

  void write(const std::string& train, const std::string& valid, const std::string& test) const {
    std::string manifest;
    const std::pair<const char*, const std::string*> files[] = {
        {"train", &train}, {"valid", &valid}, {"test", &test}};
    for (const auto& [split, content] : files) {
      write_file(folder + "/" + split + ".csv", *content);
      manifest += std::string("[[file]]\ndataset = \"e2e\"\nlicence = \"x\"\nsplit = \"") + split +
                  "\"\npath = \"" + split + ".csv\"\nbytes = " + std::to_string(content->size()) +
                  "\nsha256 = \"" + sha256_hex(*content) + "\"\n";
    }
    write_file(paths.manifest, manifest);
  }
};

TEST_F(E2eFolder, LoadsDocumentsAndExamples) {
  std::string test = "mr,ref\n";
  for (int i = 0; i < 300; ++i) {
    const std::string mr = "\"name[N" + std::to_string(i) + "], area[riverside]\"";
    test += mr + ",N is by the river.\n" + mr + ",\"The N, by the river.\"\n";
  }
  write("mr,ref\nname[A],A is \xc2\xa3 20.\nname[A],\"\"\"A\"\" it is.\"\n", "mr,ref\nname[B],B.\n",
        test);
  for (const char* spec : {"bytes", "chars", "bpe:300"}) {
    const Dataset d = load_dataset("e2e", spec, paths);
    EXPECT_EQ(d.task, "e2e");
    EXPECT_EQ(
        document_lines(d, d.train),
        (std::vector<std::string>{"name[A] => A is \xc2\xa3 20.\n", "name[A] => \"A\" it is.\n"}));
    EXPECT_EQ(scored_part(d, d.train, 1), " \"A\" it is.\n");
    EXPECT_EQ(d.test.starts.size(), 600u);
    ASSERT_EQ(d.examples.size(), 200u);
    std::set<std::string> prompts;
    for (const Example& e : d.examples) {
      EXPECT_EQ(e.references.size(), 2u);
      EXPECT_TRUE(e.prompt.ends_with("], area[riverside] =>"));
      EXPECT_TRUE(prompts.insert(e.prompt).second);
    }
    EXPECT_EQ(prompts.size(), 200u);
  }
}

TEST_F(E2eFolder, DamageIsOneClearLine) {
  const auto error = [&] { return error_of([&] { load_dataset("e2e", "", paths); }); };
  const std::string good = "mr,ref\nname[A],A is a pub.\n";
  write(good, "mr,ref\nname[A],\"x\n", good);
  EXPECT_EQ(error(), "e2e, valid split: line 2: the quote is not closed: truncated?");
  write(good, good, "meaning,ref\nname[A],x\n");
  EXPECT_EQ(error(), "e2e, test split: has no column \"mr\"; its columns are meaning, ref");
  write(good, good, good);
  write_file(folder + "/train.csv", good.substr(0, 20));
  EXPECT_EQ(error(), folder + "/train.csv: has 20 bytes, not " + std::to_string(good.size()) +
                         ": truncated?; remove it and run `make data`");
  fs::remove(folder + "/test.csv");
  write_file(folder + "/train.csv", good);
  EXPECT_EQ(error(), "e2e: test.csv is neither in the mirror \"\" nor in \"" + folder +
                         "\": run `make data`, or set LTE_DATA_MIRROR to a folder that holds it");
}

DataPaths real_paths() {
  const char* mirror = std::getenv("LTE_DATA_MIRROR");
  return {.manifest = LTE_SOURCE_DIR "/datasets/manifest.toml",
          .mirror = mirror ? mirror : "",
          .cache = LTE_SOURCE_DIR "/data"};
}

TEST(E2eManifest, OfficialFilesComeFirst) {
  std::vector<std::string> files;
  for (const FileRow& row : read_manifest(real_paths().manifest)) {
    if (row.dataset != "e2e") continue;
    files.push_back(row.split + " " + row.member);
    EXPECT_EQ(row.licence, "CC BY-SA 4.0");
    EXPECT_EQ(row.url.empty(), row.member.empty());
  }
  EXPECT_EQ(files, (std::vector<std::string>{"train e2e-dataset/trainset.csv", "train ",
                                             "valid e2e-dataset/devset.csv",
                                             "test e2e-dataset/testset_w_refs.csv"}));
}

TEST(E2eManifest, RealFiles) {
  const DataPaths paths = real_paths();
  const std::string file = "/e2e/testset_w_refs.csv";
  if (!fs::exists(paths.mirror + file) && !fs::exists(paths.cache + file)) {
    GTEST_SKIP() << "e2e is not here: run `make data` or set LTE_DATA_MIRROR";
  }
  const Dataset d = load_dataset("e2e", "", paths);
  EXPECT_EQ(d.tokenizer.vocab.size(), 512u);
  EXPECT_EQ(d.train.starts.size(), 42061u);
  EXPECT_EQ(d.valid.starts.size(), 4672u);
  EXPECT_EQ(d.test.starts.size(), 4693u);
  EXPECT_EQ(d.examples.size(), 200u);
  for (const TokenSet* set : {&d.train, &d.test}) {  // most documents fit into a window
    const auto n = static_cast<int64_t>(set->tokens.size());
    const auto count = static_cast<double>(set->starts.size());
    int fit = 0;
    for (size_t i = 0; i < set->starts.size(); ++i) {
      const int64_t end = i + 1 < set->starts.size() ? set->starts[i + 1] : n;
      fit += end - set->starts[i] <= d.default_seq + 1;
    }
    EXPECT_GT(fit / count, 0.96);
  }
  const auto train = document_lines(d, d.train);
  std::set<std::string> meanings;
  for (const std::string& line : train) meanings.insert(line.substr(0, line.find(" =>") + 3));
  for (const Example& e : d.examples) EXPECT_FALSE(meanings.count(e.prompt)) << e.prompt;
}

}  // namespace
}  // namespace lte
