// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

#include <nlohmann/json.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

/// JSON as strictly as its grammar, and a little more. The library under it lets byte-order marks, NULs and
/// duplicate keys through, nests as deep as the stack, and keeps several copies of the token that it reads;
/// so the bytes are looked at first, and its events, not its document, are used.
namespace moxie::inline MOXIE_ABI::io::detail {

/// The longest string as it is written, and the longest white space between two tokens.
inline constexpr std::size_t most_json_run = 1 << 20;
/// The longest number as it is written; the shortest text of every double is shorter.
inline constexpr std::size_t most_json_number = 64;

/// Where a text comes from, for messages.
struct Source {
  const Path& path;
  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    detail::refuse(code, path, what...);
  }
  template <class... What>
  [[noreturn]] void refuse_at(Code code, std::size_t byte, const What&... what) const {
    refuse(code, "JSON byte ", byte, ": ", what...);
  }
};

/// The length of the UTF-8 sequence at the front of `bytes`; 0 where there is none (overlong, a surrogate,
/// beyond U+10FFFF, cut off).
inline std::size_t utf8_length(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
  const auto follows = [&](std::size_t i) { return (at(i) & 0xc0u) == 0x80u; };
  const unsigned lead = at(0), next = at(1);
  if (bytes.empty()) return 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool shortest = lead != 0xe0 || next >= 0xa0, no_surrogate = lead != 0xed || next < 0xa0;
    return follows(1) && follows(2) && shortest && no_surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool shortest = lead != 0xf0 || next >= 0x90, in_range = lead != 0xf4 || next < 0x90;
    return follows(1) && follows(2) && follows(3) && shortest && in_range ? 4 : 0;
  }
  return 0;
}

/// True where the text is UTF-8 throughout.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(text.substr(i, 4));
    if (length == 0) return false;
    i += length;
  }
  return true;
}

inline bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// Walks over the bytes of a text, once, and refuses what the library must not see.
class JsonBytes {
 public:
  JsonBytes(std::string_view text, const Source& source) : text_(text), source_(source) {}

  /// The object without the white space around it: alone, in UTF-8, without NUL, not nested deeper than
  /// `depth`, without endless tokens. Throws HeaderNotObject, InvalidUtf8, JsonSyntax, JsonDepth,
  /// JsonTrailing, TooLarge (a string, or white space), IntegerRange (a number of many digits).
  std::string_view object(int depth) {
    skip_space();
    const std::size_t first = at_;
    if (done() || now() != '{')
      source_.refuse_at(
          Code::header_not_object, first,
          done() ? "the text ends, wanted '{'" : join(shown(text_.substr(first, 1)), ", wanted '{'"));
    std::size_t last = text_.size();
    bool closed = false;
    for (int level = 0; !done();) {
      const std::size_t start = at_;
      const char c = now();
      if (is_space(c)) {
        skip_space();
        if (at_ - start > most_json_run && !closed)
          refuse_length(Code::too_large, start, "white space", most_json_run);
      } else if (closed) {
        source_.refuse_at(Code::json_trailing, start, "text behind the object, wanted white space");
      } else if (c == '"') {
        skip_string();
      } else if (c == '{' || c == '[') {
        ++at_;
        if (++level > depth)
          source_.refuse_at(Code::json_depth, start, "nested deeper than ", depth, " levels");
      } else if (c == '}' || c == ']') {
        ++at_;
        closed = --level <= 0;
        if (closed) last = at_;
      } else if (c == ',' || c == ':') {
        ++at_;
      } else {
        skip_word();
      }
    }
    return text_.substr(first, last - first);
  }

 private:
  bool done() const { return at_ == text_.size(); }
  char now() const { return text_[at_]; }
  [[noreturn]] void refuse_length(Code code, std::size_t start, std::string_view what,
                                  std::size_t most) const {
    source_.refuse_at(code, start, what, " of more than ", most, " bytes");
  }

  void character() {
    const std::size_t length = utf8_length(text_.substr(at_, 4));
    if (length == 0) source_.refuse_at(Code::invalid_utf8, at_, "no UTF-8");
    if (now() == '\0') source_.refuse_at(Code::json_syntax, at_, "a NUL");
    at_ += length;
  }
  void skip_space() {
    while (!done() && is_space(now())) ++at_;
  }
  /// Eight bytes at a time while all are ASCII but no control character, quote or backslash: of the lowest
  /// other byte one of the four has the top bit set.
  void skip_plain() {
    constexpr std::uint64_t ones = 0x0101010101010101, tops = 0x80 * ones;
    for (; text_.size() - at_ >= 8; at_ += 8) {
      std::uint64_t bytes = 0;
      std::memcpy(&bytes, text_.data() + at_, 8);
      const std::uint64_t quotes = bytes ^ '"' * ones, backslashes = bytes ^ '\\' * ones;
      if (((bytes - 0x20 * ones) | (quotes - ones) | (backslashes - ones) | bytes) & tops) return;
    }
  }
  /// Up to behind the closing quote; an open string goes to the end, for the library to refuse.
  void skip_string() {
    const std::size_t start = ++at_;
    for (bool open = true; open && !done();) {
      skip_plain();
      for (int i = 0; i < 8 && open && !done(); ++i) {
        const char c = now();
        character();
        open = c != '"';
        if (c == '\\' && !done() && (now() == '"' || now() == '\\')) ++at_;
      }
      if (at_ - start > most_json_run + !open)
        refuse_length(Code::too_large, start, "a string", most_json_run);
    }
  }
  /// A number, true, false, null, or what the library refuses by its first bytes.
  void skip_word() {
    const std::size_t start = at_;
    constexpr std::string_view ends = " \t\n\r{}[],:\"";
    while (!done() && ends.find(now()) == std::string_view::npos) {
      character();
      if (at_ - start > most_json_number) {
        const bool number = (text_[start] >= '0' && text_[start] <= '9') || text_[start] == '-';
        refuse_length(number ? Code::integer_range : Code::json_syntax, start, number ? "a number" : "a word",
                      most_json_number);
      }
    }
  }

  std::string_view text_;
  const Source& source_;
  std::size_t at_ = 0;
};

/// Feeds the events of a checked text to `handler`, whose functions refuse by throwing. Throws also
/// JsonSyntax, JsonEscape.
template <class Handler>
void read_json(std::string_view text, int depth, Handler& handler, const Source& source) {
  const std::string_view object = JsonBytes(text, source).object(depth);
  handler.first_byte = static_cast<std::size_t>(object.data() - text.data());
  nlohmann::json::sax_parse(object.begin(), object.end(), &handler);
}

/// What every handler of events has in common: the refusal of syntax errors, and of what JSON cannot hold.
struct JsonEvents {
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  const Source& source;
  std::size_t first_byte = 0;  ///< of the object in its text

  bool binary(binary_t&) { return false; }
  bool parse_error(std::size_t byte, const std::string& token, const nlohmann::json::exception& why) {
    const std::string_view text = why.what();
    const bool escape = text.find("surrogate") != std::string_view::npos ||
                        text.find("forbidden character after backslash") != std::string_view::npos ||
                        text.find("'\\u' must be followed") != std::string_view::npos;
    const Code code = text.find("number overflow") != std::string_view::npos ? Code::integer_range
                      : escape                                               ? Code::json_escape
                                                                             : Code::json_syntax;
    // The byte behind what was read last.
    source.refuse_at(code, first_byte + (byte == 0 ? 0 : byte - 1), "not JSON, last read ", shown(token));
  }
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
