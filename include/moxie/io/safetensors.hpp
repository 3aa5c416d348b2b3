// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/checksum.hpp>
#include <moxie/io/safetensors_header.hpp>

#include <algorithm>
#include <cmath>

/// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors one behind the
/// other (github.com/huggingface/safetensors). The reader accepts what the reference accepts, but not: two
/// entries of one name, unknown fields, empty names, names with control characters or of more than 4 KiB or
/// of more than 16 MiB together, more than 8 dimensions, more than 100,000 tensors, metadata of more than
/// 1 MiB or 10,000 texts, strings of more than 1 MiB as they are written, white space of more inside the
/// object, and spellings that it lets pass by the way (a tensor as a list, a dtype as a key, metadata null).
/// So a header takes less than 64 MB of memory beside its own bytes, whatever it says.
namespace moxie::inline MOXIE_ABI::io {

namespace detail {

/// What a file is that does not begin as safetensors do; empty where we do not know it.
inline std::string_view other_kind(std::string_view head) {
  constexpr std::pair<std::string_view, std::string_view> kinds[] = {
      {"PK\x03\x04", "a zip archive, as torch.save writes (.bin, .pt)"},
      {"\x80\x02", "a Python pickle, as old torch.save writes"},
      {"\x80\x04", "a Python pickle"},
      {"GGUF", "a GGUF file"},
      {"\x93NUMPY", "a NumPy array"},
      {"\x1f\x8b", "compressed by gzip"},
      {"\x28\xb5\x2f\xfd", "compressed by zstd"},
      {"version https://git-lfs", "a Git LFS pointer, the file itself was not fetched"},
      {"<", "HTML or XML"},
      {"{", "JSON"}};
  for (const auto& [start, kind] : kinds)
    if (head.substr(0, start.size()) == start) return kind;
  return {};
}

}  // namespace detail

/// The tensors of a file, checked and in memory.
class TensorFile {
 public:
  /// What the reader of another format has found and checked: every tensor's numbers lie row-major at its
  /// bytes [begin, end) of `data`.
  TensorFile(const Path& path, TensorHeader header, Bytes data)
      : path_(path), header_(std::move(header)), data_(std::move(data)) {}

  /// Reads the header, and the data only where the header is in order. Throws what tests/io/README.md lists.
  static TensorFile read(const Path& path) {
    const FileReader file(path);
    const Bytes head = file.read(0, std::min<std::uint64_t>(file.size(), 32));
    const std::uint64_t length = header_length(head, file.size(), path);
    TensorFile result(path);
    {
      const Bytes json = file.read(8, length);
      result.parse(json, file.size() - 8 - length);
    }
    result.data_ = file.read(8 + length, file.size() - 8 - length);
    file.expect_unchanged();
    result.verify();
    return result;
  }
  /// The same from bytes in memory; `name` stands for the path in messages.
  static TensorFile parse(std::string_view bytes, const Path& name = "memory") {
    const std::uint64_t length = header_length(bytes.substr(0, 32), bytes.size(), name);
    TensorFile result(name);
    result.parse(bytes.substr(8, length), bytes.size() - 8 - length);
    result.data_ = bytes.substr(8 + length);
    result.verify();
    return result;
  }

  const Path& path() const { return path_; }
  /// In the order of their data; those of a torch file in the order of its dictionary.
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  bool checksummed() const { return checksummed_; }  ///< written by TensorWriter, and verified
  const TensorInfo* find(std::string_view name) const { return header_.find(name); }
  std::string_view bytes(const TensorInfo& t) const {
    return std::string_view(data_).substr(static_cast<std::size_t>(t.begin),
                                          static_cast<std::size_t>(t.end - t.begin));
  }

  /// Refuses a tensor with a number that is not finite, unless that is allowed, or is finite but not as S.
  /// Throws UnsupportedDtype, NonFinite, ValueRange.
  template <Scalar S>
  void expect_finite(const TensorInfo& t, bool allow_non_finite = false) const {
    for_numbers(t, [&](std::size_t i, double number) {
      if (std::isfinite(static_cast<S>(number)) || (allow_non_finite && !std::isfinite(number))) return;
      refuse(std::isfinite(number) ? Code::value_range : Code::non_finite, t, "number ", i, " is ", number,
             std::isfinite(number) ? ", too large for the scalar" : ", wanted a finite one");
    });
  }
  /// A tensor's numbers, converted to S. Throws ShapeMismatch where `to` has another size, UnsupportedDtype,
  /// ValueRange where a finite number does not fit S, NonFinite unless such are allowed; `to` is then
  /// unchanged.
  template <Scalar S>
  void load(const TensorInfo& t, std::span<S> to, bool allow_non_finite = false) const {
    expect_weight(t);
    moxie::detail::expect_size("the place for tensor " + detail::shown(t.name), to.size(),
                               static_cast<Index>(bytes(t).size() / (facts(t.dtype).bits / 8)));
    expect_finite<S>(t, allow_non_finite);
    for_numbers(t, [&](std::size_t i, double number) { to[i] = static_cast<S>(number); });
  }

 private:
  explicit TensorFile(const Path& path) : path_(path) {}
  template <class... What>
  [[noreturn]] void refuse(Code code, const TensorInfo& t, const What&... what) const {
    detail::refuse(code, path_, "tensor ", detail::shown(t.name), ": ", what...);
  }

  void expect_weight(const TensorInfo& t) const {
    detail::check_weight_dtype(t.dtype, [&](Code code, const auto&... what) { refuse(code, t, what...); });
  }

  /// f(i, number i) for every number.
  template <class F>
  void for_numbers(const TensorInfo& t, F&& f) const {
    expect_weight(t);
    const std::string_view stored = bytes(t);
    const std::size_t size = facts(t.dtype).bits / 8;
    for (std::size_t i = 0; i < stored.size() / size; ++i)
      f(i, detail::load_number(t.dtype, stored.data() + i * size));
  }

  /// The length of the header, from the first bytes of a file of so many.
  static std::uint64_t header_length(std::string_view head, std::uint64_t size, const Path& path) {
    const auto number = [](std::uint64_t n) { return moxie::detail::text(n); };
    const std::string_view kind = detail::other_kind(head);
    std::size_t first = 8;
    while (first < head.size() && detail::is_space(head[first])) ++first;
    const bool object_follows = first < head.size() && head[first] == '{';
    if (!kind.empty() && head.size() > 8 && !object_follows)
      detail::refuse(Code::not_safetensors, path, "is ", kind, ", wanted safetensors");
    if (size < 8)
      detail::refuse(Code::header_too_small, path,
                     number(size) + " bytes, wanted at least 8 for a header's length");
    const auto length = detail::load_little<std::uint64_t>(head.data());
    if (length > most_header_bytes)
      detail::refuse(Code::header_too_large, path, "a header of ", number(length), " bytes, wanted at most ",
                     number(most_header_bytes), " (is the length's byte order little-endian?)");
    if (length > size - 8)
      detail::refuse(Code::invalid_header_length, path, "a header of ", number(length),
                     " bytes in a file of ", number(size));
    return length;
  }

  void parse(std::string_view json, std::uint64_t data_bytes) {
    const detail::Source source{path_};
    header_ = detail::read_header(json, data_bytes, source);
    const auto has_own_key = [](const auto& entry) { return entry.first.rfind(own_keys, 0) == 0; };
    checksummed_ = std::any_of(metadata().begin(), metadata().end(), has_own_key);
    if (!checksummed_) return;
    check_version(source);
    const std::size_t digits = detail::header_digits(json);
    if (digits == std::string_view::npos || detail::header_checksum(json, digits) != json.substr(digits, 8))
      source.refuse(Code::checksum_mismatch, "the header is not as it was written");
  }
  void check_version(const detail::Source& source) const {
    const auto found = metadata().find(std::string(version_key));
    int version = 0;
    const std::string_view text = found == metadata().end() ? std::string_view() : found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
    if (text.empty() || error != std::errc() || end != text.data() + text.size() || version < 1)
      source.refuse(Code::bad_metadata, version_key, " is ", detail::shown(text),
                    ", wanted a number from 1 on");
    if (version > format_version)
      source.refuse(Code::version_too_new, "written as version ", text, ", this library reads up to ",
                    format_version);
  }
  void verify() const {
    if (!checksummed_) return;
    const auto found = metadata().find(std::string(tensors_key));
    const std::string_view sums = found == metadata().end() ? std::string_view() : found->second;
    if (sums.size() != 8 * tensors().size())
      detail::refuse(Code::bad_metadata, path_, tensors_key, " has ", sums.size(), " digits, wanted ",
                     8 * tensors().size(), ", 8 for each tensor");
    for (std::size_t i = 0; i < tensors().size(); ++i)
      if (sums.substr(8 * i, 8) != checksum_text(crc32c(bytes(tensors()[i]))))
        refuse(Code::checksum_mismatch, tensors()[i], "its bytes are not as they were written");
  }

  Path path_;
  TensorHeader header_;
  Bytes data_;
  bool checksummed_ = false;
};

}  // namespace moxie::inline MOXIE_ABI::io
