// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/io/module_rule.hpp>

#include <chrono>
#include <regex>

using namespace moxie;
using namespace moxie::io::detail;
using moxie::test::refused;
using moxie::test::Rng;

namespace {

/// Whether the whole name matches; nothing where the pattern is refused.
std::optional<bool> match(std::string_view pattern, std::string_view name) {
  const auto parsed = Pattern::parse(pattern);
  if (!parsed) return std::nullopt;
  std::uint64_t budget = most_steps;
  return parsed->matches(name, budget);
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
       {"(",     ")",   "a)",    "(a",     "*a",     "a**",      "+",   "[a",         "[",
        "[b-a]", "a{2", "a{,2}", "a{3,2}", "a{101}", "(ab){2}",  "{",   "}",          "\\",
        "\\1",   "\\b", "\\Z",   "(?i)a",  "(?=a)",  "(?P<n>a)", "a*+", "[[:alpha:]]"}) {
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

TEST_CASE("the steps of patterns are bounded over a whole load", "[io]") {
  const io::Path path = "config";
  const Source source{path};
  Matcher matcher(source);
  std::string pattern;
  for (int i = 0; i < 500; ++i) pattern += "(a*a?)";
  ModuleRule rule{{}, pattern + "b"};
  const std::vector<std::string> modules(1000, std::string(4000, 'a'));
  refused([&] { matcher.apply(rule, modules); }, Code::too_large, {"patterns"});
}

TEST_CASE("rank and alpha patterns mean modules as PEFT's get_pattern_key does", "[io]") {
  const io::Path path = "config";
  const Source source{path};
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

TEST_CASE("the layer of a module is where PEFT finds it", "[io]") {
  const io::Path path = "config";
  const Source source{path};
  Matcher matcher(source);
  CHECK(layer_of("model.layers.7.mlp.up", {}, matcher) == 7);
  CHECK(layer_of("a.b.3.c.d.5.e", {}, matcher) == 5);
  CHECK(layer_of("a.3.e", {}, matcher) == -1);  // one name before it
  CHECK(layer_of("a.b.3", {}, matcher) == -1);  // none behind it
  const std::vector<Pattern> h{matcher.compile(".*\\.(h)")};
  CHECK(layer_of("model.h.3.c.d.5.e", h, matcher, false) == 3);
  CHECK(layer_of("model.x.3.c", h, matcher, false) == -1);
}
