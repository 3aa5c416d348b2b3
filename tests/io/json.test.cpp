// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/io/json.hpp>

#include <functional>

using namespace moxie;
using io::detail::utf8_length;

namespace {

constexpr int depth = 32;

/// Writes down what it is told; refuses nothing.
struct Told : io::detail::JsonEvents {
  std::string all;
  bool tell(const std::string& text) {
    all += text + ' ';
    return true;
  }
  bool null() { return tell("null"); }
  bool boolean(bool b) { return tell(b ? "true" : "false"); }
  bool number_integer(number_integer_t n) { return tell(std::to_string(n)); }
  bool number_unsigned(number_unsigned_t n) { return tell(std::to_string(n)); }
  bool number_float(number_float_t n, const std::string&) { return tell(moxie::detail::text(n)); }
  bool string(std::string& text) { return tell("'" + text + "'"); }
  bool key(std::string& text) { return tell(text + ":"); }
  bool start_object(std::size_t) { return tell("{"); }
  bool end_object() { return tell("}"); }
  bool start_array(std::size_t) { return tell("["); }
  bool end_array() { return tell("]"); }
};

struct Verdict {
  std::optional<Code> code;
  std::string told;
};
Verdict read(const std::string& text) {
  const io::Path path("test.json");
  const io::detail::Source source{path};
  Told told{{source}, {}};
  try {
    io::detail::read_json(text, depth, told, source);
  } catch (const Error& error) {
    return {error.code(), {}};
  }
  return {std::nullopt, told.all.substr(0, told.all.size() - 1)};
}
/// A value inside an object, where it stands alone in the standard's own terms.
std::string inside(const std::string& value) { return "{\"a\":" + value + "}"; }
std::string repeated(std::string_view unit, int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += unit;
  return all;
}

struct Accepted {
  std::string text, told;
};
struct Refused {
  std::string text;
  Code code;
};

/// RFC 8259, read off its grammar: the plainest way to say whether a text is one object.
class Grammar {
 public:
  explicit Grammar(std::string_view text) : rest_(text) {}
  bool object_alone() {
    space();
    if (rest_.empty() || rest_[0] != '{' || !value()) return false;
    space();
    return rest_.empty();
  }

 private:
  bool take(std::string_view word) {
    if (rest_.substr(0, word.size()) != word) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  bool next_is(std::string_view any) const {
    return !rest_.empty() && any.find(rest_[0]) != std::string_view::npos;
  }
  void space() {
    while (next_is(" \t\n\r")) rest_.remove_prefix(1);
  }
  bool digits() {
    if (!next_is("0123456789")) return false;
    while (next_is("0123456789")) rest_.remove_prefix(1);
    return true;
  }
  bool number() {
    take("-");
    if (!take("0") && !digits()) return false;
    if (take(".") && !digits()) return false;
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      return digits();
    }
    return true;
  }
  /// Four hexadecimal digits; -1 where there are none.
  int unit() {
    int n = 0;
    for (int i = 0; i < 4; ++i) {
      if (!next_is("0123456789abcdefABCDEF")) return -1;
      n = 16 * n + std::stoi(std::string(1, rest_[0]), nullptr, 16);
      rest_.remove_prefix(1);
    }
    return n;
  }
  bool string() {
    if (!take("\"")) return false;
    while (!rest_.empty() && !take("\"")) {
      if (take("\\u")) {
        const int first = unit();
        if (first < 0 || (first >= 0xdc00 && first < 0xe000)) return false;
        if (first >= 0xd800 && first < 0xdc00) {
          if (!take("\\u")) return false;
          const int second = unit();
          if (second < 0xdc00 || second >= 0xe000) return false;
        }
      } else if (take("\\")) {
        if (!next_is("\"\\/bfnrt")) return false;
        rest_.remove_prefix(1);
      } else {
        const std::size_t length = utf8_length(rest_);
        if (length == 0 || static_cast<unsigned char>(rest_[0]) < 0x20) return false;
        rest_.remove_prefix(length);
      }
      if (rest_.empty()) return false;
    }
    return true;
  }
  bool list(char end, const std::function<bool()>& item) {
    rest_.remove_prefix(1);
    space();
    if (take({&end, 1})) return true;
    do {
      space();
      if (!item()) return false;
      space();
    } while (take(","));
    return take({&end, 1});
  }
  bool value() {
    space();
    if (next_is("[")) return list(']', [this] { return value(); });
    if (next_is("{"))
      return list('}', [this] {
        if (!string()) return false;
        space();
        return take(":") && value();
      });
    if (next_is("\"")) return string();
    return take("true") || take("false") || take("null") || number();
  }

  std::string_view rest_;
};

}  // namespace

TEST_CASE("what every JSON parser must accept is read, with its values", "[io]") {
  const Accepted cases[] = {
      // Structure and white space.
      {"{}", "{ }"},
      {" \t\r\n{ \t\r\n} \t\r\n", "{ }"},
      {inside("[]"), "{ a: [ ] }"},
      {inside("[[] ]"), "{ a: [ [ ] ] }"},
      {inside(" [ 1 , 2 ] "), "{ a: [ 1 2 ] }"},
      {inside("[1\n]"), "{ a: [ 1 ] }"},
      {inside("[null, 1, \"1\", {}]"), "{ a: [ null 1 '1' { } ] }"},
      {inside("[1,null,null,null,2]"), "{ a: [ 1 null null null 2 ] }"},
      {inside("true"), "{ a: true }"},
      {inside("false"), "{ a: false }"},
      {"{\"a\":{\"b\":{\"c\":[]}},\"d\":[{}]}", "{ a: { b: { c: [ ] } } d: [ { } ] }"},
      {"{\n\"a\"\n:\n\"b\"\n}", "{ a: 'b' }"},
      {"{\"\":0}", "{ : 0 }"},
      {"{\"a\":1,\"a\":2}", "{ a: 1 a: 2 }"},  // of the grammar; readers refuse it
      {inside("{\"min\":-1.0e+28,\"max\":1.0e+28}"), "{ a: { min: -1e+28 max: 1e+28 } }"},
      // Numbers.
      {inside("0"), "{ a: 0 }"},
      {inside("-0"), "{ a: 0 }"},
      {inside("-1"), "{ a: -1 }"},
      {inside("123"), "{ a: 123 }"},
      {inside("0e1"), "{ a: 0 }"},
      {inside("0e+1"), "{ a: 0 }"},
      {inside("20e1"), "{ a: 200 }"},
      {inside("1E22"), "{ a: 1e+22 }"},
      {inside("1E-2"), "{ a: 0.01 }"},
      {inside("1E+2"), "{ a: 100 }"},
      {inside("123e-10"), "{ a: 1.23e-08 }"},
      {inside("123.456e2"), "{ a: 12345.6 }"},
      {inside("-0.000000000000000000000000000000000000000000000000000000001"), "{ a: -1e-57 }"},
      {inside("18446744073709551615"), "{ a: 18446744073709551615 }"},
      {inside("-9223372036854775808"), "{ a: -9223372036854775808 }"},
      // Strings.
      {inside("\"\""), "{ a: '' }"},
      {inside("\" \""), "{ a: ' ' }"},
      {inside("\"asd \""), "{ a: 'asd ' }"},
      {inside("\"a/*b*/c/*d//e\""), "{ a: 'a/*b*/c/*d//e' }"},
      {inside("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), "{ a: '\"\\/\b\f\n\r\t' }"},
      {inside("\"\\\\a\""), "{ a: '\\a' }"},
      {inside("\"\\\\u0000\""), "{ a: '\\u0000' }"},
      {inside("\"\\u0060\\u012a\\u12AB\""), "{ a: '\x60\xc4\xaa\xe1\x8a\xab' }"},
      {inside("\"\\u0000\""), std::string("{ a: '\0' }", 10)},
      {inside("\"\\u0012\\u000A\""), "{ a: '\x12\n' }"},
      {inside("\"\\uD801\\udc37\""), "{ a: '\xf0\x90\x90\xb7' }"},
      {inside("\"\\ud83d\\ude39\\ud83d\\udc8d\""), "{ a: '\xf0\x9f\x98\xb9\xf0\x9f\x92\x8d' }"},
      {inside("\"\\uDBFF\\uDFFF\""), "{ a: '\xf4\x8f\xbf\xbf' }"},
      {inside("\"\\uFFFF\\uFDD0\\uFFFE\""), "{ a: '\xef\xbf\xbf\xef\xb7\x90\xef\xbf\xbe' }"},
      {inside("\"\x7f\""), "{ a: '\x7f' }"},
      {inside("\"\xc2\xa0\xcf\x80\xe2\x80\xa8\xe2\x80\xa9\""),
       "{ a: '\xc2\xa0\xcf\x80\xe2\x80\xa8\xe2\x80\xa9' }"},
      {inside("\"\xef\xbf\xbf\xf4\x8f\xbf\xbf\xf0\x9b\xbf\xbf\""),
       "{ a: '\xef\xbf\xbf\xf4\x8f\xbf\xbf\xf0\x9b\xbf\xbf' }"},
      {"{\"\\u0061\\u0000\":\"\\u0415\"}", std::string("{ a\0: '\xd0\x95' }", 12)},
      {inside("\"" + std::string(40, 'x') + "\""), "{ a: '" + std::string(40, 'x') + "' }"}};
  for (const Accepted& c : cases) {
    INFO(c.text);
    const Verdict verdict = read(c.text);
    CHECK_FALSE(verdict.code.has_value());
    CHECK(verdict.told == c.told);
    CHECK(Grammar(c.text).object_alone());
  }
}

TEST_CASE("what every JSON parser must refuse is refused by its code", "[io]") {
  std::vector<Refused> cases;
  const auto add = [&](Code code, std::initializer_list<std::string> texts) {
    for (const std::string& text : texts) cases.push_back({text, code});
  };
  const auto add_inside = [&](Code code, std::initializer_list<std::string> values) {
    for (const std::string& value : values) cases.push_back({inside(value), code});
  };
  // Arrays.
  add_inside(Code::json_syntax, {"[1 true]",
                                 "[\"\": 1]",
                                 "[1,,2]",
                                 "[,1]",
                                 "[1,,]",
                                 "[1,]",
                                 "[,]",
                                 "[-]",
                                 "[   , \"\"]",
                                 "[3[4]]",
                                 "[\"a\",\n4\n,1,",
                                 "[1,\n1\n,1",
                                 "[\"\"",
                                 "[1",
                                 "[{}",
                                 "[x",
                                 "[\"\x0b"
                                 "a\"\\f]",
                                 "[*]",
                                 "[1}",
                                 "[}"});
  // Numbers.
  add_inside(Code::json_syntax,
             {"++1234",      "+1",        "+Inf",  "-01",     "-1.0.", "-2.",         "-NaN",     ".-1",
              ".2e-3",       "0.1.2",     "0.3e+", "0.3e",    "0.e1",  "0E",          "0e+",      "0_1",
              "1.0e+",       "1.0e-",     "1.0e",  "1 000.0", "1eE2",  "2.e+3",       "2.e-3",    "2.e3",
              "9.e+",        "Inf",       "NaN",   "1+2",     "0x1",   "0x42",        "Infinity", "0e+-1",
              "-123.123foo", "-Infinity", "-foo",  "- 1",     "-012",  "-.123",       "-1x",      "1ea",
              "1.",          ".123",      "1.2a",  "012",     "2.",    "\xef\xbc\x91"});
  // Literals.
  add_inside(Code::json_syntax, {"fals", "nul", "tru", "True", "nulll", "truth", "a", "*", "TRUE"});
  add(Code::json_syntax, {"{\"a\":true", "{\"a\":nul"});
  // Objects.
  add(Code::json_syntax, {"{\"a\": true, \"b\"}",
                          "{[: \"x\"}",
                          "{\"x\", null}",
                          "{\"x\"::\"b\"}",
                          "{\"a\":\"a\" 123}",
                          "{key: 'value'}",
                          "{\"a\" b}",
                          "{:\"b\"}",
                          "{\"a\"",
                          "{\"a\" \"b\"}",
                          "{\"a\":",
                          "{\"a\"}",
                          "{1:1}",
                          "{9999E9999:1}",
                          "{null:null,null:null}",
                          "{\"id\":0,,,,,}",
                          "{'a':0}",
                          "{\"id\":0,}",
                          "{\"a\":\"b\",,\"c\":\"d\"}",
                          "{a: \"b\"}",
                          "{\"a\":\"a",
                          "{",
                          "{,",
                          "{\"",
                          "{\"a\":/*comment*/\"b\"}",
                          "{\"a\":1,//comment\n\"b\":2}",
                          "{]",
                          "{\"a\":[}",
                          "{[",
                          "{#}"});
  // Strings.
  add_inside(Code::json_syntax, {"['single quote']", "[\\u0020\"asd\"]", "\"", "\"a", "[\\n]", "\"a\nb\"",
                                 "\"\t\"", "\"new\nline\"", "\"\x1f\"", "abc", "\xc2\xa0", "[\"a\"\"b\"]"});
  add_inside(Code::json_escape, {"\"\\uD800\\\"", "\"\\uD800\\u\"", "\"\\uD800\\u1\"", "\"\\uD800\\u1x\"",
                                 "\"\\x00\"", "\"\\a\"", "\"\\u00A\"", "\"\\uD834\\uDd\"", "\"\\uqqqq\"",
                                 "\"\\\xf0\x9f\x8c\x80\"", "\"\\ \"", "\"\\'\"", "\"\\", "\"\\U0041\""});
  add_inside(Code::invalid_utf8, {"\"\\u\xe5\"", "\"\\\xe5\"", "\xe5", "0\xe5", "1e1\xe5", "[a\xe5]"});
  // What stands around the object.
  add(Code::header_not_object, {"",
                                " ",
                                "\n",
                                "[]",
                                "1",
                                "\"a\"",
                                "null",
                                "true",
                                "abc",
                                "}",
                                "]",
                                "*",
                                "<.>",
                                "<null>",
                                "\xc3\xa5",
                                "\xe2\x81\xa0",
                                "\xef\xbb\xbf",
                                "\xef\xbb{}",
                                "\xe5",
                                "'",
                                "/**/{}",
                                std::string("\0{}", 3),
                                "\x0c{}",
                                "\xc2\xa0{}"});
  add(Code::json_trailing,
      {"{}}", "{\"a\":\"b\"}#", "{\"a\":\"b\"}#{}", "{}/**/", "{}//", "{} x", "{}{}", "{}]", "{},", "{}\x0c",
       "{}\xe2\x81\xa0", std::string("{}\0", 3), "{\"a\":true}\"x\"", "{\"\":\n}}"});
  add(Code::json_syntax, {std::string("{\0}", 3), std::string("{\"a\":1\0}", 8),
                          std::string("{\"a\0\":1}", 8), "{\xe2\x81\xa0}"});
  add(Code::json_depth,
      {inside(repeated("[", 100'000)), repeated("{\"a\":", 100'000), inside(repeated("[{\"\":", 50'000))});
  for (const Refused& c : cases) {
    INFO(c.text.substr(0, 100));
    const Verdict verdict = read(c.text);
    REQUIRE(verdict.code.has_value());
    CHECK(name(*verdict.code) == name(c.code));
    if (c.text.size() < 1000) CHECK_FALSE(Grammar(c.text).object_alone());
  }
}

TEST_CASE("where the standard leaves the choice to the parser, this is ours", "[io]") {
  const Refused refused[] = {
      // Numbers no double holds, and digits without end.
      {inside("123123e100000"), Code::integer_range},
      {inside("-1e+9999"), Code::integer_range},
      {inside("1.5e+9999"), Code::integer_range},
      {inside("0.4e" + std::string(70, '6')), Code::integer_range},
      {inside(std::string(65, '1')), Code::integer_range},
      {inside("-" + std::string(64, '1')), Code::integer_range},
      {inside("0." + std::string(63, '0')), Code::integer_range},
      // Halves of surrogate pairs.
      {inside("\"\\uDADA\""), Code::json_escape},
      {inside("\"\\uD888\\u1234\""), Code::json_escape},
      {inside("\"\\uD800\\n\""), Code::json_escape},
      {inside("\"\\uDd1ea\""), Code::json_escape},
      {inside("\"\\uD800\\uD800\\n\""), Code::json_escape},
      {inside("\"\\ud800\""), Code::json_escape},
      {inside("\"\\ud800abc\""), Code::json_escape},
      {inside("\"\\uDd1e\\uD834\""), Code::json_escape},
      {inside("\"\\uDFAA\""), Code::json_escape},
      {"{\"\\uDFAA\":0}", Code::json_escape},
      // No UTF-8.
      {inside("\"\xff\""), Code::invalid_utf8},
      {inside("\"\x81\""), Code::invalid_utf8},
      {inside("\"\xe6\x97\xa5\xd1\x88\xfa\""), Code::invalid_utf8},
      {inside("\"\xf4\xbf\xbf\xbf\""), Code::invalid_utf8},
      {inside("\"\xed\xa0\x80\""), Code::invalid_utf8},
      {inside("\"\xc0\xaf\""), Code::invalid_utf8},
      {inside("\"\xfc\x83\xbf\xbf\xbf\xbf\""), Code::invalid_utf8},
      {inside("\"\xfc\x80\x80\x80\x80\x80\""), Code::invalid_utf8},
      {inside("\"\xe0\xff\""), Code::invalid_utf8},
      {inside("\"\xe9\""), Code::invalid_utf8},
      // Other encodings, marks, depth.
      {std::string("{\0\"\0a\0\"\0", 8), Code::json_syntax},
      {std::string("\0{\0}", 4), Code::header_not_object},
      {"\xff\xfe{", Code::header_not_object},
      {"\xef\xbb\xbf{}", Code::header_not_object},
      {inside(repeated("[", 500) + repeated("]", 500)), Code::json_depth},
      {inside(repeated("[", depth) + repeated("]", depth)), Code::json_depth},
      // Strings and white space without end.
      {inside("\"" + std::string(io::detail::most_json_run + 1, 'x') + "\""), Code::too_large},
      {inside("\"" + std::string(io::detail::most_json_run, 'x') + "\\n\""), Code::too_large},
      {inside("\"" + std::string(2 * io::detail::most_json_run, 'x')), Code::too_large},
      {inside(std::string(io::detail::most_json_run + 1, ' ') + "1"), Code::too_large},
      {"{" + std::string(io::detail::most_json_run + 1, '\n'), Code::too_large}};
  for (const Refused& c : refused) {
    INFO(c.text.substr(0, 100));
    const Verdict verdict = read(c.text);
    REQUIRE(verdict.code.has_value());
    CHECK(name(*verdict.code) == name(c.code));
  }
  const std::string longest(io::detail::most_json_run, 'x'), blank(io::detail::most_json_run, ' ');
  const Accepted accepted[] = {{inside("123.456e-789"), "{ a: 0 }"},
                               {inside("100000000000000000000"), "{ a: 1e+20 }"},
                               {inside("-123123123123123123123123123123"), "{ a: -1.23123e+29 }"},
                               {inside(std::string(64, '1')), "{ a: 1.11111e+63 }"},
                               {inside("0." + std::string(61, '0') + "1"), "{ a: 1e-62 }"},
                               {inside(repeated("[", depth - 1) + repeated("]", depth - 1)),
                                "{ a: " + repeated("[ ", depth - 1) + repeated("] ", depth - 1) + "}"},
                               {inside("\"" + longest + "\""), "{ a: '" + longest + "' }"},
                               {inside(blank + "1"), "{ a: 1 }"},
                               {blank + blank + "{}" + blank + blank, "{ }"}};
  for (const Accepted& c : accepted) {
    INFO(c.text.substr(0, 100));
    const Verdict verdict = read(c.text);
    CHECK_FALSE(verdict.code.has_value());
    CHECK((verdict.told == c.told));
  }
}

TEST_CASE("every short text, and long ones of JSON's own words, are judged as the grammar judges them",
          "[io]") {
  const auto agree = [](const std::string& text) {
    const bool wanted = Grammar(text).object_alone(), got = !read(text).code.has_value();
    if (got != wanted) FAIL((wanted ? "refused " : "accepted ") << text);
  };
  const std::string letters = "{}[]\",:01-.e\\u ";
  for (std::size_t n = 1; n <= 4; ++n) {
    std::string value(n, letters[0]);
    std::vector<std::size_t> at(n, 0);
    for (std::size_t i = 0; i < n;) {
      agree(inside(value));
      for (i = 0; i < n; ++i) {
        at[i] = (at[i] + 1) % letters.size();
        value[i] = letters[at[i]];
        if (at[i] != 0) break;
      }
    }
  }
  const std::string words[] = {
      "{",    "}",      "[",    "]",    ",", ":",  "\"a\"",        "\"\\u00e9\"", "\"\\ud83d\\ude00\"",
      "1",    "-2.5e3", "true", "null", " ", "\n", "\"\xc3\xa9\"", "\"a\":",      "{\"a\":1}",
      "[1,2]"};
  test::Rng random(7);
  for (int i = 0; i < 50'000; ++i) {
    std::string text = "{\"a\":";
    for (Index n = random.integer(1, 12); n > 0; --n)
      text += words[static_cast<std::size_t>(random.integer(0, static_cast<Index>(std::size(words)) - 1))];
    agree(text + "}");
  }
}

TEST_CASE("every byte at every place of a string is judged as the grammar judges it", "[io]") {
  for (int byte = 0; byte < 256; ++byte)
    for (std::size_t before = 0; before < 20; ++before) {
      std::string text = "{\"" + std::string(before, 'a') + static_cast<char>(byte) + std::string(12, 'b') +
                         "\":\"\xc3\xa9\"}";
      const bool wanted = Grammar(text).object_alone(), got = !read(text).code.has_value();
      if (got != wanted) FAIL("byte " << byte << " behind " << before);
    }
}

TEST_CASE("UTF-8 is what encodes a code point, and nothing else", "[io]") {
  const auto encoded = [](std::uint32_t point) {
    const auto byte = [](std::uint32_t b) { return std::string(1, static_cast<char>(b)); };
    const auto tail = [&](std::uint32_t p) { return byte(0x80 | (p & 0x3f)); };
    if (point < 0x80) return byte(point);
    if (point < 0x800) return byte(0xc0 | point >> 6) + tail(point);
    if (point < 0x10000) return byte(0xe0 | point >> 12) + tail(point >> 6) + tail(point);
    return byte(0xf0 | point >> 18) + tail(point >> 12) + tail(point >> 6) + tail(point);
  };
  std::size_t three = 0, four = 0;
  for (std::uint32_t point = 0; point < 0x120000; ++point) {
    const std::string bytes = encoded(point);
    const bool is = point < 0x110000 && (point < 0xd800 || point >= 0xe000);
    if (utf8_length(bytes) != (is ? bytes.size() : 0)) FAIL("code point " << point);
    if (bytes.size() > 1 && utf8_length(bytes.substr(0, bytes.size() - 1)) != 0) FAIL("cut off " << point);
  }
  // As many sequences of two, three and four bytes as there are code points of that length: no other is
  // accepted.
  std::size_t two = 0;
  for (std::uint32_t n = 0; n < 1u << 24; ++n) {
    const char bytes[] = {static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n)};
    three += utf8_length({bytes, 3}) == 3;
    two += n < 1u << 16 && utf8_length({bytes + 1, 2}) == 2;
    // The last byte of four decides nothing that the third does not.
    const char more[] = {bytes[0], bytes[1], bytes[2], '\x80'};
    four += utf8_length({more, 4}) == 4;
  }
  CHECK(two == 0x800 - 0x80);
  CHECK(three == 0x10000 - 0x800 - 0x800);
  CHECK(four == (0x110000 - 0x10000) / 64);
  CHECK(utf8_length("") == 0);
  CHECK(io::detail::is_utf8("a\xc3\xa9z"));
  CHECK_FALSE(io::detail::is_utf8("a\xc3"));
}

TEST_CASE("a message tells the byte of the whole text, white space in front included", "[io]") {
  const io::Path path("dir/a.json");
  const io::detail::Source source{path};
  const auto call = [&](const std::string& text) {
    return [&source, text] {
      Told told{{source}, {}};
      io::detail::read_json(text, depth, told, source);
    };
  };
  test::refused(call("  {\"a\":x}"), Code::json_syntax, {"'dir/a.json': JSON byte 7: not JSON, last read"});
  test::refused(call("  {\"a\":\"\xff\"}"), Code::invalid_utf8, {"JSON byte 8"});
  test::refused(call("  {} x"), Code::json_trailing, {"JSON byte 5"});
}
