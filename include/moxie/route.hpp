// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/prepared.hpp>

namespace moxie::inline MOXIE_ABI {

/// A router by itself, on an input of its own (a sentence's mean so far, a task embedding): fills `routing`,
/// which may then be handed to an adapter with a GivenRouter. x [T, router.in()]. Throws ShapeMismatch.
template <Router R>
void route(const R& router, std::span<const typename R::Scalar> theta, In<typename R::Scalar> x,
           Routing<typename R::Scalar>& routing, Workspace<typename R::Scalar>& workspace,
           const Run& run = {}) {
  detail::expect_run<typename R::Scalar>(run);
  detail::expect_size("theta", theta.size(), router.size());
  detail::expect_shape("x", x, -1, router.in() > 0 ? router.in() : Index{-1});
  router.prepare(routing, x.rows, run);
  const auto views = detail::unpacked_views(router, theta.data());
  const Index tile = most_tile<typename R::Scalar>(x.cols, router.size());
  workspace.reserve(run.threads, router.scratch(tile));
  for_tiles(x.rows, tile, team(x.rows, router.size(), run.threads), [&](Index first, Index rows, int thread) {
    router.route_rows(ForwardTile<typename R::Scalar>{.theta = theta,
                                                      .weights = views.data(),
                                                      .x = x.middle_rows(first, rows),
                                                      .routing = routing,
                                                      .first = first,
                                                      .scratch = workspace.of_thread(thread),
                                                      .lists = nullptr,
                                                      .run = run});
  });
}

/// Backward of `route`: adds to dx [T, router.in()] and dtheta (empty: not wanted). `gradient` brings the
/// gradient of the routing, for example an adapter's `workspace.drouting` copied after its backward; it is
/// used up. Throws ShapeMismatch, Aliased.
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
  const In<S> weights = detail::as_view(theta);
  detail::expect_apart("dx", dx, "x", x, "theta", weights);
  detail::expect_apart("dtheta", detail::as_view(dtheta), "theta", weights, "x", x, "dx", dx);
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
  const auto views = detail::unpacked_views(router, theta.data());
  const Index tile = most_tile<typename R::Scalar>(x.cols, router.size());
  workspace.reserve(run.threads, router.scratch(tile));
  for_tiles(x.rows, tile, team(x.rows, router.size(), run.threads), [&](Index first, Index rows, int thread) {
    router.backward_rows({.theta = theta,
                          .weights = views.data(),
                          .x = x.middle_rows(first, rows),
                          .dx = dx.empty() ? Out<S>() : dx.middle_rows(first, rows),
                          .routing = routing,
                          .drouting = gradient,
                          .first = first,
                          .scratch = workspace.of_thread(thread),
                          .lists = nullptr,
                          .run = run});
  });
  if (dtheta.empty() || x.rows == 0) return;
  for_blocks(router.blocks(x.rows), team(x.rows, router.size(), run.threads), [&](Index block, int thread) {
    router.backward_block({.block = block,
                           .x = x,
                           .routing = routing,
                           .drouting = gradient,
                           .dtheta = dtheta,
                           .scratch = workspace.of_thread(thread),
                           .by_expert = nullptr,
                           .run = run});
  });
}

}  // namespace moxie::inline MOXIE_ABI
