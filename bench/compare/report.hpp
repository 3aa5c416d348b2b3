// SPDX-License-Identifier: MIT
#pragma once

#include "cell.hpp"

namespace compare {

/// Every result as a line: microseconds, share of the bound, and how many times longer each peer takes.
std::string table(std::vector<Result> results);
/// Ours over each peer at the cells that count, beside what is wanted; as aligned text or as Markdown.
std::string summary(const Results& all, bool markdown);
/// How the cost grows with tokens, experts, rank, width and threads: one SVG of log-log charts.
std::string scaling(const std::vector<Result>& results);

}  // namespace compare
