// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace moxie::inline MOXIE_ABI::io {

namespace detail {

template <std::uint32_t polynomial>
constexpr std::uint32_t crc(std::string_view bytes, std::uint32_t before) {
  constexpr auto table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = t[i] >> 1 ^ (t[i] & 1u ? polynomial : 0u);
    }
    return t;
  }();
  std::uint32_t crc = ~before;
  for (const char c : bytes) crc = table[(crc ^ static_cast<unsigned char>(c)) & 255u] ^ crc >> 8;
  return ~crc;
}

}  // namespace detail

/// CRC-32C (Castagnoli, RFC 3720, appendix B.4) of the bytes; `before` goes on from the checksum of what
/// stands in front of them. It finds every change of up to 32 bits in a row.
constexpr std::uint32_t crc32c(std::string_view bytes, std::uint32_t before = 0) {
  return detail::crc<0x82f63b78u>(bytes, before);
}
static_assert(crc32c("123456789") == 0xe3069283u);

/// CRC-32 as zip archives have it (ISO 3309).
constexpr std::uint32_t crc32(std::string_view bytes, std::uint32_t before = 0) {
  return detail::crc<0xedb88320u>(bytes, before);
}
static_assert(crc32("123456789") == 0xcbf43926u);

/// As eight hexadecimal digits.
inline std::string checksum_text(std::uint32_t crc) {
  std::string text(8, '0');
  for (std::size_t i = 0; i < 8; ++i) text[7 - i] = "0123456789abcdef"[crc >> 4 * i & 15u];
  return text;
}

/// The version of what TensorWriter writes, and its keys in a file's metadata: the version, a checksum of the
/// header, taken with zeros in place of itself, and one of every tensor's bytes, all in one text in the order
/// of the data.
inline constexpr int format_version = 1;
inline constexpr std::string_view own_keys = "moxie.", version_key = "moxie.version",
                                  header_key = "moxie.header", tensors_key = "moxie.crc32c";

namespace detail {

/// Where the digits of the header's own checksum stand; npos where there is none.
inline std::size_t header_digits(std::string_view json) {
  const std::string key = moxie::detail::join("\"", header_key, "\":\"");
  const std::size_t at = json.find(key);
  return at == std::string_view::npos || at + key.size() + 8 > json.size() ? std::string_view::npos
                                                                           : at + key.size();
}
inline std::string header_checksum(std::string_view json, std::size_t digits) {
  const std::uint32_t before = crc32c(json.substr(0, digits)), zeros = crc32c("00000000", before);
  return checksum_text(crc32c(json.substr(digits + 8), zeros));
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
