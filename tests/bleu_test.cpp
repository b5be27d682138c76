#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "core/files.h"
#include "data/metrics.h"
#include "errors.h"

namespace lte {
namespace {

using Texts = std::vector<std::string>;

double bleu(const std::string& candidate, const Texts& references) {
  const Texts candidates = {candidate};
  const std::vector<Texts> all = {references};
  return bleu_e2e(candidates, all);
}

// The geometric mean of four precisions.
double mean4(double a, double b, double c, double d) { return std::pow(a * b * c * d, 0.25); }

TEST(Bleu, ByHand) {
  EXPECT_DOUBLE_EQ(bleu("the cat sat down", {"the cat sat down"}), 1.0);
  EXPECT_DOUBLE_EQ(bleu("The CAT sat Down", {"the cat sat down"}), 1.0);
  // 1-grams 5/6, 2-grams 3/5, 3-grams 2/4, 4-grams 1/3; equally long.
  EXPECT_NEAR(bleu("a b c d x f", {"a b c d e f"}), mean4(5. / 6, 3. / 5, 2. / 4, 1. / 3), 1e-12);
}

TEST(Bleu, Brevity) {
  // All four precisions are 1; the penalty is exp(1 - 8/4), and none for a longer text.
  EXPECT_NEAR(bleu("a b c d", {"a b c d e f g h"}), std::exp(-1.0), 1e-12);
  EXPECT_NEAR(bleu("a b c d e f", {"a b c d"}), mean4(4. / 6, 3. / 5, 2. / 4, 1. / 3), 1e-12);
}

TEST(Bleu, ClosestReferenceAndTiesToTheShorter) {
  // Lengths 3 and 5 are equally far from 4: the shorter gives no penalty.
  EXPECT_NEAR(bleu("a b c d", {"a b c d e", "x y z"}), 1.0, 1e-12);
  EXPECT_NEAR(bleu("a b c d", {"x y z", "a b c d e"}), 1.0, 1e-12);
  // 5 is closer than 1: exp(1 - 5/4).
  EXPECT_NEAR(bleu("a b c d", {"x", "a b c d e"}), std::exp(-0.25), 1e-12);
}

TEST(Bleu, NgramsAreClippedByTheReferenceThatHasThemMostOften) {
  // "the" counts twice by the second reference, not three times by both together.
  const double p1 = 3. / 5, p2 = 1. / 4, zero3 = 1e-15 / 3, zero4 = 1e-15 / 2;
  EXPECT_NEAR(bleu("the the the cat z", {"the dog is so big", "the the q cat r"}),
              mean4(p1, p2, zero3, zero4), 1e-12);
}

TEST(Bleu, NoOverlapAndShortTextsHaveAFloor) {
  EXPECT_NEAR(bleu("a b c d e", {"v w x y z"}), mean4(1e-15 / 5, 1e-15 / 4, 1e-15 / 3, 1e-15 / 2),
              1e-20);
  // Two words: no 3-grams of which there could be any; both counts are at their floors.
  EXPECT_NEAR(bleu("a b", {"a b"}), mean4(1, 1, 1e-15 / 1e-9, 1e-15 / 1e-9), 1e-9);
  // An empty text is one empty word: lengths 1, 0, -1, -2, and brevity exp(1 - 2/1).
  EXPECT_NEAR(bleu("", {"a b"}), std::exp(-1) * mean4(1e-15, 1e-6, 1e-6, 1e-6), 1e-12);
  EXPECT_GE(bleu("", {""}), 0.0);
}

TEST(Bleu, IsOfTheCorpusNotAMeanOfTexts) {
  const Texts candidates = {"a b c d", "a x b y"};
  const std::vector<Texts> references = {{"a b c d"}, {"a b c d"}};
  // Hits 4 + 2, 3, 2, 1 of 8, 6, 4, 2.
  EXPECT_NEAR(bleu_e2e(candidates, references), mean4(6. / 8, 3. / 6, 2. / 4, 1. / 2), 1e-12);
}

// The two sides are the same words, once cut apart and once by spaces.
TEST(Bleu, Words) {
  const auto same = [](const std::string& text, const std::string& cut) {
    EXPECT_DOUBLE_EQ(bleu(text + " p q r s", {cut + " p q r s"}), 1.0) << text;
  };
  same("It's near (the) bar.", "it's near ( the ) bar .");
  same("family-friendly, cheap; good!", "family-friendly , cheap ; good !");
  same("costs 20.50, or 1,000", "costs 20.50 , or 1,000");
  same("\"5 out of 5\"...", "\" 5 out of 5 \" . . .");
  same("20-25 and a-b", "20 - 25 and a-b");
  same("x &amp; y &quot;z&quot; &lt;b&gt;", "x & y \" z \" < b >");
  same("one  two\tthree\nfour", "one two three four");
  same("hyphen-\nated <skipped>", "hyphenated");
  same("caf\xc3\xa9.", "caf\xc3\xa9 .");
  same(".5 and 5.", ". 5 and 5 .");
}

TEST(Bleu, RefusesWhatCannotBeScored) {
  const Texts none, one = {"a"};
  const std::vector<Texts> no_set, empty_set = {{}};
  EXPECT_EQ(error_of([&] { bleu_e2e(none, no_set); }),
            "BLEU: wants texts, and as many sets of references");
  EXPECT_EQ(error_of([&] { bleu_e2e(one, no_set); }),
            "BLEU: wants texts, and as many sets of references");
  EXPECT_EQ(error_of([&] { bleu_e2e(one, empty_set); }), "BLEU: a text has no reference");
}

Texts lines_of(const std::string& path) {
  std::istringstream in(read_file(path));
  Texts lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// What the official scripts give for their own example.
TEST(Bleu, EqualsTheOfficialEvaluation) {
  const char* mirror = std::getenv("LTE_DATA_MIRROR");
  const std::string folder = std::string(mirror ? mirror : "") + "/e2e/metrics-example/";
  if (!mirror || !std::filesystem::exists(folder + "devel-conc.txt")) {
    GTEST_SKIP() << "the example of github.com/tuetschek/e2e-metrics is not here: set "
                    "LTE_DATA_MIRROR to a folder that holds it below e2e/metrics-example";
  }
  const Texts candidates = lines_of(folder + "baseline-output.txt");
  std::vector<Texts> references(1);
  size_t count = 0;
  for (const std::string& line : lines_of(folder + "devel-conc.txt")) {
    if (line.empty()) {
      references.emplace_back();
    } else {
      references.back().push_back(line), ++count;
    }
  }
  if (references.back().empty()) references.pop_back();
  ASSERT_EQ(candidates.size(), 10u);
  ASSERT_EQ(references.size(), 10u);
  ASSERT_EQ(count, 137u);
  EXPECT_NEAR(bleu_e2e(candidates, references), 0.720293, 1e-6);
}

TEST(ExactMatch, ByHand) {
  const Texts references = {"68", "sixty-eight"};
  EXPECT_TRUE(exact_match("68", references));
  EXPECT_TRUE(exact_match(" 68 ", references));
  EXPECT_TRUE(exact_match("sixty-eight\n", references));
  EXPECT_FALSE(exact_match("68.", references));
  EXPECT_FALSE(exact_match("6 8", references));
  EXPECT_FALSE(exact_match("", references));
  EXPECT_FALSE(exact_match("680", references));
  EXPECT_FALSE(exact_match("68", {}));
}

}  // namespace
}  // namespace lte
