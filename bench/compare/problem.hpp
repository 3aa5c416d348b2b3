// SPDX-License-Identifier: MIT
#pragma once

#include "cell.hpp"

#include <functional>

namespace compare {

/// The weights as formulas have them, experts stacked: A [E r, d], B [E r, d] (transposed), the vectors l [E,
/// d], the router [E, d]; those that an operation has not are empty.
struct Weights {
  Matrix a, b, l, router;
};

/// The data of a cell. Every contestant reads the same x, y0 and dy, and writes y and dx, so that all have
/// the same memory.
struct Problem {
  Cell cell;
  Index copies = 1;       ///< of the weights, that every contestant makes and cycles through
  Index touched = 1;      ///< experts that some token uses
  const float scale = 2;  ///< of LoRA's update
  Weights weights;
  Matrix x, y0, dy;  ///< [T, d]
  Matrix y, dx;      ///< [T, d]; y starts as y0 and dx as 0

  Problem(const Cell& cell, double l2_bytes);
  void reset() {
    y = y0;
    dx.setZero();
  }
};

/// One way to write a contestant. The first call after its making is checked.
struct Variant {
  std::string name;
  std::function<void(Index copy)> call;
  /// Where a call leaves its output elsewhere: writes y and, after forward+backward, dx. May be empty.
  std::function<void()> publish = {};
  /// The gradient of the weights in the order of `Weights`. Empty for forward.
  std::function<std::vector<float>()> gradient = {};
};

/// Somebody who computes a cell, at the fastest of the variants.
struct Contestant {
  std::string name;
  std::vector<Variant> variants;
  double pack_us = 0;
  std::function<double()> workspace_bytes = {};
};
using Contestants = std::vector<Contestant>;

/// Contestants for the cell; they refer to the problem. Those whose library is not there have none.
Contestants ours(Problem& problem);
Contestants eigen_peers(Problem& problem);
Contestants torch_peers(Problem& problem);
Contestants onednn_peers(Problem& problem);

/// Name and version of the library, or empty where it was not found.
std::string torch_version();
std::string onednn_version();
/// Sets the library's number of threads, once at the start.
void torch_threads(int threads);
/// Its product of a 512 x 768 and a 768 x 768 matrix, to be timed.
void torch_product();

}  // namespace compare
