// Checksums by which files are recognised: SHA-256, and the object id that git gives a file.
#pragma once

#include <string>
#include <string_view>

namespace lte {

// Lower-case hexadecimal digest (FIPS 180-4).
std::string sha256_hex(std::string_view bytes);

// SHA-1 of "blob <size>\0" and the content: what `git hash-object` prints. Identity, not security.
std::string git_blob_sha1(std::string_view bytes);

}  // namespace lte
