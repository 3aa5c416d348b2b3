// SPDX-License-Identifier: MIT
#pragma once

#include "bound.hpp"

namespace compare {

struct Effort {
  double seconds = 1;         ///< of timed rounds per cell, where three rounds take no longer
  double most_seconds = 12;   ///< of three rounds: beyond it the slowest peers are left out
  int rounds = 31;            ///< at most
  double sample_s = 1e-3;     ///< calls are repeated to fill it
  double long_call_s = 0.02;  ///< a call that needs no other before it to warm caches
  double corner_s = 0.1;      ///< where ours takes longer, of each peer only the usually fastest variant runs
};

/// Checks every peer against ours and times all of them in turn: rounds in which each runs once, after an
/// untimed call, for the median of each over the rounds. Throws where a peer computes something else.
Result measure(const Cell& cell, const Limits& limits, const Effort& effort);

}  // namespace compare
