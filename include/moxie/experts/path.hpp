// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

namespace moxie::inline MOXIE_ABI {

/// How a bank treats experts that a token did not choose. Both paths give the same bits for finite weights,
/// up to the sign of zero.
enum class ExpertPath {
  automatic,  ///< grouped where at most half of the experts are chosen
  dense,      ///< computes all experts; the others weigh exactly 0
  grouped,    ///< skips them
};

namespace detail {

template <Scalar S>
bool grouped(ExpertPath path, const Routing<S>& routing) {
  return path == ExpertPath::grouped ||
         (path == ExpertPath::automatic && 2 * routing.max_chosen <= routing.experts);
}

/// f(expert) for the chosen experts of a row, ascending.
template <Scalar S, class F>
void for_chosen(const Routing<S>& routing, Index row, F&& f) {
  const int* const chosen = routing.chosen_row(row);
  for (int j = 0; j < routing.count[static_cast<std::size_t>(row)]; ++j) f(static_cast<Index>(chosen[j]));
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
