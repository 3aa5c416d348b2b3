// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter.hpp>

namespace moxie::inline MOXIE_ABI {

/// A router by itself, on an input of its own (a sentence's mean so far, a task embedding): fills `routing`,
/// which may then be handed to an adapter with a GivenRouter. x [T, router.in()].
template <Router R>
void route(const R& router, std::span<const typename R::Scalar> theta, In<typename R::Scalar> x,
           Routing<typename R::Scalar>& routing, Workspace<typename R::Scalar>& workspace,
           const Run& run = {}) {
  detail::expect_run<typename R::Scalar>(run);
  detail::expect_size("theta", theta.size(), router.size());
  detail::expect_shape("x", x, -1, router.in() > 0 ? router.in() : Index{-1});
  constexpr Index tile = 64;
  router.prepare(routing, x.rows, run);
  workspace.reserve(run.threads, router.scratch(tile));
  for_blocks((x.rows + tile - 1) / tile, run.threads, [&](Index block, int thread) {
    const Index first = block * tile;
    router.route_rows({theta,
                       x.middle_rows(first, std::min(tile, x.rows - first)),
                       {},
                       {},
                       routing,
                       first,
                       workspace.of_thread(thread),
                       run});
  });
}

/// Backward of `route`: adds to dx and dtheta (empty: not wanted). `gradient` brings the gradient of the
/// routing, for example an adapter's `workspace.drouting` copied after its backward; it is used up.
template <Router R>
void route_backward(const R& router, std::span<const typename R::Scalar> theta, In<typename R::Scalar> x,
                    const Routing<typename R::Scalar>& routing, Routing<typename R::Scalar>& gradient,
                    Workspace<typename R::Scalar>& workspace, const Run& run, Out<typename R::Scalar> dx,
                    std::span<typename R::Scalar> dtheta) {
  using S = typename R::Scalar;
  detail::expect_run<typename R::Scalar>(run);
  detail::expect_size("theta", theta.size(), router.size());
  if (!dtheta.empty()) detail::expect_size("dtheta", dtheta.size(), router.size());
  detail::expect_routing("the routing", routing, routing.rows, router.experts(), router.rows_per_token());
  detail::expect_shape("x", x, routing.tokens(), router.in() > 0 ? router.in() : Index{-1});
  if (router.in() > 0) detail::expect_size("the routing's probs", routing.probs.size(), routing.size());
  if constexpr (requires { router.expect_routed(routing, run); }) router.expect_routed(routing, run);
  if (dx.data != nullptr) detail::expect_shape("dx", dx, x.rows, x.cols);
  detail::expect_apart("dx", dx, "x", x);
  const In<S> d = detail::as_view(dtheta);
  detail::expect_apart("dx", dx, "theta", detail::as_view(theta));
  detail::expect_apart("dtheta", d, "theta", detail::as_view(theta));
  detail::expect_apart("dtheta", d, "x", x);
  detail::expect_apart("dtheta", d, "dx", dx);
  if (gradient.rows != routing.rows || gradient.experts != routing.experts)
    fail(Code::shape_mismatch, "the routing's gradient is " +
                                   detail::shape_text(gradient.rows, gradient.experts) + ", wanted " +
                                   detail::shape_text(routing.rows, routing.experts));
  for (const Buffer<S>* part :
       {&gradient.logits, &gradient.probs, &gradient.gates, &gradient.noisy, &gradient.noise_scale})
    if (!part->empty()) detail::expect_size("a part of the gradient", part->size(), routing.size());
  for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates}) gradient.part(which);
  if (!routing.noisy.empty())
    for (const auto which : {&Routing<S>::noisy, &Routing<S>::noise_scale}) gradient.part(which);
  constexpr Index tile = 64;
  workspace.reserve(run.threads, router.scratch(tile));
  for_blocks((x.rows + tile - 1) / tile, run.threads, [&](Index block, int thread) {
    const Index first = block * tile, rows = std::min(tile, x.rows - first);
    router.backward_rows({theta,
                          x.middle_rows(first, rows),
                          {},
                          dx.empty() ? Out<S>() : dx.middle_rows(first, rows),
                          {},
                          {},
                          routing,
                          gradient,
                          first,
                          workspace.of_thread(thread),
                          run});
  });
  if (dtheta.empty()) return;
  for_blocks(router.blocks(), run.threads, [&](Index block, int thread) {
    router.backward_block({block, x, {}, {}, routing, gradient, dtheta, workspace.of_thread(thread), run});
  });
}

}  // namespace moxie::inline MOXIE_ABI
