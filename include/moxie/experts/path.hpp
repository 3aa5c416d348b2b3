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

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
