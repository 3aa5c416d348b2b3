// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/workspace.hpp>

/// What the calls of an adapter refuse, before they change anything.
namespace moxie::inline MOXIE_ABI::detail {

/// What the router reads.
template <Scalar S>
In<S> routed_by(In<S> x, In<S> router_x) {
  return router_x.data == nullptr ? x : router_x;
}

template <class Adapter, Scalar S>
void check_forward(const Adapter& adapter, In<S> x, Out<S> y, const Run& run, In<S> router_x) {
  expect_run<S>(run);
  expect_shape("x", x, -1, adapter.in());
  expect_shape("y", y, x.rows, adapter.out());
  const bool in_place = adapter.multiplicative && same_place(y, x);
  if (!in_place) expect_apart("y", y, "x", x);
  const In<S> seen = routed_by(x, router_x);
  expect_shape("router_x", seen, x.rows, adapter.router().in() > 0 ? adapter.router().in() : Index{-1});
  if (!in_place || router_x.data != nullptr) expect_apart("y", y, "router_x", router_x);
}

template <class Adapter, Scalar S>
void check_backward(const Adapter& adapter, std::span<const S> theta, In<S> x, In<S> dy,
                    const Cache<S>& cache, const Run& run, Out<S> dx, std::span<S> dtheta,
                    const Routing<S>& drouting, In<S> router_x, Out<S> drouter_x) {
  expect_run<S>(run);
  const auto refuse = [](const std::string& what) { fail(Code::state_error, "backward " + what); };
  if (cache.tokens < 0) refuse("before forward: the cache is empty");
  if (cache.in != adapter.in() || cache.out != adapter.out() || cache.run.module != run.module ||
      cache.h.size() != static_cast<std::size_t>(cache.tokens * adapter.experts().cached()) ||
      cache.routing.experts != adapter.experts().experts() ||
      cache.routing.rows_per_token != adapter.experts().rows_per_token())
    refuse("with another module's cache");
  if (cache.tokens != x.rows)
    refuse("of " + text(x.rows) + " tokens with the cache of " + text(cache.tokens));
  if (adapter.router().in() > 0 && x.rows > 0 && cache.router_x != (router_x.data != nullptr))
    refuse(cache.router_x ? "without the router_x that forward had"
                          : "with a router_x that forward did not have");
  if (cache.in_place) refuse("after a forward that wrote y over x: keep x when training");
  if (cache.run.training != run.training || cache.run.seed != run.seed || cache.run.step != run.step ||
      cache.run.first_token != run.first_token || cache.run.scale != run.scale)
    refuse("with another run than forward's (training, seed, step, first_token and scale must be the same)");
  const Routing<S>& routing = cache.routing;
  expect_routing("the cache's routing", routing, x.rows * adapter.experts().rows_per_token(),
                 adapter.experts().experts(), adapter.experts().rows_per_token());
  if (adapter.router().in() > 0) expect_size("the cache's probs", routing.probs.size(), routing.size());
  if constexpr (requires { adapter.router().expect_routed(routing, run); })
    adapter.router().expect_routed(routing, run);
  expect_size("theta", theta.size(), adapter.size());
  if (!dtheta.empty()) expect_size("dtheta", dtheta.size(), adapter.size());
  expect_shape("x", x, -1, adapter.in());
  expect_shape("dy", dy, x.rows, adapter.out());
  if (dx.data != nullptr) expect_shape("dx", dx, x.rows, adapter.in());
  const In<S> seen = routed_by(x, router_x);
  expect_shape("router_x", seen, x.rows, adapter.router().in() > 0 ? adapter.router().in() : Index{-1});
  if (drouter_x.data != nullptr) expect_shape("drouter_x", drouter_x, seen.rows, seen.cols);
  for (const Buffer<S>* buffer :
       {&drouting.logits, &drouting.probs, &drouting.gates, &drouting.noisy, &drouting.noise_scale})
    if (!buffer->empty()) expect_size("a part of drouting", buffer->size(), cache.routing.size());
  const In<S> weights = as_view(theta);
  expect_apart("dx", dx, "x", x, "dy", dy, "router_x", router_x, "drouter_x", drouter_x);
  expect_apart("drouter_x", drouter_x, "router_x", router_x, "x", x, "dy", dy);
  expect_apart("dtheta", as_view(dtheta), "theta", weights, "x", x, "dy", dy, "dx", dx, "router_x", router_x,
               "drouter_x", drouter_x);
  expect_apart("dx", dx, "theta", weights);
  expect_apart("drouter_x", drouter_x, "theta", weights);
}

}  // namespace moxie::inline MOXIE_ABI::detail
