#include "core/hash.h"

#include <gtest/gtest.h>

#include <set>

namespace lte {
namespace {

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(GitBlob, KnownAnswers) {
  EXPECT_EQ(git_blob_sha1("hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
  EXPECT_EQ(git_blob_sha1(""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}

// The padding has a case of its own at 55, 56 and 64 bytes: all lengths give different digests.
TEST(Hashes, EveryLengthAroundABlock) {
  std::set<std::string> seen;
  for (int length = 0; length <= 130; ++length) {
    seen.insert(sha256_hex(std::string(length, 'x')));
    seen.insert(git_blob_sha1(std::string(length, 'x')));
  }
  EXPECT_EQ(seen.size(), 2u * 131);
}

}  // namespace
}  // namespace lte
