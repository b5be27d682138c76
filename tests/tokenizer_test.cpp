#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"

namespace lte {
namespace {

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string random_bytes(Rng& rng, int length, int alphabet) {
  std::string text;
  for (int i = 0; i < length; ++i) text += static_cast<char>(rng.below(alphabet));
  return text;
}

// Words of a few letters with very unequal frequencies.
std::string random_words(uint64_t seed, int count) {
  Rng rng(seed);
  std::string text;
  for (int i = 0; i < count; ++i) {
    const uint64_t rank = rng.below(1 + rng.below(3000));
    Rng word(hash64(99, rank));
    const uint64_t length = 1 + word.below(9);
    for (uint64_t k = 0; k < length; ++k) text += static_cast<char>('a' + word.below(26));
    text += i % 12 == 11 ? "\n" : " ";
  }
  return text;
}

TEST(Tokenizer, UnknownSpecsListTheKnownOnes) {
  for (const char* spec : {"", "foo", "bpe", "bpe:", "bpe:abc", "bpe:256", "bpe:-1", "bpe:1e3",
                           "bpe:70000", "bpe:99999999999", "bpe:512 ", "Bytes"}) {
    EXPECT_EQ(message_of([&] { train_tokenizer(spec, "text"); }),
              "tokenizer \"" + std::string(spec) +
                  "\" is not known: use bytes, chars, or bpe:N with N from 257 to 65536");
  }
}

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const Tokenizer t = train_tokenizer("bytes", "");
  EXPECT_EQ(t.vocab.size(), 256u);
  EXPECT_EQ(encode(t, std::string("a\0\xff", 3)), (std::vector<int32_t>{97, 0, 255}));
}

TEST(Tokenizer, CharactersAreSortedByCodePoint) {
  const Tokenizer t = train_tokenizer("chars",
                                      "b\xc3\xa9"
                                      "a\xf0\x9f\x98\x80z\n");
  EXPECT_EQ(t.vocab,
            (std::vector<std::string>{"\n", "a", "b", "z", "\xc3\xa9", "\xf0\x9f\x98\x80"}));
  const std::string text = "z\xf0\x9f\x98\x80\xc3\xa9\n";
  EXPECT_EQ(encode(t, text), (std::vector<int32_t>{3, 5, 4, 0}));
  EXPECT_EQ(decode(t, encode(t, text)), text);
}

TEST(Tokenizer, CharactersNameWhatTheyDoNotKnow) {
  const Tokenizer t = train_tokenizer("chars", "ab");
  EXPECT_EQ(message_of([&] { encode(t, "ab\xc3\xa9"); }),
            "character '\xc3\xa9' (U+00E9) at byte 2 is not in the vocabulary of 2 characters; a "
            "base with "
            "--tokenizer bytes reads all texts");
  EXPECT_EQ(
      message_of([&] { encode(t, "a\nb"); }),
      "character '?' (U+000A) at byte 1 is not in the vocabulary of 2 characters; a base with "
      "--tokenizer bytes reads all texts");
  EXPECT_EQ(message_of([&] { encode(t, "ab\xff"); }), "the text: is not UTF-8 at byte 2 (0xff)");
}

TEST(Tokenizer, DecodeRefusesIdsOutOfRange) {
  const Tokenizer t = train_tokenizer("chars", "ab");
  for (int32_t id : {-1, 2}) {
    const std::vector<int32_t> ids = {0, id};
    EXPECT_EQ(message_of([&] { decode(t, ids); }),
              "token id " + std::to_string(id) + " is not in the vocabulary of 2");
  }
}

TEST(Tokenizer, EveryByteStringComesBack) {
  const std::string corpus = random_words(1, 20000);
  Rng rng(2);
  for (const char* spec : {"bytes", "bpe:257", "bpe:600"}) {
    const Tokenizer t = train_tokenizer(spec, corpus);
    EXPECT_EQ(decode(t, encode(t, corpus)), corpus);
    for (int i = 0; i < 300; ++i) {
      const std::string text =
          random_bytes(rng, static_cast<int>(rng.below(200)), i % 2 ? 256 : 40);
      EXPECT_EQ(decode(t, encode(t, text)), text);
    }
  }
}

TEST(Bpe, MergesByHand) {
  // Pieces: "ab" once, " ab" twice, " abc" twice: (a,b) 5 times, then (space,ab) 4 times, then
  // (" ab",c) twice; nothing else occurs twice.
  const Tokenizer t = train_tokenizer("bpe:1000", "ab ab ab abc abc");
  const std::vector<std::string> learned(t.vocab.begin() + 256, t.vocab.end());
  EXPECT_EQ(learned, (std::vector<std::string>{"ab", " ab", " abc"}));
  EXPECT_EQ(encode(t, "ab abc c"), (std::vector<int32_t>{256, 258, ' ', 'c'}));
}

TEST(Bpe, TiesGoToSmallerIds) {
  const Tokenizer t = train_tokenizer("bpe:258", "zy zy\nba ba\n");
  EXPECT_EQ(t.vocab[256], "ba");  // (b,a) and (z,y) occur twice
  EXPECT_EQ(t.vocab[257], "zy");
}

TEST(Bpe, SizeIsExactAndTrainingIsDeterministic) {
  const std::string corpus = random_words(3, 20000);
  const Tokenizer a = train_tokenizer("bpe:512", corpus), b = train_tokenizer("bpe:512", corpus);
  EXPECT_EQ(a.vocab.size(), 512u);
  EXPECT_EQ(a.merges, b.merges);
  EXPECT_LT(encode(a, corpus).size(), corpus.size() * 3 / 4);
  EXPECT_EQ(train_tokenizer("bpe:257", "").vocab.size(), 256u);
}

// The incremental counts agree with counting anew before every merge.
TEST(Bpe, AgreesWithTheDefinition) {
  const std::string corpus = random_words(4, 400);
  const Tokenizer t = train_tokenizer("bpe:330", corpus);
  std::vector<std::vector<int32_t>> pieces;
  for (size_t at = 0; at < corpus.size();) {
    pieces.emplace_back();
    const size_t end = piece_end(corpus, at);
    for (; at < end; ++at) pieces.back().push_back(static_cast<unsigned char>(corpus[at]));
  }
  for (size_t m = 0; m < t.merges.size(); ++m) {
    std::map<std::pair<int32_t, int32_t>, int> counts;
    for (const auto& p : pieces) {
      for (size_t i = 0; i + 1 < p.size(); ++i) ++counts[{p[i], p[i + 1]}];
    }
    auto best = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (it->second > best->second) best = it;
    }
    ASSERT_EQ(t.merges[m], best->first) << "merge " << m;
    for (auto& p : pieces) {
      std::vector<int32_t> merged;
      for (size_t i = 0; i < p.size(); ++i) {
        const bool hit = i + 1 < p.size() && std::pair(p[i], p[i + 1]) == best->first;
        merged.push_back(hit ? static_cast<int32_t>(256 + m) : p[i]);
        i += hit;
      }
      p = merged;
    }
  }
}

TEST(Bpe, PiecesDoNotCrossTheirBounds) {
  const std::string text = "two  words, 12\n\n x=>The \xc3\xa9t\xc3\xa9";
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size(); at += pieces.back().size()) {
    pieces.push_back(text.substr(at, piece_end(text, at) - at));
  }
  EXPECT_EQ(pieces, (std::vector<std::string>{"two", " ", " words", ",", " 12", "\n", "\n", " x",
                                              "=>", "The", " \xc3\xa9t\xc3\xa9"}));
  EXPECT_EQ(piece_end(std::string(1000, 'a'), 10), 74u);
}

TEST(TokenizerJson, RoundTrip) {
  const std::string corpus = random_words(5, 2000) + "\xc3\xa9\xc3\xa9\xc3\xa9";
  for (const char* spec : {"bytes", "chars", "bpe:400"}) {
    const Tokenizer a = train_tokenizer(spec, corpus), b = tokenizer_from_json(to_json(a));
    EXPECT_EQ(a.spec, b.spec);
    EXPECT_EQ(a.vocab, b.vocab);
    EXPECT_EQ(a.merges, b.merges);
    EXPECT_EQ(encode(a, corpus), encode(b, corpus));
  }
}

TEST(TokenizerJson, MalformedInputIsOneClearError) {
  using nlohmann::json;
  const json good = json::parse(to_json(train_tokenizer("bpe:258", "abc abc abc abc")));
  const auto broken = [&](auto&& change) {
    json j = good;
    change(j);
    return message_of([&] { tokenizer_from_json(j.dump()); });
  };
  EXPECT_EQ(broken([](json&) {}), "no error");
  EXPECT_EQ(broken([](json& j) { j["merges"][1][0] = 257; }),
            "tokenizer: merge 1 joins ids 257 and 99; below 257 is possible");
  EXPECT_EQ(broken([](json& j) { j["merges"][0][1] = -1; }),
            "tokenizer: merge 0 joins ids 97 and -1; below 256 is possible");
  EXPECT_EQ(broken([](json& j) { j["merges"][0] = 1; }), "tokenizer: a merge is not a pair of ids");
  EXPECT_EQ(broken([](json& j) { j["vocab"][257] = "6161"; }),
            "tokenizer: id 257 is not what its merge makes");
  EXPECT_EQ(broken([](json& j) { j["vocab"][5] = "0"; }),
            "tokenizer: \"0\" is not a token in hexadecimal");
  EXPECT_EQ(broken([](json& j) { j["vocab"][5] = "06"; }), "tokenizer: id 5 must stand for byte 5");
  EXPECT_EQ(broken([](json& j) { j["vocab"].erase(5); }),
            "tokenizer: 257 ids and 2 merges do not fit \"bpe:258\"");
  EXPECT_NE(broken([](json& j) { j["spec"] = "foo"; }).find("is not known"), std::string::npos);
  EXPECT_NE(broken([](json& j) { j.erase("vocab"); }).find("not the expected JSON"),
            std::string::npos);
  EXPECT_NE(message_of([] { tokenizer_from_json("{"); }).find("not the expected JSON"),
            std::string::npos);
  EXPECT_EQ(message_of(
                [] { tokenizer_from_json(R"({"spec":"chars","vocab":["61","61"],"merges":[]})"); }),
            "tokenizer: ids 0 and 1 stand for the same bytes");
  EXPECT_EQ(
      message_of([] { tokenizer_from_json(R"({"spec":"chars","vocab":["6162"],"merges":[]})"); }),
      "tokenizer: \"6162\" (hexadecimal) is not one character");
}

TEST(Utf8, FindsTheFirstInvalidSequence) {
  const auto at = [](std::string_view text) { return message_of([&] { check_utf8(text, "x"); }); };
  for (const char* good : {"", "abc", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
                           "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(at(good), "no error");
  }
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc3", "\xc3(", "\xe0\x9f\xbf", "\xed\xa0\x80",
                          "\xe2\x82", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80"}) {
    EXPECT_NE(at("ab" + std::string(bad)).find("x: is not UTF-8 at byte 2 (0x"), std::string::npos);
  }
}

}  // namespace
}  // namespace lte
