// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

namespace moxie::inline MOXIE_ABI {

/// Whether the experts of a bank see the input through one dropout mask or each through its own.
enum class DropoutMask {
  shared,      ///< MoLA
  per_expert,  ///< LoRAMoE
};

namespace detail {

/// The mask of (seed, step, module, mask, token): feature i is kept where number i reaches the threshold.
inline std::uint64_t dropout_stream(std::uint64_t mask, Index token, const Run& run) {
  return random::key(random::Use::dropout, {run.seed, run.step, run.module, mask,
                                            static_cast<std::uint64_t>(run.first_token + token)});
}

/// to[t, i] = x[t, column + i] / (1 - p), or 0 where dropped.
template <Scalar S>
void drop(double p, std::uint64_t mask, In<S> x, Index column, Index width, Index first, const Run& run,
          S* to, Index ldto) {
  const std::uint32_t threshold = random::threshold(p);
  const S scale = static_cast<S>(1 / (1 - p));
  for (Index t = 0; t < x.rows; ++t) {
    const std::uint64_t stream = dropout_stream(mask, first + t, run);
    for (Index i = 0; i < width; ++i) {
      const bool kept = random::bits(stream, static_cast<std::uint64_t>(column + i)) >= threshold;
      to[t * ldto + i] = kept ? x.row(t)[column + i] * scale : S(0);
    }
  }
}

/// sum[t, i] += mask[t, i] g[t, i] / (1 - p).
template <Scalar S>
void drop_backward(double p, std::uint64_t mask, In<S> g, Index first, const Run& run, S* sum) {
  const std::uint32_t threshold = random::threshold(p);
  const S scale = static_cast<S>(1 / (1 - p));
  for (Index t = 0; t < g.rows; ++t) {
    const std::uint64_t stream = dropout_stream(mask, first + t, run);
    for (Index i = 0; i < g.cols; ++i) {
      const bool kept = random::bits(stream, static_cast<std::uint64_t>(i)) >= threshold;
      S& element = sum[t * g.cols + i];
      element = madd(kept ? scale : S(0), g.row(t)[i], element);
    }
  }
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
