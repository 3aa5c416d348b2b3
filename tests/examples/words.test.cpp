// SPDX-License-Identifier: MIT
#if __has_include(<catch2/catch_all.hpp>)
#  include <catch2/catch_all.hpp>
#else
#  include <catch2/catch.hpp>
#endif

#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../examples/languages/words.hpp"

using namespace languages;

static_assert(lower('Q') == 'q' && lower('q') == 'q' && lower('5') == 0 && lower('\'') == 0 &&
              lower('@') == 0);
static_assert(lower(0xc0) == 0xe0 && lower(0xde) == 0xfe && lower(0xdf) == 0xdf && lower(0xff) == 0xff);
static_assert(lower(0xd7) == 0 && lower(0xf7) == 0 && lower(0xaa) == 0 && lower(0xb5) == 0 &&
              lower(0xb7) == 0);
static_assert(lower(0x100) == 0x101 && lower(0x101) == 0x101 && lower(0x136) == 0x137 &&
              lower(0x138) == 0x138);
static_assert(lower(0x139) == 0x13a && lower(0x13a) == 0x13a && lower(0x147) == 0x148 &&
              lower(0x149) == 0x149);
static_assert(lower(0x14a) == 0x14b && lower(0x152) == 0x153 && lower(0x176) == 0x177 &&
              lower(0x178) == 0xff);
static_assert(lower(0x179) == 0x17a && lower(0x17d) == 0x17e && lower(0x17e) == 0x17e &&
              lower(0x17f) == 0x17f);
static_assert(lower(0x130) == 'i' && lower(0x131) == 0x131 && lower(0x180) == 0 && lower(0x3b1) == 0 &&
              lower(0x430) == 0);
static_assert(is_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80") && !is_utf8("\xc3") && !is_utf8("\xc0\xaf") &&
              !is_utf8("\xed\xa0\x80") && !is_utf8("\xf4\x90\x80\x80") && !is_utf8("\xe9t\xe9"));
static_assert(hash("moxie") == hash("moxie") && hash("moxie") != hash("moxif"));

namespace {

std::string clean(std::string_view word) {
  std::string out;
  append_clean(out, word);
  return out;
}

std::string text_of(const Text& text, std::size_t word) {
  const std::size_t end = word + 1 < text.starts.size() ? text.starts[word + 1] : text.tokens.size();
  std::string out;
  for (std::size_t i = text.starts[word] + 1; i < end; ++i) out.push_back(static_cast<char>(text.tokens[i]));
  return out;
}

std::set<std::string> words_of(const Task& task) {
  std::set<std::string> words;
  for (const Text* text : {&task.train, &task.held_out})
    for (std::size_t i = 0; i < text->starts.size(); ++i) words.insert(text_of(*text, i));
  return words;
}

/// A folder of files that lives as long as the test.
struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("moxie-words-" + std::to_string(std::random_device{}()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  Source write(const std::string& name, const std::string& bytes, bool list = true) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
    return {name, name, list ? "package-" + name : "", (path / name).string(), Role::trained};
  }
};

/// Distinct made-up words, `count` of them, one a line.
std::string many_words(std::uint64_t seed, std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::uint64_t h = hash(std::to_string(i)) ^ mix(seed), k = 0; k < 9; ++k, h /= 26)
      out.push_back(static_cast<char>('a' + h % 26));
    out.push_back('\n');
  }
  return out;
}

std::string message(const auto& f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("a clean word is 3 to 20 lower-case Latin letters", "[words]") {
  CHECK(clean("Abby") == "abby");
  CHECK(clean("ÉTÉ") == "été");
  CHECK(clean("Ångström") == "ångström");
  CHECK(clean("Œuvre") == "œuvre");
  CHECK(clean("STRAßE") == "straße");
  CHECK(clean("col·lecció") == "col·lecció");
  CHECK(clean("aaaaaaaaaaaaaaaaaaaa").size() == 20);
  CHECK(clean("éééééééééééééééééééé").size() == 40);
  for (const char* refused : {"", "ab", "éé", "Abby's", "10de", "in spe", "co-op", "·ab", "ab·", "a··b", "1ª",
                              "λόγος", "слово", "ẞen", "aaaaaaaaaaaaaaaaaaaaa"})
    CHECK(clean(refused).empty());
}

TEST_CASE("UTF-8 stays and anything else is read as Latin-1", "[words]") {
  CHECK(decode("\xe9t\xe9\n", "f") == "été\n");
  CHECK(decode("été\n", "f") == "été\n");
  CHECK(decode("\xef\xbb\xbf"
               "abc",
               "f") == "abc");
  CHECK(message([] { decode(std::string("a\0b", 3), "f"); }) == "f is not text: neither UTF-8 nor Latin-1");
  CHECK(message([] { decode("\x93quoted\x94", "f"); }) == "f is not text: neither UTF-8 nor Latin-1");
}

TEST_CASE("words of two lists are left out of both and the split depends on the word alone", "[words]") {
  const Folder folder;
  const std::string own = many_words(1, 400), other = many_words(2, 400), common = "gemeinsam\nBeide\n";
  const std::vector<Source> sources{folder.write("one", own + common + own + "x1\n"),
                                    folder.write("two", common + other)};
  const std::vector<Task> tasks = load_words(sources);
  REQUIRE(tasks.size() == 2);
  CHECK(tasks[0].lines == 803);
  CHECK(tasks[0].shared == 2);
  CHECK(tasks[1].shared == 2);
  CHECK(words_of(tasks[0]).size() == 400);
  CHECK(words_of(tasks[0]).count("gemeinsam") == 0);
  CHECK(tasks[0].train.starts.size() + tasks[0].held_out.starts.size() == 400);  // duplicates fall together
  for (const Task& task : tasks) {
    for (std::size_t i = 0; i < task.train.starts.size(); ++i)
      CHECK_FALSE(is_held_out(text_of(task.train, i)));
    for (std::size_t i = 0; i < task.held_out.starts.size(); ++i)
      CHECK(is_held_out(text_of(task.held_out, i)));
  }
}

TEST_CASE("the order of lines does not matter and the seed of the shuffle does", "[words]") {
  const Folder folder;
  const std::string a = many_words(1, 300), b = many_words(2, 300);
  const Source forth = folder.write("forth", a + b), back = folder.write("back", b + a);
  const Task one = load_words({&forth, 1})[0], two = load_words({&back, 1})[0],
             three = load_words({&forth, 1}, 2)[0];
  CHECK(one.train.tokens == two.train.tokens);
  CHECK(one.held_out.tokens == two.held_out.tokens);
  CHECK(one.train.tokens != three.train.tokens);
  CHECK(words_of(one) == words_of(three));
}

TEST_CASE("a file of the user's own gives its words, without the punctuation around them", "[words]") {
  const Folder folder;
  const Source source = folder.write("own", "\"Hello,\" (she) said: don't 42\n" + many_words(3, 300), false);
  const std::set<std::string> words = words_of(load_words({&source, 1})[0]);
  CHECK(words.size() == 303);
  CHECK((words.count("hello") == 1 && words.count("she") == 1 && words.count("said") == 1));
  const Source parsed = custom_source("mine=/a=b");
  CHECK((parsed.name == "mine" && parsed.path == "/a=b" && parsed.package.empty()));
}

TEST_CASE("a row begins at a word boundary and depends on the key alone", "[words]") {
  const Folder folder;
  const Source source = folder.write("list", many_words(4, 500));
  const Task task = load_words({&source, 1})[0];
  std::set<std::vector<int>> rows;
  for (std::uint64_t r = 0; r < 20; ++r) {
    std::vector<int> row(65), again(65), longer(66);
    sample_row(task, {7, 1, r}, row);
    sample_row(task, {7, 1, r}, again);
    sample_row(task, {7, 1, r}, longer);
    CHECK(row == again);
    CHECK(std::equal(row.begin(), row.end(), longer.begin()));
    CHECK(row.front() == '\n');
    rows.insert(row);
  }
  CHECK(rows.size() > 15);
  std::vector<int> whole(task.train.tokens.size() + 10);  // runs past the end
  sample_row(task, {}, whole);
  CHECK(std::equal(whole.end() - 10, whole.end(), whole.begin()));
}

TEST_CASE("evaluation rows are fixed, start at words and score no byte twice", "[words]") {
  const Folder folder;
  const Source source = folder.write("list", many_words(5, 2000));
  const Task task = load_words({&source, 1})[0];
  const auto rows = evaluation_rows(task, 64, 1000);
  CHECK(rows.size() > 10);
  CHECK(rows.size() * 64 < task.held_out.tokens.size());
  std::set<std::string> seen;
  for (const auto& row : rows) {
    CHECK(row.size() == 65);
    CHECK(row.front() == '\n');
    seen.insert(std::string(row.begin() + 1, row.begin() + 10));
  }
  CHECK(seen.size() == rows.size());
  CHECK(evaluation_rows(task, 64, 3) == std::vector<std::vector<int>>(rows.begin(), rows.begin() + 3));
}

TEST_CASE("a plain text becomes documents for a tokenizer and its tail is held out", "[words]") {
  const Folder folder;
  const Source source =
      folder.write("text", "one two\nthree\r\n\r\n\n" + std::string(5000, 'x') + "\n\nlast\n", false);
  std::vector<std::string> documents;
  const Task task = load_text(source, [&](std::string_view document) {
    documents.emplace_back(document);
    std::vector<int> tokens{1};
    for (const char c : document) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  });
  REQUIRE(documents.size() == 5);
  CHECK(documents[0] == "one two\nthree");
  CHECK((documents[1].size() == 2048 && documents[2].size() == 2048 && documents[3].size() == 904));
  CHECK(documents[4] == "last\n");
  const std::size_t tokens = 13 + 5000 + 5 + 5;
  CHECK(task.train.tokens.size() + task.held_out.tokens.size() == tokens);
  CHECK(task.held_out.tokens.size() == (tokens + 19) / 20);
  CHECK(task.train.tokens.front() == 1);
  const auto rows =
      evaluation_rows(task, 32, 100);  // without starts, rows follow each other and share one token
  CHECK(rows.size() == (task.held_out.tokens.size() - 1) / 32);
  CHECK(rows[0].back() == rows[1].front());
}

TEST_CASE("unusable data is one clear error", "[words]") {
  const Folder folder;
  const auto load = [](const Source& source) { return message([&] { load_words({&source, 1}); }); };
  std::vector<Source> missing = debian_lists("/nowhere");
  missing.resize(2);
  CHECK(message([&] { load_words(missing); }) ==
        "missing /nowhere/french, /nowhere/spanish; install with: apt-get install wfrench wspanish");
  CHECK(load(custom_source("mine=/nowhere/file")) == "cannot read /nowhere/file");
  CHECK(load(custom_source("mine=" + folder.path.string())) == "cannot read " + folder.path.string());
  const Source empty = folder.write("empty", "", false), few = folder.write("few", "one two three 4", false);
  CHECK(load(empty) == empty.path + " has too few words of 3 to 20 Latin letters that no other list has: " +
                           "0 to train on, 0 held out");
  CHECK(load(few).starts_with(few.path + " has too few words"));
  const Source binary = folder.write("binary", std::string("\0\1\2", 3), false);
  CHECK(load(binary) == binary.path + " is not text: neither UTF-8 nor Latin-1");
  for (const char* argument : {"noequals", "=file", "name="})
    CHECK(message([&] { custom_source(argument); }) ==
          "data must be given as NAME=FILE, got \"" + std::string(argument) + "\"");
  const auto one = [](std::string_view) { return std::vector<int>{70000}; };
  CHECK(message([&] { load_text(empty, one); }) == empty.path + " is empty");
  CHECK(message([&] { load_text(few, one); }) == few.path + ": token 70000 is out of range");
  const Source small = folder.write("small", many_words(6, 60));
  const Task task = load_words({&small, 1})[0];
  CHECK(message([&] { evaluation_rows(task, 1000, 1); }).starts_with(small.path + " is too short: "));
}

TEST_CASE("the installed word lists give the languages of the study", "[words]") {
  const std::vector<Source> sources = debian_lists();
  for (const Source& source : sources)
    if (!std::filesystem::exists(source.path)) {
      WARN("SKIPPED: no " << source.path << "; install the package " << source.package);
      return;
    }
  const std::vector<Task> tasks = load_words(sources);
  for (const Task& task : tasks) {
    INFO(task.source.name);
    const double kept = static_cast<double>(task.train.starts.size() + task.held_out.starts.size());
    CHECK(kept > 40000);
    CHECK(static_cast<double>(task.held_out.starts.size()) / kept > 0.045);
    CHECK(static_cast<double>(task.held_out.starts.size()) / kept < 0.055);
    CHECK(evaluation_rows(task, 64, 128).size() == 128);
  }
  const std::set<std::string> swedish = words_of(tasks[6]);  // a Latin-1 file
  CHECK(swedish.count("smörgåsarna") == 1);
}
