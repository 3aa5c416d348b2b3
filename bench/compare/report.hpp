// SPDX-License-Identifier: MIT
#pragma once

#include "cell.hpp"

#include <cstdio>

namespace compare {

inline std::string format(const char* pattern, double value) {
  char text[48];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// Every result as a line: microseconds, share of the bound, and how many times longer each peer takes.
std::string table(std::vector<Result> results);
/// Ours over each peer at the cells that count, beside what is wanted; as aligned text or as Markdown.
std::string summary(const Results& all, bool markdown);
/// How the cost grows with tokens, experts, rank, width and threads: one SVG of log-log charts.
std::string scaling(const std::vector<Result>& results);

}  // namespace compare
