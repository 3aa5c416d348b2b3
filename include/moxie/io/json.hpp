// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

/// JSON as strictly as its grammar, and a little more. The library under it lets byte-order marks, NULs and
/// duplicate keys through and nests as deep as the stack; so the bytes are looked at first, and its events,
/// not its document, are used.
namespace moxie::inline MOXIE_ABI::io::detail {

/// Where a text comes from, for messages.
struct Source {
  const Path& path;
  [[noreturn]] void refuse(Code code, std::string_view what) const { detail::refuse(code, path, what); }
  [[noreturn]] void refuse_at(Code code, std::size_t byte, std::string_view what) const {
    refuse(code, moxie::detail::join({"JSON byte ", moxie::detail::text(byte), ": ", what}));
  }
};

/// The length of the UTF-8 sequence at the front of `bytes`; 0 where there is none (overlong, a surrogate,
/// beyond U+10FFFF, cut off).
inline std::size_t utf8_length(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
  const auto follows = [&](std::size_t i) { return (at(i) & 0xc0u) == 0x80u; };
  const unsigned lead = at(0), next = at(1);
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

inline bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// An object and nothing else but white space, in UTF-8, without NUL, not nested deeper than `depth`. Throws
/// HeaderNotObject, InvalidUtf8, JsonSyntax, JsonDepth, JsonTrailing.
inline void check_json_bytes(std::string_view text, int depth, const Source& source) {
  std::size_t first = 0;
  while (first < text.size() && is_space(text[first])) ++first;
  if (first == text.size() || text[first] != '{')
    source.refuse_at(Code::header_not_object, first,
                     first == text.size()
                         ? "the text ends, wanted '{'"
                         : moxie::detail::join({shown(text.substr(first, 1)), ", wanted '{'"}));
  int level = 0;
  bool in_string = false, closed = false;
  for (std::size_t i = first; i < text.size();) {
    const char c = text[i];
    const std::size_t length = utf8_length(text.substr(i, 4));
    if (length == 0) source.refuse_at(Code::invalid_utf8, i, "no UTF-8");
    if (closed && !is_space(c))
      source.refuse_at(Code::json_trailing, i, "text behind the object, wanted white space");
    if (c == '\0') source.refuse_at(Code::json_syntax, i, "a NUL");
    if (in_string) {
      if (c == '\\') ++i;  // what follows is no end
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++level > depth)
        source.refuse_at(Code::json_depth, i,
                         moxie::detail::join({"nested deeper than ", moxie::detail::text(depth), " levels"}));
    } else if (c == '}' || c == ']') {
      closed = --level <= 0;
    }
    i += c == '\\' && in_string ? 1 : length;
  }
}

/// Feeds the events of a checked text to `handler`, whose functions refuse by throwing. Throws also
/// JsonSyntax, JsonEscape.
template <class Handler>
void read_json(std::string_view text, int depth, Handler& handler, const Source& source) {
  check_json_bytes(text, depth, source);
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler);
}

/// What every handler of events has in common: the refusal of syntax errors, and of what JSON cannot hold.
struct JsonEvents {
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  const Source& source;

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
    source.refuse_at(code, byte == 0 ? 0 : byte - 1,
                     moxie::detail::join({"not JSON, last read ", shown(token)}));
  }
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
