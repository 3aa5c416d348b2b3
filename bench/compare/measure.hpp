// SPDX-License-Identifier: MIT
#pragma once

#include "limits.hpp"

namespace compare {

struct Effort {
  double seconds = 1;      ///< of timed rounds per cell, where three rounds take no longer
  int rounds = 31;         ///< at most
  double too_slow_s = 4;   ///< a peer whose call takes longer is left out
  double sample_s = 1e-3;  ///< calls are repeated to fill it
};

/// Checks every peer against ours and times all of them in turn: rounds in which each runs once, after an
/// untimed call, for the median of each over the rounds. Throws where a peer computes something else.
Result measure(const Cell& cell, const Limits& limits, const Effort& effort);

}  // namespace compare
