#include "core/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "core/check.h"

namespace lte {
namespace {

[[noreturn]] void fail_errno(const std::string& path, const char* what, int error) {
  fail(path + ": " + what + ": " + std::strerror(error));
}

// 0, or the errno of the first write, flush or close that failed. Always closes.
int write_and_close(int fd, std::string_view bytes, bool flush) {
  int error = 0;
  while (!bytes.empty() && error == 0) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && flush && ::fsync(fd) != 0) error = errno;
  if (::close(fd) != 0 && error == 0) error = errno;
  return error;
}

void write_in_place(const std::string& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) fail_errno(path, "cannot be written", errno);
  if (const int error = write_and_close(fd, bytes, false)) {
    fail_errno(path, "cannot be written", error);
  }
}

}  // namespace

std::string read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno(path, "cannot be read", errno);
  std::string bytes;
  struct stat info {};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    bytes.reserve(static_cast<size_t>(info.st_size) + 1);
  }
  char block[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, block, sizeof block);
    if (n == 0) break;
    if (n > 0) {
      bytes.append(block, static_cast<size_t>(n));
    } else if (errno != EINTR) {
      const int error = errno;
      ::close(fd);
      fail_errno(path, "cannot be read", error);
    }
  }
  ::close(fd);
  return bytes;
}

void write_file(const std::string& path, std::string_view bytes) {
  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) fail_errno(path, "cannot be written", EISDIR);
  if (exists && !S_ISREG(info.st_mode)) return write_in_place(path, bytes);

  const std::string temporary = path + ".tmp" + std::to_string(::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) fail_errno(path, "cannot be written", errno);
  int error = write_and_close(fd, bytes, true);
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    ::unlink(temporary.c_str());
    fail_errno(path, "cannot be written", error);
  }
}

void append_line(const std::string& path, std::string_view line) {
  std::string bytes(line);
  bytes += '\n';
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) fail_errno(path, "cannot be appended to", errno);
  const ssize_t n = ::write(fd, bytes.data(), bytes.size());
  // A short write to a file means that the disk is full.
  int error = n < 0 ? errno : n < static_cast<ssize_t>(bytes.size()) ? ENOSPC : 0;
  if (n > 0 && error != 0) {  // take the torn line back, so that the next one does not join it
    const off_t end = ::lseek(fd, 0, SEEK_END);
    if (end >= n && ::ftruncate(fd, end - n) != 0) error = errno;
  }
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error != 0) fail_errno(path, "cannot be appended to", error);
}

void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail(path + ": cannot be made: " + error.message());
  if (!std::filesystem::is_directory(path, error)) fail(path + ": is not a folder");
}

}  // namespace lte
