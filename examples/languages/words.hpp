// SPDX-License-Identifier: MIT
#pragma once

// Tasks for the language examples: Debian's word lists, or files of one's own, cleaned, split into a training
// and a held-out part, and cut into rows of tokens. Everything is a function of the files and of the seeds
// alone: no locale, no std::random, no unordered container decides anything.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace languages {

/// Data that cannot be used; what() is one line for the user.
struct DataError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a task is for: trained on, only evaluated, or the memory of the base model.
enum class Role { trained, unseen, memory };

constexpr std::string_view name(Role role) {
  return role == Role::trained ? "trained" : role == Role::unseen ? "unseen" : "memory";
}

/// Where a task's data comes from. `package` is the Debian package of a word list, empty for a file of the
/// user's own.
struct Source {
  std::string name, title, package, path;
  Role role = Role::trained;
};

/// The ten word lists of the study, trained languages first, as Debian installs them.
inline std::vector<Source> debian_lists(const std::string& folder = "/usr/share/dict") {
  return {{"fr", "French", "wfrench", folder + "/french", Role::trained},
          {"es", "Spanish", "wspanish", folder + "/spanish", Role::trained},
          {"it", "Italian", "witalian", folder + "/italian", Role::trained},
          {"de", "German", "wngerman", folder + "/ngerman", Role::trained},
          {"nl", "Dutch", "wdutch", folder + "/dutch", Role::trained},
          {"da", "Danish", "wdanish", folder + "/danish", Role::trained},
          {"sv", "Swedish", "wswedish", folder + "/swedish", Role::trained},
          {"pt", "Portuguese", "wportuguese", folder + "/portuguese", Role::unseen},
          {"ca", "Catalan", "wcatalan", folder + "/catalan", Role::unseen},
          {"en", "English", "wamerican", folder + "/american-english", Role::memory}};
}

/// A task from the command line, "NAME=FILE". Throws DataError when either part is missing.
inline Source custom_source(std::string_view argument) {
  const std::size_t at = argument.find('=');
  if (at == std::string_view::npos || at == 0 || at + 1 == argument.size())
    throw DataError("data must be given as NAME=FILE, got \"" + std::string(argument) + "\"");
  const std::string key(argument.substr(0, at));
  return {key, key, "", std::string(argument.substr(at + 1)), Role::trained};
}

/// Tokens in a row, and the places where a row may begin (empty: anywhere). For byte models a token is a
/// byte, the text is "\nword\nword", and `starts` are the newlines.
struct Text {
  std::vector<std::uint16_t> tokens;
  std::vector<std::uint32_t> starts;
};

struct Task {
  Source source;
  Text train, held_out;
  std::size_t lines = 0;   ///< lines (or words) of the file before cleaning
  std::size_t shared = 0;  ///< distinct clean words left out because another list has them too
};

/// A counter: random draws are a function of these three numbers alone.
struct Key {
  std::uint64_t seed = 0, step = 0, row = 0;
};

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// 64-bit FNV-1a over the bytes of a word, mixed.
constexpr std::uint64_t hash(std::string_view word) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : word) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return mix(h);
}

/// A random 64-bit number; `stream` tells several draws with one key apart.
constexpr std::uint64_t draw(const Key& key, std::uint64_t stream) {
  return mix(mix(mix(mix(key.seed) ^ key.step) ^ key.row) ^ stream);
}

/// A word is held out or trained on by its hash alone, so a word's side never depends on what else is loaded.
constexpr bool is_held_out(std::string_view word) { return hash(word) % 20 == 0; }  // 5 %

/// The lower-case form of a Latin letter (Basic Latin, Latin-1 Supplement, Latin Extended-A; Unicode's simple
/// mapping), or 0 for every other character. The ordinal signs and the micro sign do not count as letters.
constexpr char32_t lower(char32_t c) {
  if (c < 0x80) {
    const char32_t l = c | 0x20;
    return l >= 'a' && l <= 'z' ? l : 0;
  }
  if (c < 0xc0 || c > 0x17f || c == 0xd7 || c == 0xf7) return 0;
  if (c <= 0xde) return c + 0x20;
  if (c <= 0xff) return c;
  if (c == 0x130) return 'i';                            // dotted capital I
  if (c == 0x138 || c == 0x149 || c == 0x17f) return c;  // kra, n with apostrophe, long s: no capital here
  if (c == 0x178) return 0xff;                           // y with diaeresis
  const bool odd_capital =
      (c > 0x138 && c < 0x149) || c > 0x178;  // capitals at odd places, else at even ones
  return (c & 1) == (odd_capital ? 1u : 0u) ? c + 1 : c;
}

/// Reads the character at `at` of valid UTF-8 and steps over it.
constexpr char32_t next_character(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(at++);
  if (first < 0x80) return first;
  const int more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
  char32_t c = first & (0x3fu >> more);
  for (int i = 0; i < more; ++i) c = (c << 6) | (byte(at++) & 0x3fu);
  return c;
}

/// Appends a character below U+0800 as UTF-8.
inline void append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else {
    out.push_back(static_cast<char>(0xc0 | (c >> 6)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3f)));
  }
}

/// Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
constexpr bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) {
      return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u;
    };
    const unsigned first = byte(i), second = byte(i + 1);
    std::size_t length = 1;
    unsigned low = 0x80, high = 0xbf;  // the range of the second byte
    if (first >= 0x80) {
      if (first < 0xc2 || first > 0xf4) return false;
      length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
      if (first == 0xe0) low = 0xa0;
      if (first == 0xed) high = 0x9f;
      if (first == 0xf0) low = 0x90;
      if (first == 0xf4) high = 0x8f;
      if (second < low || second > high) return false;
      for (std::size_t k = 2; k < length; ++k)
        if ((byte(i + k) & 0xc0u) != 0x80u) return false;
    }
    i += length;
  }
  return true;
}

/// The text as UTF-8 without byte order mark: as it is when valid, else read as Latin-1. Throws DataError
/// when it holds control characters of neither, as a binary file or UTF-16 does.
inline std::string decode(std::string bytes, const std::string& path) {
  const bool utf8 = is_utf8(bytes);
  for (const char c : bytes) {
    const auto u = static_cast<unsigned char>(c);
    if ((u < 0x20 && (u < '\t' || u > '\r')) || u == 0x7f || (!utf8 && u >= 0x80 && u < 0xa0))
      throw DataError(path + " is not text: neither UTF-8 nor Latin-1");
  }
  if (utf8) return bytes.starts_with("\xef\xbb\xbf") ? bytes.substr(3) : bytes;
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char c : bytes) append(out, static_cast<unsigned char>(c));
  return out;
}

/// Appends the cleaned word: lower-case Latin letters, 3 to 20 of them (the middle dot of Catalan's l·l
/// counts as one). Returns the bytes appended, 0 when the word is refused.
inline std::size_t append_clean(std::string& out, std::string_view word) {
  const std::size_t begin = out.size();
  bool after_letter = false;
  int count = 0;
  for (std::size_t at = 0; at < word.size(); ++count) {
    const char32_t c = next_character(word, at);
    const bool dot = c == 0xb7 && after_letter && at < word.size();
    const char32_t l = dot ? c : lower(c);
    if (l == 0 || count == 20) return out.resize(begin), 0;
    append(out, l);
    after_letter = !dot;
  }
  if (count < 3) out.resize(begin);
  return out.size() - begin;
}

namespace detail {

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size =
      file && !std::filesystem::is_directory(path) ? std::streamoff(file.tellg()) : -1;
  if (size < 0) throw DataError("cannot read " + path);
  if (size > std::streamoff{1} << 30) throw DataError(path + " is larger than 1 GiB");
  std::string bytes(static_cast<std::size_t>(size), '\0');
  if (!file.seekg(0).read(bytes.data(), size)) throw DataError("cannot read " + path);
  return bytes;
}

/// One error for all missing lists, naming each path and the command that installs them.
inline void expect_installed(std::span<const Source> sources) {
  std::string paths, packages;
  for (const Source& s : sources) {
    std::error_code ignored;
    if (s.package.empty() || std::filesystem::exists(s.path, ignored)) continue;
    paths += (paths.empty() ? "" : ", ") + s.path;
    packages += " " + s.package;
  }
  if (!paths.empty()) throw DataError("missing " + paths + "; install with: apt-get install" + packages);
}

constexpr bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

constexpr bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

/// Calls f(word) for each line of a word list, or each word of a text of the user's own, without the ASCII
/// punctuation around it.
template <class F>
void for_words(std::string_view text, bool list, F&& f) {
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && !(list ? text[end] == '\n' : is_space(text[end]))) ++end;
    std::string_view word = text.substr(at, end - at);
    at = end + 1;
    if (list && word.ends_with('\r')) word.remove_suffix(1);
    while (!list && !word.empty() && is_punctuation(word.front())) word.remove_prefix(1);
    while (!list && !word.empty() && is_punctuation(word.back())) word.remove_suffix(1);
    if (!word.empty()) f(word);
  }
}

struct Entry {
  std::uint64_t order;  // the place in the shuffle
  std::uint32_t offset;
  std::uint16_t task;
  std::uint8_t length;
};

}  // namespace detail

/// Loads word lists as tasks for a byte model. Words found in two of the sources are left out of both; the
/// others are shuffled (their order depends on the words and `shuffle_seed`, not on the order of lines) and
/// split by is_held_out. Throws DataError for missing packages, unreadable or undecodable files, and a list
/// of which no word is left.
inline std::vector<Task> load_words(std::span<const Source> sources, std::uint64_t shuffle_seed = 1) {
  detail::expect_installed(sources);
  std::vector<Task> tasks(sources.size());
  std::string arena;
  std::vector<detail::Entry> entries;
  for (std::size_t t = 0; t < sources.size(); ++t) {
    tasks[t].source = sources[t];
    const std::string text = decode(detail::read_file(sources[t].path), sources[t].path);
    if (arena.size() + 2 * text.size() >= std::uint64_t{1} << 32)
      throw DataError("the word lists are too large together");
    detail::for_words(text, !sources[t].package.empty(), [&](std::string_view word) {
      ++tasks[t].lines;
      const std::size_t offset = arena.size(), length = append_clean(arena, word);
      if (length == 0) return;
      const std::uint64_t order = mix(hash({arena.data() + offset, length}) ^ shuffle_seed);
      entries.push_back({order, static_cast<std::uint32_t>(offset), static_cast<std::uint16_t>(t),
                         static_cast<std::uint8_t>(length)});
    });
  }
  const auto word = [&](const detail::Entry& e) {
    return std::string_view(arena).substr(e.offset, e.length);
  };
  std::sort(entries.begin(), entries.end(), [&](const detail::Entry& a, const detail::Entry& b) {
    if (a.order != b.order) return a.order < b.order;
    const int difference = word(a).compare(word(b));
    return difference != 0 ? difference < 0 : a.task < b.task;
  });
  for (std::size_t i = 0, end = 0; i < entries.size(); i = end) {  // [i, end): one word
    for (end = i + 1; end < entries.size() && entries[end].order == entries[i].order &&
                      word(entries[end]) == word(entries[i]);)
      ++end;
    if (entries[i].task != entries[end - 1].task) {
      for (std::size_t k = i; k < end; ++k)
        if (k == i || entries[k].task != entries[k - 1].task) ++tasks[entries[k].task].shared;
      continue;
    }
    const std::string_view w = word(entries[i]);
    Text& text = is_held_out(w) ? tasks[entries[i].task].held_out : tasks[entries[i].task].train;
    text.starts.push_back(static_cast<std::uint32_t>(text.tokens.size()));
    text.tokens.push_back('\n');
    for (const char c : w) text.tokens.push_back(static_cast<unsigned char>(c));
  }
  for (const Task& task : tasks)
    if (task.train.starts.empty() || task.held_out.starts.empty())
      throw DataError(task.source.path +
                      " has too few words of 3 to 20 Latin letters that no other list has: " +
                      std::to_string(task.train.starts.size()) + " to train on, " +
                      std::to_string(task.held_out.starts.size()) + " held out");
  return tasks;
}

/// Loads a plain text as a task for a model with a tokenizer. `encode` makes tokens of one document: the text
/// between blank lines, cut at a line end or a space when longer than 2 KiB. The last twentieth of the tokens
/// is held out. Throws DataError for unreadable, undecodable or empty files and for tokens that do not fit 16
/// bits.
template <class Encode>
Task load_text(const Source& source, Encode&& encode) {
  detail::expect_installed({&source, 1});
  Task task{source, {}, {}, 0, 0};
  std::string text = decode(detail::read_file(source.path), source.path);
  std::erase(text, '\r');
  std::vector<std::uint16_t> tokens;
  for (std::size_t at = 0; at < text.size();) {
    while (at < text.size() && detail::is_space(text[at])) ++at;
    std::size_t end = std::min(text.find("\n\n", at), text.size());
    if (end - at > 2048) {
      end = text.find_last_of("\n ", at + 2048);
      if (end == std::string::npos || end <= at)  // no space at all: cut between two characters
        for (end = at + 2048; (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80;) --end;
    }
    const std::string_view document = std::string_view(text).substr(at, end - at);
    at = end;
    if (document.empty()) continue;
    ++task.lines;
    for (const auto token : encode(document)) {
      if (token < 0 || token > 0xffff)
        throw DataError(source.path + ": token " + std::to_string(token) + " is out of range");
      tokens.push_back(static_cast<std::uint16_t>(token));
    }
  }
  const auto cut = tokens.end() - static_cast<std::ptrdiff_t>((tokens.size() + 19) / 20);
  if (tokens.size() < 2) throw DataError(source.path + " is empty");
  task.train.tokens.assign(tokens.begin(), cut);
  task.held_out.tokens.assign(cut, tokens.end());
  return task;
}

/// Fills one training row: row.size() = context + 1 tokens (inputs are the first `context`, targets the last)
/// of one task, from a random start on, past the end from the beginning again. A function of the task and the
/// key alone.
inline void sample_row(const Task& task, const Key& key, std::span<int> row) {
  const Text& text = task.train;
  const std::uint64_t random = draw(key, hash(task.source.name));
  std::size_t at =
      text.starts.empty() ? random % text.tokens.size() : text.starts[random % text.starts.size()];
  for (int& token : row) {
    token = text.tokens[at];
    if (++at == text.tokens.size()) at = 0;
  }
}

/// The fixed rows on which a task is evaluated: held-out text in order, each row of context + 1 tokens
/// beginning at the first start that no earlier row has scored; at most `count` rows. The loss is the mean
/// over all targets of all rows, for a byte model in nats per byte with newlines counted. Throws DataError
/// when there is not one full row.
inline std::vector<std::vector<int>> evaluation_rows(const Task& task, std::size_t context,
                                                     std::size_t count) {
  const Text& text = task.held_out;
  std::vector<std::vector<int>> rows;
  for (std::size_t at = 0; rows.size() < count && at + context < text.tokens.size();) {
    const auto begin = text.tokens.begin() + static_cast<std::ptrdiff_t>(at);
    rows.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(context + 1));
    at += context;
    if (!text.starts.empty()) {
      const auto next = std::lower_bound(text.starts.begin(), text.starts.end(), at);
      at = next == text.starts.end() ? text.tokens.size() : *next;
    }
  }
  if (rows.empty())
    throw DataError(task.source.path + " is too short: " + std::to_string(text.tokens.size()) +
                    " tokens are held out, a row needs " + std::to_string(context + 1));
  return rows;
}

}  // namespace languages
