// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

namespace moxie::inline MOXIE_ABI {

/// The routings a loss looks at, and their gradients: one call is one pool.
template <Scalar S>
using RoutingSpan = std::span<const Routing<S>* const>;
template <Scalar S>
using RoutingGradientSpan = std::span<Routing<S>* const>;

/// How a loss joins the routings of a pool.
enum class Pool {
  concatenate,  ///< their rows are one long list before any product: HF and Mixtral over layers, MoLA over
                ///< projections
  sum,          ///< a loss each, added
  mean,         ///< a loss each, averaged
};

namespace detail {

template <Scalar S>
void expect_routings(RoutingSpan<S> routings) {
  for (const Routing<S>* routing : routings)
    if (routing == nullptr) fail(Code::null_pointer, "a routing of the pool is null, wanted one");
}

/// Refuses routings without the parts that losses read, and masks and samples that do not fit.
template <Scalar S>
void expect_batch(const Routing<S>& routing, const Batch& batch, bool masked, bool sampled) {
  expect_routing("a routing of the pool", routing, routing.rows, routing.experts, routing.rows_per_token);
  expect_size("a routing's probs", routing.probs.size(), routing.size());
  expect_size("a routing's logits", routing.logits.size(), routing.size());
  const Index tokens = routing.tokens();
  if (masked && !batch.mask.empty()) expect_size("Batch::mask", batch.mask.size(), tokens);
  if (!sampled) return;
  const std::vector<Index>& at = batch.samples;
  if (at.size() < 2 || at.front() != 0 || at.back() != tokens || !std::is_sorted(at.begin(), at.end()))
    fail(Code::shape_mismatch,
         "Batch::samples does not cut the " + text(tokens) +
             " tokens: wanted ascending first tokens from 0 and the number of tokens at the end");
  expect_size("Batch::types", batch.types.size(), static_cast<Index>(at.size()) - 1);
}

/// Gradients come one per routing and with its shape.
template <Scalar S>
void expect_gradients(RoutingSpan<S> routings, RoutingGradientSpan<S> gradients) {
  expect_routings<S>(routings);
  expect_size("the routings' gradients", gradients.size(), static_cast<Index>(routings.size()));
  for (std::size_t i = 0; i < routings.size(); ++i) {
    if (gradients[i] == nullptr) fail(Code::null_pointer, "a routing's gradient is null, wanted one");
    if (gradients[i]->rows != routings[i]->rows || gradients[i]->experts != routings[i]->experts)
      fail(Code::shape_mismatch, "the routing's gradient is " +
                                     shape_text(gradients[i]->rows, gradients[i]->experts) + ", wanted " +
                                     shape_text(routings[i]->rows, routings[i]->experts) +
                                     "; use zero_gradient_of()");
    for (const auto part : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates, &Routing<S>::noisy,
                            &Routing<S>::noise_scale})
      if (!(gradients[i]->*part).empty())
        expect_size("a part of the routing's gradient", (gradients[i]->*part).size(), routings[i]->size());
  }
}

template <Scalar S>
bool counts(const Routing<S>& routing, const Batch& batch, bool masked, Index row) {
  return !masked || batch.mask.empty() ||
         batch.mask[static_cast<std::size_t>(row / routing.rows_per_token)] != 0;
}

/// f(group, number of its first routing) for every group of routings whose loss is computed at once.
template <Scalar S, class F>
void for_groups(RoutingSpan<S> routings, Pool pool, F&& f) {
  if (pool == Pool::concatenate) {
    f(routings, std::size_t{0});
  } else {
    for (std::size_t i = 0; i < routings.size(); ++i) f(routings.subspan(i, 1), i);
  }
}

/// The weight of one group's loss in the pool's.
template <Scalar S>
double share(RoutingSpan<S> routings, Pool pool) {
  return pool == Pool::mean ? 1 / static_cast<double>(std::max<std::size_t>(routings.size(), 1)) : 1.0;
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
