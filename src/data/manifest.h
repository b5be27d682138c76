// The files that the suite reads but does not hold: where they come from and how they are
// recognised.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"

namespace lte {

struct FileRow {
  std::string dataset, split;  // several rows of one split are candidates, the first is preferred
  std::string path;            // below the mirror and the cache
  std::string url, member;     // member: the name inside of a zip file at `url`
  int64_t bytes = 0;
  std::string sha256, git_blob;  // one of the two
  std::string licence, note;
};

// Throws Error naming the row and the key that is missing or malformed.
std::vector<FileRow> read_manifest(const std::string& path);

// "" if `content` is the row's file, else what is wrong with it.
std::string check_content(const FileRow&, std::string_view content);

// The content of the first candidate that is in the mirror or the cache. A file that is there but
// wrong is an Error, never passed over; so is a split without a file.
std::string load_split(const std::vector<FileRow>&, std::string_view dataset,
                       std::string_view split, const DataPaths&);

}  // namespace lte
