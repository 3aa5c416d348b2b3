// SPDX-License-Identifier: MIT
#pragma once

// What a training example prints: a progress bar, and a table at the end.

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace examples {

/// A number with a fixed number of decimals, the same in every locale; `sign`: with a plus where above 0.
inline std::string fixed(double value, int decimals, bool sign = false) {
  char buffer[400];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed, decimals).ptr;
  return (sign && value > 0 ? "+" : "") + std::string(buffer, end);
}

/// In characters of UTF-8.
inline std::size_t length(std::string_view text) {
  const auto begins = [](char c) { return (c & 0xc0) != 0x80; };
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins));
}

/// Text with blanks before (or after) it up to a width in characters.
inline std::string padded(const std::string& text, std::size_t width, bool left = false) {
  const std::string blanks(width - std::min(width, length(text)), ' ');
  return left ? text + blanks : blanks + text;
}

/// On a terminal one line, drawn over again; elsewhere a line for every tenth of the way. Honours NO_COLOR.
class Progress {
 public:
  /// `done`: steps that were taken before.
  explicit Progress(long steps, std::FILE* to = stderr, long done = 0)
      : steps_(std::max(1L, steps)), done_(done), to_(to), terminal_(::isatty(::fileno(to)) == 1) {
    const char* no_color = std::getenv("NO_COLOR");
    color_ = terminal_ && (no_color == nullptr || *no_color == '\0');
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { finish(); }

  /// After `step` of the steps are done: the loss of the last one, the tokens of all that this call took, and
  /// the seconds that these took; below 0: all since the start.
  void update(long step, double loss, double tokens, double spent = -1) {
    const double now = seconds(), rate = tokens / std::max(spent < 0 ? now : spent, 1e-9);
    const bool last = step >= steps_;
    if (terminal_ ? now < next_ && !last
                  : step * 10 / steps_ == (step - 1) * 10 / steps_ && step != done_ + 1 && !last)
      return;
    next_ = now + 0.1;
    const std::string all = std::to_string(steps_);
    std::string line =
        padded(std::to_string(step), all.size()) + "/" + all + "  loss " + fixed(loss, 3) + "  " +
        (rate < 9999.5 ? fixed(rate, 0) : fixed(rate / 1000, 1) + "k") + " tokens/s  " +
        (last ? clock(now) + " in all" : clock(now / double(step - done_) * double(steps_ - step)) + " left");
    if (terminal_) {
      const auto done = static_cast<std::size_t>(24 * std::min(step, steps_) / steps_);
      line = padded(line, drawn_, true);  // covers what was there
      drawn_ = line.size();
      line = std::string("\r") + (color_ ? "\x1b[32m" : "") + std::string(done, '=') +
             (color_ ? "\x1b[90m" : "") + std::string(24 - done, '-') + (color_ ? "\x1b[0m" : "") + " " +
             line;
    }
    std::fprintf(to_, terminal_ ? "%s" : "%s\n", line.c_str());
    std::fflush(to_);
  }

  /// Ends the line, so that other text may follow.
  void finish() {
    if (drawn_ > 0) std::fputc('\n', to_);
    drawn_ = 0;
  }

 private:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  static std::string clock(double seconds) {
    const long s = static_cast<long>(seconds + 0.5), rest = s % 60;
    return std::to_string(s / 60) + (rest < 10 ? ":0" : ":") + std::to_string(rest);
  }

  long steps_, done_;
  std::FILE* to_;
  bool terminal_, color_ = false;
  std::size_t drawn_ = 0;
  double next_ = 0;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// A text table: the first column stands left, the others right. An empty row is a rule.
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows = {};

  std::string text() const {
    std::vector<std::size_t> widths(header.size());
    std::size_t total = 2 * (std::max<std::size_t>(header.size(), 1) - 1);
    for (std::size_t c = 0; c < widths.size(); ++c) {
      widths[c] = length(header[c]);
      for (const auto& row : rows) widths[c] = std::max(widths[c], c < row.size() ? length(row[c]) : 0);
      total += widths[c];
    }
    const auto line = [&](const std::vector<std::string>& row) {
      std::string s = row.empty() ? std::string(total, '-') : "";
      for (std::size_t c = 0; c < row.size() && c < widths.size(); ++c)
        s += c == 0 ? padded(row[c], widths[c], true) : "  " + padded(row[c], widths[c]);
      return s + "\n";
    };
    std::string out = line(header) + line({});
    for (const auto& row : rows) out += line(row);
    return out;
  }
};

}  // namespace examples
