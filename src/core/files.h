// Whole files in, whole files out; every failure is an Error of the form `PATH: WHAT: REASON`.
#pragma once

#include <string>
#include <string_view>

namespace lte {

std::string read_file(const std::string& path);

// Writes a temporary file beside `path`, flushes it to the disk and renames it: a reader sees the
// old content or the new, never a part. On failure the temporary is removed and `path` is as it
// was. A device or a pipe is written in place. The folder must exist.
void write_file(const std::string& path, std::string_view bytes);

// Appends `line` and a newline in one write, so that lines of several writers do not mix.
void append_line(const std::string& path, std::string_view line);

// With its parents; an existing folder is fine.
void make_folder(const std::string& path);

}  // namespace lte
