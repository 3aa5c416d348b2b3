// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/automaton.hpp>

#include <utility>

namespace moxie::inline MOXIE_ABI::io::detail {

/// A regular expression as the configs of PEFT use them on module names: literals, `.`, `\.`, `\d`, `\w`,
/// `\s`, classes, groups, `|`, `*`, `+`, `?`, `{m,n}` behind a single character, lazy or not, `^`, `$`. It
/// means what Python's `re` means by it; what it does not know (look-around, references, flags) it refuses.
class Pattern {
 public:
  using Run = Automaton::Run;

  /// Nothing where the text is no such expression, or one of more than 4,096 bytes or 65,536 states.
  static std::optional<Pattern> parse(std::string_view text) {
    Pattern pattern;
    if (text.size() > most_bytes || !pattern.compile(text)) return std::nullopt;
    return pattern;
  }

  /// Where in the text the first group that is no "(?:" opens, npos for none.
  std::size_t first_group() const { return first_group_; }
  /// The number of its states.
  std::size_t size() const { return automaton_.states.size(); }
  /// Whether the whole name matches, `re.fullmatch`.
  bool matches(std::string_view name, Run& run) const { return automaton_.match(name, run, true); }
  /// Whether the name or a beginning of it matches, `re.match`.
  bool matches_beginning(std::string_view name, Run& run) const { return automaton_.match(name, run, false); }

 private:
  using Kind = Automaton::Kind;
  using Chars = Automaton::Chars;
  using Outside = Automaton::Outside;
  using State = Automaton::State;
  /// A piece of the automaton, entered at `first`; it goes on from `last`, a state of kind none.
  struct Piece {
    std::uint32_t first, last;
  };
  /// An open group: the alternatives that are complete, and the one that grows.
  struct Group {
    std::vector<Piece> alternatives;
    Piece current;
    bool marked = false;  ///< the first that is no "(?:"
  };
  static constexpr std::size_t most_bytes = 4096, most_states = 1 << 16;

  Automaton automaton_;
  std::size_t first_group_ = std::string_view::npos;

  std::uint32_t add(State state) {
    automaton_.states.push_back(state);
    return static_cast<std::uint32_t>(automaton_.states.size() - 1);
  }
  Piece single(State state) {
    const std::uint32_t first = add(state), last = add({Kind::none});
    automaton_.states[first].next = last;
    return {first, last};
  }
  Piece empty() {
    const std::uint32_t state = add({Kind::none});
    return {state, state};
  }
  void append(Piece& to, Piece piece) {
    automaton_.states[to.last].next = piece.first;
    to.last = piece.last;
  }
  /// A split into the piece and `other`, the piece first or, lazy, last.
  std::uint32_t split(Piece piece, std::uint32_t other, bool lazy) {
    return lazy ? add({Kind::split, 0, other, piece.first}) : add({Kind::split, 0, piece.first, other});
  }
  Piece optional(Piece piece, bool lazy) { return {split(piece, piece.last, lazy), piece.last}; }
  /// The piece once or more.
  Piece repeated(Piece piece, bool lazy) {
    const std::uint32_t last = add({Kind::none}), again = split(piece, last, lazy);
    automaton_.states[piece.last].next = again;
    return {piece.first, last};
  }
  Piece close(Group group) {
    group.alternatives.push_back(group.current);
    Piece all = group.alternatives.back();
    for (std::size_t i = group.alternatives.size() - 1; i-- > 0;) {
      const Piece first = group.alternatives[i];
      automaton_.states[first.last].next = all.last;
      all = {split(first, all.first, false), all.last};
    }
    if (group.marked) {
      Piece marked = single({Kind::group_begin});
      append(marked, all);
      append(marked, single({Kind::group_end}));
      return marked;
    }
    return all;
  }

  /// One character or a class of them from `i` on, which moves to its last byte: ASCII as it is, `\` and
  /// punctuation, or \d, \w, \s and their opposites, for which `one` is nothing. False for all else.
  static bool character(std::string_view text, std::size_t& i, Chars& chars,
                        std::optional<unsigned char>& one) {
    const bool escaped = text[i] == '\\';
    if (escaped && ++i == text.size()) return false;
    const auto c = static_cast<unsigned char>(text[i]);
    const auto lower = static_cast<unsigned char>(c | 0x20);
    const bool letter = lower >= 'a' && lower <= 'z', digit = c >= '0' && c <= '9';
    one.reset();
    if (c >= 0x80) return false;
    if (!escaped || (!letter && !digit)) {
      one = c;
      chars.ascii.set(c);
      return true;
    }
    std::bitset<128> set;
    for (std::size_t other = 0; other < 128; ++other) {
      const std::size_t low = other | 0x20;
      const bool number = other >= '0' && other <= '9';
      if ((lower == 'd' && number) ||
          (lower == 'w' && (number || other == '_' || (low >= 'a' && low <= 'z'))) ||
          (lower == 's' &&
           (other == ' ' || (other >= 0x09 && other <= 0x0d) || (other >= 0x1c && other <= 0x1f))))
        set.set(other);
    }
    if (set.none()) return false;
    chars.ascii |= c == lower ? set : ~set;
    chars.outside = Outside::unknown;
    return true;
  }
  /// A class from behind its '[' on; moves `i` to its ']'.
  static bool character_class(std::string_view text, std::size_t& i, Chars& chars) {
    const bool negated = i < text.size() && text[i] == '^';
    if (negated) ++i;
    const std::size_t first = i;
    for (; i < text.size() && (text[i] != ']' || i == first); ++i) {
      std::optional<unsigned char> from, to;
      if (text[i] == '[' || !character(text, i, chars, from)) return false;
      if (i + 2 >= text.size() || text[i + 1] != '-' || text[i + 2] == ']') continue;
      if (text[i += 2] == '[' || !character(text, i, chars, to) || !from || !to || *to < *from) return false;
      for (std::size_t c = *from; c <= *to; ++c) chars.ascii.set(c);
    }
    if (negated) {
      chars.ascii.flip();
      if (chars.outside == Outside::no) chars.outside = Outside::yes;
    }
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
      if (automaton_.states.size() > most_states) return false;
      std::optional<Piece> atom;
      State state{Kind::set, static_cast<std::uint32_t>(automaton_.sets.size())};
      Chars chars;
      std::optional<unsigned char> one;
      switch (text[i]) {
        case '(': {
          const bool plain = text.substr(i, 3) == "(?:";
          if (plain)
            i += 2;
          else if (text.substr(i, 2) == "(?")
            return false;
          const bool marked = !plain && first_group_ == std::string_view::npos;
          if (marked) first_group_ = i;
          open.push_back({{}, empty(), marked});
          continue;
        }
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
          append(open.back().current, single({text[i] == '^' ? Kind::begin : Kind::end}));
          continue;
        case '*':
        case '+':
        case '?':
        case '{':
        case '}':
          return false;
        case '.':
          chars.ascii.set().reset('\n');
          chars.outside = Outside::yes;
          break;
        case '[':
          if (!character_class(text, ++i, chars)) return false;
          break;
        default:
          if (static_cast<unsigned char>(text[i]) >= 0x80) {
            state = {Kind::point, decode(text, i)};
            --i;
            if (state.value >= not_utf8) return false;
          } else if (!character(text, i, chars, one)) {
            return false;
          }
          if (one) state = {Kind::point, *one};
      }
      const bool one_character = !atom;
      if (one_character && state.kind == Kind::set) automaton_.sets.push_back(chars);
      const char quantity = i + 1 < text.size() ? text[i + 1] : 'x';
      int least = quantity == '+', most = quantity == '?' ? 1 : -1;
      const bool counted = quantity == '{', simple = quantity == '*' || quantity == '+' || quantity == '?';
      if (simple) ++i;
      if (counted && (!one_character || !counts(text, i += 2, least, most))) return false;
      const bool lazy = (simple || counted) && i + 1 < text.size() && text[i + 1] == '?';
      if (lazy) ++i;
      if (counted) {
        atom = empty();
        for (int n = 0; n < least; ++n) append(*atom, single(state));
        if (most < 0) append(*atom, optional(repeated(single(state), lazy), lazy));
        for (int n = least; n < most; ++n) append(*atom, optional(single(state), lazy));
      } else {
        if (one_character) atom = single(state);
        if (simple && most < 0) atom = repeated(*atom, lazy);
        if (simple && least == 0) atom = optional(*atom, lazy);
      }
      append(open.back().current, *atom);
    }
    if (open.size() != 1) return false;
    Piece all = close(std::move(open.back()));
    append(all, single({Kind::match}));
    automaton_.start = all.first;
    return true;
  }
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
