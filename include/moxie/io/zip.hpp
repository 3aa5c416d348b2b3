// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/checksum.hpp>
#include <moxie/io/dtype.hpp>
#include <moxie/io/file.hpp>

#include <algorithm>
#include <set>

/// Zip archives (PKWARE APPNOTE.TXT 6.3.10) of stored entries alone, with one meaning: the entries lie one
/// behind the other in the order of the directory from the first byte, then the directory, then the end
/// records up to the last byte, and what is said twice is said the same.
namespace moxie::inline MOXIE_ABI::io::detail {

struct ZipEntry {
  std::string_view name;
  std::uint64_t begin = 0, end = 0;  ///< the bytes of its data in the archive, once they are checked
};

class ZipArchive {
 public:
  /// Reads the directory. `bytes` and `path` must live as long as the archive. Throws FileTruncated,
  /// TrailingData, BadArchive, UnsupportedArchive, TooLarge, EmptyName, NameTooLong, BadName, DuplicateKey.
  ZipArchive(std::string_view bytes, const Path& path, std::uint64_t most_entries)
      : bytes_(bytes), path_(path) {
    const Directory directory = find_directory();
    end_of_entries_ = directory.begin;
    if (directory.count > most_entries)
      refuse(Code::too_large, directory.count, " entries in the archive, wanted at most ", most_entries);
    // An entry of the directory takes at least so many bytes, so the file bounds their number.
    if (directory.count > (directory.end - directory.begin) / entry_size)
      refuse(Code::bad_archive, "more entries than its directory has room for");
    entries_.reserve(static_cast<std::size_t>(directory.count));
    stored_.reserve(static_cast<std::size_t>(directory.count));
    std::uint64_t at = directory.begin;
    for (std::uint64_t i = 0; i < directory.count; ++i) at = read_entry(at, directory.end);
    if (at != directory.end) refuse(Code::bad_archive, "bytes behind the last entry of its directory");
    std::set<std::string_view> names;  // by order: a table could be flooded with colliding names
    for (const ZipEntry& e : entries_)
      if (!names.insert(e.name).second) refuse_entry(Code::duplicate_key, e.name, "twice in the archive");
  }

  const std::vector<ZipEntry>& entries() const { return entries_; }
  std::string_view data(const ZipEntry& e) const { return slice(e.begin, e.end - e.begin); }

  /// Finds the data of every entry, and compares everything that the archive says of it. Throws also
  /// OffsetHole, OffsetOverlap, ChecksumMismatch.
  void check_entries() {
    std::uint64_t at = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) at = check_entry(entries_[i], stored_[i], at);
    if (at != end_of_entries_)
      refuse(at < end_of_entries_ ? Code::offset_hole : Code::offset_overlap, "its directory begins at byte ",
             end_of_entries_, ", wanted ", at, ", where the last entry ends");
  }

 private:
  /// What the directory says of an entry.
  struct Stored {
    std::uint64_t size, offset;
    std::uint32_t crc, time;
    std::uint16_t flags, method;
    std::string_view wide;  // its block of 64-bit numbers; empty where 32 bits are enough
  };
  struct Directory {
    std::uint64_t begin, end, count;
  };
  static constexpr std::uint64_t entry_size = 46, local_size = 30, end_size = 22, wide_end_size = 56,
                                 locator_size = 20;
  static constexpr std::uint16_t has_descriptor = 1u << 3, utf8_name = 1u << 11;
  static constexpr std::uint64_t most32 = 0xffffffffu;

  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    detail::refuse(code, path_, what...);
  }
  template <class... What>
  [[noreturn]] void refuse_entry(Code code, std::string_view entry, const What&... what) const {
    refuse(code, "entry ", shown(entry), ": ", what...);
  }
  std::string_view slice(std::uint64_t at, std::uint64_t n) const {
    return bytes_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(n));
  }
  /// A number at a place that is known to lie inside.
  template <class T>
  T number(std::uint64_t at) const {
    return load_little<T>(bytes_.data() + at);
  }
  /// True where these bytes follow before `end`.
  bool starts(std::uint64_t at, std::string_view signature, std::uint64_t end) const {
    return at <= end && end - at >= signature.size() && slice(at, signature.size()) == signature;
  }

  Directory find_directory() const {
    constexpr std::string_view signature = "PK\5\6";
    const std::uint64_t size = bytes_.size(), at = size < end_size ? 0 : size - end_size;
    if (size < end_size || !starts(at, signature, size)) {
      const std::size_t found = bytes_.rfind(signature);
      if (found == std::string_view::npos || found + end_size > size)
        refuse(Code::file_truncated, "a zip archive without its end");
      const auto comment = number<std::uint16_t>(found + 20);
      refuse(
          comment > 0 ? Code::unsupported_archive : Code::trailing_data,
          comment > 0 ? "an archive with a comment, wanted none" : "bytes behind the end of the zip archive");
    }
    if (number<std::uint16_t>(at + 20) != 0)
      refuse(Code::file_truncated, "a zip archive without all of its comment");
    Directory directory{.begin = number<std::uint32_t>(at + 16), .end = at, .count = 0};
    directory.count = number<std::uint16_t>(at + 10);
    std::uint64_t length = number<std::uint32_t>(at + 12);
    bool one_disk = number<std::uint32_t>(at + 4) == 0 && number<std::uint16_t>(at + 8) == directory.count;
    if (at >= locator_size + wide_end_size && starts(at - locator_size, "PK\6\7", at)) {
      const std::uint64_t locator = at - locator_size, wide = locator - wide_end_size;
      if (number<std::uint64_t>(locator + 8) != wide || !starts(wide, "PK\6\6", locator) ||
          number<std::uint64_t>(wide + 4) != wide_end_size - 12)
        refuse(Code::bad_archive, "its 64-bit end is not in front of its end");
      const Directory narrow = directory;
      const std::uint64_t narrow_length = length;
      directory = {
          .begin = number<std::uint64_t>(wide + 48), .end = wide, .count = number<std::uint64_t>(wide + 32)};
      length = number<std::uint64_t>(wide + 40);
      one_disk = one_disk && number<std::uint32_t>(locator + 4) == 0 &&
                 number<std::uint32_t>(locator + 16) == 1 && number<std::uint64_t>(wide + 16) == 0 &&
                 number<std::uint64_t>(wide + 24) == directory.count;
      if (narrow.begin != std::min(directory.begin, most32) || narrow_length != std::min(length, most32) ||
          narrow.count != std::min<std::uint64_t>(directory.count, 0xffff))
        refuse(Code::bad_archive, "its two ends differ");
    }
    if (!one_disk) refuse(Code::unsupported_archive, "a part of a split zip archive");
    if (directory.begin > directory.end || directory.end - directory.begin != length)
      refuse(Code::bad_archive, "its directory does not reach from where it begins to the archive's end");
    return directory;
  }

  /// One entry of the directory at byte `at`; the byte behind it.
  std::uint64_t read_entry(std::uint64_t at, std::uint64_t end) {
    if (end - at < entry_size || !starts(at, "PK\1\2", end))
      refuse(Code::bad_archive, "byte ", at, " is no entry of its directory");
    const std::uint64_t name_size = number<std::uint16_t>(at + 28),
                        extra_size = number<std::uint16_t>(at + 30);
    if (end - at - entry_size < name_size + extra_size)
      refuse(Code::bad_archive, "an entry longer than its directory");
    const std::string_view name = slice(at + entry_size, name_size);
    check_name(name);
    if (number<std::uint16_t>(at + 32) != 0)
      refuse_entry(Code::unsupported_archive, name, "an entry with a comment, wanted none");
    Stored s{.size = number<std::uint32_t>(at + 24),
             .offset = number<std::uint32_t>(at + 42),
             .crc = number<std::uint32_t>(at + 16),
             .time = number<std::uint32_t>(at + 12),
             .flags = number<std::uint16_t>(at + 8),
             .method = number<std::uint16_t>(at + 10),
             .wide = slice(at + entry_size + name_size, extra_size)};
    std::uint64_t compressed = number<std::uint32_t>(at + 20), place = at + entry_size + name_size + 4;
    std::uint64_t wide_size = 0;
    for (std::uint64_t* n : {&s.size, &compressed, &s.offset})
      if (*n == most32 && wide_size + 12 <= extra_size) {
        *n = number<std::uint64_t>(place + wide_size);
        wide_size += 8;
      }
    const bool sound = extra_size == 0 || (wide_size > 0 && extra_size == wide_size + 4 &&
                                           number<std::uint16_t>(place - 4) == 1 &&
                                           number<std::uint16_t>(place - 2) == wide_size);
    if (!sound)
      refuse_entry(Code::bad_archive, name, "extra fields other than 64-bit numbers that are needed");
    if (number<std::uint16_t>(at + 34) != 0)
      refuse_entry(Code::unsupported_archive, name, "on another disk of a split zip archive");
    entries_.push_back({.name = name});
    stored_.push_back(s);
    if (s.method == 0 && compressed != s.size)
      refuse_entry(Code::bad_archive, name, "stored in another number of bytes than it has");
    return at + entry_size + name_size + extra_size;
  }
  void check_name(std::string_view name) const {
    if (name.empty()) refuse(Code::empty_name, "an entry of the archive without a name");
    if (name.size() > 4096) refuse_entry(Code::name_too_long, name, "a name above 4096 bytes");
    for (const char c : name)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\')
        refuse_entry(Code::bad_name, name, "a control character or backslash in the name");
  }

  /// The entry whose local header stands at byte `at`; the byte behind its data and descriptor.
  std::uint64_t check_entry(ZipEntry& e, const Stored& s, std::uint64_t at) {
    const std::uint64_t end = end_of_entries_;
    if ((s.flags & ~(has_descriptor | utf8_name)) != 0)
      refuse_entry(Code::unsupported_archive, e.name,
                   s.flags & 1u ? "encrypted" : "flags that stored entries do not need");
    if (s.method != 0)
      refuse_entry(Code::unsupported_archive, e.name, "compressed by method ", s.method,
                   ", wanted a stored one");
    if (s.offset != at)
      refuse_entry(s.offset > at ? Code::offset_hole : Code::offset_overlap, e.name, "begins at byte ",
                   s.offset, ", wanted ", at, ", where the one before it ends");
    if (!starts(at, "PK\3\4", end) || end - at < local_size)
      refuse_entry(Code::bad_archive, e.name, "no local header");
    const std::uint64_t name_size = number<std::uint16_t>(at + 26),
                        extra_size = number<std::uint16_t>(at + 28);
    if (end - at - local_size < name_size + extra_size)
      refuse_entry(Code::bad_archive, e.name, "a local header longer than the archive");
    const bool described = s.flags & has_descriptor;
    // A descriptor behind the data may stand for checksum and sizes here.
    const std::uint64_t narrow = std::min(s.size, most32);
    const auto says = [&](std::uint64_t crc, std::uint64_t size) {
      return number<std::uint32_t>(at + 14) == crc && number<std::uint32_t>(at + 18) == size &&
             number<std::uint32_t>(at + 22) == size;
    };
    const bool same = number<std::uint16_t>(at + 6) == s.flags && number<std::uint16_t>(at + 8) == 0 &&
                      number<std::uint32_t>(at + 10) == s.time &&
                      (says(s.crc, narrow) || (described && says(0, 0))) &&
                      slice(at + local_size, name_size) == e.name;
    if (!same) refuse_entry(Code::bad_archive, e.name, "its local header differs from the directory");
    check_extra(e, s, slice(at + local_size + name_size, extra_size));
    e.begin = at + local_size + name_size + extra_size;
    if (s.size > end - e.begin)
      refuse_entry(Code::offset_overlap, e.name, s.size, " bytes, of which the archive has ", end - e.begin);
    e.end = e.begin + s.size;
    if (crc32(data(e)) != s.crc)
      refuse_entry(Code::checksum_mismatch, e.name, "its bytes are not as they were written (CRC-32)");
    return described ? check_descriptor(e, s) : e.end;
  }
  /// Padding up to an aligned place, and the same 64-bit numbers as in the directory.
  void check_extra(const ZipEntry& e, const Stored& s, std::string_view extra) const {
    bool wide = false;
    while (extra.size() >= 4) {
      const auto kind = load_little<std::uint16_t>(extra.data());
      const std::size_t size = load_little<std::uint16_t>(extra.data() + 2) + 4u;
      if (size > extra.size()) break;
      if (kind == 1 && !wide && is_wide_block(extra.substr(0, size), s))
        wide = true;
      else if (kind != padding)
        refuse_entry(Code::bad_archive, e.name, "an extra field other than padding and the directory's");
      extra.remove_prefix(size);
    }
    if (!extra.empty()) refuse_entry(Code::bad_archive, e.name, "an extra field that is cut off");
  }
  /// The directory's own; with a zero for the stored size where a descriptor tells it, as torch writes above
  /// 4 GiB.
  static bool is_wide_block(std::string_view block, const Stored& s) {
    if (block == s.wide) return true;
    const bool sized = (s.flags & has_descriptor) && block.size() == s.wide.size() && block.size() >= 20;
    return sized && block.substr(0, 12) == s.wide.substr(0, 12) &&
           block.substr(12, 8) == std::string_view("\0\0\0\0\0\0\0\0", 8) &&
           block.substr(20) == s.wide.substr(20);
  }
  static constexpr std::uint16_t padding = 0x4246;  // "FB", as PyTorch pads

  /// The checksum and sizes again behind the data; an empty entry may go without.
  std::uint64_t check_descriptor(const ZipEntry& e, const Stored& s) const {
    const std::uint64_t width = s.wide.empty() ? 4 : 8, size = 8 + 2 * width, end = end_of_entries_;
    if (s.size == 0 && !starts(e.end, "PK\7\10", end)) return e.end;
    const auto is_size = [&](std::uint64_t place) {
      return s.size == (width == 8 ? number<std::uint64_t>(place) : number<std::uint32_t>(place));
    };
    if (end - e.end < size || !starts(e.end, "PK\7\10", end) || number<std::uint32_t>(e.end + 4) != s.crc ||
        !is_size(e.end + 8) || !is_size(e.end + 8 + width))
      refuse_entry(Code::bad_archive, e.name, "its data descriptor differs from the directory");
    return e.end + size;
  }

  std::string_view bytes_;
  const Path& path_;
  std::uint64_t end_of_entries_ = 0;
  std::vector<ZipEntry> entries_;
  std::vector<Stored> stored_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
