// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

namespace bench {

/// What the machine gives this build and this many threads, measured by the 20th percentile of short runs.
/// Bandwidths in GB/s, all threads together; in-place read-modify-write counts both directions.
struct Limits {
  int threads = 1;
  double fma_gflops = 0;  ///< fused multiply-adds of the build's packets
  struct Level {
    std::string name;
    double bytes = 0;  ///< capacity for all threads; DRAM: 0
    double read = 0, update = 0;
  };
  std::vector<Level> levels;  ///< L1, L2, L3 where there is one, DRAM

  /// The level that holds `bytes`; never L1, which no call stays in.
  const Level& holding(double bytes) const;
  double l2_bytes() const;  ///< per thread
};

Limits measure_limits(int threads);
/// The peak of packets' fused multiply-adds alone, by some short runs.
double fma_gflops(int threads, int runs, int steps);
std::string text(const Limits& limits);

}  // namespace bench
