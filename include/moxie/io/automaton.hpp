// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

#include <bit>
#include <bitset>
#include <optional>

namespace moxie::inline MOXIE_ABI::io::detail {

/// Set in what stands for a byte that is no UTF-8.
inline constexpr std::uint32_t not_utf8 = 1u << 31;
/// The character of a UTF-8 text at `i`, which moves behind it.
inline std::uint32_t decode(std::string_view text, std::size_t& i) {
  const auto byte = [&](std::size_t at) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[at]));
  };
  const std::uint32_t lead = byte(i);
  // As many ones in front as bytes, but no one for a single byte, and a one for a byte inside.
  const auto ones = static_cast<std::size_t>(std::countl_one(static_cast<unsigned char>(text[i])));
  const std::size_t size = ones == 0 ? 1 : ones;
  std::uint32_t point = size == 1 ? lead : lead & (0x7fu >> ones);
  bool good = ones != 1 && size <= 4 && text.size() - i >= size;
  for (std::size_t n = 1; good && n < size; ++n) {
    good = (byte(i + n) & 0xc0) == 0x80;
    point = point << 6 | (byte(i + n) & 0x3f);
  }
  good = good && (size == 1 || point >= 0x80);
  i += good ? size : 1;
  return good ? point : not_utf8 | lead;
}

/// An automaton that says whether a text is in a regular language, in time of its states times the text's
/// length whatever it is (Thompson, 1968). It visits its states in the order in which a backtracking matcher
/// would come to them, and so finds the same first group (Pike, 1987).
class Automaton {
  /// On its way: where the first group began and ended.
  struct Thread {
    std::uint32_t state;
    std::size_t begin, end;
  };

 public:
  enum class Kind : std::uint32_t { set, point, split, none, begin, end, group_begin, group_end, match };
  enum class Outside { no, yes, unknown };
  /// Characters: which of ASCII, and whether all others.
  struct Chars {
    std::bitset<128> ascii = {};
    Outside outside = Outside::no;
  };
  struct State {
    Kind kind;
    std::uint32_t value = 0;            ///< of a set: its index; of a point: the character
    std::uint32_t next = 0, other = 0;  ///< of a split: what is tried first, and then
  };

  /// What all matches of one load share: the steps that are left to them, and memory, which is not cleared
  /// for each.
  struct Run {
    explicit Run(std::uint64_t steps) : budget(steps) {}

    std::uint64_t budget;  ///< every visited state costs 1; at 0 all answers are false
    /// A class like \w met a character outside of ASCII, which Python looks up in Unicode's tables.
    bool unknown = false;
    std::optional<std::string_view> group = {};  ///< what the first group of the last match took

   private:
    friend class Automaton;
    std::vector<std::uint64_t> seen = {};
    std::uint64_t round = 0;
    std::vector<Thread> now = {}, next = {}, stack = {};
  };

  std::vector<State> states;
  std::vector<Chars> sets;
  std::uint32_t start = 0;

  /// Whether the whole text, or else a beginning of it, is in the language.
  bool match(std::string_view text, Run& run, bool whole) const {
    if (run.seen.size() < states.size()) run.seen.resize(states.size(), 0);
    run.group.reset();
    run.now.clear();
    ++run.round;
    reach({start, nowhere, nowhere}, text, 0, run.now, run);
    bool found = false;
    for (std::size_t i = 0; !run.now.empty() && run.budget > 0;) {
      const bool over = i == text.size();
      std::size_t behind = i;
      const std::uint32_t point = over ? 0 : decode(text, behind);
      run.next.clear();
      ++run.round;
      for (const Thread& thread : run.now) {
        const State& state = states[thread.state];
        if (state.kind == Kind::match) {
          if (whole && !over) continue;
          found = true;
          run.group.reset();
          if (thread.end != nowhere) run.group = text.substr(thread.begin, thread.end - thread.begin);
          break;  // what comes behind is what a backtracking matcher would not try
        }
        if (!over && takes(state, point, run))
          reach({state.next, thread.begin, thread.end}, text, behind, run.next, run);
      }
      run.now.swap(run.next);
      i = behind;
    }
    return found && run.budget > 0;
  }

 private:
  static constexpr std::size_t nowhere = std::string_view::npos;

  bool takes(const State& state, std::uint32_t point, Run& run) const {
    if (state.kind == Kind::point) return state.value == point;
    const Chars& chars = sets[state.value];
    if (point < 0x80) return chars.ascii.test(point);
    run.unknown = run.unknown || chars.outside == Outside::unknown;
    return chars.outside == Outside::yes;
  }

  /// Puts the states that `from` leads to without a character behind those of `set`.
  void reach(const Thread& from, std::string_view text, std::size_t at, std::vector<Thread>& set,
             Run& run) const {
    run.stack.assign(1, from);
    while (!run.stack.empty() && run.budget > 0) {
      Thread thread = run.stack.back();
      run.stack.pop_back();
      if (run.seen[thread.state] == run.round) continue;
      run.seen[thread.state] = run.round;
      --run.budget;
      const State& state = states[thread.state];
      if (state.kind == Kind::set || state.kind == Kind::point || state.kind == Kind::match) {
        set.push_back(thread);
        continue;
      }
      if (state.kind == Kind::begin && at > 0) continue;
      // '$' is before a line feed that ends the text, too.
      if (state.kind == Kind::end && text.size() != at && text.substr(at) != "\n") continue;
      if (state.kind == Kind::group_begin) thread.begin = at;
      if (state.kind == Kind::group_end) thread.end = at;
      if (state.kind == Kind::split) run.stack.push_back({state.other, thread.begin, thread.end});
      run.stack.push_back({state.next, thread.begin, thread.end});
    }
  }
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
