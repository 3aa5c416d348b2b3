// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/io/checksum.hpp>

using namespace moxie::io;

TEST_CASE("CRC-32C gives the published sums", "[io]") {
  // RFC 3720, appendix B.4.
  std::string up(32, '\0'), down(32, '\0');
  for (std::size_t i = 0; i < 32; ++i) {
    up[i] = static_cast<char>(i);
    down[31 - i] = static_cast<char>(i);
  }
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aa);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43);
  CHECK(crc32c(up) == 0x46dd794e);
  CHECK(crc32c(down) == 0x113fdb5c);
  CHECK(crc32c("") == 0);
}

TEST_CASE("a checksum goes on where another ended", "[io]") {
  const std::string text = "the quick brown fox";
  for (std::size_t n = 0; n <= text.size(); ++n)
    CHECK(crc32c(text.substr(n), crc32c(text.substr(0, n))) == crc32c(text));
}

TEST_CASE("a checksum is written as eight hexadecimal digits", "[io]") {
  CHECK(checksum_text(0) == "00000000");
  CHECK(checksum_text(0x0123abcd) == "0123abcd");
  CHECK(checksum_text(0xffffffff) == "ffffffff");
}

TEST_CASE("a header's checksum leaves its own place out", "[io]") {
  using namespace moxie::io::detail;
  const std::string json = "{\"moxie.header\":\"00000000\",\"a\":1}";
  const std::size_t digits = header_digits(json);
  REQUIRE(digits == json.find("00000000"));
  std::string filled = json;
  filled.replace(digits, 8, header_checksum(json, digits));
  CHECK(header_checksum(filled, digits) == checksum_text(crc32c(json)));
  CHECK(header_digits("{}") == std::string::npos);
  CHECK(header_digits("{\"moxie.header\":\"0000") == std::string::npos);
}
