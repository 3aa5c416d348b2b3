// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

#include <array>
#include <bitset>
#include <optional>

namespace moxie::inline MOXIE_ABI::io::detail {

/// A regular expression as the configs of PEFT use them on module names: literals, `.`, `\.`, `\d`, `\w`,
/// classes, groups, `|`, `*`, `+`, `?`, `{m,n}` behind a single character, `^`, `$`. It is run as an
/// automaton, in time of the pattern's length times the text's whatever the pattern (Thompson, 1968); what
/// it does not know (look-around, references, flags) it refuses.
class Pattern {
 public:
  /// Nothing where the text is no such expression.
  static std::optional<Pattern> parse(std::string_view text) {
    Pattern pattern;
    if (text.size() > most_bytes || !pattern.compile(text)) return std::nullopt;
    return pattern;
  }

  /// Whether the whole name matches. Every visited state costs 1 of `budget`; at 0 the answer is false.
  bool matches(std::string_view name, std::uint64_t& budget) const {
    std::vector<std::size_t> now, next, stack, seen(nodes_.size(), 0);
    std::size_t round = 0;
    const auto reach = [&](std::size_t from, std::size_t at, std::vector<std::size_t>& set) {
      stack.assign(1, from);
      while (!stack.empty()) {
        const std::size_t state = stack.back();
        stack.pop_back();
        if (seen[state] == round) continue;
        seen[state] = round;
        budget -= budget > 0;
        const Node& node = nodes_[state];
        if (node.kind == Kind::split) {
          stack.push_back(node.other);
          stack.push_back(node.next);
        } else if (node.kind == Kind::none || (node.kind == Kind::begin && at == 0) ||
                   (node.kind == Kind::end && at == name.size())) {
          stack.push_back(node.next);
        } else if (node.kind == Kind::chars || node.kind == Kind::match) {
          set.push_back(state);
        }
      }
    };
    ++round;
    reach(start_, 0, now);
    for (std::size_t i = 0; i < name.size() && !now.empty() && budget > 0; ++i) {
      next.clear();
      ++round;
      for (const std::size_t state : now)
        if (const Node& node = nodes_[state];
            node.kind == Kind::chars && node.chars.test(static_cast<unsigned char>(name[i])))
          reach(node.next, i + 1, next);
      now.swap(next);
    }
    if (budget == 0) return false;
    return std::any_of(now.begin(), now.end(),
                       [&](std::size_t state) { return nodes_[state].kind == Kind::match; });
  }

 private:
  using Chars = std::bitset<256>;
  enum class Kind { chars, split, none, begin, end, match };
  struct Node {
    Kind kind;
    Chars chars = {};
    std::size_t next = 0, other = 0;
  };
  /// A piece of the automaton, entered at `first`; it goes on from `last`, a node of kind none.
  struct Piece {
    std::size_t first, last;
  };
  /// An open group: the alternatives that are complete, and the one that grows.
  struct Group {
    std::vector<Piece> alternatives;
    Piece current;
  };
  static constexpr std::size_t most_bytes = 4096, most_nodes = 1 << 16;

  std::vector<Node> nodes_;
  std::size_t start_ = 0;

  std::size_t add(Node node) {
    nodes_.push_back(node);
    return nodes_.size() - 1;
  }
  Piece empty() {
    const std::size_t node = add({Kind::none});
    return {node, node};
  }
  Piece single(Kind kind, const Chars& chars = {}) {
    const std::size_t first = add({kind, chars});
    const std::size_t last = add({Kind::none});
    nodes_[first].next = last;
    return {first, last};
  }
  void append(Piece& to, Piece piece) {
    nodes_[to.last].next = piece.first;
    to.last = piece.last;
  }
  Piece optional(Piece piece) {
    const std::size_t split = add({Kind::split, {}, piece.first, piece.last});
    return {split, piece.last};
  }
  /// The piece once or more.
  Piece repeated(Piece piece) {
    const std::size_t last = add({Kind::none}), split = add({Kind::split, {}, piece.first, last});
    nodes_[piece.last].next = split;
    return {piece.first, last};
  }
  Piece close(Group group) {
    group.alternatives.push_back(group.current);
    Piece all = group.alternatives.front();
    for (std::size_t i = 1; i < group.alternatives.size(); ++i) {
      const Piece other = group.alternatives[i];
      const std::size_t last = add({Kind::none}), split = add({Kind::split, {}, all.first, other.first});
      nodes_[all.last].next = last;
      nodes_[other.last].next = last;
      all = {split, last};
    }
    return all;
  }

  static void add_range(Chars& chars, unsigned char from, unsigned char to) {
    for (std::size_t c = from; c <= to; ++c) chars.set(c);
  }
  /// The characters of `\c`; false for what is no class or escaped punctuation.
  static bool escaped(char c, Chars& chars) {
    Chars set;
    const char lower = static_cast<char>(c | 0x20);
    const bool letter = lower >= 'a' && lower <= 'z';
    if (!letter && (c < '0' || c > '9') && static_cast<unsigned char>(c) < 0x80) {
      chars.set(static_cast<unsigned char>(c));
      return true;
    }
    if (lower == 'd' || lower == 'w') add_range(set, '0', '9');
    if (lower == 'w') {
      add_range(set, 'a', 'z');
      add_range(set, 'A', 'Z');
      set.set('_');
    }
    if (lower == 's')
      for (const char space : {' ', '\t', '\n', '\r', '\f', '\v'}) set.set(static_cast<unsigned char>(space));
    if (set.none()) return false;
    chars |= letter && c == lower ? set : ~set;
    return true;
  }
  /// A class from behind its '[' on; moves `i` to its ']'.
  static bool character_class(std::string_view text, std::size_t& i, Chars& chars) {
    const bool negated = i < text.size() && text[i] == '^';
    if (negated) ++i;
    const std::size_t first = i;
    for (; i < text.size() && (text[i] != ']' || i == first); ++i) {
      if (text[i] == '[' || static_cast<unsigned char>(text[i]) >= 0x80) return false;
      if (text[i] == '\\') {
        if (++i == text.size() || !escaped(text[i], chars)) return false;
      } else if (i + 2 < text.size() && text[i + 1] == '-' && text[i + 2] != ']') {
        if (text[i + 2] == '\\' || text[i + 2] < text[i]) return false;
        add_range(chars, static_cast<unsigned char>(text[i]), static_cast<unsigned char>(text[i + 2]));
        i += 2;
      } else {
        chars.set(static_cast<unsigned char>(text[i]));
      }
    }
    if (negated) chars.flip();
    return i < text.size();
  }
  /// The m and n of "{m}", "{m,}", "{m,n}" from behind the '{' on; moves `i` to the '}'.
  static bool counts(std::string_view text, std::size_t& i, int& least, int& most) {
    constexpr int limit = 100;
    const auto number = [&](int& n) {
      const std::size_t first = i;
      for (n = 0; i < text.size() && text[i] >= '0' && text[i] <= '9' && n <= limit; ++i)
        n = 10 * n + (text[i] - '0');
      return i > first && n <= limit;
    };
    if (!number(least)) return false;
    most = least;
    if (i < text.size() && text[i] == ',') {
      ++i;
      if (i < text.size() && text[i] == '}')
        most = -1;
      else if (!number(most))
        return false;
    }
    return i < text.size() && text[i] == '}' && (most < 0 || most >= least);
  }

  bool compile(std::string_view text) {
    std::vector<Group> open{{{}, empty()}};
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (nodes_.size() > most_nodes) return false;
      Chars chars;
      Piece atom{};
      bool one_character = false;
      switch (text[i]) {
        case '(':
          if (text.substr(i, 3) == "(?:")
            i += 2;
          else if (text.substr(i, 2) == "(?")
            return false;
          open.push_back({{}, empty()});
          continue;
        case '|':
          open.back().alternatives.push_back(open.back().current);
          open.back().current = empty();
          continue;
        case ')':
          if (open.size() == 1) return false;
          atom = close(std::move(open.back()));
          open.pop_back();
          break;
        case '^':
        case '$':
          append(open.back().current, single(text[i] == '^' ? Kind::begin : Kind::end));
          continue;
        case '*':
        case '+':
        case '?':
        case '{':
        case '}':
          return false;
        case '.':
          chars.set();
          one_character = true;
          break;
        case '\\':
          if (++i == text.size() || !escaped(text[i], chars)) return false;
          one_character = true;
          break;
        case '[':
          if (!character_class(text, ++i, chars)) return false;
          one_character = true;
          break;
        default:
          chars.set(static_cast<unsigned char>(text[i]));
          one_character = true;
      }
      if (one_character) atom = single(Kind::chars, chars);
      const char quantity = i + 1 < text.size() ? text[i + 1] : '\0';
      if (quantity == '*' || quantity == '+' || quantity == '?') {
        ++i;
        if (quantity != '?') atom = repeated(atom);
        if (quantity != '+') atom = optional(atom);
      } else if (quantity == '{') {
        int least = 0, most = 0;
        if (!one_character || !counts(text, i += 2, least, most)) return false;
        atom = empty();
        for (int n = 0; n < least; ++n) append(atom, single(Kind::chars, chars));
        if (most < 0) append(atom, optional(repeated(single(Kind::chars, chars))));
        for (int n = least; n < most; ++n) append(atom, optional(single(Kind::chars, chars)));
      }
      // A lazy quantity matches the same names.
      if (quantity != '\0' && std::string_view("*+?{").find(quantity) != std::string_view::npos &&
          i + 1 < text.size() && text[i + 1] == '?')
        ++i;
      append(open.back().current, atom);
    }
    if (open.size() != 1) return false;
    Piece all = close(std::move(open.back()));
    append(all, single(Kind::match));
    start_ = all.first;
    return true;
  }
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
