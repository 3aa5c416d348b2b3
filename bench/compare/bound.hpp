// SPDX-License-Identifier: MIT
#pragma once

#include "../limits.hpp"
#include "problem.hpp"

namespace compare {

using bench::Limits;

Json to_json(const Limits& limits);

/// The least time of a cell by these limits, in microseconds: the larger of arithmetic and traffic.
///
/// forward: max(flops / peak, (X + params) / read + 2 |Y| / update). With d features, T tokens and n ranks
/// that a token uses (r; E r for soft; k r for top2) the flops are 2 T d (2 n + E) for LoRA kinds, E only
/// with a router; 2 T d 2 E + T d for mov and T d for ia3. params are the weights of the experts that some
/// token uses, and the router's. The bandwidths are those of the level that holds X, Y and params together.
///
/// forward+backward: to that come the products u = dy B^T, dx += dh A, dA += dh^T x and dB += c^T dy, 2 T d 4
/// n; dx += dz G and dG += dz^T x, 2 T d 2 g, where g is E, and k for top2, of which only the chosen logits
/// have a gradient; for mov dp, dL and those two, 2 T d 4 E + 3 T d; for ia3 4 T d. The traffic is the
/// forward's and (X + dY + params) / read + 2 (|dX| + |params|) / update, at the level that holds X, Y, dX,
/// dY, params and their gradient.
///
/// Cold weights are read at the level that holds all their copies. `peak` in GFLOP/s replaces the limits'
/// own: that of the cell's rounds, since a shared machine is not as fast in every minute.
double bound_us(const Problem& problem, const Limits& limits, double peak);

}  // namespace compare
