// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/io/module_rule.hpp>

#include <chrono>
#include <ctime>
#include <regex>

using namespace moxie;
using namespace moxie::io::detail;
using moxie::test::refused;
using moxie::test::Rng;

namespace {

/// Whether the whole name matches; nothing where the pattern is refused, or cannot say.
std::optional<bool> match(std::string_view pattern, std::string_view name) {
  const auto parsed = Pattern::parse(pattern);
  if (!parsed) return std::nullopt;
  Pattern::Run run(most_steps);
  const bool yes = parsed->matches(name, run);
  if (run.unknown) return std::nullopt;
  return yes;
}

const io::Path path = "config";
const Source source{path};

/// The layers that PEFT finds in these paths.
std::vector<Index> layers(const std::vector<std::string>& patterns, const std::vector<std::string>& modules) {
  return Matcher(source).layers(patterns, modules);
}

}  // namespace

TEST_CASE("patterns match the names that Python's re.fullmatch matches", "[io]") {
  const std::string q = "model.layers.12.self_attn.q_proj";
  // What CPython 3.11 says.
  const std::tuple<const char*, std::string, bool> lines[] = {
      {R"(.*\.layers\.(\d+)\..*)", q, true},
      {R"(model\.layers\.1[0-9]\.self_attn\.[qv]_proj)", q, true},
      {R"(model\.layers\.[2-9]\..*)", q, false},
      {R"(.*(q_proj|v_proj))", q, true},
      {R"(.*(k_proj|v_proj))", q, false},
      {R"((?:.*\.)?self_attn\.q_proj)", q, true},
      {R"(self_attn\.q_proj)", q, false},
      {R"(^model.*q_proj$)", q, true},
      {R"(.*\.\d{1,2}\.[a-z_]+\.\w+)", q, true},
      {R"(.*\.\d{3}\..*)", q, false},
      {R"(.*\.\d{2,}\..*)", q, true},
      {R"(.*?q_proj)", q, true},
      {R"(.*[^a-p]_proj)", q, true},
      {R"(.*\D_proj)", q, true},
      {R"((a|b)*c)", "ababc", true},
      {R"((a*)*b)", "aaaa", false},
      {R"(a|)", "", true},
      {R"(()a)", "a", true},
      {R"([]x]+)", "x]x", true},
      {R"([a\]]+)", "]a", true},
      {R"([+-]\+)", "-+", true},
      {R"(a.c)", "abc", true},
      {R"(a\.c)", "abc", false},
      {R"(x$y)", "xy", false},
      {R"([\.-z])", "q", true},
      {R"([\.-z])", "-", false},
      {R"([+--]+)", ",-", true},
      {R"(a$\
?)",
       "a\n", true},
      {"a$", "a\n", false},
      {"a.", "a\n", false},
      {"a[^b]", "a\n", true},
      {R"(\s)", "\x1d", true},
      {"é*q", "ééq", true},
      {"é*q", "é\xa9q", false},
      {"é{2}", "éé", true},
      {".{2}q", "é.q", true},
      {".{3}q", "é.q", false},
      {"[^.]", "日", true},
      {".", "𝒳", true},
      {"", "", true},
      {"", "a", false}};
  for (const auto& [pattern, name, wanted] : lines) {
    INFO(pattern << " on " << name);
    REQUIRE(match(pattern, name).has_value());
    CHECK(*match(pattern, name) == wanted);
  }
}

TEST_CASE("what patterns do not know is refused", "[io]") {
  for (const char* pattern :
       {"(",         ")",     "a)",       "(a",  "*a",          "a**",         "+",
        "[a",        "[",     "[b-a]",    "a{2", "a{,2}",       "a{3,2}",      "a{101}",
        "(ab){2}",   "{",     "}",        "\\",  "\\1",         "\\b",         "\\Z",
        "(?i)a",     "(?=a)", "(?P<n>a)", "a*+", "[[:alpha:]]", "[a-\\d]",     "[\\d-z]",
        "[\\--\\+]", "[é]",   "\\é",      "é**", "\xc3",        "\xe0\x81\xa1"}) {
    INFO(pattern);
    CHECK_FALSE(match(pattern, "a").has_value());
  }
  CHECK_FALSE(match(std::string(5000, 'a'), "a").has_value());
}

TEST_CASE("random patterns match as std::regex matches them", "[io]") {
  Rng rng(1);
  int yes = 0;
  for (int round = 0; round < 3000; ++round) {
    // Atoms with quantities, joined and grouped: no pattern that is slow for a backtracking matcher.
    std::string pattern;
    for (Index n = rng.integer(1, 5); n > 0; --n) {
      const char* atoms[] = {"a", "b", ".", "\\.", "[ab]", "[^a]", "\\d", "(a|b)", "(ab|.)", "(?:b)", "\\w"};
      const char* quantities[] = {"", "", "", "*", "+", "?"};
      pattern += atoms[rng.integer(0, 10)];
      pattern += quantities[rng.integer(0, 5)];
      if (rng.integer(0, 7) == 0) pattern += "|";
    }
    const std::regex reference(pattern);
    for (int i = 0; i < 20; ++i) {
      std::string name;
      for (Index n = rng.integer(0, 6); n > 0; --n) name += "ab.1"[rng.integer(0, 3)];
      INFO(pattern << " on " << name);
      const bool wanted = std::regex_match(name, reference);
      yes += wanted;
      REQUIRE(match(pattern, name) == wanted);
    }
  }
  CHECK(yes > 3000);
}

TEST_CASE("a pattern that makes backtracking matchers hang takes no time", "[io]") {
  const auto start = std::chrono::steady_clock::now();
  std::string pattern = "(a|a)*(a*)*";
  for (int i = 0; i < 500; ++i) pattern += "(a*a?)";
  CHECK(match(pattern + "b", std::string(500, 'a')) == false);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST_CASE("what Python looks up in Unicode's tables is refused, not guessed", "[io]") {
  for (const char* pattern : {"\\w", "\\W", "\\d", "\\D", "\\s", "\\S", "[\\w.]", "[^\\w]"}) {
    INFO(pattern);
    CHECK_FALSE(match(pattern, "é").has_value());
    CHECK(match(pattern, "a").has_value());
  }
  Matcher matcher(source);
  refused([&] { matcher.apply({{}, "\\w+"}, {"a", "aé"}); }, Code::pattern_syntax, {"a\\xc3\\xa9"});
}

TEST_CASE("the steps of patterns are bounded over a whole load", "[io]") {
  std::string pattern;
  for (int i = 0; i < 500; ++i) pattern += "(a*a?)";
  const auto too_large = [](auto&& f) {
    const std::clock_t start = std::clock();
    refused(f, Code::too_large, {"patterns"});
    CHECK(std::clock() - start < 30 * CLOCKS_PER_SEC);
  };
  too_large([&] {
    Matcher(source).apply({{}, pattern + "b"}, std::vector<std::string>(1000, std::string(4000, 'a')));
  });
  // Compiling costs steps, too.
  std::string large;
  for (int i = 0; i < 320; ++i) large += "a{99}";
  REQUIRE(Pattern::parse(large)->size() > 60000);
  std::vector<bool> used;
  too_large([&] { Matcher(source).first_pattern(std::vector<std::string>(2000, large), {"q"}, used); });
  too_large([&] { layers(std::vector<std::string>(2000, large), {"q"}); });
}

TEST_CASE("large patterns of many modules cost what they visit", "[io]") {
  std::string large = "Z";
  for (int i = 0; i < 320; ++i) large += "a{99}";
  const std::vector<std::string> modules(12000, "0");
  std::vector<bool> used;
  const std::clock_t start = std::clock();
  Matcher(source).first_pattern(std::vector<std::string>(100, large), modules, used);
  // Clearing a mark of each state for each match would write 300 GB.
  CHECK(std::clock() - start < 30 * CLOCKS_PER_SEC);
}

TEST_CASE("rank and alpha patterns mean modules as PEFT's get_pattern_key does", "[io]") {
  const std::vector<std::string> modules{"model.layers.0.q_proj", "model.layers.1.q_proj",
                                         "model.layers.11.q_proj", "model.xq_proj", "q_proj"};
  const auto first = [&](const std::vector<std::string>& patterns) {
    Matcher matcher(source);
    std::vector<bool> used;
    return matcher.first_pattern(patterns, modules, used);
  };
  // re.match(rf"(.*\.)?({key})$", module), the first key that does.
  CHECK(first({"q_proj"}) == std::vector<Index>{0, 0, 0, -1, 0});
  CHECK(first({"layers.1.q_proj", "q_proj"}) == std::vector<Index>{1, 0, 1, -1, 1});
  CHECK(first({"q_proj", "layers.1.q_proj"}) == std::vector<Index>{0, 0, 0, -1, 0});
  CHECK(first({"^q_proj"}) == std::vector<Index>{-1, -1, -1, -1, 0});
  CHECK(first({R"(layers\.1\d?\.q_proj)"}) == std::vector<Index>{-1, 0, 0, -1, -1});
  CHECK(first({".q_proj"}) == std::vector<Index>{-1, -1, -1, 0, -1});  // '.' is any character
  CHECK(first({"proj"}) == std::vector<Index>{-1, -1, -1, -1, -1});
  CHECK(first({".*proj"}) == std::vector<Index>{0, 0, 0, 0, 0});
}

TEST_CASE("names with a dot for any character mean the same modules as expressions", "[io]") {
  const std::vector<std::string> modules{"m.éq", "m.xq", "xq", "éq", "q", "m.\nq", "m.xq\n", "a\nb.xq"};
  std::vector<bool> used;
  // re.match(rf"(.*\.)?({key})$", module)
  CHECK(Matcher(source).first_pattern({".q"}, modules, used) ==
        std::vector<Index>{0, 0, 0, 0, -1, -1, 0, -1});
  CHECK(Matcher(source).first_pattern({"(.q)"}, modules, used) ==
        std::vector<Index>{0, 0, 0, 0, -1, -1, 0, -1});
}

TEST_CASE("the layer of a module is where PEFT finds it", "[io]") {
  // What CPython 3.11 says of re.match(r".*?\.[^.]*\.(\d+)\.", module).
  CHECK(layers({}, {"model.layers.7.mlp.up", "a.b.3.c.d.5.e", "model.layers.1.mlp.experts.2.up_proj",
                    "encoder.block.2.layer.0.SelfAttention.q"}) == std::vector<Index>{7, 3, 1, 2});
  CHECK(layers({}, {"a.3.e", "a.b.3", "a.b.x3.c", "", ".", "a..4.c", "a.b.-3.c", "a.1.2.c"}) ==
        std::vector<Index>{-1, -1, -1, -1, -1, 4, -1, 2});
  // re.match(rf".*?\.{pattern}\.(\d+)\.", module), the first pattern that matches.
  CHECK(layers({"h"}, {"model.h.3.c.d.5.e", "model.x.3.c", "h.3.c", "a.x.1.h.2.c", "a.h.1.h.2.c"}) ==
        std::vector<Index>{3, -1, -1, 2, 1});
  CHECK(layers({"h", "x"}, {"a.x.1.h.2.c", "a.x.1.y"}) == std::vector<Index>{2, 1});
  CHECK(layers({"(?:h|x)"}, {"a.x.1.h.2.c"}) == std::vector<Index>{1});
  CHECK(layers({"x.*"}, {"a.x.1.h.2.c"}) == std::vector<Index>{2});
  CHECK(layers({"x.*?"}, {"a.x.1.h.2.c"}) == std::vector<Index>{1});
  // PEFT takes the first group for the number, and throws where there is none.
  for (const char* pattern : {"(h|x)", R"(x\.(\d+)\.h)", "x|h"})
    refused([&] { layers({pattern}, {"a.x.1.h.2.c"}); }, Code::pattern_syntax,
            {pattern[0] == '(' ? "(h|x)" : "x", "(?:"});
}

TEST_CASE("MoLA takes a layer's numbers by the third part of a module's path", "[io]") {
  // int(key.split(".")[2])
  CHECK(mola_layer("model.layers.0.block.1.q_proj") == 0);
  CHECK(mola_layer("model.layers.31.mlp.experts.2.up_proj") == 31);
  CHECK(mola_layer("a.b.3") == 3);
  for (const char* module :
       {"h.3.q_proj", "a.b", "a.b.", "", "a.b.x.4.c", "a.b.-1.c", "model.model.layers.4.q"})
    CHECK(mola_layer(module) == -1);
}
