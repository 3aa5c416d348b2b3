// SPDX-License-Identifier: MIT
// Bytes of tensor files, put together by hand.
#pragma once

#include <moxie/io/safetensors.hpp>

#include <optional>
#include <string>

namespace moxie::test {

inline std::string little(std::uint64_t n) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> 8 * i & 255u);
  return bytes;
}
/// A file of this header and so many bytes of data.
inline std::string file(const std::string& json, std::size_t data = 0) {
  return little(json.size()) + json + std::string(data, 'x');
}
inline std::string entry(const std::string& name, std::uint64_t begin, std::uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[" + std::to_string((end - begin) / 4) +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

/// The code that a file is refused with; nothing where it is accepted.
inline std::optional<Code> refusal_of(const std::string& bytes) {
  try {
    io::TensorFile::parse(bytes, "test.safetensors");
  } catch (const Error& error) {
    return error.code();
  }
  return std::nullopt;
}

}  // namespace moxie::test
