// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// Files as bytes: whole reads that trust nothing, and saves that leave the old file or the new one whatever
/// happens. POSIX.
namespace moxie::inline MOXIE_ABI::io {

using Path = std::filesystem::path;
using Bytes = std::string;

namespace detail {

using moxie::detail::join;

/// Text of others in our messages: at most 80 bytes, what is not printable ASCII escaped.
inline std::string shown(std::string_view text) {
  constexpr std::size_t most = 80;
  std::string all = "'";
  for (const char c : text.substr(0, most)) {
    constexpr char digits[] = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '\'' && c != '\\')
      all += c;
    else
      all.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 15]);
  }
  if (text.size() > most) all += "...";
  return all + "'";
}

/// A path in our messages: of a long one its end, which tells more than its beginning.
inline std::string shown_path(const Path& path) {
  constexpr std::size_t most = 80;
  const std::string_view text = path.native();
  if (text.size() <= most) return shown(text);
  return shown(text.substr(text.size() - most)).insert(1, "...");
}

/// Refuses: "file: what".
template <class... What>
[[noreturn]] void refuse(Code code, const Path& path, const What&... what) {
  fail(code, join(shown_path(path), ": ", what...));
}
[[noreturn]] inline void refuse_errno(Code code, const Path& path, std::string_view doing, int error) {
  refuse(code, path, doing, ": ", std::strerror(error));
}

/// An open file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  /// The result of close: some file systems tell of a failed write only here.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

/// f() again while it is interrupted.
template <class F>
auto uninterrupted(F&& f) {
  for (;;)
    if (const auto result = f(); result >= 0 || errno != EINTR) return result;
}

/// No room for bytes, or for another file.
inline bool is_full(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

inline bool has_nul(const Path& path) { return path.native().find('\0') != std::string::npos; }

}  // namespace detail

/// A regular file that is read in pieces.
class FileReader {
 public:
  /// Throws IoOpen, NotRegularFile.
  explicit FileReader(const Path& path) : path_(path), file_(open(path)) {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) detail::refuse_errno(Code::io_read, path, "fstat", errno);
    if (!S_ISREG(status.st_mode))
      detail::refuse(Code::not_regular_file, path, "is no regular file, wanted one");
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  const Path& path() const { return path_; }
  std::uint64_t size() const { return size_; }  ///< when it was opened

  /// n bytes from byte `from` on. Throws IoChanged where the file has become shorter, IoRead, TooLarge.
  Bytes read(std::uint64_t from, std::uint64_t n) const {
    // Zeros in memory that the machine does not have would bring it to its knees before we fail.
    const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0 && n / static_cast<std::uint64_t>(page) > static_cast<std::uint64_t>(pages))
      detail::refuse(Code::too_large, path_, n, " bytes do not fit in memory");
    Bytes bytes(static_cast<std::size_t>(n), '\0');
    for (std::size_t have = 0; have < bytes.size();) {
      const ssize_t got = detail::uninterrupted([&] {
        return ::pread(file_.get(), bytes.data() + have, bytes.size() - have,
                       static_cast<off_t>(from + have));
      });
      if (got < 0) detail::refuse_errno(Code::io_read, path_, "read", errno);
      if (got == 0)
        detail::refuse(Code::io_changed, path_, "became shorter while it was read, wanted a file at rest");
      have += static_cast<std::size_t>(got);
    }
    return bytes;
  }

  /// Throws IoChanged where there is more or less than there was when it was opened.
  void expect_unchanged() const {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) detail::refuse_errno(Code::io_read, path_, "fstat", errno);
    if (static_cast<std::uint64_t>(status.st_size) != size_)
      detail::refuse(Code::io_changed, path_, "changed its size while it was read, wanted a file at rest");
  }

 private:
  static detail::Descriptor open(const Path& path) {
    if (detail::has_nul(path)) detail::refuse(Code::io_open, path, "a path with a NUL");
    // Without waiting for somebody to write into a pipe.
    const int fd = detail::uninterrupted(
        [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); });
    if (fd < 0) detail::refuse_errno(Code::io_open, path, "open", errno);
    return detail::Descriptor(fd);
  }

  Path path_;
  detail::Descriptor file_;
  std::uint64_t size_ = 0;
};

/// A whole small file. Throws TooLarge above `most` bytes.
inline Bytes read_file(const Path& path, std::uint64_t most) {
  const FileReader file(path);
  if (file.size() > most) detail::refuse(Code::too_large, path, file.size(), " bytes, wanted at most ", most);
  Bytes bytes = file.read(0, file.size());
  file.expect_unchanged();
  return bytes;
}

/// Replaces a file at once and for good: written beside it, synced, renamed over it, the folder synced. After
/// an error or a kill at any moment there is the old file or the new one; what may be left is a file beside
/// it whose name ends in ".tmp". A symbolic link stays and its target is replaced; an existing file keeps its
/// permissions. `replaced` is set once the new file is there, whatever fails then. Throws IoOpen,
/// NotRegularFile, IoNoSpace, IoWrite.
inline void save_file(const Path& path, std::span<const std::span<const char>> parts,
                      bool* replaced = nullptr) {
  if (detail::has_nul(path)) detail::refuse(Code::io_open, path, "a path with a NUL");
  std::error_code error;
  Path target = path;
  if (std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)))
    target = std::filesystem::canonical(path, error);
  if (error && error != std::errc::no_such_file_or_directory)
    detail::refuse(Code::io_open, path, error.message());
  if (target.empty()) detail::refuse(Code::io_open, path, "a link to nowhere");
  struct stat old {};
  const bool exists = ::stat(target.c_str(), &old) == 0;
  if (!exists && errno != ENOENT) detail::refuse_errno(Code::io_open, path, "stat", errno);
  if (exists && !S_ISREG(old.st_mode))
    detail::refuse(Code::not_regular_file, path, "is no regular file, which a save could replace");

  static std::atomic<unsigned> number{0};
  Path temporary;
  int fd = -1;
  for (int attempt = 0; fd < 0 && attempt < 100; ++attempt) {
    temporary = target;
    temporary += detail::join(".", ::getpid(), "-", number.fetch_add(1), ".tmp");
    fd = detail::uninterrupted([&] {
      return ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    });
    if (fd < 0 && errno == ENOENT) detail::refuse(Code::io_open, path, "its folder does not exist");
    if (fd < 0 && errno != EEXIST)
      detail::refuse_errno(detail::is_full(errno) ? Code::io_no_space : Code::io_open, path, "open beside it",
                           errno);
  }
  if (fd < 0) detail::refuse(Code::io_open, path, "no free name beside it");
  detail::Descriptor file(fd);

  const auto check = [&](bool done, std::string_view doing) {
    if (done) return;
    const int why = errno;
    ::unlink(temporary.c_str());
    detail::refuse_errno(detail::is_full(why) ? Code::io_no_space : Code::io_write, path, doing, why);
  };
  for (const std::span<const char> part : parts)
    for (std::size_t written = 0; written < part.size();) {
      const ssize_t n = detail::uninterrupted(
          [&] { return ::write(file.get(), part.data() + written, part.size() - written); });
      check(n > 0, "write");
      written += static_cast<std::size_t>(n);
    }
  if (exists) check(::fchmod(file.get(), old.st_mode & 07777) == 0, "fchmod");
  check(detail::uninterrupted([&] { return ::fsync(file.get()); }) == 0, "fsync");
  check(file.close() == 0 || errno == EINTR, "close");  // synced already, and closed whatever it says
  check(::rename(temporary.c_str(), target.c_str()) == 0, "rename");
  if (replaced != nullptr) *replaced = true;

  // The new name is there; now it is made to outlive a loss of power.
  Path folder = target.parent_path();
  if (folder.empty()) folder = ".";
  const detail::Descriptor directory(
      detail::uninterrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (directory.get() < 0 ||
      (detail::uninterrupted([&] { return ::fsync(directory.get()); }) != 0 && errno != EINVAL))
    detail::refuse_errno(Code::io_write, path, "saved, but its folder could not be synced", errno);
}
inline void save_file(const Path& path, std::span<const char> bytes, bool* replaced = nullptr) {
  save_file(path, std::span<const std::span<const char>>(&bytes, 1), replaced);
}

}  // namespace moxie::inline MOXIE_ABI::io
