#include "data/manifest.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <filesystem>

#include "core/check.h"
#include "core/files.h"
#include "core/hash.h"

namespace lte {
namespace {

void check_row(const FileRow& row, const std::string& where) {
  LTE_CHECK(!row.dataset.empty() && !row.split.empty() && !row.path.empty() && !row.licence.empty(),
            where + ": needs dataset, split, path and licence");
  LTE_CHECK(row.bytes > 0, where + ": needs the file's size as bytes");
  LTE_CHECK(row.sha256.size() == 64 || row.git_blob.size() == 40,
            where + ": needs sha256 (64 digits) or git_blob (40 digits)");
  LTE_CHECK(row.path.front() != '/' && row.path.find("..") == std::string::npos,
            where + ": path must stay below the data folder");
}

}  // namespace

std::vector<FileRow> read_manifest(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<FileRow> rows;
  try {
    const toml::table table = toml::parse(text, path);
    const toml::array* files = table["file"].as_array();
    LTE_CHECK(files != nullptr, path + ": holds no [[file]]");
    for (const toml::node& node : *files) {
      const std::string where = fmt::format("{}: file {}", path, rows.size() + 1);
      const toml::table* t = node.as_table();
      LTE_CHECK(t != nullptr, where + ": is not a table");
      const auto get = [&](const char* key) { return (*t)[key].value_or(std::string()); };
      rows.push_back({.dataset = get("dataset"),
                      .split = get("split"),
                      .path = get("path"),
                      .url = get("url"),
                      .member = get("member"),
                      .bytes = (*t)["bytes"].value_or(int64_t{0}),
                      .sha256 = get("sha256"),
                      .git_blob = get("git_blob"),
                      .licence = get("licence"),
                      .note = get("note")});
      check_row(rows.back(), where);
    }
  } catch (const toml::parse_error& e) {
    fail(fmt::format("{}:{}: {}", path, static_cast<int>(e.source().begin.line),
                     std::string(e.description())));
  }
  return rows;
}

std::string check_content(const FileRow& row, std::string_view content) {
  const auto size = static_cast<int64_t>(content.size());
  if (size != row.bytes) {
    return fmt::format("has {} bytes, not {}{}", size, row.bytes,
                       size < row.bytes ? ": truncated?" : "");
  }
  const std::string& wanted = row.sha256.empty() ? row.git_blob : row.sha256;
  const std::string found = row.sha256.empty() ? git_blob_sha1(content) : sha256_hex(content);
  if (found == wanted) return "";
  return fmt::format("has the checksum {}, not {}: another file or a damaged one", found, wanted);
}

std::string load_split(const std::vector<FileRow>& rows, std::string_view dataset,
                       std::string_view split, const DataPaths& paths) {
  std::string first;
  for (const FileRow& row : rows) {
    if (row.dataset != dataset || row.split != split) continue;
    if (first.empty()) first = row.path;
    for (const std::string& folder : {paths.mirror, paths.cache}) {
      const std::string path = folder + "/" + row.path;
      if (folder.empty() || !std::filesystem::exists(path)) continue;
      std::string content = read_file(path);
      const std::string wrong = check_content(row, content);
      LTE_CHECK(wrong.empty(), fmt::format("{}: {}; remove it and run `make data`", path, wrong));
      return content;
    }
  }
  LTE_CHECK(!first.empty(), fmt::format("{}: the manifest has no file for the {} split of {}",
                                        paths.manifest, split, dataset));
  fail(
      fmt::format("{}: {} is neither in the mirror \"{}\" nor in \"{}\": run `make data`, or set "
                  "LTE_DATA_MIRROR to a folder that holds it",
                  dataset, first, paths.mirror, paths.cache));
}

}  // namespace lte
